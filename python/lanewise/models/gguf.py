"""GGUF files (github.com/ggml-org/ggml/blob/master/docs/gguf.md): the header, and one tensor at a
time.

The header is read here and not by ``gguf.GGUFReader``: that one trusts counts, sizes and offsets,
and takes seconds over a large vocabulary. Its tables of types and its dequantization are used.
"""

from __future__ import annotations

import mmap
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lanewise.models.optional import require

# What the safetensors library allows. The largest vocabularies take a tenth of it.
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

# So many weights are dequantized at once: enough to make NumPy's calls cheap, few enough for the
# temporaries to stay in the cache.
_CHUNK = 1 << 18
# Torch copies so many on one thread. Waking others takes longer than the copy, and many times
# longer on a busy machine.
_GRAIN = 1 << 15

_STRING, _ARRAY, _BOOL = 8, 9, 7  # enum gguf_metadata_value_type
_SCALARS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}


class GgufTensor(NamedTuple):
    """Where a tensor lies in the file, and how it is stored."""

    shape: tuple[int, ...]  # in torch's order, outermost first
    kind: Any  # gguf.GGMLQuantizationType
    offset: int  # from the start of the file
    nbytes: int


class GgufFile:
    """An open GGUF file: ``metadata`` and ``tensors`` by name; `read` gives a tensor's values.

    Numbers, strings and bools of the metadata are Python's, arrays of strings are lists, and arrays
    of numbers are NumPy's. Every count, size and offset is checked against the length of the file
    before it is used.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is malformed, or of a kind that is not read here.
        ImportError: the package gguf is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._constants = require("gguf.constants", "reading a GGUF file")
        self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        try:
            self.metadata, self.tensors = self._read_header()
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path}: {error}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor's values, dequantized in float32 and rounded once to the floating ``dtype``.

        Raises:
            ValueError: the tensor's type is not one of floating-point numbers, or the file has
                become shorter.
        """
        tensor = self.tensors[name]
        dequantize = require("gguf.quants", "reading a GGUF file").dequantize
        block, block_bytes = self._constants.GGML_QUANT_SIZES[tensor.kind]
        out = torch.empty(tensor.shape, dtype=dtype)
        values, step = out.view(-1), max(_CHUNK // block, 1)
        for start in range(0, values.numel() // block, step):
            stop = min(start + step, values.numel() // block)
            raw = self._bytes(
                tensor.offset + start * block_bytes, (stop - start) * block_bytes, name
            )
            try:
                with np.errstate(all="ignore"):  # infinite scales are the file's business
                    # One long row: the library loops in Python over groups of 16 rows.
                    chunk = dequantize(np.frombuffer(raw, np.uint8)[None], tensor.kind)
            except NotImplementedError:
                raise ValueError(
                    f"{self.path}: {name} is of the type {tensor.kind.name}, which is not read"
                ) from None
            target, source = values[start * block : stop * block], torch.from_numpy(chunk[0])
            for into, piece in zip(target.split(_GRAIN), source.split(_GRAIN), strict=True):
                into.copy_(piece)
        return out

    def _bytes(self, offset: int, size: int, name: str) -> bytearray:
        """Read rather than mapped: a mapping's pages would count as the process's memory."""
        raw = bytearray(size)
        if os.preadv(self._file.fileno(), [raw], offset) != size:
            raise ValueError(f"{self.path}: the file ends inside {name}")
        return raw

    def _read_header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        size = os.fstat(self._file.fileno()).st_size
        if size < 24:
            raise ValueError("the file is too short for a GGUF header")
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, min(size, _MAX_HEADER_BYTES))
            if cursor.take(4) != b"GGUF":
                raise ValueError("the file does not start with the magic bytes GGUF")
            if (version := cursor.number("<u4")) not in (2, 3):
                raise ValueError(f"the GGUF version must be 2 or 3 (little-endian), got {version}")
            tensor_count, metadata_count = cursor.number("<u8"), cursor.number("<u8")
            metadata = _read_metadata(cursor, metadata_count)
            tensors = _read_tensors(cursor, tensor_count, self._constants)
            alignment = metadata.get("general.alignment", self._constants.GGUF_DEFAULT_ALIGNMENT)
            if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
                raise ValueError(f"general.alignment must be a power of two, got {alignment!r}")
            start = -(-cursor.position // alignment) * alignment
        return metadata, _place(tensors, start, alignment, size)


class _Cursor:
    """Reads forwards and never beyond ``end``."""

    def __init__(self, data: mmap.mmap, end: int) -> None:
        self._data = data
        self._end = end
        self.position = 0

    def take(self, size: int) -> bytes:
        start, stop = self.position, self.position + size
        if stop > self._end:
            raise ValueError(f"the header is cut off, or longer than {_MAX_HEADER_BYTES} bytes")
        self.position = stop
        return self._data[start:stop]

    def number(self, dtype: str) -> Any:
        return self.numbers(dtype, 1)[0].item()

    def numbers(self, dtype: str, count: int) -> np.ndarray:
        raw = self.take(count * np.dtype(dtype).itemsize)
        if dtype == "?" and raw.strip(b"\0\1"):
            raise ValueError("a bool of the metadata is neither 0 nor 1")
        return np.frombuffer(raw, dtype)

    def string(self) -> str:
        raw = self.take(int.from_bytes(self.take(8), "little"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the header's string {raw[:40]!r} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"the metadata has a value of the unknown type {kind}")
        kind, count = self.number("<u4"), self.number("<u8")
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], count)
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        raise ValueError(f"the metadata has an array of the type {kind}, which is not read")


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"the metadata has {key!r} twice")
        metadata[key] = cursor.value(cursor.number("<u4"))
    return metadata


def _read_tensors(cursor: _Cursor, count: int, constants: Any) -> dict[str, GgufTensor]:
    """The tensors, their offsets still from the start of the data."""
    tensors: dict[str, GgufTensor] = {}
    for _ in range(count):
        name = cursor.string()
        if name in tensors:
            raise ValueError(f"the tensor {name!r} is there twice")
        if not 1 <= (rank := cursor.number("<u4")) <= _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} must have 1 to 4 dimensions, got {rank}")
        shape = tuple(reversed(cursor.numbers("<u8", rank).tolist()))
        number, offset = cursor.number("<u4"), cursor.number("<u8")
        try:
            kind = constants.GGMLQuantizationType(number)
            block, block_bytes = constants.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"the tensor {name!r} has the unknown type {number}") from None
        if not all(shape) or shape[-1] % block:
            raise ValueError(
                f"the tensor {name!r} of type {kind.name} must have positive extents, the last a "
                f"multiple of {block}, got {shape}"
            )
        tensors[name] = GgufTensor(shape, kind, offset, prod(shape) // block * block_bytes)
    return tensors


def _place(
    tensors: dict[str, GgufTensor], start: int, alignment: int, size: int
) -> dict[str, GgufTensor]:
    """Offsets from the start of the file; ValueError where one is wrong or two tensors overlap."""
    placed = {name: t._replace(offset=start + t.offset) for name, t in tensors.items()}
    end = start
    for name, tensor in sorted(placed.items(), key=lambda item: item[1].offset):
        if tensor.offset % alignment or tensor.offset < end:
            raise ValueError(f"the tensor {name!r} is not aligned, or overlaps another one")
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise ValueError(f"the tensor {name!r} lies beyond the end of the file")
    return placed
