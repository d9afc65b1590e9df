"""Whether other processes took processors that a bench needed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# The kernel counts in hundredths of a second.
NOISE_SECONDS, NOISE_SHARE = 0.03, 0.05


class Neighbours:
    """Watches from its creation on. Only Linux tells; elsewhere nobody ever disturbs."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = _clocks()

    def disturbed(self, threads: int) -> bool:
        """Whether others used more than the processors that so many threads left to them."""
        wall, busy, own = (
            now - then
            for now, then in zip(_clocks(), (self._wall, self._busy, self._own), strict=True)
        )
        left = ((os.cpu_count() or threads) - threads) * wall
        return busy - own - left > NOISE_SECONDS + NOISE_SHARE * wall


def _clocks() -> tuple[float, float, float]:
    """Seconds on the wall, of all processors' work, and of this process's share in it."""
    own = time.process_time()
    if not STAT.exists():
        return time.perf_counter(), own, own
    own += _children()
    user, nice, system, _idle, _wait, *interrupts_and_stolen = map(
        int, STAT.read_text().split(maxsplit=9)[1:9]
    )
    ticks = user + nice + system + sum(interrupts_and_stolen)
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own


def _children() -> float:
    """Seconds that the running children of this process have worked: peers live in some."""
    ticks = 0
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            with contextlib.suppress(OSError):  # it may just have ended
                # The name before it may hold blanks; proc(5) counts what follows from 3.
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[14 - 3]) + int(fields[15 - 3])
    return ticks / os.sysconf("SC_CLK_TCK")
