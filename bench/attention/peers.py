"""The same attention by torch: its fused op, and FlexAttention as its compiler makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.attention.problem import Problem
from bench.case import Side

# A graph kept from a run held to AVX2 is taken for other instruction sets too, and is wrong there.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"fx_graph_cache": False}


def sdpa(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """torch's fused op; a window is a mask of q's dtype, which it takes without a conversion."""
    mask = None
    if problem.window:
        visible = problem.visible(torch.arange(problem.queries))
        mask = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, -torch.inf)
    return partial(
        F.scaled_dot_product_attention,
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=problem.causal and mask is None,
        enable_gqa=problem.heads != problem.kv_heads,
    )


def flex(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Side:
    """FlexAttention, compiled before it is returned; RuntimeError where that fails.

    It has a mask even if nothing is masked: its blocks of keys are those of the mask, and without
    one it took 2.5 times as long over 8192 keys.
    """
    mask = create_block_mask(
        _visible(problem), None, None, problem.queries, problem.keys, device=q.device.type
    )
    side = partial(
        torch.compile(flex_attention, dynamic=True, fullgraph=True, options=OPTIONS),
        q,
        k,
        v,
        block_mask=mask,
        enable_gqa=problem.heads != problem.kv_heads,
    )
    torch.compiler.reset()  # it keeps few kernels of one function, and the next case has its own
    with torch.inference_mode():  # as it will be called: the compiler makes other code without
        side()
    return side


def _visible(problem: Problem) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Queries and keys are equally many."""
    window = problem.window

    def everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= 0

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def sliding(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    return sliding if window else causal if problem.causal else everything
