"""What a bench measures, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """The same work done by lanewise and by torch."""

    work: str  # the op and its shape
    dtype: torch.dtype
    ours: Callable[[], object]
    torchs: Callable[[], object]
    flops: float  # multiplications and additions that cannot be avoided
    bytes: float  # read or written at least once
    gradient: bool = False  # whether the sides run a backward pass


@dataclass(frozen=True)
class Result:
    """Best times of a case, in seconds."""

    family: str
    case: Case
    ours: float
    torchs: float
