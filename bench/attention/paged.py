"""One new token over a cache in blocks, beside the same over contiguous keys and values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import lanewise
from bench.attention import exact
from bench.attention.decode import token
from bench.attention.problem import Problem
from bench.case import FLOAT32_AND_BFLOAT16, Case
from bench.section import Section

BLOCK = 16


def _paged(problem: Problem, dtype: torch.dtype) -> Case:
    q, k, v = problem.operands(dtype)
    blocks = problem.keys // BLOCK
    block_table = torch.randperm(problem.batch * blocks, dtype=torch.int32).view(-1, blocks)
    k_cache, v_cache = (_in_blocks(t, block_table) for t in (k, v))
    packed = q.squeeze(2)
    cu_seqlens_q = torch.arange(problem.batch + 1, dtype=torch.int32)
    context_lens = torch.full((problem.batch,), problem.keys, dtype=torch.int32)
    return Case(
        problem.task("paged_attention", dtype),
        ours={
            "": lambda: lanewise.paged_attention(
                packed, k_cache, v_cache, cu_seqlens_q, block_table, context_lens, 1
            )[0]
        },
        peers={"contiguous": lambda: lanewise.attention(q, k, v)[0].squeeze(2)},
        reference=lambda: exact.attention(problem, q, k, v)[0].squeeze(2),
        compared=lambda output: output[-1:],
    )


def _in_blocks(tokens: Tensor, block_table: Tensor) -> Tensor:
    """[B, heads, tokens, D] as [blocks, BLOCK, heads, D], each block where the table says."""
    blocks = tokens.transpose(1, 2).reshape(-1, BLOCK, tokens.shape[1], tokens.shape[3])
    cache = torch.empty_like(blocks)
    cache[block_table.flatten().long()] = blocks
    return cache


SECTION = Section(
    "paged",
    [
        partial(_paged, token(batch, 4, 4096), dtype)
        for batch in (1, 8)
        for dtype in FLOAT32_AND_BFLOAT16
    ],
)
