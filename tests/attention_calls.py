"""Calls of the attention ops: drawn, solved by the reference and by plain torch, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import reference
import torch
from hypothesis import strategies as st
from numerics import assert_no_worse_than
from strategies import (
    AttentionShape,
    broadcast_to,
    layouts,
    outer_broadcast_to,
    randn,
    seeds,
    values,
)
from torch import Tensor

import lanewise


@dataclass(repr=False)
class Call:
    """One drawn call: the tensors by name and the scalar options."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)
    op: str = "attention"

    def __repr__(self) -> str:
        tensors = {
            name: t if t is None else f"{t.dtype} {list(t.shape)} strides {list(t.stride())}"
            for name, t in self.tensors.items()
        }
        return f"Call({self.op}, {tensors}, {self.options})"

    def __call__(self, op: Any, *first: Any, **more: Any) -> Any:
        return op(*first, **{**self.tensors, **more}, **self.options)

    def ours(self) -> tuple[Tensor, Tensor]:
        return self(getattr(lanewise, self.op))

    def solved(self, attend: Any = reference.attention) -> tuple[Tensor, Tensor]:
        """By the reference, which attends within each sequence by `attend`."""
        if self.op == "attention":
            return self(attend)
        return self(getattr(reference, self.op), attend=attend)


@st.composite
def biases(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Of any kind, broadcasting to `shape`."""
    kind = draw(st.sampled_from(("none", "bool", "float", "float with -inf")))
    if kind == "none":
        return None
    # Any dimension may broadcast; one kept whole as the last has stride 1.
    size = draw(st.one_of(broadcast_to(shape), outer_broadcast_to(shape)))
    values = randn(size, draw(st.sampled_from((dtype, torch.float32))), draw(seeds), draw(layouts))
    if kind == "bool":
        return values > draw(st.sampled_from((-0.5, 1.0)))
    return values.masked_fill(values > 1.0, -math.inf) if "inf" in kind else values


@st.composite
def extras(draw: st.DrawFn, scores: tuple[int, ...], dtype: torch.dtype) -> Call:
    """Every option of attention on or off independently; `scores` is [B, H, Sq, Sk]."""
    batch, heads = scores[:2]
    windows = st.sampled_from((-1, 0, 1, 5, 40, 1000))
    slopes_shape = draw(st.sampled_from(((heads,), (batch, heads))))
    slopes = randn(slopes_shape, torch.float32, draw(seeds)).abs()
    sinks = randn((heads,), dtype, draw(seeds), draw(layouts))
    return Call(
        {
            "bias": draw(biases(scores, dtype)),
            "sinks": sinks if draw(st.booleans()) else None,
            "alibi_slopes": slopes if draw(st.booleans()) else None,
        },
        {
            "causal": draw(st.booleans()),
            "window_left": draw(windows),
            "window_right": draw(windows),
            "softcap": draw(st.sampled_from((0.0, 1.5, 30.0))),
            "scale": draw(st.sampled_from((None, 0.0, 0.3, -0.2))),
        },
    )


@st.composite
def calls(draw: st.DrawFn, shape: AttentionShape, dtype: torch.dtype) -> Call:
    """Attention over `shape` with every option on or off independently."""
    spread = draw(st.sampled_from((1.0, 4.0)))
    extra = draw(extras(shape.scores, dtype))
    tensors = {
        "q": draw(values(shape.q, dtype, spread)),
        "k": draw(values(shape.k, dtype)),
        "v": draw(values(shape.v, dtype)),
    }
    return Call({**tensors, **extra.tensors}, extra.options)


def reordered(seed: int, rows: int = 1, powers_of_two: bool = False) -> Any:
    """`reference.attention_in` over shuffled queries, keys and elements of heads and values.

    The formula is the same and every sum runs in another order: one order alone may be lucky in
    its roundings, and says little about the error that plain torch makes. Few queries come several
    times, as at least `rows`: torch adds a lone row's products side by side, and those of many one
    after another.
    """

    def op(
        dtype: torch.dtype,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        sinks: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        *,
        causal: bool = False,
        window_left: int = -1,
        window_right: int = -1,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        queries, keys = q.shape[2], k.shape[2]
        generator = torch.Generator().manual_seed(seed)
        sizes = (queries, keys, q.shape[3], v.shape[3])
        i, j, d, e = (torch.randperm(n, generator=generator) for n in sizes)
        back = i.argsort()
        i = i.repeat(-(-rows // max(queries, 1)))
        # What depends on the positions becomes part of the bias.
        whole = torch.zeros(*q.shape[:3], keys, dtype=dtype)
        if alibi_slopes is not None:
            distance = reference.key_distance(queries, keys).abs().to(dtype)
            whole = whole - alibi_slopes.to(dtype)[..., None, None] * distance
        if bias is not None and bias.dtype != torch.bool:
            whole = whole + bias.to(dtype)
        elif bias is not None:
            whole = whole.masked_fill(~bias, -math.inf)
        seen = reference.visible(queries, keys, causal, window_left, window_right)
        whole = whole.masked_fill(~seen, -math.inf)
        out, lse = reference.attention_in(
            dtype,
            q[:, :, i][..., d],
            k[:, :, j][..., d],
            v[:, :, j][..., e],
            whole[:, :, i][..., j],
            sinks,
            powers_of_two=powers_of_two,
            **options,
        )
        return out[:, :, back][..., e.argsort()], lse[:, :, back]

    return op


PEERS = (
    reference.attention_in,
    *(reordered(seed) for seed in range(4)),
    *(reordered(seed, rows=8) for seed in range(4, 6)),
    *(reordered(seed, rows=8, powers_of_two=True) for seed in range(6, 8)),
)


def check_forward(call: Call) -> None:
    """No worse than plain torch in float32, rounded once: torch's own op cannot do better."""
    out, lse = call.ours()
    ref_out, ref_lse = call.solved()
    peers = [call.solved(partial(peer, torch.float32)) for peer in PEERS]
    q = call.tensors["q"]
    assert q is not None
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    assert_no_worse_than(out, ref_out, *(peer.to(out.dtype) for peer, _ in peers))
    assert_no_worse_than(lse, ref_lse, *(peer for _, peer in peers))


DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")


def gradients(
    call: Call, run: Callable[[Call], tuple[Tensor, Tensor]], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The gradient of every differentiable input, for fixed random gradients of out and lse.

    The inputs are cast to `dtype` before, or keep their own.
    """
    leaves = {
        name: t.detach().to(dtype or t.dtype).requires_grad_()
        for name, t in call.tensors.items()
        if name in DIFFERENTIABLE and t is not None and t.is_floating_point()
    }
    out, lse = run(Call({**call.tensors, **leaves}, call.options, call.op))
    out_grad, lse_grad = randn(out.shape, seed=91), randn(lse.shape, seed=92)
    grads = torch.autograd.grad(
        (out, lse), list(leaves.values()), (out_grad.to(out.dtype), lse_grad.to(lse.dtype))
    )
    return dict(zip(leaves, grads, strict=True))


def check_gradients(*calls: Call) -> None:
    """No worse than autograd through plain torch at the same dtype.

    Calls of the same shapes are judged together: a gradient of few numbers is right or wrong in its
    last bits by luck, theirs as much as ours.
    """
    q = calls[0].tensors["q"]
    assert q is not None
    dtype = q.dtype

    def rounded(call: Call) -> tuple[Tensor, Tensor]:
        """Out's gradient is rounded to q's dtype in ours: the same one drives the reference."""
        out, lse = call.solved()
        out.register_hook(lambda grad: grad.to(dtype).double())
        return out, lse

    def together(
        run: Callable[[Call], tuple[Tensor, Tensor]], dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        found = [gradients(call, run, dtype) for call in calls]
        return {name: torch.stack([grads[name] for grads in found]) for name in found[0]}

    ours = together(Call.ours)
    ref = together(rounded, torch.float64)
    peers = [together(lambda c, peer=peer: c.solved(partial(peer, dtype))) for peer in PEERS]
    for name, grad in ours.items():
        leaf = calls[0].tensors[name]
        assert leaf is not None
        assert grad.dtype == leaf.dtype, name
        assert grad.shape[1:] == leaf.shape, name
        assert_no_worse_than(grad, ref[name], *(peer[name] for peer in peers))
