"""Random operands, scaled so that every output is of order one."""

from __future__ import annotations

from functools import lru_cache

import torch

import lanewise


def activations(rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """What a layer is applied to."""
    return torch.randn(rows, inputs).to(dtype)


def weight(inputs: int, outputs: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a layer; cast from float32, since torch draws that several times as fast."""
    return (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)


@lru_cache(maxsize=1)  # consecutive points share their layer; more would not fit some memories
def layer(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, plain and packed."""
    plain = weight(inputs, outputs, dtype)
    return plain, lanewise.pack_weight(plain)


def linear_bytes(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> int:
    """What a linear layer reads and writes."""
    return (rows * inputs + inputs * outputs + rows * outputs) * dtype.itemsize
