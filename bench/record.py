"""Results as numbers for a program."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bench.case import Result
from bench.limits import Limits


def save(results: Sequence[Result], limits: Limits, path: Path) -> None:
    """Writes a line for each side of each case, as comma-separated values, unrounded."""
    lines = [_line(r, side, limits) for r in results for side in (*r.ways, *r.peers)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def _line(result: Result, side: str, limits: Limits) -> dict[str, object]:
    task = result.task
    limit, limit_seconds = limits.binding(task)
    return {
        "section": result.section,
        "work": task.work,
        "dtype": task.dtype_name,
        "series": task.series,
        "rows": task.rows or None,
        "side": result.side_name(side),
        "seconds": result.seconds.get(side),
        "wrong": result.wrong.get(side),
        "growth": result.growth.get(side),
        "limit": limit,
        "limit_seconds": limit_seconds,
        "flops": task.flops,
        "bytes": task.bytes,
        "instruction_set": limits.target,
        "threads": limits.threads,
    }
