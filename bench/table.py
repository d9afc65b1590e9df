"""Results as a table for the terminal, for a page and for a program."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.case import Result
from bench.limits import Limits

COLUMNS = ("work", "dtype", "lanewise", "of the limit", "× torch")


def cells(result: Result, limits: Limits) -> tuple[str, ...]:
    """One row of the table, as text."""
    limit, seconds = limits.binding(result.case)
    return (
        result.case.work,
        str(result.case.dtype).removeprefix("torch."),
        f"{result.ours * 1e3:.3g} ms",
        f"{seconds / result.ours:.0%} ({limit})",
        f"{result.torchs / result.ours:.2f}",
    )


def show(results: Sequence[Result], limits: Limits) -> None:
    """Prints one table per family."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width
    for family in dict.fromkeys(result.family for result in results):
        table = Table(title=family, title_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
        for result in results:
            if result.family == family:
                table.add_row(*cells(result, limits))
        console.print(table)


def markdown(results: Sequence[Result], limits: Limits) -> str:
    """The table as a page holds it."""
    lines: list[tuple[str, ...]] = [COLUMNS, ("---", "---", "---:", "---:", "---:")]
    lines += [cells(result, limits) for result in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(results: Sequence[Result], limits: Limits, path: Path) -> None:
    """Writes the unrounded numbers as comma-separated values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("family", "work", "dtype", "limit", "limit_s", "lanewise_s", "torch_s"))
        for r in results:
            limit, seconds = limits.binding(r.case)
            writer.writerow((r.family, r.case.work, r.case.dtype, limit, seconds, r.ours, r.torchs))
