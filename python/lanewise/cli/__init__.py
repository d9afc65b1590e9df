"""The commands: ``python -m lanewise info | demo | generate | classify | explain | tune | …``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from lanewise.models.optional import require

_INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        # Python flushes once more when it exits, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError) as error:
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
    demo.add_argument("--threads", type=_positive, help="threads to compute on")
    demo.add_argument("--rounds", type=int, default=10, help="how often each side is timed; 0: not")
    demo.set_defaults(run=_demo)

    _add_generate(commands)
    _add_classify(commands)
    _add_explain(commands)
    _add_tune(commands)
    _add_gpu_report(commands)
    return parser


def _add_generate(commands: Any) -> None:
    generate = commands.add_parser("generate", help="continue a text, and time it")
    generate.add_argument(
        "--model",
        default="gemma",
        help="a directory with config.json and safetensors, or a GGUF file; "
        "by default gemma, which is Gemma 3 270M from its package",
    )
    generate.add_argument(
        "--prompt",
        action="append",
        required=True,
        dest="prompts",
        help="the text to continue; -: stdin; several times: a batch",
    )
    _add_computing(generate)
    generate.add_argument("--max-new-tokens", type=_positive, default=128, help="128 by default")
    generate.add_argument("--quiet", action="store_true", help="do not print the speed")
    sampling = generate.add_argument_group(
        "sampling", "the likeliest token is taken each time, unless one of the first five is given"
    )
    sampling.add_argument("--temperature", type=float, help="divides the logits; 1 by default")
    sampling.add_argument("--top-k", type=int, help="draw among the K likeliest tokens")
    sampling.add_argument("--top-p", type=float, help="draw among the likeliest that reach P")
    sampling.add_argument("--min-p", type=float, help="draw among those P times as likely as one")
    sampling.add_argument("--seed", type=int, help="makes the text repeatable")
    sampling.add_argument("--repetition-penalty", type=float, help="above 1: says less twice")
    generate.set_defaults(run=_generate)


def _add_classify(commands: Any) -> None:
    classify = commands.add_parser("classify", help="label texts, or the entities in them")
    classify.add_argument("texts", nargs="+", metavar="text", help="-: the lines of stdin")
    classify.add_argument("--model", required=True, help="a directory with a BERT that has a head")
    classify.add_argument("--all", action="store_true", help="every label, or every token's label")
    classify.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )
    _add_computing(classify)
    classify.set_defaults(run=_classify)


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser("explain", help="where the cycles of a model go, op by op")
    explain.add_argument("model", help="a name such as gpt2 or llama-3.2-1b, or a config.json")
    explain.add_argument("--phase", choices=["prefill", "decode", "train"], default="prefill")
    explain.add_argument("--tokens", type=_positive, help="new ones of a sequence; 512 by default")
    explain.add_argument("--batch", type=_positive, default=1, help="sequences; 1 by default")
    explain.add_argument(
        "--context", type=int, help="tokens before the new ones; 512 by default in decode, else 0"
    )
    explain.add_argument("--gpu", nargs="*", dest="gpus", metavar="NAME", help="to calculate for")
    explain.add_argument("--dry", action="store_true", help="count, and run nothing")
    explain.add_argument("--by-layer", action="store_true", help="each layer in rows of its own")
    explain.add_argument("--json", action="store_true", help="print all numbers as JSON")
    explain.add_argument("--plot", metavar="FILE", help="draw the roofline and a bar per op")
    _add_computing(explain)
    explain.set_defaults(run=_explain)


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser("tune", help="time tiles of the GPU kernels, and keep the fastest")
    tune.add_argument("--device", default="cuda:0", help="the GPU; %(default)s by default")
    tune.add_argument(
        "--table", nargs="+", metavar="NAME", help="of these kernels' tables only (default: all)"
    )
    tune.add_argument(
        "--output", help="the file to keep them in (default: where they are looked for)"
    )
    tune.set_defaults(run=_tune)


def _add_gpu_report(commands: Any) -> None:
    report = commands.add_parser(
        "gpu-report", help="what the compilers make of the GPU kernels; needs no GPU"
    )
    report.add_argument("--target", nargs="+", metavar="NAME", help="sm_90, gfx942, … (all)")
    report.add_argument("--kernel", nargs="+", metavar="NAME", help="these kernels only (all)")
    report.add_argument("--json", action="store_true", help="one row a configuration, as JSON")
    report.add_argument(
        "--fresh", action="store_true", help="compile again what docs/gpu-evidence.json has"
    )
    report.add_argument(
        "--write", action="store_true", help="renew docs/gpu-evidence.{json,md} of this checkout"
    )
    report.set_defaults(run=_gpu_report)


def _add_computing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="what to compute in; what the file holds by default",
    )
    command.add_argument("--threads", type=_positive, help="threads to compute on")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


# A command is imported when it runs: `info` must work where the packages of the others are missing.
def _info(options: argparse.Namespace) -> int:
    from lanewise.cli import info

    return info.run()


def _demo(options: argparse.Namespace) -> int:
    for package in ("rich", "safetensors", "tokenizers"):
        require(package, "the demo", "lanewise[demo]")
    from lanewise.cli import demo

    return demo.run(options.sentences, options.model, options.threads, options.rounds)


def _generate(options: argparse.Namespace) -> int:
    from lanewise.cli import generate
    from lanewise.models.sampling import Sampling

    drawn = ("temperature", "top_k", "top_p", "min_p", "seed")
    given = {name: value for name in drawn if (value := getattr(options, name)) is not None}
    penalty = 1.0 if options.repetition_penalty is None else options.repetition_penalty
    return generate.run(
        options.model,
        options.prompts,
        dtype=_dtype(options),
        max_new_tokens=options.max_new_tokens,
        sampling=Sampling(repetition_penalty=penalty, **(given or {"temperature": 0.0})),
        threads=options.threads,
        quiet=options.quiet,
    )


def _classify(options: argparse.Namespace) -> int:
    from lanewise.cli import classify

    return classify.run(
        options.model,
        options.texts,
        dtype=_dtype(options),
        threads=options.threads,
        truncate=options.truncate,
        every=options.all,
    )


def _explain(options: argparse.Namespace) -> int:
    for package in ("rich", "psutil"):
        require(package, "explaining", "lanewise[explain]")
    from lanewise.cli import explain
    from lanewise.explain.limits import GPUS

    if options.threads:
        torch.set_num_threads(options.threads)
    return explain.run(
        options.model,
        phase=options.phase,
        tokens=options.tokens,
        batch=options.batch,
        context=options.context,
        dtype=_dtype(options) or torch.float32,
        gpus=tuple(GPUS) if options.gpus is None else options.gpus,
        as_json=options.json,
        plot=options.plot,
        dry=options.dry,
        by_layer=options.by_layer,
    )


def _tune(options: argparse.Namespace) -> int:
    require("triton", "tuning", "lanewise[gpu]")
    require("rich", "tuning")
    from lanewise.cli import tune

    return tune.run(options.device, options.table, options.output)


def _gpu_report(options: argparse.Namespace) -> int:
    require("rich", "gpu-report")
    require("triton", "gpu-report", "lanewise[gpu]")
    from lanewise.cli import gpu_report

    return gpu_report.run(
        options.target,
        options.kernel,
        as_json=options.json,
        fresh=options.fresh,
        write=options.write,
    )


def _dtype(options: argparse.Namespace) -> torch.dtype | None:
    return None if options.dtype is None else getattr(torch, options.dtype)
