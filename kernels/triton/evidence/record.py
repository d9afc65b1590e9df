"""The facts of every row, kept in a file beside the page that shows them.

A row's facts hold as long as its key does, so that a run of the tests need not compile everything
again: docs/gpu-evidence.json has one row a line, and its changes show in review.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .machine_code import Facts
from .rows import Row

DOCS = Path(__file__).resolve().parents[3] / "docs"  # of a checkout
PATH = DOCS / "gpu-evidence.json"
RENEW = "python -m lanewise gpu-report --write"

Recorded = dict[str, dict[str, Any]]  # the JSON of a row, by the key of its machine code


def to_json(row: Row, facts: Facts) -> dict[str, Any]:
    """One flat row; what is zero in the facts is left out of them, but for what every row has."""
    shown = {"matrix_instructions", "spills", "registers", "shared_bytes", "async_copies"}
    numbers = {n: v for n, v in dataclasses.asdict(facts).items() if v or n in shown}
    identity = {
        "kernel": row.kernel,
        "config": row.config,
        "target": row.target,
        "element": row.element,
        "tile": row.tile,
        "key": row.key,
    }
    return {**identity, **numbers}


def to_facts(entry: Mapping[str, Any]) -> Facts:
    numbers = {f.name: entry[f.name] for f in dataclasses.fields(Facts) if f.name in entry}
    numbers["matrix_opcodes"] = tuple(numbers.get("matrix_opcodes", ()))
    return Facts(**numbers)


def dump(facts: Mapping[Row, Facts]) -> str:
    """A JSON list, one row a line."""
    lines = (json.dumps(to_json(row, f), ensure_ascii=False) for row, f in facts.items())
    return "[\n" + ",\n".join(lines) + "\n]\n"


def load(path: Path = PATH) -> Recorded:
    """Nothing where there is no file, as in an installed package."""
    if not path.exists():
        return {}
    try:
        return {entry["key"]: entry for entry in json.loads(path.read_text())}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"lanewise.gpu-report: {path} must be a JSON list of rows; renew it with `{RENEW}`"
        ) from None


def known(rows: Collection[Row], recorded: Recorded) -> dict[Row, Facts]:
    """The facts of those rows for which nothing that decides them has changed."""
    return {row: to_facts(recorded[row.key]) for row in rows if row.key in recorded}


def sample(rows: Collection[Row], facts: Mapping[Row, Facts]) -> list[Row]:
    """One row of each kernel and vendor, another whenever the source changes.

    It is drawn by its key from the shorter half of the kernel's programs there, which compile fast.
    Tests compile these rows again, to see that the file tells the truth.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        vendor = row.target.rstrip("0123456789")  # "sm_" or "gfx"
        groups.setdefault((row.kernel, vendor), []).append(row)
    drawn = []
    for group in groups.values():
        group.sort(key=lambda row: facts[row].instructions if row in facts else 0)
        shorter = group[: (len(group) + 1) // 2]
        drawn.append(min(shorter, key=lambda row: hashlib.sha256(row.key.encode()).digest()))
    return drawn
