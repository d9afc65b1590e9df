"""What further threads gain: over many heads, and where there is only one to share."""

from __future__ import annotations

from functools import partial

import torch

from bench import threads
from bench.attention.backward import backward
from bench.attention.forward import forward
from bench.attention.problem import Problem

HEADS = Problem(1, 12, 12, 1024, 1024, 64, causal=True)
ONE_HEAD = Problem(1, 1, 1, 2048, 2048, 64, causal=True)

SECTION = threads.section(
    [
        partial(case, problem, torch.float32)
        for case, problem in ((forward, HEADS), (forward, ONE_HEAD), (backward, ONE_HEAD))
    ]
)
