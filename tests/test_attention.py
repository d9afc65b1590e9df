"""lanewise.attention against its float64 reference: every option, dtype, layout and odd shape."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from attention_calls import Call, calls, check_forward, check_gradients
from hypothesis import given
from hypothesis import strategies as st
from interpreted import interpreting
from numerics import assert_no_worse_than, assert_threads_agree
from strategies import (
    DTYPES,
    LAYOUTS,
    AttentionShape,
    attention_shapes,
    dtypes,
    or_interpreted,
    randn,
)
from torch import Tensor

import lanewise


@given(data=st.data(), shape=attention_shapes(), dtype=dtypes)
def test_forward(data: st.DataObject, shape: AttentionShape, dtype: torch.dtype) -> None:
    check_forward(data.draw(calls(shape, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (1, 700), (5, 515), (257, 70)])
def test_forward_past_the_tiles(dtype: torch.dtype, causal: bool, queries: int, keys: int) -> None:
    shape = AttentionShape(1, 6, 2, queries, keys, 64, 64)
    tensors: dict[str, Tensor | None] = {
        "q": randn(shape.q, dtype, 1, scale=3.0),
        "k": randn(shape.k, dtype, 2),
        "v": randn(shape.v, dtype, 3),
    }
    check_forward(Call(tensors, {"causal": causal}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(512, 512), (1, 512), (511, 1), (256, 192)])
def test_head_sizes_up_to_the_limit(dtype: torch.dtype, head_dim: int, value_dim: int) -> None:
    shape = AttentionShape(1, 4, 2, 9, 37, head_dim, value_dim)
    tensors: dict[str, Tensor | None] = {
        "q": randn(shape.q, dtype, 1),
        "k": randn(shape.k, dtype, 2),
        "v": randn(shape.v, dtype, 3),
    }
    check_forward(Call(tensors))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_bits_of_contiguous_inputs(layout: str, dtype: torch.dtype) -> None:
    shape = AttentionShape(2, 6, 2, 33, 47, 40, 24)
    q, k, v, bias = (
        randn(size, dtype, seed, layout)
        for seed, size in enumerate((shape.q, shape.k, shape.v, shape.scores))
    )
    strided = lanewise.attention(q, k, v, bias)
    dense = lanewise.attention(q.contiguous(), k.contiguous(), v.contiguous(), bias.contiguous())
    assert torch.equal(strided[0], dense[0])
    assert torch.equal(strided[1], dense[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_bias_gives_the_bits_of_a_whole_one(dtype: torch.dtype) -> None:
    shape = AttentionShape(2, 4, 2, 9, 21, 16, 16)
    q, k, v = (randn(size, dtype, i) for i, size in enumerate((shape.q, shape.k, shape.v)))
    for size in [(), (1,), (21,), (9, 21), (9, 1), (4, 1, 21), (2, 1, 1, 21), (1, 4, 9, 1)]:
        bias = randn(size, dtype, 7)
        for b in (bias, bias > 0):
            out = lanewise.attention(q, k, v, b)
            whole = lanewise.attention(q, k, v, b.expand(shape.scores).contiguous())
            for a, c in zip(out, whole, strict=True):
                assert torch.equal(a, c), size


def test_causal_aligns_the_last_query_with_the_last_key() -> None:
    q, k, v = randn((1, 2, 1, 16)), randn((1, 2, 50, 16), seed=1), randn((1, 2, 50, 16), seed=2)
    assert torch.equal(lanewise.attention(q, k, v, causal=True)[0], lanewise.attention(q, k, v)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rows_that_may_attend_nothing(dtype: torch.dtype, with_sinks: bool) -> None:
    q, k, v = (randn((2, 3, 70, 16), dtype, seed) for seed in range(3))
    sinks = randn((3,), dtype, 4) if with_sinks else None
    mask = torch.ones(2, 1, 70, 70, dtype=torch.bool)
    mask[0, 0, [0, 33, 69]] = False
    mask[1] = False
    for bias in (mask, torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -math.inf)):
        out, lse = lanewise.attention(q, k, v, bias, sinks)
        dead = ~mask.any(-1).expand(2, 3, 70)
        assert (out[dead] == 0).all()
        assert (lse[dead] == -math.inf).all()
        check_forward(Call({"q": q, "k": k, "v": v, "bias": bias, "sinks": sinks}))


def test_queries_before_the_first_key_attend_nothing() -> None:
    q, k, v = randn((1, 1, 9, 8)), randn((1, 1, 4, 8), seed=1), randn((1, 1, 4, 8), seed=2)
    out, lse = lanewise.attention(q, k, v, causal=True)
    assert (out[:, :, :5] == 0).all()
    assert (lse[:, :, :5] == -math.inf).all()
    assert lse[:, :, 5:].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_attend_nothing_ignore_what_others_meet(value: float) -> None:
    q, v = randn((1, 1, 4, 8)), randn((1, 1, 4, 8), seed=1)
    v[0, 0, 3] = value
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:2] = False
    out, _ = lanewise.attention(q, q, v, mask)
    assert (out[:, :, :2] == 0).all()
    assert not out[:, :, 2:].isfinite().any()
    assert (lanewise.attention(q, q, v, torch.zeros_like(mask))[0] == 0).all()
    # Query 0 of 3 stands before both keys.
    out, _ = lanewise.attention(q[:, :, :3], q[:, :, :2], v[:, :, 2:], causal=True, window_left=0)
    assert (out[:, :, 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(dtype: torch.dtype) -> None:
    for batch, queries, keys, heads in [(0, 3, 4, 2), (1, 0, 4, 2), (1, 3, 0, 2), (1, 3, 4, 0)]:
        q = randn((batch, heads, queries, 8), dtype)
        k, v = randn((batch, heads, keys, 8), dtype), randn((batch, heads, keys, 5), dtype)
        out, lse = lanewise.attention(q, k, v, causal=True)
        assert out.shape == (batch, heads, queries, 5)
        assert lse.shape == (batch, heads, queries)
        if keys == 0:
            assert (out == 0).all()
            assert (lse == -math.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("victim", ["q", "k", "v", "bias", "sinks", "alibi_slopes"])
@pytest.mark.parametrize("keys", [1, 19, 300])
def test_nan_in_gives_nan_out(dtype: torch.dtype, victim: str, keys: int) -> None:
    tensors: dict[str, Tensor | None] = {
        "q": randn((1, 2, 21, 16), dtype, 1),
        "k": randn((1, 2, keys, 16), dtype, 2),
        "v": randn((1, 2, keys, 16), dtype, 3),
        "bias": randn((21, keys), dtype, 4),
        "sinks": randn((2,), dtype, 5),
        "alibi_slopes": randn((2,), torch.float32, 6).abs(),
    }
    poisoned = tensors[victim]
    assert poisoned is not None
    poisoned.view(-1)[poisoned.numel() // 2] = math.nan
    ref = reference.attention(**tensors)
    assert ref[0].isnan().any()
    out, lse = lanewise.attention(**tensors)
    assert torch.equal(out.isnan(), ref[0].isnan())
    assert torch.equal(lse.isnan(), ref[1].isnan())


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_nan_survives_a_float_mask_and_softcap(softcap: float) -> None:
    q, k, v = randn((1, 1, 3, 8)), randn((1, 1, 40, 8), seed=1), randn((1, 1, 40, 8), seed=2)
    k[0, 0, 7, 0] = math.nan
    mask = torch.zeros(3, 40)
    mask[:, 20:] = -math.inf
    out, lse = lanewise.attention(q, k, v, mask, softcap=softcap)
    assert out.isnan().all()
    assert lse.isnan().all()


def test_infinite_scores() -> None:
    """As in torch, +inf gives NaN (inf - inf) with an lse of +inf; -inf is no key at all."""
    q, k, v = randn((1, 1, 2, 4)), randn((1, 1, 30, 4), seed=1), randn((1, 1, 30, 4), seed=2)
    for value in (math.inf, -math.inf):
        bias = torch.zeros(2, 30)
        bias[1, 11] = value
        call = Call({"q": q, "k": k, "v": v, "bias": bias})
        assert call.ours()[0][0, 0, 1].isnan().all() == (value > 0)
        check_forward(call)


@pytest.mark.parametrize("gap", [1, 200])
def test_nan_beats_an_infinite_score_in_any_order(gap: int) -> None:
    q, k, v = randn((1, 1, 2, 4)), randn((1, 1, 300, 4), seed=1), randn((1, 1, 300, 4), seed=2)
    bias = torch.zeros(2, 300)
    bias[0, 5], bias[0, 5 + gap] = math.nan, math.inf
    bias[1, 5], bias[1, 5 + gap] = math.inf, math.nan
    out, lse = lanewise.attention(q, k, v, bias)
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize("run", [1, 2, 4, 8, 16])
def test_a_nan_query_leaves_the_infinite_score_of_another_alone(run: int) -> None:
    q, k, v = randn((1, 1, 64, 4)), randn((1, 1, 30, 4), seed=1), randn((1, 1, 30, 4), seed=2)
    poisoned = torch.arange(64) // run % 2 == 1
    q[0, 0, poisoned] = math.nan
    bias = torch.zeros(64, 30)
    bias[~poisoned, 11] = math.inf
    out, lse = lanewise.attention(q, k, v, bias)
    assert out.isnan().all()
    assert (lse[0, 0, ~poisoned] == math.inf).all()
    assert lse[0, 0, poisoned].isnan().all()


@pytest.mark.parametrize("queries", [1, 40])
def test_numbers_near_the_largest(queries: int) -> None:
    """People mask with them; they are not infinity, whatever the scores are multiplied by."""
    q, k, v = randn((1, 2, queries, 8)), randn((1, 2, 30, 8), seed=1), randn((1, 2, 30, 8), seed=2)
    largest = torch.finfo(torch.float32).max
    out, lse = lanewise.attention(q, k, v, torch.tensor(-largest))
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))
    assert (lse == -largest).all()
    out, lse = lanewise.attention(q, k, v, sinks=torch.full((2,), largest))
    assert (out == 0).all()
    assert (lse == largest).all()
    out, _ = lanewise.attention(q, k, v, softcap=1e30)
    torch.testing.assert_close(out, lanewise.attention(q, k, v)[0])


@pytest.mark.parametrize(
    "options", [{"scale": -3e38, "softcap": 0.5}, {"scale": 1e9, "softcap": 1e-30}]
)
def test_a_scale_that_float32_cannot_hold(options: dict[str, float]) -> None:
    q = randn((1, 1, 3, 8))
    with pytest.raises(RuntimeError, match="attention: scale is too large for float32, got"):
        lanewise.attention(q, q, q, **options)


@pytest.mark.parametrize("bias", [0.0, 100.0])
def test_infinite_sink(bias: float) -> None:
    q, k, v = randn((1, 2, 3, 4)), randn((1, 2, 30, 4), seed=1), randn((1, 2, 30, 4), seed=2)
    out, lse = lanewise.attention(q, k, v, torch.tensor(bias), torch.tensor([math.inf, 0.0]))
    assert out[:, 0].isnan().all()
    assert (lse[:, 0] == math.inf).all()
    assert out[:, 1].isfinite().all()


def test_infinite_values() -> None:
    q, k, v = randn((1, 1, 4, 8)), randn((1, 1, 30, 8), seed=1), randn((1, 1, 30, 8), seed=2)
    v[0, 0, 3, 0], v[0, 0, 4, 1] = math.inf, -math.inf
    v[0, 0, 5, 2], v[0, 0, 6, 2] = math.inf, -math.inf
    check_forward(Call({"q": q, "k": k, "v": v}))


def test_large_scores_do_not_overflow() -> None:
    q, k, v = randn((1, 2, 5, 8)), randn((1, 2, 33, 8), seed=1), randn((1, 2, 33, 8), seed=2)
    for sign in (1.0, -1.0):
        check_forward(Call({"q": q, "k": k, "v": v, "bias": torch.full((1, 1), sign * 1e4)}))
        check_forward(Call({"q": q * 1e3, "k": k, "v": v}, {"scale": sign}))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 2000), (130, 300)])
def test_threads_agree(dtype: torch.dtype, queries: int, keys: int) -> None:
    shape = AttentionShape(1, 3, 1, queries, keys, 64, 64)
    q, k, v = (randn(s, dtype, i) for i, s in enumerate((shape.q, shape.k, shape.v)))
    inputs = [t.requires_grad_() for t in (q, k, v)]

    def run() -> tuple[Tensor, ...]:
        out, lse = lanewise.attention(*inputs, causal=True)
        grads = torch.autograd.grad(
            (out, lse), inputs, (torch.ones_like(out), torch.ones_like(lse))
        )
        return out, lse, *grads

    assert_threads_agree(run)


# --- gradients -----------------------------------------------------------------------------------


@st.composite
def gradient_shapes(draw: st.DrawFn) -> AttentionShape:
    """Enough elements that the largest errors of two implementations compare fairly."""
    kv_heads, group = draw(st.integers(1, 2)), draw(st.sampled_from((1, 3, 5)))
    head_dim = draw(st.sampled_from((8, 15, 40, 64)))
    return AttentionShape(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        queries=draw(st.sampled_from((1, 7, 33, 70))),
        keys=draw(st.sampled_from((5, 17, 64, 131))),
        head_dim=head_dim,
        value_dim=draw(st.sampled_from((head_dim, 24))),
    )


@given(data=st.data(), shape=gradient_shapes(), dtype=dtypes)
def test_gradients(data: st.DataObject, shape: AttentionShape, dtype: torch.dtype) -> None:
    """The GPU kernels' powers of two weigh a row's only key by 1 but for a rounding of its lse, and
    plain torch by exactly 1."""
    call = data.draw(calls(shape, dtype))
    if interpreting and call.options["window_left"] == 0:
        call.options["window_left"] = 5
    check_gradients(call)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_no_worse_than_those_of_sdpa(dtype: torch.dtype, causal: bool) -> None:
    """Or than those of the formula in float32, which sums in other orders; several draws together,
    since the one largest error of each says little."""
    draws = [
        Call({n: randn((2, 3, 90, 64), dtype, 3 * draw + i) for i, n in enumerate("qkv")})
        for draw in range(4)
    ]

    def sdpa(**kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(
            kwargs["q"], kwargs["k"], kwargs["v"], is_causal=kwargs["causal"]
        )

    def grads(op: Any, to: torch.dtype) -> list[Tensor]:
        found = []
        for seed, call in enumerate(draws):
            leaves = {
                n: t.to(to).requires_grad_() for n, t in call.tensors.items() if t is not None
            }
            out = call(op, **leaves, causal=causal)
            out = out if isinstance(out, Tensor) else out[0]
            out_grad = randn(out.shape, dtype, seed=91 + seed).to(to)
            found.append(torch.autograd.grad(out, list(leaves.values()), out_grad))
        return [torch.stack(same) for same in zip(*found, strict=True)]

    formula = grads(partial(reference.attention_in, torch.float32), torch.float32)
    for grad, ref, peer, other in zip(
        grads(lanewise.attention, dtype),
        grads(reference.attention, torch.float64),
        grads(sdpa, dtype),
        formula,
        strict=True,
    ):
        assert_no_worse_than(grad, ref, peer, other.to(dtype))


BIAS_SHAPES = [
    (2, 4, 9, 21),
    (1, 4, 9, 21),
    (2, 1, 9, 21),
    (2, 4, 1, 21),
    (2, 4, 9, 1),
    (1, 1, 9, 21),
    (2, 1, 1, 21),
    (9, 21),
    (4, 1, 1),
    (21,),
    (9, 1),
    (1,),
    (),
]


@pytest.mark.parametrize("size", BIAS_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_bias_over_every_broadcast(size: tuple[int, ...], dtype: torch.dtype) -> None:
    shape = AttentionShape(2, 4, 2, 9, 21, 16, 16)
    q, k, v, bias = (randn(s, dtype, i) for i, s in enumerate((shape.q, shape.k, shape.v, size)))
    check_gradients(Call({"q": q, "k": k, "v": v, "bias": bias}, {"causal": True}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_sinks_and_lse_alone(dtype: torch.dtype) -> None:
    q, k, v = (randn((2, 6, 33, 16), dtype, seed) for seed in range(3))
    sinks = randn((6,), dtype, 4).requires_grad_()
    _, lse = lanewise.attention(q, k, v, sinks=sinks)
    (grad,) = torch.autograd.grad(lse.sum(), sinks)
    exact = sinks.detach().double().requires_grad_()
    (ref,) = torch.autograd.grad(reference.attention(q, k, v, sinks=exact)[1].sum(), exact)
    rough = sinks.detach().requires_grad_()
    peer_lse = reference.attention_in(dtype, q, k, v, sinks=rough)[1]
    (peer,) = torch.autograd.grad(peer_lse.sum(), rough)
    assert_no_worse_than(grad, ref, peer)


def test_gradients_of_rows_that_attend_nothing_are_zero() -> None:
    q, k, v = (randn((1, 2, 6, 8), seed=i).requires_grad_() for i in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    out, _ = lanewise.attention(q, k, v, mask)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert (grads[0][:, :, 2] == 0).all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_gradients_of_rows_that_attend_nothing_ignore_nan(softcap: float) -> None:
    q, k, v, bias = (randn((1, 2, 6, n), seed=i) for i, n in enumerate((8, 8, 8, 6)))
    bias[:, :, 2:4] = -math.inf
    inputs = [t.requires_grad_() for t in (q, k, v, bias, randn((2,), seed=5))]
    out, lse = lanewise.attention(*inputs, softcap=softcap)
    out_grad, lse_grad = torch.ones_like(out), torch.ones_like(lse)
    clean = torch.autograd.grad((out, lse), inputs, (out_grad, lse_grad), retain_graph=True)
    out_grad[:, :, 2:4] = math.nan
    lse_grad[:, :, 2:4] = math.nan
    for grad, want in zip(
        torch.autograd.grad((out, lse), inputs, (out_grad, lse_grad)), clean, strict=True
    ):
        assert torch.equal(grad, want)

    poisoned = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    for t in poisoned:
        t.data[:, :, 4] = math.nan
    out, _ = lanewise.attention(*poisoned, torch.zeros(6, 6, dtype=torch.bool), softcap=softcap)
    for grad in torch.autograd.grad(out.sum(), poisoned):
        assert (grad == 0).all()


@pytest.mark.parametrize("size", [(1,), (16, 1), (1, 3)], ids=str)
def test_gradients_of_what_many_rows_share_stay_exact(size: tuple[int, ...]) -> None:
    """Equal terms round the same way, so that one float32 chain of them drifts."""
    batch, many = or_interpreted(128, 8), or_interpreted(4096, 256)
    queries, keys = 16 if size == (16, 1) else many, size[-1]
    q, k = torch.zeros(batch, 1, queries, 1), torch.zeros(batch, 1, keys, 1)
    v = torch.full((batch, 1, keys, 1), 0.1)
    bias, sinks = torch.zeros(size, requires_grad=True), torch.zeros(1, requires_grad=True)
    out, _ = lanewise.attention(q, k, v, bias, sinks)
    grads = torch.autograd.grad(out.sum(), (bias, sinks))
    value, rows = v[0, 0, 0, 0].double().item(), batch * queries
    total = value * rows * keys / (keys + 1) ** 2
    for grad, share in ((grads[0], total / bias.numel()), (grads[1], -total)):
        torch.testing.assert_close(
            grad, torch.full_like(grad, share), rtol=4 * torch.finfo(torch.float32).eps, atol=0
        )


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_only_the_needed_gradient_is_made(name: str) -> None:
    tensors = {n: randn((1, 2, 6, 8), seed=i) for i, n in enumerate("qkv")}
    tensors[name].requires_grad_()
    lanewise.attention(**tensors)[0].sum().backward()
    assert {n for n, t in tensors.items() if t.grad is not None} == {name}


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 4), (1, 0, 4), (1, 3, 0)])
def test_empty_gradients(batch: int, queries: int, keys: int) -> None:
    _ = [torch.full((2,), math.nan) for _ in range(100)]  # what memory may hold when it is reused
    q = randn((batch, 2, queries, 8)).requires_grad_()
    k, v = (randn((batch, 2, keys, 8)).requires_grad_() for _ in range(2))
    bias, sinks = randn((2, 1, 1)).requires_grad_(), randn((2,)).requires_grad_()
    inputs = (q, k, v, bias, sinks)
    grads = torch.autograd.grad(lanewise.attention(*inputs)[0].sum(), inputs)
    assert all((g == 0).all() for g in grads)
    assert [g.shape for g in grads] == [t.shape for t in inputs]


@pytest.mark.parametrize("softcap", [1e-50, 1e-31])
def test_softcap_has_an_inverse_in_float32(softcap: float) -> None:
    q = randn((1, 1, 3, 8))
    with pytest.raises(RuntimeError, match="attention: softcap must be 0 or between 1e-30 and"):
        lanewise.attention(q, q, q, softcap=softcap)
    assert lanewise.attention(q, q, q, softcap=1e-30)[0].isfinite().all()
