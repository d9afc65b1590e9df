"""``python -m lanewise tune``: times tiles of the GPU kernels and keeps the fastest in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton.testing
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lanewise.kernels import target, tune, tuned
from lanewise.kernels.evidence import catalogue


def run(
    device: str, names: Sequence[str] | None, output: str | None, timer: tune.Timer | None = None
) -> int:
    """Tunes the rows of the named tables, all by default; prints and keeps what was faster.

    What was found is written after every row, so that Ctrl-C loses nothing. Rows that were tuned
    before are kept where they are not tuned again.
    """
    gpu, architecture = _gpu(device)
    console = Console()
    tables = tuned.tables()
    for name in names or ():
        if name not in tables:
            raise ValueError(
                f"lanewise.tune: table must be one of {', '.join(tables)}, got '{name}'"
            )
    file = Path(output) if output else tuned.path(gpu)
    tiles = dict(tuned.load(gpu, architecture))
    rows = {
        row: case
        for row, case in tune.rows(list(catalogue.cases().values()), architecture).items()
        if row[0] in (names or tables)
    }
    page = Table("kernel", "problem", "shipped", "fastest", "tile", title=gpu, title_justify="left")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(rows))
        try:
            for row, case in rows.items():
                name, _, problem = row
                progress.update(bar, description=f"{name}: {problem}")
                first = tables[name].shipped(architecture, problem)
                trial = tune.Trial(case, row, architecture, device)
                found = tune.search(tables[name], trial, problem, timer or _seconds, first)
                tiles.pop((name, problem), None)
                if found.tile != first:
                    tiles[name, problem] = found.tile
                tuned.save(file, gpu, architecture, tiles)
                page.add_row(name, problem, *_cells(found, first))
                progress.advance(bar)
        finally:
            console.print(page)
            console.print(f"kept in {file}", highlight=False, soft_wrap=True)
    return 0


def _gpu(device: str) -> tuple[str, target.Architecture]:
    refusal = f"lanewise.tune: device must be a GPU that torch can use, got '{device}'"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(refusal) from None
    if chosen.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(refusal)
    torch.cuda.set_device(chosen)
    index = torch.cuda.current_device()
    return torch.cuda.get_device_name(index), target.untuned(index)


def _seconds(launch: Any) -> float:
    return triton.testing.do_bench(launch, return_mode="median") / 1e3


def _cells(found: tune.Found, first: Any) -> tuple[str, str, str]:
    shipped = f"{found.shipped_seconds * 1e6:.1f} µs"
    if found.tile == first:
        return shipped, "the same", ""
    ratio = found.shipped_seconds / found.seconds
    return shipped, f"{found.seconds * 1e6:.1f} µs, {ratio:.2f}×", str(found.tile)
