"""The Triton attention kernel against its float64 reference, in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_no_worse_than
from strategies import DTYPES, LAYOUTS, AttentionShape, attention_shapes, dtypes, randn
from test_attention import Call, calls
from torch import Tensor

from lanewise.kernels import target
from lanewise.kernels.attention import attention
from lanewise.kernels.attention.tiles import FORWARD

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def check(call: Call) -> None:
    """No worse than plain torch in float32, rounded once: see numerics.assert_no_worse_than."""
    out, lse = call(attention)
    ref_out, ref_lse = call(reference.attention)
    peer_out, peer_lse = call(reference.attention_in, torch.float32)
    assert lse.dtype == torch.float32
    assert_no_worse_than(out, ref_out, peer_out.to(out.dtype))
    assert_no_worse_than(lse, ref_lse, peer_lse)


def inputs(shape: AttentionShape, dtype: torch.dtype, **more: Tensor | None) -> dict[str, Any]:
    return {
        "q": randn(shape.q, dtype, 1, scale=3.0),
        "k": randn(shape.k, dtype, 2),
        "v": randn(shape.v, dtype, 3),
        **more,
    }


@given(data=st.data(), shape=attention_shapes(), dtype=dtypes)
def test_every_option(data: st.DataObject, shape: AttentionShape, dtype: torch.dtype) -> None:
    check(data.draw(calls(shape, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "options"),
    [
        (300, 300, {}),
        (300, 300, {"causal": True}),
        (257, 70, {"causal": True}),
        (70, 515, {"causal": True, "window_left": 100}),
        (200, 260, {"window_left": 3, "window_right": 150}),
        (1, 700, {"window_left": 300}),
    ],
)
def test_past_the_tiles(
    dtype: torch.dtype, queries: int, keys: int, options: dict[str, Any]
) -> None:
    shape = AttentionShape(1, 1, 1, queries, keys, 64, 64)
    check(Call(inputs(shape, dtype), options))
    check(Call(inputs(shape, dtype, bias=randn((queries, keys), dtype, 4)), options))


def every_tile() -> list[tuple[str, str]]:
    """One architecture for each distinct tile of the table."""
    distinct = {
        (tile, problem): (architecture, problem)
        for architecture, rows in FORWARD.rows.items()
        for problem, tile in rows.items()
    }
    return sorted(distinct.values())


@pytest.mark.parametrize(("architecture", "problem"), every_tile())
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str
) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    kind, bits, size = problem.split()
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    tile = FORWARD.rows[architecture][problem]
    queries, keys = 3 if kind == "few" else tile.m + 5, 2 * tile.n + 7
    shape = AttentionShape(1, 1, 1, queries, keys, int(size), int(size))
    bias = None if kind == "bare" else randn((queries, keys), dtype, 4)
    check(Call(inputs(shape, dtype, bias=bias), {"causal": True}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(512, 512), (1, 512), (511, 1), (192, 128)])
def test_head_sizes_up_to_the_limit(dtype: torch.dtype, head_dim: int, value_dim: int) -> None:
    check(Call(inputs(AttentionShape(1, 2, 1, 33, 37, head_dim, value_dim), dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_bits_of_contiguous_inputs(layout: str) -> None:
    shape = AttentionShape(2, 6, 2, 33, 47, 40, 24)
    tensors = [
        randn(size, torch.bfloat16, seed, layout)
        for seed, size in enumerate((shape.q, shape.k, shape.v, shape.scores))
    ]
    strided, dense = attention(*tensors), attention(*[t.contiguous() for t in tensors])
    assert torch.equal(strided[0], dense[0])
    assert torch.equal(strided[1], dense[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rows_that_may_attend_nothing(dtype: torch.dtype, with_sinks: bool) -> None:
    shape = AttentionShape(1, 3, 1, 40, 70, 16, 16)
    mask = torch.ones(1, 1, 40, 70, dtype=torch.bool)
    mask[..., [0, 33, 39], :] = False
    sinks = randn((3,), dtype, 4) if with_sinks else None
    for bias in (mask, torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -math.inf)):
        call = Call(inputs(shape, dtype, bias=bias, sinks=sinks))
        out, lse = call(attention)
        dead = ~mask.any(-1).expand(1, 3, 40)
        assert (out[dead] == 0).all()
        assert (lse[dead] == -math.inf).all()
        check(call)


@pytest.mark.parametrize("with_sinks", [False, True])
def test_queries_before_the_first_key_attend_nothing(with_sinks: bool) -> None:
    shape = AttentionShape(1, 2, 2, 90, 40, 16, 16)
    sinks = randn((2,), seed=4) if with_sinks else None
    call = Call(inputs(shape, torch.float32, sinks=sinks), {"causal": True})
    assert (call(attention)[1][:, :, :50] == -math.inf).all()
    check(call)


@pytest.mark.parametrize("victim", ["q", "k", "v", "bias", "sinks", "alibi_slopes"])
@pytest.mark.parametrize("keys", [1, 150])
def test_nan_in_gives_nan_out(victim: str, keys: int) -> None:
    call = Call(
        inputs(
            AttentionShape(1, 2, 2, 21, keys, 16, 16),
            torch.bfloat16,
            bias=randn((21, keys), torch.bfloat16, 4),
            sinks=randn((2,), torch.bfloat16, 5),
            alibi_slopes=randn((2,), seed=6).abs(),
        )
    )
    poisoned = call.tensors[victim]
    assert poisoned is not None
    poisoned.view(-1)[poisoned.numel() // 2] = math.nan
    (out, lse), (ref_out, ref_lse) = call(attention), call(reference.attention)
    assert ref_out.isnan().any()
    assert torch.equal(out.isnan(), ref_out.isnan())
    assert torch.equal(lse.isnan(), ref_lse.isnan())


def test_infinite_scores_and_values() -> None:
    shape = AttentionShape(1, 1, 1, 2, 30, 4, 4)
    for value in (math.inf, -math.inf):
        bias = torch.zeros(2, 30)
        bias[1, 11] = value
        check(Call(inputs(shape, torch.float32, bias=bias)))
        call = Call(inputs(shape, torch.float32))
        call.tensors["v"][0, 0, 3, 0] = value  # type: ignore[index]
        check(call)


def test_large_scores_do_not_overflow() -> None:
    shape = AttentionShape(1, 2, 1, 5, 33, 8, 8)
    for sign in (1.0, -1.0):
        check(Call(inputs(shape, torch.float32, bias=torch.full((1, 1), sign * 1e4))))
        check(Call(inputs(shape, torch.float32), {"scale": sign * 1e3}))


def test_empty() -> None:
    for batch, queries, keys, heads in [(0, 3, 4, 2), (1, 0, 4, 2), (1, 3, 0, 2), (1, 3, 4, 0)]:
        q, k = randn((batch, heads, queries, 8)), randn((batch, heads, keys, 8))
        out, lse = attention(q, k, k[..., :5], sinks=randn((heads,)), causal=True)
        assert out.shape == (batch, heads, queries, 5)
        assert lse.shape == (batch, heads, queries)
        if keys == 0:
            assert (out == 0).all()
            assert (lse == -math.inf).all()


def test_rows_of_keys_further_apart_than_32_bits() -> None:
    apart = 2**30 + 8
    k = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided(
        (1, 1, 3, 16), (0, 0, apart, 1)
    )
    k.copy_(randn((1, 1, 3, 16), torch.bfloat16))
    q = randn((1, 1, 2, 16), torch.bfloat16, 1)
    assert torch.equal(attention(q, k, k)[0], attention(q, k.clone(), k.clone())[0])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": (
        {"q": torch.zeros(2, 4, 3, 8, dtype=torch.float64)},
        "q must be float32, bfloat16 or",
    ),
    "mixed": ({"k": torch.zeros(2, 2, 5, 8).half()}, "k must have q's dtype float32, got float16"),
    "device": ({"v": torch.zeros(2, 2, 5, 6, device="meta")}, "v must be on cpu like the first"),
    "rank": ({"q": torch.zeros(4, 3, 8)}, "q must have 4 dimensions, got shape [4, 3, 8]"),
    "stride": (
        {"k": torch.zeros(2, 2, 8, 5).mT},
        "k must have stride 1 in its last dimension, got stride 5",
    ),
    "heads": (
        {"k": torch.zeros(2, 3, 5, 8), "v": torch.zeros(2, 3, 5, 6)},
        "k has 3 heads, which does not divide q's 4",
    ),
    "head size": (
        {"q": torch.zeros(2, 4, 3, 513)},
        "q must have a head size from 1 to 512, got 513",
    ),
    "k": ({"k": torch.zeros(2, 2, 5, 9)}, "k has head size 9, which is not q's 8"),
    "v": ({"v": torch.zeros(2, 2, 4, 6)}, "v has 4 tokens, which is not k's 5"),
    "bias shape": (
        {"bias": torch.zeros(2, 5)},
        "bias of shape [2, 5] does not broadcast to [2, 4, 3, 5]",
    ),
    "bias dtype": ({"bias": torch.zeros(5).long()}, "bias must be bool, float32, bfloat16 or"),
    "sinks": ({"sinks": torch.zeros(3)}, "sinks must have shape [4], got [3]"),
    "slopes": (
        {"alibi_slopes": torch.zeros(4, 2)},
        "alibi_slopes must have shape [4] or [2, 4], got [4, 2]",
    ),
    "window": ({"window_left": -2}, "window_left must be at least -1, got -2"),
    "softcap": ({"softcap": math.inf}, "softcap must be finite in float32, got inf"),
    "negative softcap": ({"softcap": -1.0}, "softcap must not be negative, got -1"),
    "scale": ({"scale": math.nan}, "scale must be finite in float32, got nan"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_named(wrong: str) -> None:
    changed, sentence = WRONG[wrong]
    right = {
        "q": torch.zeros(2, 4, 3, 8),
        "k": torch.zeros(2, 2, 5, 8),
        "v": torch.zeros(2, 2, 5, 6),
    }
    with pytest.raises(RuntimeError) as caught:
        attention(**{**right, **changed})
    assert str(caught.value).startswith(f"lanewise.attention: {sentence}")
