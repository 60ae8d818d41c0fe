"""The op embedding: its gradient against float64, and its promises as a custom op."""

import pytest
import torch
from torch.library import opcheck

from tunecore.ops import _native, embedding
from tunecore.ops.embedding import sum_rows

native = pytest.mark.skipif(not _native.info().available, reason="this installation has no compiled core")


def gradient(function, ids, weight, dout):
    leaf = weight.detach().clone().requires_grad_()
    if leaf.dtype == torch.bfloat16:
        leaf.grad_dtype = torch.float32
    out = function(ids, leaf)
    out.backward(dout.to(out.dtype))
    return out.detach(), leaf.grad


@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (4, 7), (2000,)])
def test_the_gradient_is_summed_in_float32(shape, dtype, padding):
    torch.manual_seed(0)
    ids, weight = torch.randint(0, 5, shape), torch.randn(5, 70).to(dtype)
    dout = (1 + torch.randn(*shape, 70)).to(dtype)
    out, got = gradient(lambda i, w: embedding(i, w, padding_idx=padding), ids, weight, dout)
    plain = torch.nn.functional.embedding
    right, wanted = gradient(lambda i, w: plain(i, w, padding), ids, weight.double(), dout)
    assert torch.equal(out, right.to(dtype))
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-4)
    if padding is not None:
        assert not got[padding].any()


@native
def test_the_same_bits_for_any_number_of_threads(each_thread_count):
    ids, weight, dout = torch.randint(0, 3, (999,)), torch.randn(3, 200), torch.randn(999, 200)
    first, *others = [gradient(embedding, ids, weight, dout)[1] for _ in each_thread_count()]
    assert all(torch.equal(first, other) for other in others)


@native
@pytest.mark.parametrize("padding", [None, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_gradient_has_the_rows_that_were_looked_up(dtype, padding):
    ids, weight, dout = torch.tensor([[3, 1, 9], [1, 3, 0]]), torch.randn(10, 70).to(dtype), torch.randn(2, 3, 70)
    out, wanted = gradient(lambda i, w: embedding(i, w, padding_idx=padding), ids, weight, dout)
    same, got = gradient(lambda i, w: embedding(i, w, padding_idx=padding, sparse=True), ids, weight, dout)
    assert torch.equal(out, same) and got.layout == torch.sparse_coo
    assert got._indices().tolist() == [[0, 1, 3, 9]] and torch.equal(got.to_dense(), wanted)
    as_many = gradient(lambda i, w: embedding(i, w, sparse=True), torch.arange(10), weight, torch.ones(10, 70))[1]
    assert as_many.layout == torch.strided, "nothing would be gained"


@native
def test_rows_that_came_more_than_once_are_summed():
    rows, values = torch.tensor([[5, 2, 5, 0]]), torch.randn(4, 6)
    for dtype in (torch.float32, torch.float64):
        given = torch.sparse_coo_tensor(rows, values.to(dtype), (7, 6), check_invariants=True)
        summed = sum_rows(given)
        assert summed.is_coalesced() and summed.indices().tolist() == [[0, 2, 5]]
        assert torch.equal(summed.to_dense(), given.to_dense()) and sum_rows(summed) is summed
    ascending = torch.sparse_coo_tensor(torch.tensor([[1, 4]]), values[:2], (7, 6), check_invariants=True)
    assert not ascending.is_coalesced() and torch.equal(sum_rows(ascending).values(), values[:2])


def test_an_id_outside_the_table_is_refused():
    with pytest.raises(IndexError, match="out of range"):
        embedding(torch.tensor([0, 5]), torch.ones(5, 2))


def test_opcheck_gradcheck_and_one_graph():
    ids, weight = torch.tensor([[0, 2], [2, 1]]), torch.randn(4, 3, requires_grad=True)
    if _native.info().available:
        assert set(opcheck(torch.ops.tunecore.embedding.default, (ids, weight, 1, False)).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda w: embedding(ids, w, padding_idx=3), weight.double())
    compiled = torch.compile(lambda w: embedding(ids, w), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight), embedding(ids, weight))
