"""One new token over a long past: what binds is reading keys and values, until groups are large."""

from __future__ import annotations

from functools import partial

from bench import peers
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import FLOAT32_AND_BFLOAT16
from bench.section import Section

KV_HEADS, DIM = 8, 128
LARGEST = 3 << 30  # bytes; not every machine holds more, twice


def token(batch: int, group: int, keys: int) -> Problem:
    """A query of each of a group of heads for each head of keys."""
    return Problem(batch, group * KV_HEADS, KV_HEADS, 1, keys, DIM)


SECTION = Section(
    "decode",
    [
        partial(forward, problem, dtype, peers.ALL)
        for problem in (token(batch, 4, keys) for keys in (4096, 32768) for batch in (1, 8))
        for dtype in FLOAT32_AND_BFLOAT16
        if problem.numel * dtype.itemsize <= LARGEST
    ],
)
GROUPS = Section(
    "groups",
    [
        partial(forward, token(1, group, 4096), dtype)
        for group in (1, 3, 5, 7, 8, 16)
        for dtype in FLOAT32_AND_BFLOAT16
    ],
)
