"""The references agree with torch's own ops, where torch has one, in float64."""

from __future__ import annotations

import math

import pytest
import reference
import torch
import torch.nn.functional as F

TIGHT = {"rtol": 1e-12, "atol": 1e-13}


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_sdpa(group: int, scale: float | None) -> None:
    q, k, v = rand(2, 2 * group, 5, 8), rand(2, 2, 7, 8), rand(2, 2, 7, 6)
    bias = rand(2, 1, 5, 7)
    out, _ = reference.attention(q, k, v, bias, scale=scale)
    peer = F.scaled_dot_product_attention(q, k, v, bias, scale=scale, enable_gqa=True)
    torch.testing.assert_close(out, peer, **TIGHT)


def test_attention_bool_mask_and_lse() -> None:
    q, k, v = rand(1, 2, 5, 8), rand(1, 2, 7, 8), rand(1, 2, 7, 8)
    mask = torch.rand(5, 7) < 0.6
    mask[:, 0] = True
    out, lse = reference.attention(q, k, v, mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, mask), **TIGHT)
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1), **TIGHT)


def test_causal_is_torchs_when_square_and_bottom_right_otherwise() -> None:
    q, k, v = rand(1, 1, 6, 4), rand(1, 1, 6, 4), rand(1, 1, 6, 4)
    out, _ = reference.attention(q, k, v, causal=True)
    torch.testing.assert_close(
        out, F.scaled_dot_product_attention(q, k, v, is_causal=True), **TIGHT
    )
    last, _ = reference.attention(q[:, :, -2:], k, v, causal=True)
    torch.testing.assert_close(last, out[:, :, -2:], **TIGHT)


def test_window_counts_from_the_last_key() -> None:
    allowed = reference.visible(2, 5, causal=False, window_left=1, window_right=0)
    assert allowed.tolist() == [
        [False, False, True, True, False],
        [False, False, False, True, True],
    ]
    assert reference.visible(3, 1, True, -1, -1).tolist() == [[False], [False], [True]]


def test_sink_is_an_extra_key_without_value() -> None:
    q, k, v, sinks = rand(2, 2, 3, 4), rand(2, 2, 5, 4), rand(2, 2, 5, 4), rand(2)
    zero = torch.zeros(2, 2, 1, 4, dtype=torch.float64)
    logit = torch.zeros(2, 2, 3, 6, dtype=torch.float64)
    logit[..., 5] = sinks[:, None]
    peer = F.scaled_dot_product_attention(
        q, torch.cat([k, zero], 2), torch.cat([v, zero], 2), logit
    )
    torch.testing.assert_close(reference.attention(q, k, v, sinks=sinks)[0], peer, **TIGHT)


def test_a_row_that_may_attend_nothing_is_dead_whatever_its_sink() -> None:
    q, k, v, sinks = rand(1, 2, 3, 4), rand(1, 2, 5, 4), rand(1, 2, 5, 4), rand(2)
    out, lse = reference.attention(q, k, v, torch.zeros(3, 5, dtype=torch.bool), sinks)
    assert (out == 0).all()
    assert (lse == -math.inf).all()


@pytest.mark.parametrize("per_batch", [False, True])
def test_alibi_is_a_bias(per_batch: bool) -> None:
    q, k, v = rand(2, 3, 4, 8), rand(2, 3, 6, 8), rand(2, 3, 6, 8)
    slopes = torch.rand(*([2, 3] if per_batch else [3]), dtype=torch.float64)
    bias = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            bias[:, :, i, j] = -slopes * abs(i + 2 - j)
    with_slopes = reference.attention(q, k, v, alibi_slopes=slopes)
    torch.testing.assert_close(with_slopes, reference.attention(q, k, v, bias), **TIGHT)


def test_softcap_bounds_the_scores() -> None:
    q, k, v = rand(1, 1, 3, 4) * 50, rand(1, 1, 5, 4) * 50, rand(1, 1, 5, 4)
    bias = 2.0 * torch.tanh(q @ k.mT / 2.0 / 2.0)
    capped = reference.attention(q, k, v, softcap=2.0)
    torch.testing.assert_close(capped, reference.attention(q * 0, k, v, bias), **TIGHT)


def test_dead_rows_are_zero_and_stay_out_of_gradients() -> None:
    q, k, v = (rand(1, 1, 3, 4).requires_grad_() for _ in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])
    out, lse = reference.attention(q, k, v, mask)
    assert (out[0, 0, 1] == 0).all()
    assert lse[0, 0, 1] == -math.inf
    out.sum().backward()
    for t in (q, k, v):
        assert t.grad is not None
        assert t.grad.isfinite().all()
    assert q.grad is not None
    assert (q.grad[0, 0, 1] == 0).all()


def test_attention_gradients() -> None:
    q, k, v, bias = rand(1, 2, 3, 4), rand(1, 1, 4, 4), rand(1, 1, 4, 4), rand(3, 4)
    sinks, slopes = rand(2), rand(2).abs()
    inputs = tuple(t.requires_grad_() for t in (q, k, v, bias, sinks, slopes))
    assert torch.autograd.gradcheck(
        lambda *t: reference.attention(*t, softcap=3.0, window_left=2), inputs
    )


@pytest.mark.parametrize("activation", list(reference.ACTIVATIONS))
def test_linear(activation: str) -> None:
    x, weight, bias, residual = rand(2, 3, 5), rand(4, 5), rand(4), rand(2, 3, 4)
    peer = reference.ACTIVATIONS[activation](F.linear(x, weight, bias)) + residual
    out = reference.linear(x, weight, bias, residual, activation=activation)
    torch.testing.assert_close(out, peer, **TIGHT)


def test_gated_linear() -> None:
    x, gate, up, gate_bias, up_bias = rand(3, 5), rand(4, 5), rand(4, 5), rand(4), rand(4)
    peer = F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)
    torch.testing.assert_close(
        reference.gated_linear(x, gate, up, gate_bias, up_bias), peer, **TIGHT
    )


def test_rms_norm() -> None:
    x, weight = rand(3, 7), rand(7)
    torch.testing.assert_close(
        reference.rms_norm(x, weight, weight_offset=1.0),
        F.rms_norm(x, (7,), weight + 1, 1e-6),
        **TIGHT,
    )
    torch.testing.assert_close(reference.rms_norm(x), F.rms_norm(x, (7,), None, 1e-6), **TIGHT)


def test_layer_norm() -> None:
    x, weight, bias = rand(3, 7), rand(7), rand(7)
    peer = F.layer_norm(x, (7,), weight, bias)
    torch.testing.assert_close(reference.layer_norm(x, weight, bias), peer, **TIGHT)


def test_add_norms_round_the_sum_alone() -> None:
    x, residual = rand(3, 7).bfloat16(), rand(3, 7).bfloat16()
    total = x.double() + residual.double()
    for op, norm in (
        (reference.add_rms_norm, reference.rms_norm),
        (reference.add_layer_norm, reference.layer_norm),
    ):
        y, rounded = op(x, residual)
        assert torch.equal(rounded, total.bfloat16())
        torch.testing.assert_close(y, norm(total), **TIGHT)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [0, 4, 6])
@pytest.mark.parametrize("per_batch", [False, True])
def test_rope_is_a_complex_product(interleaved: bool, rotated: int, per_batch: bool) -> None:
    x = rand(2, 3, 5, 6)
    angle = rand(*([2, 5] if per_batch else [5]), rotated // 2)
    out = reference.rope(x, angle.cos(), angle.sin(), interleaved=interleaved)
    for i in range(rotated // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + rotated // 2)
        theta = angle[:, None, :, i] if per_batch else angle[:, i]
        turned = torch.complex(x[..., a], x[..., b]) * torch.polar(torch.ones_like(theta), theta)
        torch.testing.assert_close(out[..., a], turned.real, **TIGHT)
        torch.testing.assert_close(out[..., b], turned.imag, **TIGHT)
    assert torch.equal(out[..., rotated:], x[..., rotated:])
