"""Attention: whole sequences, single tokens over a long past, and training."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench.case import Case, Task
from bench.section import Section

# Five products of the forward's size run backward, beside its own two.
BACKWARD_FACTOR = 3.5


def _attention(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    dim: int,
    dtype: torch.dtype,
    causal: bool = False,
    gradient: bool = False,
) -> Case:
    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, heads, tokens, dim, dtype=dtype, requires_grad=gradient)

    q, k, v = random(heads, queries), random(kv_heads, keys), random(kv_heads, keys)
    upstream = torch.randn(batch, heads, queries, dim, dtype=dtype)

    def ours() -> object:
        out, _ = lanewise.attention(q, k, v, causal=causal)
        return torch.autograd.grad(out, (q, k, v), upstream) if gradient else out

    def torchs(dtype: torch.dtype = dtype) -> object:
        inputs = [t.to(dtype) for t in (q, k, v)]
        out = F.scaled_dot_product_attention(
            inputs[0], inputs[1], inputs[2], is_causal=causal, enable_gqa=kv_heads != heads
        )
        return torch.autograd.grad(out, inputs, upstream.to(dtype)) if gradient else out

    # A causal square is half of its scores, and the diagonal.
    scores = batch * heads * queries * keys * ((keys + 1) / (2 * keys) if causal else 1)
    sizes = [t.numel() for t in (q, k, v, upstream)]
    notes = (", causal" if causal else "") + (", forward and backward" if gradient else "")
    return Case(
        Task(
            f"attention {batch}×{heads}/{kv_heads}×{queries}×{keys}×{dim}{notes}",
            dtype,
            flops=4 * scores * dim * (BACKWARD_FACTOR if gradient else 1),
            bytes=sum(sizes) * dtype.itemsize * (3 if gradient else 1),
        ),
        ours={"": ours},
        peers={"torch": torchs},
        reference=lambda: torchs(torch.float32),
        gradient=gradient,
    )


# Batch × heads of queries/of keys × queries × keys × head size.
SECTIONS = (
    Section(
        "attention",
        [
            partial(_attention, 32, 12, 12, 64, 64, 32, torch.float32),
            partial(_attention, 1, 12, 12, 1024, 1024, 64, torch.float32, causal=True),
            partial(_attention, 1, 12, 12, 1024, 1024, 64, torch.bfloat16, causal=True),
            partial(_attention, 1, 32, 8, 1024, 1024, 128, torch.float32, causal=True),
            partial(_attention, 1, 32, 8, 1, 4096, 128, torch.float32),
            partial(_attention, 1, 32, 8, 1, 4096, 128, torch.bfloat16),
            partial(_attention, 1, 12, 12, 512, 512, 64, torch.float32, causal=True, gradient=True),
        ],
    ),
)
