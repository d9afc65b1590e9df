"""What torch asks of its own F.scaled_dot_product_attention on a CPU, asked of lanewise.attention.

Both are compared with float64, and ours may err as torch's does.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from numerics import assert_no_worse_than, assert_same_bits
from strategies import DTYPES, randn
from torch import Tensor

import lanewise

sdpa = F.scaled_dot_product_attention
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def operands(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        randn((batch, heads, queries, dim), dtype, 1),
        randn((batch, kv_heads, keys, dim), dtype, 2),
        randn((batch, kv_heads, keys, dim), dtype, 3),
    )


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Out, once it is found no worse than torch's. `options` are those of both."""
    out, _ = lanewise.attention(q, k, v, mask, **options)
    exact, _ = reference.attention(q, k, v, mask, **options)
    torch_options = dict(options, is_causal=options.pop("causal", False))
    torch_options.pop("causal", None)
    peer = sdpa(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1], **torch_options)
    assert_no_worse_than(out, exact, peer)
    return out


@every_dtype
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dim", [8, 33, 64, 128])
@pytest.mark.parametrize("tokens", [1, 17, 64, 267])
def test_square(tokens: int, dim: int, causal: bool, dtype: torch.dtype) -> None:
    check(*operands(2, 3, 3, tokens, tokens, dim, dtype), causal=causal)


@every_dtype
@pytest.mark.parametrize("scale", [None, 0.0, 0.05, 1.0, -0.5])
def test_scale(scale: float | None, dtype: torch.dtype) -> None:
    check(*operands(1, 2, 2, 23, 31, 16, dtype), scale=scale)


@every_dtype
@pytest.mark.parametrize("heads", [(4, 1), (6, 2), (9, 3), (8, 8)])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries(heads: tuple[int, int], causal: bool, dtype: torch.dtype) -> None:
    check(*operands(2, *heads, 37, 37, 32, dtype), causal=causal)


@every_dtype
@pytest.mark.parametrize(
    "size", [(19, 41), (1, 41), (19, 1), (1, 1, 1, 41), (3, 1, 1, 41), (3, 4, 19, 41), (4, 1, 41)]
)
@pytest.mark.parametrize("boolean", [False, True])
def test_broadcast_masks(size: tuple[int, ...], boolean: bool, dtype: torch.dtype) -> None:
    mask = randn(size, dtype, 4)
    check(*operands(3, 4, 4, 19, 41, 16, dtype), mask > -0.7 if boolean else mask)


@every_dtype
def test_boolean_and_float_masks_agree(dtype: torch.dtype) -> None:
    q, k, v = operands(2, 3, 3, 33, 47, 24, dtype)
    allowed = randn((2, 1, 33, 47), seed=4) > 0
    added = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -math.inf)
    for a, b in zip(
        lanewise.attention(q, k, v, allowed), lanewise.attention(q, k, v, added), strict=True
    ):
        assert_same_bits(a, b)


@every_dtype
def test_a_causal_mask_is_causality(dtype: torch.dtype) -> None:
    q, k, v = operands(1, 2, 2, 45, 45, 24, dtype)
    lower = torch.ones(45, 45, dtype=torch.bool).tril()
    for a, b in zip(
        lanewise.attention(q, k, v, lower), lanewise.attention(q, k, v, causal=True), strict=True
    ):
        assert_no_worse_than(a, b.double(), b)


@every_dtype
@pytest.mark.parametrize("boolean", [False, True])
def test_fully_masked_rows_are_zero(boolean: bool, dtype: torch.dtype) -> None:
    q, k, v = operands(2, 2, 2, 9, 21, 16, dtype)
    allowed = torch.ones(9, 21, dtype=torch.bool)
    allowed[[0, 4]] = False
    mask = allowed if boolean else torch.zeros(9, 21, dtype=dtype).masked_fill(~allowed, -math.inf)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out, lse = lanewise.attention(q, k, v, mask)
    assert (out[:, :, [0, 4]] == 0).all()
    assert (lse[:, :, [0, 4]] == -math.inf).all()
    grads = torch.autograd.grad(out.sum(), leaves)
    assert (grads[0][:, :, [0, 4]] == 0).all()
    assert all(g.isfinite().all() for g in grads)


@every_dtype
def test_inputs_that_are_not_contiguous(dtype: torch.dtype) -> None:
    """Heads split from one projection, as models have them, and one key head for all."""
    qkv = randn((2, 29, 3, 4, 16), dtype)
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    check(q, k, v, causal=True)
    check(q, k[:, :1].expand(k.shape), v[:, :1].expand(v.shape))
    check(q[:, :, ::2], k[:, ::2, 3:], v[:, ::2, 3:])


@every_dtype
def test_nothing(dtype: torch.dtype) -> None:
    for batch, heads, queries, keys in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]:
        q, k, v = operands(batch, heads, heads, queries, keys, 8, dtype)
        out, _ = lanewise.attention(q, k, v)
        assert out.shape == sdpa(q, k, v).shape
        assert (out == 0).all()


def test_a_large_batch() -> None:
    """More than 2^16 heads in all, where indices of blocks have overflowed elsewhere."""
    q, k, v = operands(8200, 8, 8, 2, 3, 4, torch.float32)
    check(q, k, v)


@every_dtype
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2)])
def test_gradients(heads: tuple[int, int], causal: bool, dtype: torch.dtype) -> None:
    def grads(op: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = op(*leaves)
        return torch.autograd.grad(out, leaves, out_grad.to(dtype))

    tensors = operands(2, *heads, 90, 90, 32, dtype)
    out_grad = randn(tensors[0].shape, dtype, 9)
    gqa = heads[0] != heads[1]
    ours = grads(lambda *t: lanewise.attention(*t, causal=causal)[0], dtype)
    exact = grads(lambda *t: reference.attention(*t, causal=causal)[0], torch.float64)
    peers = grads(lambda *t: sdpa(*t, is_causal=causal, enable_gqa=gqa), dtype)
    for grad, ref, peer in zip(ours, exact, peers, strict=True):
        assert_no_worse_than(grad, ref, peer)


def test_gradient_of_a_mask() -> None:
    q, k, v = operands(2, 3, 3, 19, 41, 16, torch.float32)
    mask = randn((2, 1, 19, 41), seed=4)

    def grad(op: Any, dtype: torch.dtype) -> Tensor:
        leaf = mask.to(dtype).requires_grad_()
        out = op(*(t.to(dtype) for t in (q, k, v)), leaf)
        return torch.autograd.grad(out.square().sum(), leaf)[0]

    exact = grad(lambda *t: reference.attention(*t)[0], torch.float64)
    ours = grad(lambda *t: lanewise.attention(*t)[0], torch.float32)
    assert_no_worse_than(ours, exact, grad(sdpa, torch.float32))
