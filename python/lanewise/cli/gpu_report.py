"""``python -m lanewise gpu-report``: what the compilers make of the GPU kernels, without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence

import triton
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lanewise.kernels.evidence import catalogue, page, record, rows
from lanewise.kernels.evidence.compile import GPUS
from lanewise.kernels.evidence.machine_code import Facts
from lanewise.kernels.evidence.promises import broken
from lanewise.kernels.evidence.rows import Row

Found = dict[Row, Facts]

SAVED_EVERY = 50  # rows
WIDTH = 140
SHOWN = {  # the page's columns that fit a terminal, and their titles there
    "GPU": "GPU",
    "configuration": "configuration",
    "tile": "tile",
    "registers": "regs",
    "spills": "spills",
    "shared, KB": "KB",
    "copies": "copies",
    "model, not measured: bound": "model: bound",
    "model: ceiling": "ceiling",
}


def run(
    targets: Sequence[str] | None,
    kernels: Sequence[str] | None,
    *,
    as_json: bool,
    fresh: bool,
    write: bool,
) -> int:
    """Prints one row of each kernel, configuration and target; returns 1 if a promise is broken.

    What docs/gpu-evidence.json knows is not compiled again, unless ``fresh``. ``write`` renews that
    file and the page made of it.
    """
    if triton.knobs.runtime.interpret:
        raise ValueError("lanewise.gpu-report: TRITON_INTERPRET must not be set: kernels compile")
    if write and not record.DOCS.is_dir():
        raise ValueError(f"lanewise.gpu-report: --write must run in a checkout, not {record.DOCS}")
    _check("target", targets, list(GPUS))
    _check("kernel", kernels, rows.kernels())
    chosen = rows.all_rows(targets or list(GPUS), kernels)
    recorded = record.load()
    facts = {} if fresh else record.known(chosen, recorded)
    others = record.known(rows.all_rows(), recorded)
    try:
        for done in _compile([row for row in chosen if row not in facts], facts, fresh):
            if write and done % SAVED_EVERY == 0:
                _save({**others, **facts})
    except RuntimeError as error:  # one does not compile
        print(error, file=sys.stderr)
        return 1
    finally:  # Ctrl-C loses nothing
        if write:
            _report_left(_save({**others, **facts}))
    facts = {row: facts[row] for row in chosen}
    if as_json:
        sys.stdout.write(record.dump(facts))
    elif not write:
        _print(facts)
    return _complain(facts)


def _check(what: str, names: Sequence[str] | None, allowed: Collection[str]) -> None:
    for name in names or ():
        if name not in allowed:
            raise ValueError(
                f"lanewise.gpu-report: {what} must be one of {', '.join(allowed)}, got '{name}'"
            )


def _compile(missing: Sequence[Row], facts: Found, fresh: bool) -> Iterator[int]:
    """Adds the facts of the missing rows as they come, and yields how many have come."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(missing))
        for done, (row, found) in enumerate(rows.compile_all(missing, fresh), start=1):
            facts[row] = found
            progress.update(bar, advance=1, description=row.name)
            yield done


def _save(facts: Found) -> tuple[int, int]:
    """Writes record and page; returns how many rows are in them, and how many are due."""
    every = rows.all_rows()
    kept = {row: facts[row] for row in every if row in facts}
    record.PATH.write_text(record.dump(kept))
    page.PATH.write_text(page.render(kept))
    return len(kept), len(every)


def _report_left(counts: tuple[int, int]) -> None:
    kept, due = counts
    print(f"wrote {kept} rows to {record.PATH} and {page.PATH}", file=sys.stderr)
    if kept < due:
        print(f"{due - kept} rows are still out of date", file=sys.stderr)


def _print(facts: Found) -> None:
    console = Console()
    console = Console(width=max(console.width, WIDTH))  # a pipe says 80
    console.print(f"GPU speed: not measured. {page.compilers()}.", highlight=False)
    for kernel in sorted({row.kernel for row in facts}):
        table = Table(title=kernel, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, title in SHOWN.items():
            number = name in page.NUMBERS
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row, found in facts.items():
            if row.kernel == kernel:
                texts = dict(zip(page.COLUMNS, page.cells(row, found), strict=True))
                table.add_row(*(texts[name] for name in SHOWN))
        console.print(table)


def _complain(facts: Found) -> int:
    promises = catalogue.promises()
    wrong = {row: broken(row, found, promises[row.kernel]) for row, found in facts.items()}
    for row, sentences in wrong.items():
        for sentence in sentences:
            print(f"{row.name}: {sentence}", file=sys.stderr)
    return 1 if any(wrong.values()) else 0
