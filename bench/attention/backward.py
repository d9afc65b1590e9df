"""The backward pass alone: five products of a product of the forward's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lanewise
from bench.attention import exact
from bench.attention.problem import Problem
from bench.case import FLOAT32_AND_BFLOAT16, Case
from bench.peers import torch as eager
from bench.section import Section

PRODUCTS_OF_FORWARD = 2
PRODUCTS = 5


def backward(problem: Problem, dtype: torch.dtype) -> Case:
    """The gradients of q, k and v; the forward has run before."""
    q, k, v = (t.requires_grad_() for t in problem.operands(dtype))
    upstream = torch.randn(q.shape).to(dtype)

    def gradients(out: Any) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)

    task = problem.task("attention", dtype)
    return Case(
        replace(
            task,
            work=f"{task.work}, backward",
            flops=task.flops * PRODUCTS / PRODUCTS_OF_FORWARD,
            bytes=2 * task.bytes,  # the forward's operands and output, and the gradient of each
        ),
        ours={"": gradients(lanewise.attention(q, k, v, causal=problem.causal)[0])},
        peers={"torch": gradients(eager.answer(problem.question(q, k, v))())},
        reference=lambda: exact.gradients(problem, q, k, v, upstream),
        compared=exact.last_head,
        gradient=True,
    )


def _problems() -> Iterator[Problem]:
    for dim, heads in ((64, 12), (128, 8)):
        for tokens in (512, 1024, 2048, 4096):
            some = min(heads, 4) if tokens == 4096 and dim == 64 else heads
            yield Problem(1, some, some, tokens, tokens, dim, causal=True)


SECTION = Section(
    "backward",
    [
        partial(backward, problem, dtype)
        for problem in _problems()
        for dtype in FLOAT32_AND_BFLOAT16
    ],
    seconds=0.2,
)
