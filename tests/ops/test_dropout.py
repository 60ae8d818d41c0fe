"""The op dropout: kernel against reference, its statistics, and its promises as a custom op."""

import pytest
import torch
from torch.library import opcheck

from tunecore.errors import ConfigError, NativeError
from tunecore.ops import _native, dropout
from tunecore.ops.reference import dropout_reference

KEY = torch.tensor(-(2**60) + 77)


@pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5, 7), (129, 65), (40, 1000)])
def test_every_variant_equals_the_reference(shape, dtype, each_variant):
    x = torch.randn(shape).to(dtype)
    wanted = dropout_reference(x, 0.3, KEY, 5)
    for variant in each_variant():
        assert torch.equal(dropout(x, 0.3, KEY, 5), wanted), variant


def test_elements_are_known_by_their_index_in_row_major_order():
    x = torch.randn(31, 18)
    flat = dropout(x.reshape(-1), 0.4, KEY, 1)
    assert torch.equal(dropout(x, 0.4, KEY, 1).reshape(-1), flat)
    assert torch.equal(dropout(x.t().contiguous().t(), 0.4, KEY, 1).reshape(-1), flat)


def test_sites_and_keys_draw_independently_and_keep_what_they_say():
    x = torch.ones(200_000)
    masks = [dropout(x, 0.1, key, site) != 0 for key, site in ((KEY, 0), (KEY, 1), (KEY + 1, 0))]
    for mask in masks:
        assert mask.double().mean().item() == pytest.approx(0.9, abs=4 * (0.09 / x.numel()) ** 0.5)
    for other in masks[1:]:
        both = (masks[0] & other).double().mean().item()
        assert both == pytest.approx(0.81, abs=0.005)
    assert dropout(x, 0.1, KEY, 0).mean().item() == pytest.approx(1.0, abs=0.005)


def test_the_backward_pass_uses_the_same_mask():
    x = torch.randn(50, 30, requires_grad=True)
    out = dropout(x, 0.5, KEY, 2)
    out.backward(torch.ones_like(out))
    assert torch.equal(x.grad != 0, out.detach() != 0)
    assert torch.autograd.gradcheck(lambda v: dropout(v, 0.5, KEY, 2), torch.randn(37).double().requires_grad_())


def test_the_same_bits_for_any_number_of_threads(each_thread_count):
    x = torch.randn(100_003)
    results = [dropout(x, 0.2, KEY, 0) for _ in each_thread_count()]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck_and_one_graph():
    x = torch.randn(9, 4, requires_grad=True)
    assert set(opcheck(torch.ops.tunecore.dropout.default, (x, 0.3, KEY, 1)).values()) == {"SUCCESS"}
    compiled = torch.compile(lambda v: dropout(v, 0.3, KEY, 1), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), dropout(x, 0.3, KEY, 1))


def test_no_output_aliases_its_input():
    x = torch.randn(8)
    assert dropout(x, 0.0, KEY, 0).data_ptr() != x.data_ptr()


def test_bad_arguments_are_named():
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"is not in \[0, 1\)"):
            dropout(torch.ones(3), p, KEY, 0)
    with pytest.raises(NativeError, match="argument 'key'"):
        dropout(torch.ones(3), 0.1, torch.ones(2), 0)
