"""A sliding window over a long sequence, which leaves an eighth of the causal scores."""

from __future__ import annotations

from functools import partial

from bench import peers
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import DTYPES
from bench.section import Section

PROBLEM = Problem(1, 2, 2, 8192, 8192, 64, causal=True, window=512)

SECTION = Section(
    "window",
    [partial(forward, PROBLEM, dtype, peers.ALL) for dtype in DTYPES],
)
