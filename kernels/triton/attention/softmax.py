"""How a row's online softmax ends: the sink joins it, its sums are normalised.

Maxima are in units of log 2, as scores are. NaN is in the sum of every row that met one, since a
maximum does not see it; a row that attends nothing has a sum of zero.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from .scores import LARGEST, LN2, LN2_REST, finite_pivot, in_base_2


@triton.jit
def with_sink(b_max, b_sum, b_acc, b_sink):
    """A sink [BLOCK_M] is a key that every live row sees, whose value is zero."""
    b_sink = in_base_2(b_sink.to(tl.float32))
    b_new = tl.maximum(b_max, b_sink)
    b_decay = tl.exp2(b_max - finite_pivot(b_new))
    b_all = b_sum * b_decay + tl.exp2(b_sink - finite_pivot(b_new))
    return b_new, tl.where(b_sum == 0.0, 0.0, b_all), b_acc * b_decay[:, None]


@triton.jit
def finished(b_max, b_sum, b_acc):
    """(out [BLOCK_M, BLOCK_DV], lse [BLOCK_M]): the natural logarithm of the row's exponentials."""
    # A sum of +inf weighs its scores inf / inf, yet the logarithm of their sum is +inf.
    b_share = tl.where(b_sum == float("inf"), float("nan"), 1.0 / b_sum)
    b_out = tl.where((b_sum == 0.0)[:, None], 0.0, b_acc * b_share[:, None])
    # A maximum that the largest number bounds stands for that number itself.
    b_lse = b_max * LN2 + (b_max * LN2_REST + tl.log2(b_sum) * LN2)
    b_lse = tl.where((tl.abs(b_max) == LARGEST) & (b_sum == b_sum), b_max, b_lse)
    b_lse = tl.where(b_sum == float("inf"), float("inf"), b_lse)
    return b_out, tl.where(b_sum == 0.0, float("-inf"), b_lse)
