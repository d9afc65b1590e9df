"""``python -m bench``: lanewise beside its peers, and all beside what this machine can do."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import asked, compare, peers, record, report
from bench.case import Result
from bench.limits import Limits
from bench.run import Run
from bench.section import Section

INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
CONFIRMATIONS = 2
TOUR = ("gemm", "attention", "norm", "rope", "bert")
FAMILIES = (*TOUR, "models")


def main() -> int:
    """Measures the chosen sections, prints their tables and writes their numbers and plots."""
    options = parse(sys.argv[1:])
    if options.isa and os.environ.get("LANEWISE_ISA") != options.isa:
        # lanewise has chosen when it was imported: start again.
        os.environ["LANEWISE_ISA"] = options.isa
        os.execv(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]])
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peers.want(options.peers)
    options.output.mkdir(parents=True, exist_ok=True)
    limits = Limits(torch.get_num_threads())
    sections = [s for group in options.chosen.values() for s in group]
    run = Run(sections, limits, options.seconds, options.passes)
    slower = options.before is not None and judge(run, options.before)
    if not limits.sampled:
        print("nothing was measured", file=sys.stderr)
        return INTERRUPTED

    report.tables(run)
    report.page(run, options.output / "page.md")
    for family, sections in options.chosen.items():
        found = [result for section in sections for result in run.results(section)]
        if found:
            record.save(found, limits, options.output / f"{family}.csv")
    report.plots(run, options.chosen, options.output)
    record.save_json(_measured(run), limits, report.facts(run), options.json)
    print(f"numbers and plots: {options.output}", file=sys.stderr)
    report.absences(run)
    if run.interrupted:
        return INTERRUPTED
    return 1 if report.faults(run) or slower else 0


def judge(run: Run, before: Mapping[compare.Key, Any]) -> bool:
    """Prints what became faster or slower, and whether something did become slower.

    What looks slower is measured again, twice as often as before, until it no longer does.
    """
    for _ in range(CONFIRMATIONS):
        found = compare.verdicts(before, _measured(run))
        suspects = [v.result for v in found if v.word == "slower" and v.result]
        for _ in range(compare.MIN_VISITS):
            run.visit(run.points(suspects))
            suspects = [r for r in _measured(run) if any(r.task == s.task for s in suspects)]
    found = compare.verdicts(before, _measured(run))
    report.verdicts(found)
    return any(v.word == "slower" for v in found)


def _measured(run: Run) -> list[Result]:
    return [result for section in run.sections for result in run.results(section)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the sections that they choose as ``chosen``."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Alternates lanewise and its peers in one process and takes the best of each. "
        "The limits are measured in the same run: float32 multiply-adds, and reading as many "
        "bytes. Whatever computes something wrong is not timed, and the exit status tells.",
    )
    parser.add_argument(
        "families",
        nargs="*",
        default=os.environ.get("FAMILY", "").split(),
        metavar="family",
        help=f"{', '.join(FAMILIES)}, with every section of it (default: the variable FAMILY, or "
        "all ops and BERT, without the sweeps that are on no page's table)",
    )
    parser.add_argument(
        "--sections", nargs="+", metavar="section", help="of these families (default: all)"
    )
    parser.add_argument(
        "--model", nargs="+", default=[], help="the shapes of these models, as explain names them"
    )
    parser.add_argument(
        "--shape", nargs="+", default=[], help="one shape of the family: MxKxN, BxHxSxD, …"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=("float32", "bfloat16"),
        choices=("float32", "bfloat16", "float16"),
        help="of --model and --shape (default: float32 bfloat16)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers.ALL,
        default=peers.ALL,
        help="whom the ops are measured against, where a section asks them (default: all)",
    )
    parser.add_argument(
        "--isa", help="the highest instruction set that lanewise uses, like LANEWISE_ISA"
    )
    parser.add_argument(
        "--threads", type=int, help="of lanewise and torch; NumPy obeys OPENBLAS_NUM_THREADS"
    )
    parser.add_argument(
        "--seconds", type=float, help="of each side of a case, about (default: each section's own)"
    )
    parser.add_argument(
        "--passes", type=int, default=1, help="how often every case is visited (default: once)"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RUN.json",
        help="an earlier run to compare with; exit status 1 where lanewise has become slower",
    )
    parser.add_argument(
        "--json", type=Path, help="the file for everything measured (default: run.json in OUTPUT)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/bench"),
        help="the folder for numbers (CSV), a table (Markdown) and plots (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    for family in options.families:
        if family not in FAMILIES:
            parser.error(f"family must be one of {', '.join(FAMILIES)}, got '{family}'")
    tour = not (options.families or options.sections)
    asks = options.model or options.shape
    options.families = options.families or (tuple(asked.FAMILIES) if asks else TOUR)

    options.json = options.json or options.output / "run.json"
    options.before = None
    if options.compare:
        options.passes = max(options.passes, compare.MIN_VISITS)
        try:
            options.before = compare.load(options.compare)
        except ValueError as error:
            parser.error(str(error))
    if asks:
        if options.sections:
            parser.error("--model and --shape make sections of their own")
        try:
            options.chosen = asked.sections(
                options.families, options.model, options.shape, options.dtypes
            )
        except ValueError as error:
            parser.error(str(error))
        return options
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
            and (section.cells is not None or not tour)
        ]
        for family, group in sections.items()
    }
    options.chosen = {family: group for family, group in wanted.items() if group}
    return options


if __name__ == "__main__":
    sys.exit(main())
