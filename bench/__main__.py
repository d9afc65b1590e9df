"""``python -m bench``: lanewise beside its peers, and all beside what this machine can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from bench import compare, record, report
from bench.case import Result
from bench.limits import Limits
from bench.options import parse, rebuild, settle
from bench.run import Run
from bench.visit import apart

INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
CONFIRMATIONS = 2


def main() -> int:
    """Measures the chosen sections, prints their tables and writes their numbers and plots."""
    options = parse(sys.argv[1:])
    if options.isa and os.environ.get("LANEWISE_ISA") != options.isa:
        # lanewise has chosen when it was imported: start again.
        os.environ["LANEWISE_ISA"] = options.isa
        os.execv(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]])
    sections = settle(options)
    options.output.mkdir(parents=True, exist_ok=True)
    limits = Limits(torch.get_num_threads())
    visitors = apart(partial(rebuild, sys.argv[1:]), limits.threads) if options.passes > 1 else None
    run = Run(sections, limits, options.seconds, options.passes, visitors)
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
        suspects = run.places([v.result for v in found if v.word == "slower" and v.result])
        for _ in range(compare.MIN_VISITS):
            run.visit(suspects)
    found = compare.verdicts(before, _measured(run))
    report.verdicts(found)
    return any(v.word == "slower" for v in found)


def _measured(run: Run) -> list[Result]:
    return [result for section in run.sections for result in run.results(section)]


if __name__ == "__main__":
    sys.exit(main())
