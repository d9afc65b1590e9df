"""What a packed weight says of itself: the 64 bytes of csrc/gemm/packed.h, whose target is `gpu`.

A GPU reads a weight best as it is, in rows that start 16 bytes apart: these follow the header. The
buffer is uint8 [out_features, bytes], and from its shape and x's a launcher knows all that keeps
reads within memory, without waiting for the GPU. The header tells what no shape can (a weight of as
many bytes in another dtype, a buffer for a CPU, damage): kernels compare it and make their output
NaN where it is another; under LANEWISE_CHECK_INDEXES it is read on the host first.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import struct

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import check, target

MAGIC, VERSION, TARGET = b"lanewise", 2, b"gpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by their number in a header
LAYOUT = struct.Struct(
    "<8sIIqqII24s"
)  # magic, version, dtype, out, in, panel width, reserved, target
ALIGNMENT = 16
MOST_BYTES = 2**63 - 1

_MAGIC_WORD: tl.constexpr = tl.constexpr(int.from_bytes(MAGIC, "little"))
_TARGET_WORD: tl.constexpr = tl.constexpr(int.from_bytes(TARGET, "little"))
WORDS: tl.constexpr = tl.constexpr(LAYOUT.size // 8)


def row_bytes(columns: int, depth: int, itemsize: int) -> int:
    """Of each of the buffer's rows, which together hold the header and all rows of the weight."""
    return pitch(depth, itemsize) + target.divide_up(LAYOUT.size, columns) if columns else 0


def pitch(depth: int, itemsize: int) -> int:
    """Bytes from one row of the weight to the next."""
    return target.divide_up(depth * itemsize, ALIGNMENT) * ALIGNMENT


def kind(dtype: torch.dtype) -> int:
    """The word of a header that holds version and dtype."""
    return VERSION | DTYPES.index(dtype) << 32


def words_of(packed: Tensor) -> Tensor:
    """The header as words of 64 bits."""
    return packed.view(-1)[: LAYOUT.size].view(torch.int64)


def rows_of(packed: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] inside a buffer of the right size."""
    columns, row = packed.size(0), pitch(depth, dtype.itemsize)
    inside = packed.view(-1)[LAYOUT.size : LAYOUT.size + columns * row]
    return inside.view(dtype).view(columns, row // dtype.itemsize)[:, :depth]


@triton.jit
def header(kind, len_n, len_k):
    """The words [8] that a weight [len_n, len_k] has before it."""
    o = tl.arange(0, WORDS)
    b_words = tl.where(o == 0, _MAGIC_WORD, tl.zeros([WORDS], tl.int64))
    b_words = tl.where(o == 1, kind, b_words)
    b_words = tl.where(o == 2, len_n, b_words)
    b_words = tl.where(o == 3, len_k, b_words)
    return tl.where(o == 5, _TARGET_WORD, b_words)


def require_packed(op: str, name: str, packed: Tensor, x: Tensor, depth: int | None = None) -> None:
    """That `packed` is as large as a buffer of a weight for x, or for rows of `depth`; or, where
    indexes are checked, all that csrc/gemm/packed.h asks."""
    depth = x.size(-1) if depth is None else depth
    check.require_device(op, name, packed, x.device)
    check.require_dtype(op, name, packed, torch.uint8)
    check.require(
        packed.dim() == 2 and packed.is_contiguous() and packed.data_ptr() % ALIGNMENT == 0,
        op,
        f"{name} must be the contiguous 2-dimensional buffer that pack_weight returned, "
        f"got shape {list(packed.shape)}",
    )
    columns, width = packed.shape
    if columns == 0:
        return
    check.require(
        packed.numel() >= LAYOUT.size,
        op,
        f"{name} is truncated: {packed.numel()} bytes cannot hold a header of {LAYOUT.size}",
    )
    if check.index_values_checked():
        _require_header(op, name, packed, x, depth)
    due = row_bytes(columns, depth, x.element_size())
    check.require(
        width == due,
        op,
        f"{name} is truncated, damaged or of another shape, dtype or device: its rows have {width} "
        f"bytes, {depth} input features in {check.name_of(x.dtype)} mean {due}",
    )


def _require_header(op: str, name: str, packed: Tensor, x: Tensor, features: int) -> None:
    """Reads the header, which waits for the GPU."""
    found = bytes(packed.view(-1)[: LAYOUT.size].tolist())
    magic, version, dtype, columns, depth, panel, reserved, label = LAYOUT.unpack(found)
    made_for = label.split(b"\0")[0]
    check.require(
        magic == MAGIC,
        op,
        f"{name} was not made by pack_weight: its header does not begin with 'lanewise'",
    )
    check.require(
        version == VERSION,
        op,
        f"{name} has format version {version}, this build reads version {VERSION}: "
        "pack the weight again",
    )
    check.require(
        made_for.isalnum() and made_for.islower(),
        op,
        f"{name} names no instruction set: the buffer is damaged",
    )
    check.require(
        label == TARGET.ljust(len(label), b"\0") and panel == 0,
        op,
        f"{name} was packed for instruction set '{made_for.decode()}', this is a GPU, "
        f"'{TARGET.decode()}': pack the weight again",
    )
    check.require(
        dtype < len(DTYPES) and reserved == 0,
        op,
        f"{name} has an unknown dtype in its header: the buffer is damaged",
    )
    check.require(
        DTYPES[dtype] == x.dtype,
        op,
        f"{name} holds {check.name_of(DTYPES[dtype])} weights, x is {check.name_of(x.dtype)}",
    )
    check.require(
        columns == packed.size(0),
        op,
        f"{name} is truncated or damaged: it has {packed.size(0)} rows, its header says {columns}",
    )
    check.require(
        depth == features,
        op,
        f"{name} has {depth} input features, which is not x's {features}",
    )
    due = row_bytes(columns, depth, x.element_size())
    check.require(
        packed.size(1) == due,
        op,
        f"{name} is truncated or damaged: its rows have {packed.size(1)} bytes, "
        f"its header means {due}",
    )
