"""F.scaled_dot_product_attention, with torch's meaning of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from numerics import EPS32, assert_no_worse_than
from routing import always
from strategies import DTYPES, randn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lanewise.integrations.aten import worth
from lanewise.integrations.aten.reason import SERVED, TORCH_IS_FASTER, UNMEASURED

NAME = "scaled_dot_product_attention"
# torch's other way
composing = partial(sdpa_kernel, SDPBackend.MATH)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def operands(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """[batch, heads, kv_heads, queries, keys, dim], laid out as projections are."""
    batch, heads, kv_heads, queries, keys, dim = shape
    sizes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (
        randn((batch, tokens, h, dim), dtype, seed).transpose(1, 2)
        for seed, (tokens, h) in enumerate(sizes)
    )
    return q, k, v


def results(
    q: Tensor, k: Tensor, v: Tensor, routing: Callable[[], Any] = nullcontext, **options: Any
) -> tuple[list[Tensor], Any]:
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    with routing() as report:
        out = F.scaled_dot_product_attention(*leaves, **options)
        grads = torch.autograd.grad(out, leaves, randn(tuple(out.shape), out.dtype, 9))
    return [out, *grads], report


def beside(ref: Tensor, *operands: Tensor) -> Tensor:
    """The reference, off by a float32 rounding of the largest terms of its sums.

    Of these, a query of one key, say, cancels all: in torch's order of sums often to the last bit.
    """
    terms = math.prod(float(t.detach().abs().max()) for t in operands)
    return ref + EPS32 * math.sqrt(operands[0].shape[-1]) * terms


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> None:
    """No worse than torch's, against float64 by the formula, forward and backward."""
    queries, keys = q.shape[2], k.shape[2]
    allowed = mask
    if options.get("is_causal"):
        allowed = torch.ones(queries, keys, dtype=torch.bool).tril()
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    exact, _ = reference.attention(*leaves, allowed, scale=options.get("scale"))
    grads = torch.autograd.grad(exact, leaves, randn(tuple(exact.shape), q.dtype, 9).double())
    plain, _ = results(q, k, v, attn_mask=mask, **options)
    composed, _ = results(q, k, v, composing, attn_mask=mask, **options)
    ours, report = results(q, k, v, always, attn_mask=mask, **options)
    assert report.routed == {NAME: 1, f"{NAME} backward": 1}
    for our, torchs, peer, ref in zip(ours, plain, composed, [exact, *grads], strict=True):
        assert our.stride() == torchs.stride()
        assert_no_worse_than(our, ref, torchs, peer, beside(ref, q, k, v))


@every_dtype
@pytest.mark.parametrize("lengths", [(1, 1), (19, 19), (33, 33), (1, 9), (9, 1), (5, 40), (40, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_causality_starts_at_the_first_key(
    lengths: tuple[int, int], causal: bool, dtype: torch.dtype
) -> None:
    check(*operands((2, 4, 4, *lengths, 16), dtype), is_causal=causal)


@every_dtype
def test_grouped_queries(dtype: torch.dtype) -> None:
    check(*operands((2, 6, 2, 17, 23, 16), dtype), enable_gqa=True)
    check(*operands((1, 4, 1, 17, 17, 16), dtype), enable_gqa=True, is_causal=True)


@every_dtype
@pytest.mark.parametrize("scale", [None, 0.0, 0.3, -1.0])
def test_scale(scale: float | None, dtype: torch.dtype) -> None:
    check(*operands((2, 2, 2, 9, 9, 8), dtype), scale=scale)


@every_dtype
@pytest.mark.parametrize(
    "size",
    [(19, 41), (1, 41), (19, 1), (1, 1, 1, 41), (3, 1, 19, 41), (3, 4, 19, 41), (1, 4, 1, 1)],
)
@pytest.mark.parametrize("kind", ["boolean", "own", "float32"])
def test_masks_broadcast(size: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    mask = randn(size, torch.float32 if kind == "float32" else dtype, 4)
    if kind == "float32" and dtype is torch.float16:
        pytest.skip("torch refuses it")
    check(*operands((3, 4, 4, 19, 41, 16), dtype), mask > -0.7 if kind == "boolean" else mask)


@every_dtype
def test_queries_that_may_attend_nothing(dtype: torch.dtype) -> None:
    allowed = torch.ones(9, 21, dtype=torch.bool)
    allowed[[0, 4]] = False
    check(*operands((2, 2, 2, 9, 21, 16), dtype), allowed)


@every_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_either_half_may_be_torchs(masked: bool, dtype: torch.dtype) -> None:
    """The statistics that one hands to the other mean the same."""
    mask = torch.zeros(9, 9, dtype=dtype)
    if masked:
        mask[3] = -math.inf
        mask[:, 7] = -math.inf
    q, k, v = operands((2, 3, 3, 9, 9, 8), dtype)
    plain, _ = results(q, k, v, attn_mask=mask)
    composed, _ = results(q, k, v, composing, attn_mask=mask)
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    exact, _ = reference.attention(*leaves, mask)
    grads = torch.autograd.grad(exact, leaves, randn(tuple(exact.shape), dtype, 9).double())
    for forward, backward in ((always, nullcontext), (nullcontext, always)):
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        with forward():
            out = F.scaled_dot_product_attention(*leaves, mask)
        with backward():
            mixed = torch.autograd.grad(out, leaves, randn(tuple(out.shape), dtype, 9))
        for our, torchs, peer, ref in zip(mixed, plain[1:], composed[1:], grads, strict=True):
            assert_no_worse_than(our, ref, torchs, peer, beside(ref, q, k, v))


@every_dtype
def test_the_kernels_other_output(dtype: torch.dtype) -> None:
    q, k, v = operands((2, 3, 3, 9, 12, 8), dtype)
    mask = torch.zeros(9, 12, dtype=dtype)
    mask[3] = -math.inf
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    _, plain = kernel(q, k, v, attn_mask=mask)
    with always() as report:
        _, ours = kernel(q, k, v, attn_mask=mask)
    assert report.routed == {NAME: 1}
    assert ours.stride() == plain.stride()
    _, exact = reference.attention(q, k, v, mask)
    assert_no_worse_than(ours, exact.masked_fill(exact == -math.inf, 0.0), plain)


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", "expanded", "transposed", "sliced"])
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    q, k, v = (randn((3, 4, 11, 16), dtype, seed, layout) for seed in range(3))
    check(q, k, v)
    check(q[:, :, :1], k[:, :1].expand(k.shape), v[:, :1].expand(v.shape))


COMPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
    "three dimensions": lambda q: F.scaled_dot_product_attention(q[0], q[0], q[0]),
    "five dimensions": lambda q: F.scaled_dot_product_attention(q[None], q[None], q[None]),
    "wider values": lambda q: F.scaled_dot_product_attention(q, q, q.repeat(1, 1, 1, 2)),
    "no keys": lambda q: F.scaled_dot_product_attention(q, q[:, :, :0], q[:, :, :0]),
    "no queries": lambda q: F.scaled_dot_product_attention(q[:, :, :0], q, q),
    "no batch": lambda q: F.scaled_dot_product_attention(q[:0], q[:0], q[:0]),
    "strided elements": lambda q: F.scaled_dot_product_attention(q.mT, q.mT, q.mT),
    "a mask to learn": lambda q: F.scaled_dot_product_attention(q, q, q, q[0, 0, :, :1]),
    "huge scale": lambda q: F.scaled_dot_product_attention(q, q, q, scale=1e38),
    "infinite scale": lambda q: F.scaled_dot_product_attention(q, q, q, scale=math.inf),
    "float64": lambda q: F.scaled_dot_product_attention(q.double(), q.double(), q.double()),
}


@pytest.mark.parametrize("what", COMPOSED)
def test_what_torch_composes_or_keeps(what: str) -> None:
    q = randn((2, 4, 8, 8), torch.float32, 1).requires_grad_()

    def values() -> list[Tensor]:
        torch.manual_seed(0)
        out = COMPOSED[what](q)
        return [out, *torch.autograd.grad(out.sum(), q)]

    plain = values()
    with always() as report:
        routed = values()
    assert NAME not in report.routed
    torch.testing.assert_close(routed, plain, equal_nan=True)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "a mask and causality": lambda q: F.scaled_dot_product_attention(
        q, q, q, torch.ones(8, 8, dtype=torch.bool), is_causal=True
    ),
    "heads that do not divide": lambda q: F.scaled_dot_product_attention(
        q, q[:, :3], q[:, :3], enable_gqa=True
    ),
    "heads without enable_gqa": lambda q: F.scaled_dot_product_attention(q, q[:, :2], q[:, :2]),
    "dtypes": lambda q: F.scaled_dot_product_attention(q, q.half(), q),
    "a mask's dtype": lambda q: F.scaled_dot_product_attention(q, q, q, torch.ones(8, 8).long()),
    "a mask's shape": lambda q: F.scaled_dot_product_attention(q, q, q, torch.ones(7, 8)),
    "dimensions": lambda q: F.scaled_dot_product_attention(q, q[..., :4], q),
    "the kernel's rank": lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[0], q[0], q[0]
    ),
    "the kernel's dropout": lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, q, q, 0.5
    ),
    "the kernel's dtype": lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.long(), q.long(), q.long()
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_are_torchs(what: str) -> None:
    q = randn((2, 4, 8, 8), torch.float32, 1)

    def outcome() -> Any:
        try:
            out = WRONG[what](q)
        except Exception as error:
            return type(error), str(error)
        return [t.shape for t in (out if isinstance(out, tuple) else (out,))]

    plain = outcome()
    with always():
        assert outcome() == plain


def test_where_it_pays() -> None:
    f32, bf16, f16 = DTYPES
    cases = [
        (SERVED, ("avx2", f16, 1, 1, 512, 64, False, False)),
        (SERVED, ("avx512bf16", bf16, 4, 512, 512, 128, True, True)),
        (UNMEASURED, ("generic", f32, 1, 512, 512, 64, True, False)),
        (SERVED, ("amx", bf16, 1, 512, 512, 64, True, False)),
        (TORCH_IS_FASTER, ("amx", bf16, 1, 1024, 1024, 128, False, False)),
        (SERVED, ("amx", bf16, 4, 1, 512, 128, False, False)),
        (TORCH_IS_FASTER, ("amx", bf16, 1, 1, 512, 64, False, False)),
        (TORCH_IS_FASTER, ("amx", bf16, 4, 8, 2048, 128, True, False)),
        (SERVED, ("amx", bf16, 1, 2048, 2048, 64, True, True)),
        (TORCH_IS_FASTER, ("amx", bf16, 1, 2048, 2048, 128, True, True)),
        (TORCH_IS_FASTER, ("amx", f16, 1, 512, 512, 64, True, False)),
        (SERVED, ("amx", f16, 1, 1, 512, 64, False, False)),
        (SERVED, ("amx", f32, 1, 64, 64, 64, True, False)),
        (TORCH_IS_FASTER, ("amx", f32, 1, 64, 64, 64, True, True)),
    ]
    for answer, call in cases:
        assert worth.attention(*call) == answer, call
