"""JAX: what XLA makes of the op, or of the few that people write for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import nn

from bench.case import Side
from bench.peers.question import (
    AddRMSNorm,
    Attention,
    GatedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Question,
    RMSNorm,
    Rope,
    Unanswered,
    alone,
)


@cache
def _start(threads: int) -> None:
    """Starts XLA with so many threads, as many as the processors that it finds it may use."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    jax.devices("cpu")
    os.sched_setaffinity(0, allowed)


def answer(question: Question) -> Side:
    """Compiled by its first call. The operands are torch's own memory."""
    _start(torch.get_num_threads())
    function, *operands = _answer(question)
    compiled = jax.jit(function)
    arrays = [jnp.from_dlpack(t.detach().contiguous()) for t in operands]

    def run() -> Any:
        return alone([torch.from_dlpack(t) for t in jax.block_until_ready(compiled(*arrays))])

    return run


@singledispatch
def _answer(question: Question) -> tuple[Any, ...]:
    """The function of arrays, which returns several, and its operands."""
    raise Unanswered


@_answer.register
def _(q: Linear) -> tuple[Any, ...]:
    def linear(x: Any, weight: Any, *bias: Any) -> Any:
        sums = sum(bias, x @ weight.T)
        return (nn.gelu(sums, approximate=False) if q.activation == "gelu" else sums,)

    return linear, q.x, q.weight, *(() if q.bias is None else (q.bias,))


@_answer.register
def _(q: GatedLinear) -> tuple[Any, ...]:
    return lambda x, gate, up: (nn.silu(x @ gate.T) * (x @ up.T),), q.x, q.gate, q.up


@_answer.register
def _(q: Matmul) -> tuple[Any, ...]:
    return lambda a, b: (a @ b,), q.a, q.b


@_answer.register
def _(q: Attention) -> tuple[Any, ...]:
    """Its function takes heads behind tokens; on CPUs it has no float16."""
    if q.q.dtype == torch.float16:
        raise Unanswered

    def attention(*operands: Any) -> Any:
        out = nn.dot_product_attention(
            *(t.swapaxes(1, 2) for t in operands),
            is_causal=q.causal,
            local_window_size=(q.window - 1, 0) if q.window else None,
        )
        return (out.swapaxes(1, 2),)

    return attention, q.q, q.k, q.v


@_answer.register
def _(q: LayerNorm) -> tuple[Any, ...]:
    def norm(x: Any, weight: Any, bias: Any) -> Any:
        wide = x.astype(jnp.float32)
        y = nn.standardize(wide, epsilon=q.eps)
        return ((y * weight + bias).astype(x.dtype),)

    return norm, q.x, q.weight, q.bias


def _rms_norm(eps: float) -> Callable[[Any, Any], Any]:
    def norm(x: Any, weight: Any) -> Any:
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
        return (y * weight).astype(x.dtype)

    return norm


@_answer.register
def _(q: RMSNorm) -> tuple[Any, ...]:
    return lambda x, weight: (_rms_norm(q.eps)(x, weight),), q.x, q.weight


@_answer.register
def _(q: AddRMSNorm) -> tuple[Any, ...]:
    def norm(x: Any, residual: Any, weight: Any) -> Any:
        total = x + residual
        return _rms_norm(q.eps)(total, weight), total

    return norm, q.x, q.residual, q.weight


@_answer.register
def _(q: Rope) -> tuple[Any, ...]:
    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = jnp.split(x.astype(jnp.float32), 2, -1)
        turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), -1)
        return (turned.astype(x.dtype),)

    return rotate, q.x, q.cos, q.sin
