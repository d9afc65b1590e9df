"""The questions that GPU kernels and torch are asked, at sizes for a GPU or for an interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lanewise
from bench.case import Case, Side, Task


@dataclass(frozen=True)
class Sizes:
    """Of the problems: what a GPU is measured with, or what an interpreter can do in a second."""

    tokens: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    sequences: int


LARGE = Sizes(4096, 4096, 14336, 32, 8, 128, 4096, 16)
TINY = Sizes(40, 48, 80, 4, 2, 16, 70, 3)


class Maker:
    """Tensors of one dtype on one device, the same in every run."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device=self.device) * scale
        return values.to(dtype or self.dtype)


def product(sizes: Sizes, make: Maker) -> Case:
    """A large square product."""
    a, b = make(sizes.tokens, sizes.hidden), make(sizes.hidden, sizes.hidden)
    task = _product_task(f"matmul {_by(sizes.tokens, sizes.hidden, sizes.hidden)}", a, b)
    return Case(
        task,
        {"": lambda: lanewise.matmul(a, b)},
        {"torch": lambda: a @ b},
        lambda: a.float() @ b.float(),
    )


def batched(sizes: Sizes, make: Maker) -> Case:
    """Many small products, the second operand transposed."""
    rows = sizes.head_dim
    a = make(sizes.heads * 8, rows, rows)
    b = make(sizes.heads * 8, rows, rows).mT
    return Case(
        _product_task(f"matmul {len(a)} × {_by(rows, rows, rows)}, transposed", a, b),
        {"": lambda: lanewise.matmul(a, b)},
        {"torch": lambda: a @ b},
        lambda: a.float() @ b.float(),
    )


def linear(sizes: Sizes, make: Maker, rows: int) -> Case:
    """A layer with bias, GELU and a residual, against torch's three ops."""
    x = make(rows, sizes.hidden)
    weight, bias = make(sizes.inner, sizes.hidden, scale=0.02), make(sizes.inner)
    residual = make(rows, sizes.inner)
    return Case(
        _product_task(
            f"linear {_by(rows, sizes.hidden, sizes.inner)} gelu, residual", x, weight.mT
        ),
        {"": lambda: lanewise.linear(x, weight, bias, residual, activation="gelu")},
        {"torch": lambda: F.gelu(F.linear(x, weight, bias)) + residual},
        lambda: F.gelu(F.linear(x.float(), weight.float(), bias.float())) + residual.float(),
    )


def linear_gradients(sizes: Sizes, make: Maker) -> Case:
    """The gradients of x, weight and bias through GELU."""
    x, grad = make(sizes.tokens, sizes.hidden), make(sizes.tokens, sizes.hidden)
    weight, bias = make(sizes.hidden, sizes.hidden, scale=0.02), make(sizes.hidden)
    size = _by(sizes.tokens, sizes.hidden, sizes.hidden)

    def torchs(dtype: torch.dtype) -> Side:
        def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.gelu(F.linear(x, weight, bias))

        return _gradients(forward, [t.to(dtype) for t in (x, weight, bias)], grad.to(dtype))

    ours = partial(lanewise.linear, activation="gelu")
    forward = _product_task(f"linear {size} gelu, backward", x, weight.mT)
    return Case(
        Task(forward.work, forward.dtype, 3 * forward.flops, 3 * forward.bytes),
        {"": _gradients(ours, [x, weight, bias], grad)},
        {"torch": torchs(x.dtype)},
        torchs(torch.float32),
        gradient=True,
    )


def gated_linear(sizes: Sizes, make: Maker, rows: int, columns: int) -> Case:
    """SwiGLU, against torch's two products and two elementwise ops."""
    x = make(rows, sizes.hidden)
    gate, up = (make(columns, sizes.hidden, scale=0.02) for _ in range(2))
    one = _product_task(f"gated_linear {_by(rows, sizes.hidden, columns)}", x, gate.mT)

    def torchs(dtype: torch.dtype) -> Tensor:
        wide = x.to(dtype)
        return F.silu(F.linear(wide, gate.to(dtype))) * F.linear(wide, up.to(dtype))

    return Case(
        Task(one.work, one.dtype, 2 * one.flops, one.bytes + gate.nbytes),
        {"": lambda: lanewise.gated_linear(x, gate, up)},
        {"torch": lambda: torchs(x.dtype)},
        lambda: torchs(torch.float32),
    )


def attention(sizes: Sizes, make: Maker, causal: bool) -> Case:
    """A prompt, grouped queries."""
    q, k, v = _attended(sizes, make, 1, sizes.tokens, sizes.tokens)
    group = sizes.heads // sizes.kv_heads
    return Case(
        _attention_task("attention", q, k, causal),
        {"": lambda: lanewise.attention(q, k, v, causal=causal)[0]},
        {"torch": lambda: _sdpa(q, k, v, causal)},
        # The scores of one group of heads fit any GPU in float32.
        lambda: _sdpa(q[:, :group].float(), k[:, :1].float(), v[:, :1].float(), causal),
        compared=lambda out: out[:, :group],
    )


def attention_gradients(sizes: Sizes, make: Maker) -> Case:
    """The gradients of q, k and v, causal."""
    tokens = sizes.tokens // 2
    q, k, v = _attended(sizes, make, 1, tokens, tokens)
    grad = make(*q.shape)
    group = sizes.heads // sizes.kv_heads
    first = [q[:, :group].float(), k[:, :1].float(), v[:, :1].float()]
    forward = _attention_task("attention, backward", q, k, True)
    return Case(
        # Five products where forward has two (Dao 2023, FlashAttention-2).
        Task(forward.work, forward.dtype, 2.5 * forward.flops, 3 * forward.bytes),
        {
            "": _gradients(
                lambda q, k, v: lanewise.attention(q, k, v, causal=True)[0], [q, k, v], grad
            )
        },
        {"torch": _gradients(partial(_sdpa, causal=True), [q, k, v], grad)},
        _gradients(partial(_sdpa, causal=True), first, grad[:, :group].float()),
        compared=lambda grads: (grads[0][:, :group], grads[1][:, :1], grads[2][:, :1]),
        gradient=True,
    )


def decode(sizes: Sizes, make: Maker, batch: int) -> Case:
    """One new token a sequence."""
    q, k, v = _attended(sizes, make, batch, 1, sizes.context)
    return Case(
        _attention_task("attention", q, k, False),
        {"": lambda: lanewise.attention(q, k, v, causal=True)[0]},
        {"torch": lambda: _sdpa(q, k, v, False)},
        lambda: _sdpa(q.float(), k.float(), v.float(), False),
    )


def paged(sizes: Sizes, make: Maker) -> Case:
    """One new token a sequence, keys and values in blocks of 16; torch gets them contiguous."""
    batch, block = sizes.sequences, 16
    blocks = -(-sizes.context // block)
    q = make(batch, sizes.heads, sizes.head_dim)
    k_cache, v_cache = (
        make(batch * blocks, block, sizes.kv_heads, sizes.head_dim) for _ in range(2)
    )
    order = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(0))
    block_table = order.view(batch, blocks).int().to(q.device)
    cu_seqlens = torch.arange(batch + 1, device=q.device)
    lens = torch.full((batch,), sizes.context, dtype=torch.int32, device=q.device)
    k, v = (
        c[block_table.long()].flatten(1, 2)[:, : sizes.context].transpose(1, 2).contiguous()
        for c in (k_cache, v_cache)
    )
    task = _attention_task("paged_attention", q[:, :, None], k, False)
    return Case(
        task,
        {
            "": lambda: lanewise.paged_attention(
                q, k_cache, v_cache, cu_seqlens, block_table, lens, 1, causal=True
            )[0]
        },
        {"torch": lambda: _sdpa(q[:, :, None], k, v, False)[:, :, 0]},
        lambda: _sdpa(q[:, :, None].float(), k.float(), v.float(), False)[:, :, 0],
    )


def packed(sizes: Sizes, make: Maker) -> Case:
    """Sequences of many lengths in one call, against torch one after another."""
    lengths = [
        max(1, sizes.tokens * (i + 1) // (4 * sizes.sequences)) for i in range(sizes.sequences)
    ]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=make.device)
    total, longest = sum(lengths), max(lengths)
    q = make(total, sizes.heads, sizes.head_dim)
    k, v = (make(total, sizes.kv_heads, sizes.head_dim) for _ in range(2))

    def one_by_one(dtype: torch.dtype) -> Tensor:
        each = [t.to(dtype).transpose(0, 1)[None].split(lengths, 2) for t in (q, k, v)]
        outs = [_sdpa(q, k, v, True)[0] for q, k, v in zip(*each, strict=True)]
        return torch.cat(outs, 1).transpose(0, 1)

    flops = sum(2.0 * n * n * sizes.heads * sizes.head_dim for n in lengths)
    return Case(
        Task(
            f"attention_varlen {len(lengths)} of {lengths[0]} to {longest}, causal",
            q.dtype,
            flops,
            2 * q.nbytes + k.nbytes + v.nbytes,
        ),
        {
            "": lambda: lanewise.attention_varlen(
                q, k, v, starts, starts, longest, longest, causal=True
            )[0]
        },
        {"torch one by one": lambda: one_by_one(q.dtype)},
        lambda: one_by_one(torch.float32),
    )


def norm(sizes: Sizes, make: Maker, name: str) -> Case:
    """A norm over rows, with the addition of a residual where its name says so."""
    x, residual = (make(2 * sizes.tokens, sizes.hidden) for _ in range(2))
    weight = make(sizes.hidden)

    def torchs(dtype: torch.dtype) -> Tensor:
        wide = x.to(dtype) + residual.to(dtype) if name.startswith("add_") else x.to(dtype)
        if name.endswith("rms_norm"):
            return F.rms_norm(wide, (sizes.hidden,), weight.to(dtype), 1e-6)
        return F.layer_norm(wide, (sizes.hidden,), weight.to(dtype), None, 1e-5)

    def ours() -> Any:
        if name.startswith("add_"):
            return getattr(lanewise, name)(x, residual, weight)[0]
        return getattr(lanewise, name)(x, weight)

    moved = (4 if name.startswith("add_") else 2) * x.nbytes
    return Case(
        Task(f"{name} {_by(*x.shape)}", x.dtype, 0.0, moved),
        {"": ours},
        {"torch": lambda: torchs(x.dtype)},
        lambda: torchs(torch.float32),
    )


def rope(sizes: Sizes, make: Maker) -> Case:
    """Llama's rotation, against the rotate_half of transformers."""
    x = make(1, sizes.heads, sizes.tokens, sizes.head_dim)
    theta = make(sizes.tokens, sizes.head_dim // 2, scale=20.0, dtype=torch.float32)
    cos, sin = theta.cos(), theta.sin()

    def torchs(dtype: torch.dtype) -> Tensor:
        wide, twice = x.to(dtype), torch.cat([cos, cos], -1).to(dtype)
        first, second = wide.chunk(2, -1)
        return wide * twice + torch.cat([-second, first], -1) * torch.cat([sin, sin], -1).to(dtype)

    return Case(
        Task(f"rope {_by(*x.shape)}", x.dtype, 0.0, 2 * x.nbytes),
        {"": lambda: lanewise.rope(x, cos, sin)},
        {"torch": lambda: torchs(x.dtype)},
        lambda: torchs(torch.float32),
    )


def cases(sizes: Sizes, device: str, dtype: torch.dtype) -> Iterator[Callable[[], Case]]:
    """Builders of all cases in one dtype; each is held only while it is measured."""
    make = Maker(device, dtype)
    yield partial(product, sizes, make)
    yield partial(batched, sizes, make)
    for rows in (1, 16, sizes.tokens):
        yield partial(linear, sizes, make, rows)
        yield partial(gated_linear, sizes, make, rows, sizes.inner)
    # One of eight GPUs that share a layer: too few columns for its units, so that K is split.
    yield partial(gated_linear, sizes, make, 1, sizes.inner // 8)
    yield partial(linear_gradients, sizes, make)
    for causal in (False, True):
        yield partial(attention, sizes, make, causal)
    yield partial(attention_gradients, sizes, make)
    for batch in (1, sizes.sequences):
        yield partial(decode, sizes, make, batch)
    yield partial(paged, sizes, make)
    yield partial(packed, sizes, make)
    for name in ("rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"):
        yield partial(norm, sizes, make, name)
    yield partial(rope, sizes, make)


def _by(*extents: int) -> str:
    return "×".join(map(str, extents))


def _product_task(work: str, a: Tensor, b: Tensor) -> Task:
    batch, rows, columns = a.shape[:-2].numel(), a.size(-2), b.size(-1)
    out = batch * rows * columns
    return Task(work, a.dtype, 2.0 * out * a.size(-1), a.nbytes + b.nbytes + out * a.itemsize)


def _attention_task(work: str, q: Tensor, k: Tensor, causal: bool) -> Task:
    batch, heads, queries, size = q.shape
    kv_heads, keys = k.shape[1:3]
    shape = f"{batch}×{heads}/{kv_heads}×{queries}×{keys}×{size}"
    flops = 4.0 * batch * heads * queries * keys * size / (2 if causal else 1)
    name = f"{work} {shape}{', causal' if causal else ''}"
    return Task(name, q.dtype, flops, 2 * q.nbytes + 2 * k.nbytes)


def _attended(
    sizes: Sizes, make: Maker, batch: int, queries: int, keys: int
) -> tuple[Tensor, Tensor, Tensor]:
    q = make(batch, sizes.heads, queries, sizes.head_dim)
    k, v = (make(batch, sizes.kv_heads, keys, sizes.head_dim) for _ in range(2))
    return q, k, v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def _gradients(forward: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> Side:
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = forward(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
