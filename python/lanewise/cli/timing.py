"""Comparing speeds on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def alternate(sides: dict[Key, Callable[[], object]], rounds: int) -> dict[Key, float]:
    """The best time of each side in seconds, after one call of each that does not count.

    The sides take turns, so that a slow phase of the machine meets all of them; the best of many is
    the time with the least disturbance in it.
    """
    for side in sides.values():
        side()
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for key, side in sides.items():
            start = time.perf_counter()
            side()
            best[key] = min(best[key], time.perf_counter() - start)
    return best
