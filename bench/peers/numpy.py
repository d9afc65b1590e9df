"""NumPy, whose products are those of its BLAS; it has no 16-bit products worth the name."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch

from bench.case import Side
from bench.peers.question import LayerNorm, Linear, Matmul, Question, RMSNorm, Unanswered


def answer(question: Question) -> Side:
    """Of one op of NumPy, or of the few lines that people write with it."""
    if question.dtype != torch.float32:
        raise Unanswered
    return _answer(question)


@singledispatch
def _answer(question: Question) -> Side:
    raise Unanswered


@_answer.register
def _(q: Linear) -> Side:
    if q.bias is not None or q.activation != "none":
        raise Unanswered
    left, right = q.x.numpy(), q.weight.numpy().T
    return lambda: left @ right


@_answer.register
def _(q: Matmul) -> Side:
    left, right = q.a.numpy(), q.b.numpy()
    return lambda: left @ right


@_answer.register
def _(q: LayerNorm) -> Side:
    x, weight, bias = q.x.numpy(), q.weight.numpy(), q.bias.numpy()

    def run() -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(q.eps)) * weight + bias

    return run


@_answer.register
def _(q: RMSNorm) -> Side:
    x, weight = q.x.numpy(), q.weight.numpy()

    def run() -> Any:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(q.eps)) * weight

    return run
