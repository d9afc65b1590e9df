"""FlexAttention, as torch's compiler makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.case import Side
from bench.peers.compile import OPTIONS
from bench.peers.question import Attention, Question, Unanswered


def answer(question: Question) -> Side:
    """Compiled before it is returned; float32 prompts.

    It has a mask even if nothing is masked: its blocks of keys are those of the mask, and without
    one it took 2.5 times as long over 8192 keys.
    """
    if not isinstance(question, Attention) or question.q.dtype != torch.float32:
        raise Unanswered
    q, k, v = question.q, question.k, question.v
    if q.shape[2] != k.shape[2]:
        raise Unanswered
    mask = create_block_mask(
        _visible(question), None, None, q.shape[2], k.shape[2], device=q.device.type
    )
    torch.compiler.reset()  # it keeps few kernels of one function, and the next case has its own
    side = partial(
        torch.compile(flex_attention, dynamic=True, fullgraph=True, options=OPTIONS),
        q,
        k,
        v,
        block_mask=mask,
        enable_gqa=question.grouped,
    )
    with torch.inference_mode():  # as it will be called: the compiler makes other code without
        side()
    return side


def _visible(question: Attention) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    window = question.window

    def everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= 0

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    def sliding(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    return sliding if window else causal if question.causal else everything
