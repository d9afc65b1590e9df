"""Packed sequences of unequal lengths, and the same work in equal ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import lanewise
from bench.attention import exact
from bench.attention.problem import Problem
from bench.case import FLOAT32_AND_BFLOAT16, Case, Task
from bench.section import Section

TOKENS, DIM = 8192, 64


def _varlen(name: str, lengths: Sequence[int], heads: int, dtype: torch.dtype) -> Case:
    """Causal self-attention; what torch pads to the longest is masked by causality."""
    q, k, v = (torch.randn(sum(lengths), heads, DIM).to(dtype) for _ in range(3))
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    longest = max(lengths)
    padded = [
        pad_sequence(t.split(list(lengths)), batch_first=True).transpose(1, 2) for t in (q, k, v)
    ]
    apart = [[part.transpose(0, 1)[None] for part in t.split(list(lengths))] for t in (q, k, v)]

    def ours() -> list[Tensor]:
        out, _ = lanewise.attention_varlen(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True
        )
        return [part.transpose(0, 1)[None] for part in out.split(list(lengths))]

    def together() -> list[Tensor]:
        out = F.scaled_dot_product_attention(padded[0], padded[1], padded[2], is_causal=True)
        return [part[None, :, :length] for part, length in zip(out, lengths, strict=True)]

    def one_by_one() -> list[Tensor]:
        return [
            F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            for queries, keys, values in zip(*apart, strict=True)
        ]

    problems = [Problem(1, heads, heads, n, n, DIM, causal=True) for n in lengths]
    checked = (lengths.index(longest), len(lengths) - 1)
    return Case(
        Task(
            f"varlen, causal, {heads}×{DIM}: {name}",
            dtype,
            flops=4 * sum(problem.scores for problem in problems) * DIM,
            bytes=sum(problem.numel for problem in problems) * dtype.itemsize,
        ),
        ours={"": ours},
        peers={"torch": together, "one by one": one_by_one},
        reference=lambda: [
            part for i in checked for part in exact.attention(problems[i], *(t[i] for t in apart))
        ],
        compared=lambda outs: [part for i in checked for part in exact.sampled(outs[i])],
    )


def _random_lengths(count: int) -> list[int]:
    cuts = sorted(random.Random(0).sample(range(1, TOKENS), count - 1))
    return [end - start for start, end in pairwise((0, *cuts, TOKENS))]


def _equal_lengths(lengths: Sequence[int]) -> list[int]:
    """As many scores in as many tokens, about."""
    squares = sum(length**2 for length in lengths)
    count = max(1, round(sum(lengths) ** 2 / squares))
    return count * [round((squares / count) ** 0.5)]


def _points() -> list[partial[Case]]:
    ragged, long = _random_lengths(32), [*14 * [128], 50 * 128]
    # Fewer heads of the long one: torch pads all sequences to it.
    named = (
        (f"32 of {min(ragged)}–{max(ragged)} tokens", ragged, 12),
        ("14 of 128, one of 6400", long, 4),
    )
    points = []
    for name, lengths, heads in named:
        equal = _equal_lengths(lengths)
        for dtype in FLOAT32_AND_BFLOAT16:
            points.append(partial(_varlen, name, lengths, heads, dtype))
        for dtype in FLOAT32_AND_BFLOAT16:
            title = f"as much, {len(equal)} of {equal[0]}"
            points.append(partial(_varlen, title, equal, heads, dtype))
    return points


SECTION = Section("varlen", _points())
