"""The right results in float64, by the formula, of as much as is checked before a timing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.attention.problem import Problem

ROWS = 16


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """What `sampled` takes of the output."""
    positions = torch.arange(problem.queries)
    return tuple(
        formula(q[-1, :, rows], k[-1], v[-1], problem.visible(positions[rows]))[None]
        for rows in _samples(problem.queries)
    )


def sampled(output: Any) -> tuple[Tensor, ...]:
    """The first, the middle and the last queries of a batch's last element, each part by itself.

    The first of a causal mask see few keys, so that their outputs are larger by far: together with
    the others they would hide an error there.
    """
    out = output[0] if isinstance(output, tuple) else output
    return tuple(out[-1:, :, rows] for rows in _samples(out.shape[2]))


def gradients(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Of the last head, which `last_head` takes of all; queries and keys have as many heads."""
    inputs = tuple(t.detach()[-1, -1:].double().requires_grad_() for t in (q, k, v))
    out = formula(inputs[0], inputs[1], inputs[2], problem.visible(torch.arange(problem.queries)))
    return tuple(
        grad[None] for grad in torch.autograd.grad(out, inputs, upstream[-1, -1:].double())
    )


def last_head(output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of the last head of a batch's last element."""
    return tuple(gradient[-1:, -1:] for gradient in output)


def formula(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v of q [heads, queries, D] and k, v [heads of keys, keys, D]."""
    grouped = q.double().reshape(len(k), -1, q.shape[2])  # the queries of one head of keys
    scores = grouped @ k.double().mT / q.shape[2] ** 0.5
    scores = scores.reshape(*q.shape[:2], k.shape[1]).masked_fill(~visible, -torch.inf)
    weights = scores.softmax(-1).reshape(len(k), -1, k.shape[1])
    return (weights @ v.double()).reshape(*q.shape[:2], v.shape[2])


def _samples(queries: int) -> list[slice]:
    last = max(queries - ROWS, 0)
    return [slice(start, start + ROWS) for start in dict.fromkeys((0, last // 2, last))]
