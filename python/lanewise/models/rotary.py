"""Rotary frequencies as model configurations describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lanewise.nn import RotaryEmbedding
from lanewise.nn.position import inverse_frequencies


def make_rotary(
    model: str, parameters: Mapping[str, Any], head_dim: int, max_positions: int
) -> RotaryEmbedding:
    """The rotation that ``rope_theta``, ``rope_type`` and its numbers describe.

    Raises:
        ValueError: a rope_type that is not built here, or one of its numbers is missing.
    """
    theta = float(parameters.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    part = float(parameters.get("partial_rotary_factor", 1.0))
    dim = int(head_dim * part)
    if kind == "default":
        return RotaryEmbedding(dim, max_positions, base=theta)
    scale = {"linear": _linear, "llama3": _llama3}.get(kind)
    if scale is None:
        raise ValueError(f"{model}: rope_type must be one of default, linear, llama3, got {kind!r}")
    try:
        frequencies = scale(inverse_frequencies(dim, theta, "cpu"), parameters)
    except KeyError as error:
        raise ValueError(f"{model}: the rope_type {kind!r} needs {error.args[0]}") from None
    return RotaryEmbedding(dim, max_positions, base=theta, inv_freq=frequencies)


def rope_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters under their present name, or ``rope_theta`` and ``rope_scaling``, as older
    configurations spell them."""
    found = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    if "rope_theta" in values:
        found.setdefault("rope_theta", values["rope_theta"])
    return found


def _linear(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Positions squeezed by a factor (Chen et al., "Extending Context Window", 2023)."""
    return frequencies / float(parameters["factor"])


def _llama3(frequencies: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's: long waves are slowed by a factor, short ones kept, and those between blended.

    Grattafiori et al., "The Llama 3 Herd of Models", 2024, and the reference code of Llama 3.1.
    """
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    context = float(parameters["original_max_position_embeddings"])
    turns = context * frequencies / (2 * math.pi)  # within the context it was trained on
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(frequencies / factor, frequencies, kept)
