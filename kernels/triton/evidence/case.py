"""A launch whose kernels are compiled for every architecture and read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

_anywhere: ContextVar[bool] = ContextVar("anywhere", default=False)

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Case:
    """`launch(device)` makes tensors on `device` and calls a launcher with them.

    On the meta device nothing runs, and all that would be launched is compiled and read. A case may
    launch several kernels.

    `aligned` says that rows lie 16 bytes apart, as in most models, so that global memory is read 16
    bytes at a time.
    """

    name: str
    launch: Callable[[str], object]
    aligned: bool = True


@dataclass(frozen=True)
class Promise:
    """What a kernel is built for, and its machine code must show.

    Attributes:
        products: runs on matrix units.
        copies: its main loop is fed by asynchronous or bulk copies where the architecture has them,
            of 16 bytes each unless a thread's share of a tile is less.
        copied: the extents of the smallest tile that is copied; without them its shares are 16
            bytes or more.
        resident: how many programs must fit one unit at once.
        vectors: aligned global memory is read 16 bytes at a time.
        wide: offsets between tiles are multiplied in 64 bits.
        specialized: targets on which warps take different parts: programs there have more of them
            than their tile says.
        rows: the extents of the tile that are rows of a product; where all are 64 or more, the
            instructions for groups of warps are due.
        barriers: at most so many barrier instructions, of prologue, every loop and epilogue.
    """

    products: bool = True
    copies: bool = True
    copied: tuple[str, ...] = ()
    resident: int = 1
    vectors: bool = True
    wide: bool = True
    specialized: tuple[str, ...] = ()
    rows: tuple[str, ...] = ("M",)
    barriers: int = 128


def empty(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """An operand: nothing but its shape on the meta device, random numbers on any other."""
    first = int(_anywhere.get())  # elements of each row that are another's
    make = torch.empty if device == "meta" else torch.randn
    return make((*shape[:-1], shape[-1] + first), dtype=dtype, device=device)[..., first:]


@contextlib.contextmanager
def rows_anywhere() -> Iterator[None]:
    """Inside the block no row of an operand starts on 16 bytes: each lies one element late, and one
    further from the last."""
    token = _anywhere.set(True)
    try:
        yield
    finally:
        _anywhere.reset(token)
