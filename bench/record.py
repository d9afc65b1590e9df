"""Results as numbers for a program."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.case import Result
from bench.limits import Limits

FORMAT = 1


def save_json(
    results: Sequence[Result], limits: Limits, facts: Sequence[tuple[str, str]], path: Path
) -> None:
    """Writes everything that was measured, each turn and each visit, for `bench.compare`."""
    document = {
        "format": FORMAT,
        "machine": dict(facts),
        "results": [
            {
                "section": r.section,
                "work": r.task.work,
                "dtype": r.task.dtype_name,
                "flops": r.task.flops,
                "bytes": r.task.bytes,
                "limit": limits.binding(r.task)[0],
                "limit_seconds": limits.binding(r.task)[1],
                "ways": r.ways,
                "peers": r.peers,
                "seconds": r.seconds,
                "samples": r.samples,
                "visits": [asdict(visit) for visit in r.visits],
                "wrong": r.wrong,
            }
            for r in results
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


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
        "median": result.median(side) if side in result.samples else None,
        "spread": result.spread(side) if side in result.samples else None,
        "wrong": result.wrong.get(side),
        "growth": result.growth.get(side),
        "limit": limit,
        "limit_seconds": limit_seconds,
        "flops": task.flops,
        "bytes": task.bytes,
        "instruction_set": limits.target,
        "threads": limits.threads,
    }
