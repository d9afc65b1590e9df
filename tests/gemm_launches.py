"""Which kernels the matrix products launch, and with which tile, in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from lanewise.kernels import target
from lanewise.kernels.gemm.tiles import Problem, Tile
from strategies import randn
from torch import Tensor, dtype


def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Collects the kernels and grids that are launched from here on."""
    found: list[tuple[str, tuple[int, ...]]] = []
    launch = target.launch

    def watched(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        found.append((kernel.fn.__name__, grid))
        launch(kernel, grid, *args, **options)

    monkeypatch.setattr(target, "launch", watched)
    return found


class Forced:
    """Every product takes the tile of one row, and K is split for as many units."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, units: int = 1) -> None:
        # Large tiles of sums: a program costs the interpreter milliseconds.
        sums = Tile(64, 128, 4, 4)
        tuned = {("sum_of_chunks", "any"): sums, ("sum_of_gated_chunks", "any"): sums}
        self.architecture = dataclasses.replace(
            target.ARCHITECTURES[name], units=units, tuned=tuned
        )
        monkeypatch.setattr(target, "of", lambda device: self.architecture)
        self._monkeypatch = monkeypatch

    def tile(self, tile: Tile) -> None:
        self._monkeypatch.setattr(
            Problem, "choose", lambda problem, architecture: problem.split(tile, architecture)
        )


def laid(shape: tuple[int, ...], kind: dtype, layout: str, seed: int, scale: float = 1.0) -> Tensor:
    """n: contiguous rows, t: contiguous columns."""
    x = randn(shape, kind, seed, scale=scale)
    return x if layout == "n" else x.mT.contiguous().mT
