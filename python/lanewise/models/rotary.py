"""Rotary frequencies as model configurations describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lanewise.models.config_reader import ConfigReader
from lanewise.nn import RotaryEmbedding
from lanewise.nn.position import inverse_frequencies


def make_rotary(
    model: str, parameters: Mapping[str, Any], head_dim: int, max_positions: int
) -> RotaryEmbedding:
    """The rotation that ``rope_theta``, ``rope_type`` and its numbers describe.

    Raises:
        ValueError: a rope_type that is not built here, or one of its numbers is missing.
    """
    read = ConfigReader(model, parameters)
    theta = read.positive("rope_theta", 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    part = read.positive("partial_rotary_factor", 1.0)
    if part > 1:
        raise ValueError(f"{model}: partial_rotary_factor must be at most 1, got {part}")
    dim = int(head_dim * part)
    if kind == "default":
        return RotaryEmbedding(dim, max_positions, base=theta)
    scale = {"linear": _linear, "llama3": _llama3}.get(kind) if isinstance(kind, str) else None
    if scale is None:
        raise ValueError(f"{model}: rope_type must be one of default, linear, llama3, got {kind!r}")
    frequencies = scale(inverse_frequencies(dim, theta, "cpu"), read)
    return RotaryEmbedding(dim, max_positions, base=theta, inv_freq=frequencies)


def rope_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters under their present name, or ``rope_theta`` and ``rope_scaling``, as older
    configurations spell them."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_parameters must be an object, got {given!r}")
    found = dict(given)
    if "rope_theta" in values:
        found.setdefault("rope_theta", values["rope_theta"])
    return found


def _linear(frequencies: Tensor, read: ConfigReader) -> Tensor:
    """Positions squeezed by a factor (Chen et al., "Extending Context Window", 2023)."""
    return frequencies / _needed(read, "factor")


def _llama3(frequencies: Tensor, read: ConfigReader) -> Tensor:
    """Llama 3.1's: long waves are slowed by a factor, short ones kept, and those between blended.

    Grattafiori et al., "The Llama 3 Herd of Models", 2024, and the reference code of Llama 3.1.
    """
    factor, context = (_needed(read, n) for n in ("factor", "original_max_position_embeddings"))
    low, high = (_needed(read, name) for name in ("low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise ValueError(
            f"{read.model}: high_freq_factor must be above low_freq_factor, got {high}"
        )
    turns = context * frequencies / (2 * math.pi)  # within the context it was trained on
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(frequencies / factor, frequencies, kept)


def _needed(read: ConfigReader, name: str) -> float:
    if read.values.get(name) is None:
        kind = read.values.get("rope_type", read.values.get("type"))
        raise ValueError(f"{read.model}: the rope_type {kind!r} needs {name}")
    return read.positive(name, 1.0)
