"""Argument checks that the launchers share, in the words of csrc/check.h.

Every failure is one sentence: the op, the argument, what it must be and what came.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
MOST_EXTENT = 2**46


def require(holds: bool, op: str, sentence: str) -> None:
    """Raises RuntimeError, the type that the C++ checks raise, unless `holds`."""
    if not holds:
        raise RuntimeError(f"lanewise.{op}: {sentence}")


def index_values_checked() -> bool:
    """Whether launchers read index tensors on the host before a launch, which waits for the GPU.

    Off unless LANEWISE_CHECK_INDEXES is 1: kernels then stay within memory whatever the indexes
    say, and give NaN to a sequence whose indexes are wrong.
    """
    return os.environ.get("LANEWISE_CHECK_INDEXES") == "1"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require_device(op: str, name: str, x: Tensor, device: torch.device) -> None:
    require(
        x.device == device,
        op,
        f"{name} must be on {device} like the first argument, got {x.device}",
    )


def require_floating(op: str, name: str, x: Tensor) -> None:
    require(
        x.dtype in FLOATING,
        op,
        f"{name} must be float32, bfloat16 or float16, got {name_of(x.dtype)}",
    )


def require_dtype(op: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    require(x.dtype == dtype, op, f"{name} must be {name_of(dtype)}, got {name_of(x.dtype)}")


def require_own_or_float(op: str, name: str, x: Tensor, own: torch.dtype) -> None:
    choices = "float32" if own == torch.float32 else f"{name_of(own)} or float32"
    require(
        x.dtype in (own, torch.float32), op, f"{name} must be {choices}, got {name_of(x.dtype)}"
    )


def require_rank(op: str, name: str, x: Tensor, rank: int) -> None:
    require(x.dim() == rank, op, f"{name} must have {rank} dimensions, got shape {list(x.shape)}")


def require_same(op: str, name: str, what: str, got: int, other: str, due: int) -> None:
    require(got == due, op, f"{name} has {what} {got}, which is not {other}'s {due}")


def require_unit_stride(op: str, name: str, x: Tensor) -> None:
    """The innermost dimension must be contiguous; one of at most one element is."""
    if x.dim() == 0 or x.numel() == 0 or x.size(-1) == 1:
        return
    require(
        x.stride(-1) == 1,
        op,
        f"{name} must have stride 1 in its last dimension, got stride {x.stride(-1)}",
    )


def require_extents(op: str, name: str, x: Tensor) -> None:
    """An expanded view can have any size without having memory: offsets must not overflow."""
    require(
        all(size <= MOST_EXTENT for size in x.shape),
        op,
        f"{name} must have no dimension above 2^46, got shape {list(x.shape)}",
    )


def require_finite(op: str, name: str, value: float) -> None:
    largest = torch.finfo(torch.float32).max
    require(abs(value) <= largest, op, f"{name} must be finite in float32, got {value:g}")
