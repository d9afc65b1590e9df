"""The weights of a model on disk, one tensor at a time: safetensors files, and GGUF files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lanewise.models.config import parse_json, read_json
from lanewise.models.gguf import GgufFile
from lanewise.models.gguf_models import restore, restored_names
from lanewise.models.optional import require

# What a tensor is converted in at once.
_PIECE_BYTES = 32 << 20


class Checkpoint(ABC):
    """Named tensors in files that are not trusted; a context manager.

    Opening reads and checks the headers only. `read` then holds the one tensor it gives, so that
    a loader which packs layer by layer needs little more memory than its packed weights.
    """

    path: Path

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all tensors, Hugging Face's for files of every kind."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header; ValueError if there is none of that name."""

    @abstractmethod
    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor on the CPU, rounded to the floating ``dtype``, or as the file has it (float32
        where the file is quantized).

        Raises:
            ValueError: there is no tensor of that name, the file does not hold it in full, or
                ``dtype`` asks for floating-point numbers, and it holds none, or float8.
        """

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    @abstractmethod
    def close(self) -> None:
        """Lets go of the files. Tensors that were read stay valid."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens the weights at ``path``.

    Args:
        path: a ``.safetensors`` file, a ``.gguf`` file, or a directory with ``model.safetensors``
            or the shards of a ``model.safetensors.index.json``.

    Raises:
        FileNotFoundError: there is no such file, or none in the directory.
        ValueError: a file is malformed, or of a kind that is not read: pickled weights
            (``pytorch_model.bin``) could run any code.
        ImportError: the package safetensors or gguf is missing.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if path.suffix == ".gguf":
        return GgufCheckpoint(path)
    if path.suffix == ".safetensors":
        return SafetensorsCheckpoint(path, [path])
    if not path.exists():
        raise FileNotFoundError(f"open_checkpoint: there is no file or directory {path}")
    raise ValueError(
        f"open_checkpoint: path must be a directory, a .safetensors or a .gguf file, got {path}; "
        "pickled weights are not read, since they could run any code"
    )


class SafetensorsCheckpoint(Checkpoint):
    """One safetensors file, or the shards of one model, each tensor in one of them.

    A file is mapped anew for every tensor: its pages then go with the tensor, where one mapping of
    the whole file would keep all that were ever read.
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self._library = require("safetensors", "reading a checkpoint")
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            for name, shape in self._header(file).items():
                if name in self._shapes:
                    raise ValueError(f"{file}: the tensor {name!r} is in {self._file_of[name]} too")
                self._file_of[name], self._shapes[name] = file, shape

    def names(self) -> list[str]:
        return list(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        _require_name(self, name)
        return self._shapes[name]

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        _require_name(self, name)
        return self._file_of[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        _require_name(self, name)
        file = self._file_of[name]
        try:
            with self._library.safe_open(file, framework="pt") as opened:
                tensor = opened.get_tensor(name)
        except self._library.SafetensorError as error:
            raise ValueError(f"{file}: {error}") from None
        if tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(
                f"{file}: {name} must have the shape {self._shapes[name]} that the header says, "
                f"got {tuple(tensor.shape)}"
            )
        if dtype is None or tensor.dtype == dtype:
            return tensor
        if is_scaled(tensor.dtype):
            raise ValueError(f"{file}: {name} cannot be {tensor.dtype}: its scales are not read")
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {name} must be of a floating dtype, got {tensor.dtype}")
        if tensor.nbytes <= _PIECE_BYTES:
            return tensor.to(dtype)
        del tensor
        return self._cast(name, dtype)

    def _cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """A large tensor in another dtype, in pieces, so that few of the file's pages are held."""
        out = torch.empty(self._shapes[name], dtype=dtype)
        rows = max(_PIECE_BYTES // (4 * max(out[0].numel(), 1)), 1)
        for start in range(0, len(out), rows):
            with self._library.safe_open(self._file_of[name], framework="pt") as opened:
                out[start : start + rows] = opened.get_slice(name)[start : start + rows]
        return out

    def close(self) -> None:
        """Nothing is kept open."""

    def _header(self, file: Path) -> dict[str, tuple[int, ...]]:
        """Shapes by name.

        The library checks the header as it opens a file: its length, the types, that shapes,
        offsets and the file's size agree, that the tensors cover the data without holes or
        overlaps. Of a name that is there twice it takes the last, in silence.
        """
        try:
            with self._library.safe_open(file, framework="pt"), open(file, "rb") as raw:
                header = raw.read(int.from_bytes(raw.read(8), "little"))
        except self._library.SafetensorError as error:
            raise ValueError(f"{file}: {error}") from None
        content = parse_json(file, header)
        content.pop("__metadata__", None)
        return {name: tuple(tensor["shape"]) for name, tensor in content.items()}


class GgufCheckpoint(Checkpoint):
    """A GGUF file of Gemma 3, Llama or Qwen 3, under Hugging Face's names and conventions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        try:
            self._names = restored_names(self._file)
        except ValueError:
            self.close()
            raise
        # Hundreds of thousands of strings, which nothing needs beside the weights.
        self._file.metadata = {
            name: value
            for name, value in self._file.metadata.items()
            if not name.startswith("tokenizer.")
        }

    def names(self) -> list[str]:
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        _require_name(self, name)
        return self._file.tensors[self._names[name]].shape

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        _require_name(self, name)
        stored, dtype = self._names[name], dtype or torch.float32
        undo = restore(self._file, stored)
        if undo is None:
            return self._file.read(stored, dtype)
        return undo(self._file.read(stored)).to(dtype)

    def close(self) -> None:
        self._file.close()


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    rename: Callable[[str], str | None],
    dtype: torch.dtype | None = None,
) -> None:
    """Makes the tensors of ``checkpoint`` the parameters of ``model``, in ``dtype``.

    Args:
        rename: our name for a name of the checkpoint, or None to leave a tensor out.

    Raises:
        ValueError: a parameter is missing, or a tensor has no place, the wrong shape or a float8
            dtype; the model is then as it was.
    """
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        if (new := rename(name)) is None:
            continue
        if new in stored:
            raise ValueError(
                f"{type(model).__name__}: the checkpoint's {stored[new]} and {name} are both {new}"
            )
        stored[new] = name
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"{type(model).__name__}: the checkpoint lacks {name}")
        if name not in expected:
            raise ValueError(f"{type(model).__name__}: the checkpoint has an unknown tensor {name}")
        if (shape := checkpoint.shape(stored[name])) != expected[name]:
            raise ValueError(
                f"{type(model).__name__}: {name} must have the shape {expected[name]}, got {shape}"
            )
    weights = {name: checkpoint.read(old, dtype) for name, old in stored.items()}
    for name, tensor in weights.items():
        if is_scaled(tensor.dtype):
            raise ValueError(
                f"{type(model).__name__}: {name} cannot be {tensor.dtype}: its scales are not read"
            )
    model.load_state_dict(weights, assign=True)


def is_scaled(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype mean nothing without scales beside them: those of float8."""
    return dtype.is_floating_point and dtype.itemsize < 2


def _open_directory(path: Path) -> Checkpoint:
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        return SafetensorsCheckpoint(path, [whole])
    if index.exists():
        return _open_shards(path, index)
    if pickled := sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*")):
        raise ValueError(
            f"open_checkpoint: {pickled[0]} is not read, since pickled weights could run any code: "
            "save the model as safetensors"
        )
    if ggufs := sorted(path.glob("*.gguf")):
        raise ValueError(f"open_checkpoint: path must name a GGUF file itself, such as {ggufs[0]}")
    raise FileNotFoundError(f"open_checkpoint: there is no model.safetensors in {path}")


def _open_shards(path: Path, index: Path) -> Checkpoint:
    content = read_json(index)
    weight_map: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map must be an object from tensors to files")
    for file in weight_map.values():
        # A plain name: nothing that leads out of the directory. Its file may be a link, as in
        # the cache of Hugging Face's hub.
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or set(file) & set("/\\\0")
        ):
            raise ValueError(
                f"{index}: a shard must be a .safetensors file beside it, got {file!r}"
            )
    checkpoint = SafetensorsCheckpoint(
        path, [path / file for file in sorted(set(weight_map.values()))]
    )
    for name, file in weight_map.items():
        if name not in checkpoint or checkpoint.file_of(name) != path / file:
            raise ValueError(f"{index}: the tensor {name!r} is not in {file}")
    return checkpoint


def _require_name(checkpoint: Checkpoint, name: str) -> None:
    if name not in checkpoint:
        raise ValueError(f"{checkpoint.path}: there is no tensor {name!r}")
