"""What a run is asked for on the command line."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import asked, compare, peers
from bench.allocator import keep_freed_memory
from bench.section import Section

TOUR = ("gemm", "attention", "norm", "rope", "bert")
FAMILIES = (*TOUR, "models")


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
        "--passes",
        type=int,
        default=1,
        help="how often every case is visited, each time in a new process (default: once, here)",
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


def settle(options: argparse.Namespace) -> list[Section]:
    """Makes this process measure as the options say, and returns the sections that they choose."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    peers.want(options.peers)
    return [section for group in options.chosen.values() for section in group]


def rebuild(arguments: Sequence[str]) -> list[Section]:
    """The same in a visitor's process."""
    return settle(parse(arguments))
