"""What further threads gain over one."""

from __future__ import annotations

from functools import partial

from bench import threads
from bench.case import DTYPES
from bench.gemm.linear import linear

SIZE = 1024

SECTION = threads.section([partial(linear, SIZE, SIZE, SIZE, dtype) for dtype in DTYPES])
