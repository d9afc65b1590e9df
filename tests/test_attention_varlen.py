"""lanewise.attention_varlen: every sequence is attention by itself, whatever lies beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_calls import Call, check_forward, check_gradients, extras
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_no_worse_than, assert_same_bits, assert_threads_agree
from strategies import DTYPES, LAYOUTS, dtypes, randn, values
from torch import Tensor

import lanewise

Lengths = list[tuple[int, int]]  # of each sequence: queries, keys


def starts(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]).to(dtype)


def packing(lengths: Lengths) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, options) of a call that say how the sequences are packed."""
    queries, keys = [q for q, _ in lengths], [k for _, k in lengths]
    return (
        {"cu_seqlens_q": starts(queries), "cu_seqlens_k": starts(keys, torch.int32)},
        {"max_seqlen_q": max(queries, default=0), "max_seqlen_k": max(keys, default=0)},
    )


DIMS = (1, 3, 8, 17, 40, 64)


@st.composite
def packed_calls(
    draw: st.DrawFn,
    dtype: torch.dtype,
    extents: tuple[int, ...],
    dims: tuple[int, ...] = DIMS,
    also: tuple[tuple[int, int], ...] = (),
) -> Call:
    """Up to four sequences of any `extents`, and the lengths in `also`."""
    one = st.tuples(st.sampled_from(extents), st.sampled_from(extents))
    lengths = draw(st.permutations([*draw(st.lists(one, max_size=4)), *also]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 3, 5, 8)))
    heads, dim = kv_heads * group, draw(st.sampled_from(dims))
    value_dim = draw(st.sampled_from((dim, 24)))
    tensors, options = packing(lengths)
    for name in ("max_seqlen_q", "max_seqlen_k"):
        options[name] += draw(st.sampled_from((0, 3)))
    if draw(st.booleans()):  # any stride will do
        tensors["cu_seqlens_q"] = tensors["cu_seqlens_q"].repeat_interleave(2)[::2]
    scores = (len(lengths), heads, options["max_seqlen_q"], options["max_seqlen_k"])
    extra = draw(extras(scores, dtype))
    total_queries, total_keys = (int(tensors[f"cu_seqlens_{x}"][-1]) for x in "qk")
    operands = {
        "q": draw(values((total_queries, heads, dim), dtype)),
        "k": draw(values((total_keys, kv_heads, dim), dtype)),
        "v": draw(values((total_keys, kv_heads, value_dim), dtype)),
    }
    return Call(
        {**operands, **tensors, **extra.tensors}, {**options, **extra.options}, "attention_varlen"
    )


EXTENTS = (0, 1, 2, 5, 16, 17, 33, 65, 130)


@given(data=st.data(), dtype=dtypes)
def test_forward(data: st.DataObject, dtype: torch.dtype) -> None:
    check_forward(data.draw(packed_calls(dtype, EXTENTS)))


@given(data=st.data(), dtype=dtypes)
def test_gradients(data: st.DataObject, dtype: torch.dtype) -> None:
    """One sequence is long enough, and no window so narrow that every row has a single key: then
    plain torch's gradient is 0 without rounding, which no other order of sums achieves. Queries are
    taken with either sign, for one draw's largest error is luck."""
    call = data.draw(packed_calls(dtype, (0, 1, 7, 33, 70), dims=(8, 15, 40), also=((33, 64),)))
    if call.options["window_left"] == 0:
        call.options["window_left"] = 5
    q = call.tensors["q"]
    assert q is not None
    check_gradients(call, replace(call, tensors={**call.tensors, "q": -q}))


def sequences(dtype: torch.dtype, lengths: Lengths, layout: str = "contiguous") -> Call:
    """Six heads over two, D 40 and Dv 24."""
    tensors, options = packing(lengths)
    total_queries, total_keys = sum(q for q, _ in lengths), sum(k for _, k in lengths)
    q = randn((total_queries, 6, 40), dtype, 1, layout)
    k = randn((total_keys, 2, 40), dtype, 2, layout)
    v = randn((total_keys, 2, 24), dtype, 3, layout)
    return Call({"q": q, "k": k, "v": v, **tensors}, options, "attention_varlen")


RAGGED = [(5, 9), (0, 3), (1, 300), (33, 33), (4, 0), (0, 0), (130, 40), (1, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_each_sequence_is_attention_by_itself(dtype: torch.dtype, causal: bool) -> None:
    call = sequences(dtype, RAGGED)
    call.options.update(causal=causal, window_left=50)
    call.tensors["sinks"] = randn((6,), dtype, 4)
    call.tensors["alibi_slopes"] = randn((len(RAGGED), 6), seed=5).abs()
    call.tensors["bias"] = randn((len(RAGGED), 1, 130, 300), dtype, 6)
    out, lse = call.ours()
    exact_out, exact_lse = call.solved()
    alone_out, alone_lse = call.solved(lanewise.attention)
    assert_no_worse_than(out, exact_out, alone_out)
    assert_no_worse_than(lse, exact_lse, alone_lse)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_bits_of_contiguous_inputs(layout: str, dtype: torch.dtype) -> None:
    call = sequences(dtype, RAGGED, layout)
    dense = Call(
        {name: t.contiguous() for name, t in call.tensors.items() if t is not None},
        call.options,
        call.op,
    )
    for a, b in zip(call.ours(), dense.ours(), strict=True):
        assert_same_bits(a, b)


def test_the_dtype_and_stride_of_the_starts_do_not_matter() -> None:
    call = sequences(torch.float32, RAGGED)
    plain = call.ours()
    for convert in (
        Tensor.int,
        Tensor.long,
        lambda t: t.repeat_interleave(3)[::3],
        lambda t: t.int().repeat_interleave(2)[::2],
    ):
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            t = call.tensors[name]
            assert t is not None
            for a, b in zip(
                call(lanewise.attention_varlen, **{name: convert(t)}), plain, strict=True
            ):
                assert_same_bits(a, b)


def test_a_loose_bound_of_the_lengths_changes_nothing() -> None:
    call = sequences(torch.float32, RAGGED)
    call.options.update(causal=True)
    tight = call.ours()
    call.options.update(max_seqlen_q=2**40, max_seqlen_k=2**62)
    for a, b in zip(call.ours(), tight, strict=True):
        assert_same_bits(a, b)


def test_queries_without_keys_attend_nothing() -> None:
    call = sequences(torch.float32, [(3, 0), (2, 4), (5, 0)])
    call.tensors["sinks"] = randn((6,), seed=4)
    out, lse = call.ours()
    dead = torch.tensor([True] * 3 + [False] * 2 + [True] * 5)
    assert (out[dead] == 0).all()
    assert (lse[:, dead] == -math.inf).all()
    assert lse[:, ~dead].isfinite().all()


def test_sequences_do_not_see_each_other() -> None:
    call = sequences(torch.float32, [(20, 30), (20, 30), (20, 30)])
    clean = call.ours()
    for name in ("q", "k", "v"):
        t = call.tensors[name]
        assert t is not None
        third = t.shape[0] // 3
        t[:third], t[2 * third :] = math.nan, math.inf
    for a, b in zip(call.ours(), clean, strict=True):
        tokens = (slice(20, 40),) if a.dim() == 3 else (slice(None), slice(20, 40))
        assert_same_bits(a[tokens].contiguous(), b[tokens].contiguous())


def test_no_sequences() -> None:
    out, lse = sequences(torch.float32, []).ours()
    assert out.shape == (0, 6, 24)
    assert lse.shape == (6, 0)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_agree(dtype: torch.dtype) -> None:
    call = sequences(dtype, [(1, 900), (130, 200), (0, 5), (70, 70)])
    inputs = [call.tensors[n].requires_grad_() for n in "qkv"]  # type: ignore[union-attr]
    bias = randn((1, 1, 130, 1), dtype, 9).requires_grad_()
    call.tensors["bias"] = bias
    call.options.update(causal=True)

    def run() -> tuple[Tensor, ...]:
        out, lse = call.ours()
        ones = torch.ones_like(out), torch.ones_like(lse)
        return out, lse, *torch.autograd.grad((out, lse), [*inputs, bias], ones)

    assert_threads_agree(run)


BIAS_SHAPES = [(3, 6, 12, 21), (1, 6, 12, 1), (3, 1, 1, 21), (12, 21), (6, 1, 1), (1,), ()]


@pytest.mark.parametrize("size", BIAS_SHAPES, ids=str)
def test_gradient_of_bias_over_every_broadcast(size: tuple[int, ...]) -> None:
    """Its extents are the bounds of the lengths, which no sequence need reach."""
    call = sequences(torch.float32, [(9, 17), (4, 20), (1, 6)])
    call.options.update(max_seqlen_q=12, max_seqlen_k=21, causal=True)
    call.tensors["bias"] = randn(size, seed=8)
    check_gradients(call)


def test_empty_gradients() -> None:
    call = sequences(torch.float32, [(0, 3), (4, 0)])
    leaves = [call.tensors[n].requires_grad_() for n in "qkv"]  # type: ignore[union-attr]
    for grad, leaf in zip(torch.autograd.grad(call.ours()[0].sum(), leaves), leaves, strict=True):
        assert (grad == 0).all()
        assert grad.shape == leaf.shape


def test_the_bounds_may_be_symbols() -> None:
    """Lengths that follow from a size stay dynamic in one compiled graph, gradients included."""
    torch._dynamo.reset()

    def halves(x: Tensor, cu_seqlens: Tensor) -> Tensor:
        longest = x.shape[0] // 2 + 1
        return lanewise.attention_varlen(x, x, x, cu_seqlens, cu_seqlens, longest, longest)[0]

    compiled = torch.compile(halves, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (10, 14, 31):
        cu_seqlens = torch.tensor([0, tokens // 2, tokens])
        ours, eager = (randn((tokens, 4, 8)).requires_grad_() for _ in range(2))
        compiled(ours, cu_seqlens).square().sum().backward()
        halves(eager, cu_seqlens).square().sum().backward()
        assert ours.grad is not None
        assert eager.grad is not None
        assert_same_bits(ours.grad, eager.grad)
