"""Reading a model directory: its config and its weights, under our parameter names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lanewise.models.optional import require


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by their names in the file."""
    return require("safetensors.torch", "reading a checkpoint").load_file(path)


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], rename: Callable[[str], str | None]
) -> None:
    """Makes ``weights`` the parameters of ``model``; ``rename`` gives our name, or None to leave
    one out.

    Raises:
        ValueError: a parameter is missing, or a tensor has no place or the wrong shape.
    """
    renamed = {new: tensor for name, tensor in weights.items() if (new := rename(name))}
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for name in sorted(expected.keys() | renamed.keys()):
        if name not in renamed:
            raise ValueError(f"{type(model).__name__}: the checkpoint lacks {name}")
        if name not in expected:
            raise ValueError(f"{type(model).__name__}: the checkpoint has an unknown tensor {name}")
        if tuple(renamed[name].shape) != expected[name]:
            raise ValueError(
                f"{type(model).__name__}: {name} must have the shape {expected[name]}, "
                f"got {tuple(renamed[name].shape)}"
            )
    model.load_state_dict(renamed, assign=True)
