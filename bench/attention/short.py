"""Many short sequences, as an encoder has them: a batch of sentences, all full or padded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench.attention import exact
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import Case
from bench.section import Section

BATCH, HEADS, TOKENS = 32, 12, 64


def _padded(problem: Problem, dtype: torch.dtype) -> Case:
    """Sequences of half the length and more; what is masked counts as no work."""
    q, k, v = problem.operands(dtype)
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (BATCH,))
    mask = (torch.arange(TOKENS) < lengths[:, None])[:, None, None]
    task = problem.task("attention", dtype)
    return Case(
        replace(
            task,
            work=f"{task.work}, padded",
            flops=task.flops * int(lengths.sum()) / (BATCH * TOKENS),
        ),
        ours={"": lambda: lanewise.attention(q, k, v, mask)},
        peers={"torch": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)},
        reference=lambda: exact.formula(q[-1], k[-1], v[-1], mask[-1])[None],
        compared=lambda output: (output[0] if isinstance(output, tuple) else output)[-1:],
    )


SECTION = Section(
    "short",
    [
        partial(case, Problem(BATCH, HEADS, HEADS, TOKENS, TOKENS, dim), torch.float32)
        for dim in (32, 64)
        for case in (forward, _padded)
    ],
)
