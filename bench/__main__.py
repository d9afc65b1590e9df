"""``python -m bench``: lanewise beside its peers, and all beside what this machine can do."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch

from bench import record, report
from bench.limits import Limits
from bench.run import Run
from bench.section import Section

FAMILIES = ("gemm", "attention", "norm", "rope", "bert", "models")


def main() -> int:
    """Measures the chosen sections, prints their tables and writes their numbers and plots."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    limits = Limits(torch.get_num_threads())
    run = Run([s for group in options.chosen.values() for s in group], limits, options.seconds)

    if options.markdown:
        report.page(run)
    else:
        report.tables(run)
    for family, sections in options.chosen.items():
        found = [result for section in sections for result in run.results(section)]
        record.save(found, limits, options.output / f"{family}.csv")
        report.plots(run, family, sections, options.output)
    print(f"numbers and plots: {options.output}", file=sys.stderr)
    report.absences(run)
    return 1 if report.faults(run) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Alternates lanewise and its peers in one process and takes the best of each. "
        "The limits are measured in the same run: float32 multiply-adds, and reading as many "
        "bytes. Whatever computes something wrong is not timed, and the exit status tells.",
    )
    parser.add_argument(
        "families",
        nargs="*",
        default=os.environ.get("FAMILY", "").split() or FAMILIES,
        metavar="family",
        help=f"{', '.join(FAMILIES)} (default: the variable FAMILY, or all)",
    )
    parser.add_argument(
        "--sections", nargs="+", metavar="section", help="of these families (default: all)"
    )
    parser.add_argument(
        "--threads", type=int, help="of lanewise and torch; NumPy obeys OPENBLAS_NUM_THREADS"
    )
    parser.add_argument(
        "--seconds", type=float, help="of each side of a case, about (default: each section's own)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/bench"),
        help="the folder for numbers (CSV) and plots (default: %(default)s)",
    )
    options = parser.parse_args()
    for family in options.families:
        if family not in FAMILIES:
            parser.error(f"family must be one of {', '.join(FAMILIES)}, got '{family}'")

    sections: dict[str, list[Section]] = {
        family: importlib.import_module(f"bench.{family}").SECTIONS for family in options.families
    }
    names = [section.name for group in sections.values() for section in group]
    for name in options.sections or ():
        if name not in names:
            parser.error(f"section must be one of {', '.join(names)}, got '{name}'")
    wanted = {
        family: [
            section
            for section in group
            if section.name in (options.sections or names)
            and (section.cells is not None or not options.markdown)
        ]
        for family, group in sections.items()
    }
    options.chosen = {family: group for family, group in wanted.items() if group}
    if not options.chosen:
        parser.error("no such section is part of the page's table")
    return options


if __name__ == "__main__":
    sys.exit(main())
