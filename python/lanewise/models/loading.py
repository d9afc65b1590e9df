"""Reading a checkpoint into a model part by part, so that packing needs little memory beside the
weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lanewise.models.checkpoint import Checkpoint, open_checkpoint
from lanewise.models.config import read_config
from lanewise.nn import RotaryEmbedding, pack
from lanewise.ops._library import FLOATING


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: a tensor's name, and what makes the parameter of it.

    prefixed: whether the name follows the prefix that the checkpoint's names have.
    """

    name: str
    form: Callable[[Tensor], Tensor] | None = None
    prefixed: bool = True


class FromPretrained(nn.Module):
    """Mixin for a model with a weight map: `source` names the tensor of each parameter."""

    config_class: ClassVar[Any]
    # What the names in checkpoints may begin with, and a pattern of tensors that are left out.
    prefixes: ClassVar[tuple[str, ...]]
    left_out: ClassVar[str]

    def source(self, name: str) -> Source:
        """The tensor that the parameter called ``name`` is made of; KeyError: there is none."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        pack: bool = False,
    ) -> Self:
        """Reads a model; eval mode.

        Args:
            path: a directory with ``config.json`` and safetensors, or a GGUF file, which is
                dequantized.
            dtype: of all parameters; by default that of the checkpoint's smallest tensor, float32
                for a GGUF file.
            pack: packs each layer as soon as it is read and lets go of its weights, for inference
                on the CPU: see `lanewise.nn.pack` with ``release``. The whole then needs little
                more memory than its weights, while and after it is read.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: the config describes something that is not built here, or the weights do
                not fit it.
            ImportError: the package safetensors or gguf is missing.
        """
        config = cls.config_class.from_dict(read_config(path))
        with open_checkpoint(path) as checkpoint:
            return cls.from_checkpoint(config, checkpoint, dtype=dtype, device=device, pack=pack)

    @classmethod
    def from_checkpoint(
        cls,
        config: Any,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        pack: bool = False,
    ) -> Self:
        """Makes the model of ``config`` and reads its parameters; see `from_pretrained`."""
        with torch.device("meta"):
            model = cls(config)
        sources = _find(model, checkpoint)
        dtype = dtype or _dtype_of_first(sources, checkpoint)
        for prefix, part in _parts(model):
            _read_part(part, prefix, sources, checkpoint, dtype, device, release=pack)
        for module in model.modules():
            if isinstance(module, RotaryEmbedding):  # its tables are made, not read
                module.to_empty(device=device or "cpu")
        # Released weights have no gradients, and what is left would have useless ones.
        return (model.requires_grad_(False) if pack else model).eval()


def _dtype_of_first(sources: Mapping[str, Source], checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of a checkpoint whose tensors may have several."""
    source = min(sources.values(), key=lambda s: math.prod(checkpoint.shape(s.name)))
    dtype = checkpoint.read(source.name).dtype
    if dtype not in FLOATING:
        raise ValueError(
            f"{source.name} must be float32, bfloat16 or float16 in the checkpoint, or a dtype be "
            f"given, got {dtype}"
        )
    return dtype


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What is read at once: the children, and each layer of a stack by itself."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            found += [(f"{name}.{i}.", layer) for i, layer in enumerate(child)]
        else:
            found.append((f"{name}.", child))
    return found


def _find(model: FromPretrained, checkpoint: Checkpoint) -> Mapping[str, Source]:
    """The tensor of every parameter, all of which are there; and no tensor is left over."""
    owner = type(model).__name__
    wanted = {name: model.source(name) for name, _ in model.named_parameters()}
    names = set(checkpoint.names())
    first = next(source.name for source in wanted.values() if source.prefixed)
    prefix = next((p for p in model.prefixes if p + first in names), model.prefixes[0])
    found = {
        name: Source((prefix if source.prefixed else "") + source.name, source.form, False)
        for name, source in wanted.items()
    }
    for name, source in found.items():
        if source.name not in names:
            raise ValueError(f"{owner}: the checkpoint lacks {source.name}, which is {name}")
    known = {source.name for source in found.values()}
    tied = {name for name in names - known if name.endswith("lm_head.weight")}
    for name in sorted(names - known - tied):
        if not re.search(model.left_out, name):
            raise ValueError(f"{owner}: the checkpoint has an unknown tensor {name}")
    return found


def _read_part(
    part: nn.Module,
    prefix: str,
    sources: Mapping[str, Source],
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device: Any,
    *,
    release: bool,
) -> None:
    weights = {}
    for name, parameter in part.named_parameters():
        source = sources[prefix + name]
        tensor = checkpoint.read(source.name, dtype)
        if source.form is not None and tensor.dim() > 0:
            tensor = source.form(tensor)
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{source.name} must give {prefix}{name} the shape {list(parameter.shape)}, "
                f"got {list(tensor.shape)}"
            )
        weights[name] = tensor.to(device).contiguous()
    part.load_state_dict(weights, strict=True, assign=True)
    if release:
        pack(part.eval(), release=True)
