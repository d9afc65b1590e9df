"""The commands: ``python -m lanewise info | demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lanewise.models.optional import require


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lanewise", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    info = commands.add_parser("info", help="what this machine has and what lanewise uses of it")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="embed sentences, check the result, time it")
    demo.add_argument("sentences", nargs="*", help="at least two; built-in ones by default")
    demo.add_argument("--model", help="a sentence-transformers directory; MiniLM-L6-v2 by default")
    demo.add_argument("--threads", type=int, help="threads to compute on")
    demo.add_argument("--rounds", type=int, default=10, help="how often each side is timed; 0: not")
    demo.set_defaults(run=_demo)
    return parser


# A command is imported when it runs: `info` must work where the packages of the demo are missing.
def _info(options: argparse.Namespace) -> int:
    from lanewise.cli import info

    return info.run()


def _demo(options: argparse.Namespace) -> int:
    for package in ("rich", "safetensors", "tokenizers"):
        require(package, "the demo", "demo")
    from lanewise.cli import demo

    return demo.run(options.sentences, options.model, options.threads, options.rounds)
