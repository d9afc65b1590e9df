"""Argument checks that the launchers share. Every failure is one sentence: the op, the argument, its due, what came."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require(holds: bool, op: str, sentence: str) -> None:
    """Raise RuntimeError, the type that the C++ checks raise, unless `holds`."""
    if not holds:
        raise RuntimeError(f"lanewise.{op}: {sentence}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def matrix(op: str, name: str, x: torch.Tensor, like: torch.Tensor, like_name: str) -> None:
    """`x` must share `like`'s device and dtype, and its rows must be contiguous."""
    require(
        x.device == like.device,
        op,
        f"{name} must be on {like_name}'s device {like.device}, got {x.device}",
    )
    require(
        x.dtype in DTYPES,
        op,
        f"{name} must be float32, bfloat16 or float16, got {dtype_name(x.dtype)}",
    )
    require(
        x.dtype == like.dtype,
        op,
        f"{name} must have {like_name}'s dtype {dtype_name(like.dtype)}, got {dtype_name(x.dtype)}",
    )
    innermost = x.stride(-1) if x.dim() and x.size(-1) > 1 else 1
    require(
        innermost == 1,
        op,
        f"{name}'s innermost dimension must have stride 1, got stride {innermost}",
    )


def rank(op: str, name: str, x: torch.Tensor, dims: int) -> None:
    require(x.dim() == dims, op, f"{name} must have {dims} dimensions, got {x.dim()}")


def shape(op: str, name: str, x: torch.Tensor, due: tuple[int, ...]) -> None:
    require(
        tuple(x.shape) == due, op, f"{name} must have shape {list(due)}, got {list(x.shape)}"
    )
