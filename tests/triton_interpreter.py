"""Triton's interpreter, mended where it does not do what a GPU does with bfloat16.

NumPy has no bfloat16, so the interpreter keeps its bits in uint16. It then multiplies those bits as
integers in `tl.dot` and in elementwise arithmetic, and it truncates float32 to bfloat16 where every
GPU rounds to nearest even. Importing this module mends the three; it must run under
TRITON_INTERPRET=1, in a process of its own, because Triton reads the variable once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from lanewise.ops._triton import KERNELS, launcher

assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1 before triton is imported"


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits to float32: the same number with sixteen more zero bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, rounded to nearest even; NaN stays a (quiet) NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def as_float32(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle(widen(handle.data), tl.float32)


_cast, _dot, _binary = (
    InterpreterBuilder.cast_impl,
    InterpreterBuilder.create_dot,
    InterpreterBuilder.binary_op,
)


def cast_impl(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
    if source.dtype.scalar == target.scalar:
        return source
    source = as_float32(source)
    if target.scalar != tl.bfloat16:
        return _cast(self, source, target)
    return TensorHandle(narrow(source.data.astype(np.float32)), tl.bfloat16)


def create_dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
    return _dot(self, as_float32(a), as_float32(b), *rest)


def binary_op(self: Any, a: TensorHandle, b: TensorHandle, op: Callable) -> TensorHandle:
    if a.dtype.scalar != tl.bfloat16:
        return _binary(self, a, b, op)
    result = op(widen(a.data), widen(b.data))
    if result.dtype == np.bool_:
        return TensorHandle(result, tl.int1)
    return TensorHandle(narrow(result), tl.bfloat16)


InterpreterBuilder.cast_impl = cast_impl
InterpreterBuilder.create_dot = create_dot
InterpreterBuilder.binary_op = binary_op


def replace_cpu_kernels() -> None:
    """From here on every op of CPU tensors is computed by its Triton kernel, in the interpreter,
    and indexes are checked before a launch, as the CPU kernels check them."""
    os.environ["LANEWISE_CHECK_INDEXES"] = "1"
    library = torch.library.Library("lanewise", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel was there before
        for op in KERNELS:
            library.impl(op, launcher(op), allow_override=True)
    _kept.append(library)


_kept: list[Any] = []  # a library that dies takes its kernels with it
