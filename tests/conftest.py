"""Fixtures every test may use, and the options of the test run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
THREADS = "TUNECORE_TEST_THREADS"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device the tests run on: cpu (default) or cuda; tests marked gpu need cuda"
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with contextlib.suppress(ModuleNotFoundError):  # the tests that run on a GPU do without it
        import hypothesis

        # A slow machine is no failure, and pytest-timeout ends what hangs.
        hypothesis.settings.register_profile("tunecore", deadline=None)
        hypothesis.settings.load_profile("tunecore")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # By the marker: item.keywords has the names of folders too, and a checkout may lie in one called gpu.
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in marked:
        item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads() -> None:
    """One torch thread unless the environment says otherwise: small tensors, and tests that may run side by side."""
    import torch

    torch.set_num_threads(int(os.environ.get(THREADS, "1")))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of ``--device``; skips where it is not there."""
    import torch

    name = str(request.config.getoption("--device"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("--device cuda, but torch sees no CUDA device")
    return name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TUNECORE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set TUNECORE_SHARED_DATA to its folder)")
    return folder


@pytest.fixture
def fresh_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """``monkeypatch`` with every TUNECORE_ variable that changes behaviour taken away."""
    for name in list(os.environ):
        if name.startswith("TUNECORE_") and name not in (THREADS, "TUNECORE_SHARED_DATA"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def each_thread_count() -> Iterator[Callable[[], Iterator[int]]]:
    """A function whose generator sets torch's number of threads to 1, 2 and 7."""
    import torch

    before = torch.get_num_threads()

    def counts() -> Iterator[int]:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            yield threads

    yield counts
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def assert_same_gradients() -> Callable[..., None]:
    """``check(one, other)``: gradients by parameter name are equal within the rounding of float32 sums.

    One that is nothing but rounding (of a key's bias) is held against the size of all together.
    """

    def check(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-3) -> None:
        assert one.keys() == other.keys()
        size = sum(float(g.square().sum()) for g in one.values()) ** 0.5
        assert size > 0
        for name, gradient in one.items():
            apart = float((gradient - other[name]).norm())
            assert apart <= tolerance * max(float(gradient.norm()), 1e-2 * size), f"{name}: {apart}"

    return check


@pytest.fixture(scope="session")
def fork_server() -> Callable[[Path, str], Any]:
    """``fork_server(folder, module)``: the context of processes forked from a server that has imported ``module`` of
    ``folder``, and torch with it, once, so that starting one costs little.
    """

    def context_of(folder: Path, module: str) -> Any:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # The server imports its modules before it learns our sys.path.
        paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([module])
        return context

    return context_of


@pytest.fixture
def start_process(processes: Any) -> Iterator[Callable[..., Any]]:
    """``start_process(target, *args)`` from the folder's own ``processes``; what still runs at the end is killed."""
    started = []

    def start(target: Callable[..., Any], *args: Any) -> Any:
        process = processes.Process(target=target, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()
