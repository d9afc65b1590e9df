"""torch.compile of what torch alone calls op by op: it fuses what stands around products."""

from __future__ import annotations

from collections.abc import Callable

import torch as pytorch

from bench.case import Side
from bench.peers import torch
from bench.peers.question import Attention, Linear, Matmul, Question, Unanswered

# A graph kept from a run held to AVX2 is taken for other instruction sets too, and is wrong there.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"fx_graph_cache": False}


def answer(question: Question) -> Side:
    """Compiled before it is returned. A lone product or attention is the op that torch calls."""
    lone = isinstance(question, Linear) and question.activation == "none"
    if lone or isinstance(question, Matmul | Attention):
        raise Unanswered
    return compiled(torch.answer(question))


def compiled(side: Side) -> Side:
    """A function of torch ops, compiled for its operands and called once."""
    pytorch.compiler.reset()  # it keeps few kernels of one function, and the next case has its own
    found = pytorch.compile(side, dynamic=False, fullgraph=True, options=OPTIONS)
    with pytorch.inference_mode():  # as it will be called: the compiler makes other code without
        found()
    return found
