"""``python -m bench.gpu``: every GPU kernel beside torch's, on the GPU at hand, within 5 minutes.

Each op is checked against float32 or float64 torch first, and not timed if it is wrong. The limits
are torch's own largest product in the same dtype and its fastest copy, measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from bench import table
from bench.case import Case, Side, Task
from bench.check import Checker
from bench.gpu_cases import LARGE, Sizes, cases

Timer = Callable[[Side], float]  # seconds of one call

BUDGET_SECONDS = 280.0  # of the whole run, so that it ends within 5 minutes
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Measured:
    """What became of a case: its seconds by side, or what is wrong."""

    task: Task
    seconds: Mapping[str, float]
    wrong: Mapping[str, str]


def measure(case: Case, timer: Timer) -> Measured:
    """Checks every side, then times those that are right."""
    checker, sides = Checker(case), {"lanewise": case.ours[""], **case.peers}
    seconds, wrong = {}, {}
    with torch.inference_mode(not case.gradient):
        for name, side in sides.items():
            try:
                fault = checker.fault(name, side())
            except (RuntimeError, ValueError) as error:
                fault = f"failed: {error}"
            if fault:
                wrong[name] = fault
            else:
                seconds[name] = timer(side)
    return Measured(case.task, seconds, wrong)


def gpu_timer() -> Timer:
    """The median of calls over 0.1 s, with a cold L2 cache."""
    from triton.testing import do_bench

    return lambda side: do_bench(side, return_mode="median") / 1e3


class GPULimits:
    """What torch reaches at best on this GPU: a large product per dtype, and a copy."""

    def __init__(self, sizes: Sizes, device: str, timer: Timer) -> None:
        self._flops: dict[torch.dtype, float] = {}
        self._sizes, self._device, self._timer = sizes, device, timer
        source = torch.empty(sizes.tokens * sizes.inner, device=device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / timer(lambda: target.copy_(source))

    def flops(self, dtype: torch.dtype) -> float:
        """Multiplications and additions per second."""
        if dtype not in self._flops:
            size = 2 * self._sizes.hidden
            a = torch.randn(size, size, device=self._device).to(dtype)
            self._flops[dtype] = 2.0 * size**3 / self._timer(lambda: a @ a)
        return self._flops[dtype]

    def binding(self, task: Task) -> tuple[str, float]:
        """Which limit binds a task, and the seconds that it asks for."""
        computing, moving = task.flops / self.flops(task.dtype), task.bytes / self.bandwidth
        return ("compute", computing) if computing > moving else ("bytes", moving)


def run(
    sizes: Sizes, device: str, names: Sequence[str], timer: Timer, budget: float
) -> tuple[list[Measured], GPULimits, int]:
    """Measures all cases in the named dtypes; also how many the budget left out."""
    deadline = time.monotonic() + budget
    limits = GPULimits(sizes, device, timer)
    builders = [build for name in names for build in cases(sizes, device, TYPES[name])]
    found: list[Measured] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(builders))
        for build in builders:
            if time.monotonic() > deadline:
                break
            case = build()
            progress.update(bar, description=f"{case.task.work} {case.task.dtype_name}")
            found.append(measure(case, timer))
            progress.advance(bar)
    return found, limits, len(builders) - len(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and writes the numbers; 1 where something was wrong or left out."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="%(default)s by default")
    parser.add_argument("--dtypes", nargs="+", choices=TYPES, default=["bf16", "f32"])
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="of the whole run")
    parser.add_argument("--output", type=Path, default=Path("build/bench/gpu.csv"))
    options = parser.parse_args(arguments)
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        print(
            f"bench.gpu: --device must be a GPU that torch can use, got '{options.device}'",
            file=sys.stderr,
        )
        return 1
    torch.cuda.set_device(torch.device(options.device))
    found, limits, left = run(LARGE, options.device, options.dtypes, gpu_timer(), options.seconds)
    report(found, limits, torch.cuda.get_device_name(), options.output)
    if left:
        print(f"{left} cases were left out after {options.seconds:g} s", file=sys.stderr)
    return 1 if left or any(m.wrong for m in found) else 0


def report(found: Sequence[Measured], limits: GPULimits, name: str, output: Path) -> None:
    """The table on the terminal, and a line per side as comma-separated values."""
    rows, lines = [], []
    for m in found:
        limit, limit_seconds = limits.binding(m.task)
        ours = m.seconds.get("lanewise")
        peers = {side: s for side, s in m.seconds.items() if side != "lanewise"}
        rows.append(
            (
                m.task.work,
                m.task.dtype_name,
                f"{ours * 1e6:.1f} µs" if ours else table.WRONG,
                f"{limit_seconds / ours:.0%} {limit}" if ours else "",
                ", ".join(f"{s / ours:.2f}× {side}" for side, s in peers.items()) if ours else "",
            )
        )
        for side in (*m.seconds, *m.wrong):
            lines.append(
                {
                    "work": m.task.work,
                    "dtype": m.task.dtype_name,
                    "side": side,
                    "seconds": m.seconds.get(side),
                    "wrong": m.wrong.get(side),
                    "limit": limit,
                    "limit_seconds": limit_seconds,
                    "gpu": name,
                    "torch": torch.__version__,
                }
            )
    console = Console()
    columns = ["work", "dtype", "lanewise", "of the limit", "as fast as"]
    console.print(table.build(name, columns, rows, texts=2))
    for m in found:
        for side, fault in m.wrong.items():
            console.print(f"{side}, {m.task.work}, {m.task.dtype_name}: {fault}", markup=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
