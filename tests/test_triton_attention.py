"""What only the Triton kernels of attention have: tiles, pieces of keys, untrusted indexes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from attention_calls import Call, check_forward
from lanewise.kernels import target
from lanewise.kernels.attention import (
    attention,
    attention_varlen,
    launch,
    paged_attention,
    paged_cache_write,
)
from lanewise.kernels.attention.tiles import FORWARD, Tile
from numerics import assert_same_bits
from strategies import AttentionShape, randn
from test_attention_paged import caches, paged_call
from test_attention_varlen import sequences
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def inputs(shape: AttentionShape, dtype: torch.dtype, **more: Tensor | None) -> dict[str, Any]:
    return {
        "q": randn(shape.q, dtype, 1, scale=3.0),
        "k": randn(shape.k, dtype, 2),
        "v": randn(shape.v, dtype, 3),
        **more,
    }


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched."""
    names: list[str] = []
    run = target.launch

    def noted(kernel: Any, *args: Any, **options: Any) -> None:
        names.append(kernel.fn.__name__)
        run(kernel, *args, **options)

    monkeypatch.setattr(target, "launch", noted)
    return names


# --- tiles ---------------------------------------------------------------------------------------


def every_tile() -> list[tuple[str, str]]:
    """One architecture for each distinct tile of the table: warps and stages change no number."""
    distinct = {
        (tile.m, tile.n, tile.d, problem): (architecture, problem)
        for architecture, rows in FORWARD.rows.items()
        for problem, tile in rows.items()
    }
    return sorted(distinct.values())


@pytest.mark.parametrize(("architecture", "problem"), every_tile())
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str
) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    *kind, bits, size = problem.split()
    unaligned = "unaligned" in kind
    dtype, dim = {"16": torch.bfloat16, "32": torch.float32}[bits], int(size) - 3 * unaligned
    tile = FORWARD.rows[architecture][problem]
    queries = 3 if "few" in kind else max(tile.m + 5, launch.FEW_QUERIES + 1)
    keys = 2 * tile.n + 7
    if "paged" in kind or unaligned:
        lengths = [(queries, queries + keys), (1, keys)]
        check_forward(paged_call(lengths, 16, dtype, kv_heads=1, group=2, dims=(dim, dim)))
    if "paged" in kind:
        return
    shape = AttentionShape(1, 1, 1, queries, keys, dim, dim)
    bias = None if kind == ["bare"] else randn((queries, keys), dtype, 4)
    check_forward(Call(inputs(shape, dtype, bias=bias), {"causal": True}))


@pytest.mark.parametrize("options", [{"causal": True}, {"window_left": 3, "window_right": 150}])
def test_masked_tiles_and_whole_ones(options: dict[str, Any]) -> None:
    shape = AttentionShape(1, 1, 1, 200, 460, 64, 64)
    check_forward(Call(inputs(shape, torch.bfloat16), options))
    bias = randn((200, 460), torch.bfloat16, 4)
    check_forward(Call(inputs(shape, torch.bfloat16, bias=bias), options))


# --- pieces of keys ------------------------------------------------------------------------------

DECODE = AttentionShape(1, 6, 2, 1, 900, 64, 64)  # eight tiles of keys for two programs


def test_keys_are_split_where_programs_are_too_few() -> None:
    tile, architecture = Tile(16, 64, 4, 3), target.ARCHITECTURES["sm_90"]
    pieces = [launch.count_pieces(8, tile.n * n, tile, architecture) for n in (1, 4, 5, 8, 1000)]
    assert pieces == [1, 1, 2, 4, 33]
    assert launch.count_pieces(architecture.units, 10**6, tile, architecture) == 2
    assert launch.count_pieces(2 * architecture.units, 10**6, tile, architecture) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"window_left": 700}, {"window_left": 300, "causal": True, "softcap": 5.0}]
)
def test_pieces_are_merged(
    launched: list[str], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    sinks, slopes = randn((6,), dtype, 5), randn((6,), seed=6).abs() * 0.01
    call = Call(inputs(DECODE, dtype, sinks=sinks, alibi_slopes=slopes), options)
    check_forward(call)
    few = "causal" in options and dtype == torch.bfloat16  # tiles that the window shows
    assert launched == ["attention_forward"] + ["attention_merge"] * (not few)


def test_pieces_of_packed_and_paged_sequences(launched: list[str]) -> None:
    """Of very different lengths: many pieces find nothing to do."""
    lengths = [(1, 700), (3, 5), (0, 40), (1, 129)]
    packed = sequences(torch.float32, lengths)
    packed.options.update(causal=True)
    packed.tensors["sinks"] = randn((6,), seed=4)
    check_forward(packed)
    for block_size in (16, 128):
        check_forward(paged_call(lengths, block_size, torch.bfloat16))
    assert launched == ["attention_forward", "attention_merge"] * 3


def test_rows_and_pieces_that_attend_nothing() -> None:
    shape = replace(DECODE, queries=3)
    mask = torch.ones(1, 1, 3, 900, dtype=torch.bool)
    mask[..., 0, :] = False  # a row
    mask[..., 1, 400:] = False  # all pieces but the first of another
    for sinks in (None, randn((6,), seed=5)):
        call = Call(inputs(shape, torch.float32, bias=mask, sinks=sinks))
        out, lse = call.ours()
        assert (out[:, :, 0] == 0).all()
        assert (lse[:, :, 0] == -math.inf).all()
        check_forward(call)


@pytest.mark.parametrize(
    ("victim", "value"),
    [*((victim, math.nan) for victim in ("q", "k", "v", "bias", "sinks")), ("bias", math.inf)],
)
def test_nan_and_infinity_survive_a_merge(victim: str, value: float) -> None:
    bias = randn((1, 900), seed=4)
    call = Call(inputs(DECODE, torch.float32, bias=bias, sinks=randn((6,), seed=5)))
    spoilt = call.tensors[victim]
    assert spoilt is not None
    spoilt.view(-1)[spoilt.numel() // 2] = value
    check_forward(call)


def test_the_largest_numbers_survive_a_merge() -> None:
    tensors = inputs(DECODE, torch.float32)
    largest = torch.finfo(torch.float32).max
    out, lse = attention(**tensors, bias=torch.tensor(-largest))
    mean = tensors["v"].mean(2, keepdim=True).repeat_interleave(3, 1)
    torch.testing.assert_close(out, mean)
    assert (lse == -largest).all()


# --- far offsets ---------------------------------------------------------------------------------

APART = 2**30 + 8  # three of them are further apart than 32 bits count


def far(shape: tuple[int, ...], dim: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random, with a dimension of extent 3 that strides far; untouched memory takes no room."""
    assert shape[dim] == 3
    near = randn(tuple(1 if d == dim else n for d, n in enumerate(shape)), dtype)
    strides = [APART if d == dim else s for d, s in enumerate(near.stride())]
    memory = torch.empty(2 * APART + near.numel(), dtype=dtype)
    return memory.as_strided(shape, strides).copy_(randn(shape, dtype, seed))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_padded_offsets_beyond_32_bits(dim: int) -> None:
    shape = [2, 2, 20, 16]
    shape[dim] = 3
    q, k, v = (far(tuple(shape), dim, seed) for seed in range(3))
    near = attention(q.clone(), k.clone(), v.clone())
    assert_same_bits(attention(q, k, v)[0], near[0])
    assert_same_bits(attention(q.clone(), k, v.clone())[0], near[0])


def test_packed_and_paged_offsets_beyond_32_bits() -> None:
    q, k, v = (far((3, 1, 16), 0, seed) for seed in range(3))
    starts = torch.tensor([0, 1, 3])
    near = attention_varlen(q.clone(), k.clone(), v.clone(), starts, starts, 2, 2)
    assert_same_bits(attention_varlen(q, k, v, starts, starts, 2, 2)[0], near[0])

    table, contexts = torch.tensor([[2, 0, 1]], dtype=torch.int32), torch.tensor([11]).int()
    caches = [far((3, 4, 1, 16), 0, seed) for seed in range(2)]
    one = torch.tensor([0, 1])
    out = paged_attention(q[:1].clone(), *caches, one, table, contexts, 1)
    near = paged_attention(q[:1].clone(), *(c.clone() for c in caches), one, table, contexts, 1)
    assert_same_bits(out[0], near[0])
    slots = torch.tensor([8, -1, 3])
    kept = [c.clone() for c in caches]
    paged_cache_write(k, v, *caches, slots)
    paged_cache_write(k, v, *kept, slots)
    for a, b in zip(caches, kept, strict=True):
        assert_same_bits(a, b)


def test_a_bias_beyond_32_bits() -> None:
    shape = AttentionShape(1, 1, 1, 2, 3, 16, 16)
    tensors = inputs(shape, torch.bfloat16)
    bias = far((1, 1, 2, 3), 3, 9)
    assert_same_bits(attention(**tensors, bias=bias)[0], attention(**tensors, bias=bias.clone())[0])


# --- indexes that are wrong ----------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are not checked before a launch, and every access of a kernel is: it must lie inside
    one of the tensors that the kernel was given."""
    monkeypatch.delenv("LANEWISE_CHECK_INDEXES")
    run = target.launch
    spans: list[tuple[int, int]] = []

    def noted(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        spans[:] = [span(t) for t in args if isinstance(t, Tensor)]
        run(kernel, grid, *args, **options)

    def span(t: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        size = (last + 1) * t.element_size() if t.numel() else 0
        return t.data_ptr(), t.data_ptr() + size

    def watch(name: str, mask_at: int) -> None:
        access: Callable = getattr(InterpreterBuilder, name)

        def watched(self: Any, pointers: Any, *rest: Any) -> Any:
            at = np.broadcast_to(pointers.data, rest[mask_at].data.shape)[rest[mask_at].data]
            inside = np.zeros(at.shape, bool)
            for begin, end in spans:
                inside |= (at >= begin) & (at < end)
            assert inside.all(), f"{name} outside of all tensors"
            return access(self, pointers, *rest)

        monkeypatch.setattr(InterpreterBuilder, name, watched)

    monkeypatch.setattr(target, "launch", noted)
    watch("create_masked_load", 0)
    watch("create_masked_store", 1)


LENGTHS = [(5, 9), (1, 200), (33, 40)]  # of queries and keys
OWN = [slice(0, 5), slice(5, 6), slice(6, 39)]  # the queries of each


def expect_nan(call: Call, op: Any, spoilt: set[int], **changes: Tensor) -> None:
    """In the sequences `spoilt`, and the bits of the right call in the others."""
    (out, lse), (right_out, right_lse) = call(op, **changes), call(op)
    assert right_out.isfinite().all()
    for b, own in enumerate(OWN):
        if b in spoilt:
            assert out[own].isnan().all(), b
            assert lse[:, own].isnan().all(), b
        else:
            assert_same_bits(out[own], right_out[own])
            assert_same_bits(lse[:, own].contiguous(), right_lse[:, own].contiguous())


HUGE = 2**62


@pytest.mark.parametrize(
    ("name", "starts", "spoilt"),
    [
        ("cu_seqlens_k", [0, 9, 209, 248], {2}),
        ("cu_seqlens_k", [0, 9, 209, 250], {2}),
        ("cu_seqlens_k", [0, 9, HUGE, 249], {1, 2}),
        ("cu_seqlens_k", [0, -HUGE, 209, 249], {0, 1}),
        ("cu_seqlens_k", [1, 9, 209, 249], {0}),
        ("cu_seqlens_q", [0, 5, 6, 38], {2}),
        ("cu_seqlens_q", [0, 5, 6, HUGE], {2}),
        ("cu_seqlens_q", [-7, 5, 6, 39], {0}),
        ("cu_seqlens_q", [2, 5, 6, 39], {0}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("guarded")
def test_wrong_starts_give_nan_to_their_sequences(
    name: str, starts: list[int], spoilt: set[int]
) -> None:
    call = sequences(torch.float32, LENGTHS)
    expect_nan(call, attention_varlen, spoilt, **{name: torch.tensor(starts)})


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("starts", [[0, 30, 10, 39], [0, HUGE, -HUGE, 39], [39, 0, 39, 0]], ids=str)
def test_wrong_starts_leave_no_row_unwritten(
    monkeypatch: pytest.MonkeyPatch, starts: list[int]
) -> None:
    """A fresh output holds a number that no kernel computes."""
    fresh = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: fresh(*a, **k).fill_(12345.0))
    call = sequences(torch.float32, LENGTHS)
    for bound in (0, 3, 39):
        call.options["max_seqlen_q"] = bound
        out, lse = call(attention_varlen, cu_seqlens_q=torch.tensor(starts))
        assert not (out == 12345.0).any()
        assert not (lse == 12345.0).any()


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("block_size", [4, 128])
@pytest.mark.parametrize("few", [False, True])
def test_wrong_pages_give_nan_to_their_sequences(block_size: int, few: bool) -> None:
    call = paged_call(LENGTHS, block_size, torch.float32)
    if few:  # whose keys are split
        call = paged_call([(1, 9), (1, 330), (3, 40)], block_size, torch.float32)
    table, contexts = call.tensors["block_table"], call.tensors["context_lens"]
    assert table is not None
    assert contexts is not None
    right_out, right_lse = call(paged_attention)
    own = call.tensors["cu_seqlens_q"]
    assert own is not None
    first, second = int(own[1]), int(own[2])
    for changes in (
        {"context_lens": torch.tensor([contexts[0], 2**31 - 1, contexts[2]]).int()},
        {"context_lens": torch.tensor([contexts[0], -5, contexts[2]]).int()},
        {"context_lens": torch.tensor([contexts[0], 0, contexts[2]]).int()},
        *(
            {"block_table": table.index_put([torch.tensor(1), torch.tensor(0)], entry)}
            for entry in torch.tensor([-1, 2**31 - 1, 10**6, -(2**31)]).int()
        ),
    ):
        out, lse = call(paged_attention, **changes)
        assert out[first:second].isnan().all()
        assert lse[:, first:second].isnan().all()
        for rows in (slice(0, first), slice(second, None)):
            assert_same_bits(out[rows], right_out[rows])
            assert_same_bits(lse[:, rows].contiguous(), right_lse[:, rows].contiguous())


@pytest.mark.usefixtures("guarded")
def test_pages_of_an_empty_cache_give_nan() -> None:
    q, cache = randn((2, 2, 8)), torch.empty(0, 4, 1, 8)
    table, contexts = torch.zeros(1, 3, dtype=torch.int32), torch.tensor([9]).int()
    out, lse = paged_attention(q, cache, cache, torch.tensor([0, 2]), table, contexts, 2)
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.usefixtures("guarded")
def test_slots_outside_the_cache_are_skipped() -> None:
    ours, expected = caches(torch.float32, 4, 3), caches(torch.float32, 4, 3)
    k, v = randn((6, 2, 40)), randn((6, 2, 24))
    paged_cache_write(k, v, *ours, torch.tensor([12, 5, -2, HUGE, -HUGE, 0]))
    paged_cache_write(k, v, *expected, torch.tensor([-1, 5, -1, -1, -1, 0]))
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)
