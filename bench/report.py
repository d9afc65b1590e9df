"""What a run prints and draws."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench import table
from bench.case import Result
from bench.compare import Verdict
from bench.run import Run
from bench.section import Section
from lanewise.cli.info import machine

# They decide what the peers run (an older machine's code, other blocks), so a report names them.
STEERING = (
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "XLA_FLAGS",
    "CT2_FORCE_CPU_ISA",
    "CT2_USE_MKL",
)
# Plots that hold all sections of a family which ask for them.
SHARES = "shares"
WHOLE = (SHARES, "bars")


def tables(run: Run) -> None:
    """Prints the facts and every section's tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # a file has no width
    for name, value in facts(run):
        console.print(f"{name:16} {value}", soft_wrap=True)
    for section in run.sections:
        if results := run.results(section):
            for part in section.tables(results, run.limits):
                console.print()
                console.print(part)


def page(run: Run, path: Path) -> None:
    """Writes the facts and one table, as a page holds them, in Markdown."""
    cells = (
        (result, section.cells(result, run.limits))
        for section in run.sections
        if section.cells
        for result in run.results(section)
    )
    header = "; ".join(f"{name} {value}" for name, value in facts(run))
    path.write_text(f"{header}\n\n{table.markdown(cells)}\n")


def verdicts(found: Sequence[Verdict]) -> None:
    """Prints what has changed since an earlier run, and how much has not."""
    rows = [
        (
            v.word,
            f"{v.key[1]}, {v.key[3]}" if v.key[3] else v.key[1],
            v.key[2],
            "" if v.ratio != v.ratio else f"{v.ratio:.2f}",
            "" if v.noise != v.noise else f"{v.noise:.0%}",
        )
        for v in sorted(found, key=lambda v: v.word)
        if v.word != "same"
    ]
    console = Console(highlight=False)
    if rows:
        columns = ["", "work", "dtype", "time", "noise"]
        console.print(table.build("since the earlier run", columns, rows, texts=3))
    words = Counter(v.word for v in found)
    console.print(", ".join(f"{count} {word}" for word, count in sorted(words.items())))


def plots(run: Run, families: Mapping[str, Sequence[Section]], folder: Path) -> None:
    """Draws each family's shares of the limits and ratios to its peers, each of its sweeps, and the
    roofline of all that were measured."""
    try:
        from bench import plot
    except ModuleNotFoundError:
        print("no plots: they need matplotlib, from the extra `bench`", file=sys.stderr)
        return
    pictures: dict[str, tuple[str, list[Result]]] = {}

    def add(name: str, kind: str, results: Sequence[Result]) -> None:
        pictures.setdefault(name, (kind, []))[1].extend(results)

    for family, sections in families.items():
        for section in sections:
            results = run.results(section)
            if not section.plot:
                continue
            if section.plot == SHARES:
                add("roofline", "roofline", results)
                add(f"{family}-ratios", "bars", results)
            whole = section.plot in WHOLE
            add(family if whole else f"{family}-{section.name}", section.plot, results)
    facts = f"{run.limits.target}, {run.limits.threads} threads, torch {torch.__version__}"
    for name, (kind, found) in pictures.items():
        if found:
            plot.draw(kind, found, run.limits, f"{name} ({facts})", folder / f"{name}.png")


def faults(run: Run) -> bool:
    """Tells of every side that computed something wrong, and whether there was one."""
    wrong = [
        f"WRONG: {result.task.work}, {result.task.dtype_name}: {result.side_name(side)} {fault}"
        for section in run.sections
        for result in run.results(section)
        for side, fault in result.wrong.items()
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


def absences(run: Run) -> None:
    """Tells why peers could not run."""
    reasons = {
        f"{table.PEER_NAMES[peer]} {table.ABSENT}: {reason}"
        for section in run.sections
        for result in run.results(section)
        for peer, reason in result.absent.items()
    }
    for line in sorted(reasons):
        print(line, file=sys.stderr)


def facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of all that decides the numbers of a run."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    steered = ", ".join(f"{name}={os.environ[name]}" for name in STEERING if name in os.environ)
    return [
        *machine(),
        ("torch uses", torch.backends.cpu.get_cpu_capability()),
        ("NumPy", f"{np.__version__}, {blas['name']} {blas['version']}"),
        *([("environment", steered)] if steered else []),
        *run.limits.facts(),
        ("disturbed", run.disturbed),
    ]
