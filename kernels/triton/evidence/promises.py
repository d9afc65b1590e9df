"""Whether a kernel's machine code keeps what its table of tiles and its `Promise` say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..target import ARCHITECTURES
from .case import Promise
from .machine_code import Facts
from .rows import Row

# Matrix instructions of each generation; what is narrower than 64 rows has none of Hopper's and
# Blackwell's, which work for a group of four warps, and takes those of a single warp.
WARP_MATRIX = "HMMA"
MATRIX = {
    "sm_80": WARP_MATRIX,
    "sm_90": "HGMMA",
    "sm_100": "UTC[A-Z]*MMA",
    "gfx942": "v_mfma",
    "gfx950": "v_mfma",
}
WARP, GROUP_ROWS, GROUP_THREADS = 32, 64, 128


@dataclass(frozen=True)
class Unit:
    """What the programs on one streaming multiprocessor or compute unit share.

    Attributes:
        registers: of 32 bits, of all threads.
        granule: registers of a thread are given out in multiples of it.
        shared: bytes of shared memory.
        reserved: bytes of it that the system takes per program.
        threads: that may reside.
        tensor_columns: of tensor memory; a program has 32 or twice, four times, … as many.
    """

    registers: int
    granule: int
    shared: int
    reserved: int
    threads: int
    tensor_columns: int = 0

    def programs(self, facts: Facts) -> int:
        """How many programs fit at once."""
        columns = max(32, 1 << (facts.tensor_columns - 1).bit_length())
        registers = -(-max(facts.registers, 1) // self.granule) * self.granule
        return min(
            self.tensor_columns // columns if facts.tensor_columns else self.threads,
            self.registers // (registers * facts.threads),
            self.shared // max(facts.shared_bytes + self.reserved, 1),
            self.threads // facts.threads,
        )


# CUDA C++ programming guide, "compute capabilities"; AMD's CDNA3 and CDNA4 instruction set guides:
# 512 registers for each lane of each of four SIMDs, 8 waves of 64 on each.
UNITS = {
    "sm_80": Unit(65536, 8, 164 << 10, 1024, 2048),
    "sm_90": Unit(65536, 8, 228 << 10, 1024, 2048),
    "sm_100": Unit(65536, 8, 228 << 10, 1024, 2048, 512),
    "gfx942": Unit(4 * 512 * 64, 8, 64 << 10, 0, 2048),
    "gfx950": Unit(4 * 512 * 64, 8, 160 << 10, 0, 2048),
}


def broken(row: Row, facts: Facts, promise: Promise) -> list[str]:
    """One sentence for each promise that the machine code does not keep.

    Of rows that start anywhere, which are read element by element, wide accesses and copies are not
    asked.
    """
    return [sentence for sentence, kept in _asked(row, facts, promise) if not kept]


def _asked(row: Row, facts: Facts, promise: Promise) -> Iterator[tuple[str, bool]]:
    limit = ARCHITECTURES[row.target].shared
    yield f"{facts.shared_bytes} bytes of shared memory, of {limit}", facts.shared_bytes <= limit
    resident, due = UNITS[row.target].programs(facts), promise.resident if row.aligned else 1
    yield f"{resident} programs fit a unit, not {due}", resident >= due
    if promise.products:
        pattern = _generation(row, facts, promise)
        found = any(re.match(pattern, opcode) for opcode in facts.matrix_opcodes)
        yield f"no matrix instruction {pattern}, only {facts.matrix_opcodes}", found
    if row.target in promise.specialized:
        warps = int(re.findall(r"\bw(\d+)\b", row.tile)[0])
        more = facts.threads > warps * WARP
        yield f"{facts.threads} threads: warps do not specialize", more
    if promise.wide:
        yield "no offset is multiplied in 64 bits", facts.wide_products > 0
    yield f"{facts.spills} registers spilled", facts.spills == 0
    yield f"{facts.stack} bytes of stack", facts.stack == 0
    yield f"{facts.local} accesses to local memory", facts.local == 0
    if not row.aligned:
        return
    if promise.copies and row.target.startswith("sm_"):
        copies, vectors = facts.async_copies, facts.async_copies_16
        # Most bytes, even if each of the others moved 8.
        kept = 3 * vectors > copies or (copies > 0 and _share(row, facts, promise) < 16)
        yield f"{vectors} of {copies} asynchronous copies move 16 bytes", kept
    if promise.vectors:
        # What a wave of CDNA copies to shared memory is side by side, whatever one thread's share.
        vectors = facts.async_copies_16 + facts.loads_16
        vectors += facts.async_copies * row.target.startswith("gfx")
        yield "no 16 bytes of global memory at a time", vectors > 0
    bound = promise.barriers
    yield f"{facts.barriers} barriers, more than {bound}", facts.barriers <= bound


def _share(row: Row, facts: Facts, promise: Promise) -> float:
    """Bytes that a thread copies of the smallest tile."""
    if not promise.copied:
        return math.inf
    extents = _extents(row)
    elements = math.prod(extents[name] for name in promise.copied)
    return elements * (4 if row.element == "fp32" else 2) / facts.threads


def _extents(row: Row) -> dict[str, int]:
    return {name: int(n) for name, n in re.findall(r"([A-Z]\w*?)(\d+)\b", row.tile)}


def _generation(row: Row, facts: Facts, promise: Promise) -> str:
    own = MATRIX[row.target]
    if not row.target.startswith("sm_"):
        return own
    extents = _extents(row)
    wide = all(extents.get(name, 0) >= GROUP_ROWS for name in promise.rows)
    return own if wide and facts.threads >= GROUP_THREADS else f"{WARP_MATRIX}|{own}"
