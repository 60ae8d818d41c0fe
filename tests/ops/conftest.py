"""Every instruction set of this machine in turn, and several numbers of threads."""

import pytest
import torch

from tunecore.ops import _native

ORDER = ("default", "avx2", "avx512", "avx512_bf16")


@pytest.fixture
def each_variant():
    """A function whose generator sets one variant after the other and yields its name."""
    core = _native.load()

    def variants():
        for variant in ORDER[: ORDER.index(core.detected_capability()) + 1]:
            core.set_capability(variant)
            yield variant

    yield variants
    if core is not None:
        core.set_capability("")


@pytest.fixture
def each_thread_count():
    """A function whose generator sets torch's number of threads to 1, 2 and 7."""
    before = torch.get_num_threads()

    def counts():
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            yield threads

    yield counts
    torch.set_num_threads(before)
