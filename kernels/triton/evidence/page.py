"""docs/gpu-evidence.md: the recorded facts as tables, one of each kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import catalogue
from .compile import GPUS, compilers
from .machine_code import Facts
from .promises import UNITS, broken
from .record import DOCS, RENEW
from .rows import Row
from .speed_model import predict

PATH = DOCS / "gpu-evidence.md"

INTRO = """\
# What the compilers make of the GPU kernels

GPU speed: **not measured**. No kernel here has run on a GPU yet. This page shows what the compilers
that ship with Triton make of every configuration of every kernel, for GPUs that are not at hand. It
is made by

    {renew}

and checked by `tests/test_triton_compile.py`: a change of a kernel or of a table of tiles changes
this page, and review shows what it cost.

**What it shows.** Each line is one compiled program.

| column | what it says |
|---|---|
| configuration | a call of an op: its kind, dtype and size |
| tile | what one program works on at a time: extents, `w` warps, and `s` stages: tiles in flight |
| registers | of one thread |
| programs | how many fit one unit (streaming multiprocessor or compute unit) at once |
| spills | registers that did not fit and went to memory: none, aligned or not |
| matrix | instructions of the tensor or matrix cores, and their opcodes |
| copies | from global to shared memory past the registers; (those of 16 bytes or of boxes) |
| loads | from global memory to registers; (those of 16 bytes) |
| barriers | that hold all threads of a program |

Counts are of instructions in the code, not of executions.

A configuration with *nothing divisible* is compiled as if no pointer and no stride were a multiple
of 16 bytes, with the tile that launchers then choose: it reads element by element. The same goes
for those whose sizes are odd.

**What it does not show.** Speed, hits in caches, whether copies and arithmetic overlap, races
between warps, and errors of the compilers themselves.

**The last two columns are a model, not measured**
([speed_model.py](../kernels/triton/evidence/speed_model.py) says how and from which published
peaks): the resource that one step of the main loop keeps busiest if all overlaps perfectly, and the
share of the matrix units' peak that it leaves at most. A real kernel stays below. The model ranks
tiles and rules some out; a kernel that only streams has no ceiling but the bandwidth of DRAM.

Compiled by {compilers}.

| GPU | compiled as | programs in all | broken promises |
|---|---|---:|---:|
"""

COLUMNS = (
    "GPU",
    "configuration",
    "tile",
    "registers",
    "programs",
    "spills",
    "shared, KB",
    "matrix",
    "copies",
    "loads",
    "barriers",
    "model, not measured: bound",
    "model: ceiling",
)
NUMBERS = {"registers", "programs", "spills", "shared, KB", "barriers", "model: ceiling"}
PARTS = {
    "sm_80": "A100",
    "sm_90": "H100, H200",
    "sm_100": "B200",
    "gfx942": "MI300X",
    "gfx950": "MI355X",
}


def render(facts: Mapping[Row, Facts]) -> str:
    return "\n".join([*_summary(facts), *_tables(facts), ""])


def cells(row: Row, facts: Facts) -> tuple[str, ...]:
    """The texts of one row, by COLUMNS."""
    prediction = predict(row, facts, catalogue.promises()[row.kernel])
    bound = prediction.bound if prediction else ""
    ceiling = prediction.ceiling if prediction else None
    return (
        row.target,
        row.config,
        row.tile,
        str(facts.registers),
        str(UNITS[row.target].programs(facts)),
        str(facts.spills),
        f"{facts.shared_bytes / 1024:.0f}",
        " ".join([str(facts.matrix_instructions), *facts.matrix_opcodes]),
        f"{facts.async_copies} ({facts.async_copies_16})",
        f"{facts.loads} ({facts.loads_16})",
        str(facts.barriers),
        bound,
        "" if ceiling is None else f"{ceiling:.0%}",
    )


def _summary(facts: Mapping[Row, Facts]) -> Iterator[str]:
    yield INTRO.format(renew=RENEW, compilers=compilers()).rstrip("\n")
    for target in GPUS:
        rows = [row for row in facts if row.target == target]
        bad = sum(bool(broken(r, facts[r], catalogue.promises()[r.kernel])) for r in rows)
        yield f"| {PARTS[target]} | {target} | {len(rows)} | {bad} |"


def _tables(facts: Mapping[Row, Facts]) -> Iterator[str]:
    for kernel in sorted({row.kernel for row in facts}):
        yield f"\n## {kernel}\n"
        yield "| " + " | ".join(COLUMNS) + " |"
        yield "|" + "|".join("---:" if name in NUMBERS else "---" for name in COLUMNS) + "|"
        for row, found in facts.items():
            if row.kernel == kernel:
                yield "| " + " | ".join(cells(row, found)) + " |"
