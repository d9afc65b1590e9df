"""``python -m bench``: lanewise beside torch, and both beside what this machine could do."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch

from bench import table
from bench.case import Result
from bench.limits import Limits
from bench.timing import measure
from lanewise.cli.info import machine

FAMILIES = ("gemm", "attention", "norm", "rope", "bert")


def main() -> int:
    """Runs the chosen families and prints their tables."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    limits = Limits(torch.get_num_threads())
    results: list[Result] = []
    for family in options.families or FAMILIES:
        for case in importlib.import_module(f"bench.{family}").cases():
            print(f"\r{family}: {case.work}".ljust(79), end="", file=sys.stderr)
            results.append(measure(family, case, options.seconds))
            limits.sample(case)
    print("\r" + " " * 79, end="\r", file=sys.stderr)

    facts = [*machine(), *_limit_facts(limits)]
    if options.markdown:
        print("; ".join(f"{name} {value}" for name, value in facts), end="\n\n")
        print(table.markdown(results, limits))
    else:
        for name, value in facts:
            print(f"{name:16} {value}")
        table.show(results, limits)
    if options.csv:
        table.save(results, limits, options.csv)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Alternates lanewise and torch in one process and takes the best of each. The "
        "limits are measured in the same run: float32 multiply-adds, and reading as many bytes.",
    )
    parser.add_argument(
        "families",
        nargs="*",
        default=os.environ.get("FAMILY", "").split(),
        metavar="family",
        help=f"{', '.join(FAMILIES)} (default: the variable FAMILY, or all)",
    )
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case, about")
    parser.add_argument("--markdown", action="store_true", help="print the README's table")
    parser.add_argument("--csv", type=Path, help="also write the numbers, unrounded, to this file")
    options = parser.parse_args()
    for family in options.families:
        if family not in FAMILIES:
            parser.error(f"family must be one of {', '.join(FAMILIES)}, got '{family}'")
    return options


def _limit_facts(limits: Limits) -> list[tuple[str, str]]:
    reading = ", ".join(
        f"{rate / 1e9:.0f} GB/s over {size / 2**20:g} MiB"
        for size, rate in sorted(limits.bandwidth.items())
    )
    return [("multiply-adds", f"{limits.flops / 1e9:.0f} GFLOP/s"), ("reading", reading)]


if __name__ == "__main__":
    sys.exit(main())
