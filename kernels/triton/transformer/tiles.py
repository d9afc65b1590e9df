"""Which tile each architecture gives what a layer launches of its own."""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Tile:
    """Elements of a row at a time, warps, stages."""

    n: int
    warps: int
    stages: int = 1


# 16 bytes of 16-bit elements for every thread.
_NVIDIA, _AMD = {"any": Tile(1024, 4)}, {"any": Tile(1024, 2)}
LAST = Table("last_tokens", {"sm_80": _NVIDIA, "sm_90": _NVIDIA, "sm_100": _NVIDIA, "gfx942": _AMD})
GUARD = Table(
    "guarded_layer_bias", {"sm_80": _NVIDIA, "sm_90": _NVIDIA, "sm_100": _NVIDIA, "gfx942": _AMD}
)
