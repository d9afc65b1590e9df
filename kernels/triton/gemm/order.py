"""Which tile of the output a program computes: neighbours in time share operands in a cache."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def contiguous_on_chiplets(pid, programs, CHIPLETS: tl.constexpr):
    """Programs are dealt to chiplets in turn: renumbers them so that each chiplet's are neighbours,
    whose operands its own L2 cache then holds."""
    if CHIPLETS == 1:
        return pid
    chiplet = pid % CHIPLETS
    return (
        chiplet * (programs // CHIPLETS)
        + tl.minimum(chiplet, programs % CHIPLETS)
        + pid // CHIPLETS
    )


@triton.jit
def grouped(i_tile, blocks_m, blocks_n, GROUP_M: tl.constexpr):
    """(i_m, i_n) of a tile: down GROUP_M rows of tiles before a step sideways, so that programs
    that run together share rows of both operands (the order of Triton's matmul tutorial)."""
    i_group = i_tile // (GROUP_M * blocks_n)
    group_m = tl.minimum(blocks_m - i_group * GROUP_M, GROUP_M)
    i_in_group = i_tile % (GROUP_M * blocks_n)
    return i_group * GROUP_M + i_in_group % group_m, i_in_group // group_m
