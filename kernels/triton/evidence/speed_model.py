"""A model of speed, not a measurement: which resource of a GPU a tile keeps busiest, and what share
of the matrix units' peak that leaves at most.

A program goes through its main loop in steps. One step of a tile takes so many operations of the
matrix units, bytes of shared memory, bytes from L2, bytes from DRAM and exponentials. Each amount
over the published peak rate of one unit (a streaming multiprocessor or compute unit) is a number of
clocks, as if all else were free and overlapped perfectly. The largest binds; the matrix units'
clocks over it are the ceiling.

Left out: latency, bank conflicts, instruction issue, prologue and epilogue, uneven last waves, and
clocks that fall under load. A real kernel stays below the ceiling, so that it ranks tiles and rules
some out, and promises none a speed.

Sources of the rates:

- sm_80: NVIDIA A100 Tensor Core GPU Architecture whitepaper, 2020 (312 TFLOP/s bfloat16, 156 TF32,
  5120 bytes of L2 a clock, 128 bytes of shared memory a clock and SM), and A100 80GB data sheet,
  2021 (2039 GB/s).
- sm_90: NVIDIA H100 Tensor Core GPU Architecture whitepaper, 2022 (SXM5: 989 TFLOP/s bfloat16, 495
  TF32, 3352 GB/s). It gives no bandwidth of L2: A100's bytes a clock are assumed.
- sm_100: NVIDIA Blackwell architecture technical brief and HGX B200 data sheet, 2024 (2250 TFLOP/s
  bfloat16, 1125 TF32, 7700 GB/s). L2 and shared memory: A100's bytes a clock are assumed.
- gfx942: AMD CDNA 3 whitepaper and MI300X data sheet, 2023 (1307 TFLOP/s bfloat16, 163 float32, L2
  2048 bytes a clock and XCD, 5300 GB/s).
- gfx950: AMD CDNA 4 whitepaper and MI355X data sheet, 2025 (2517 TFLOP/s bfloat16, 157 float32,
  8000 GB/s). L2 and shared memory: CDNA 3's bytes a clock are assumed.
- Exponentials: 16 a clock and SM, CUDA C++ programming guide, "arithmetic instructions"; a quarter
  of the 64 lanes on CDNA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..gemm.tiles import GROUP_M
from .case import Promise
from .machine_code import Facts
from .promises import UNITS
from .rows import Row

LONG = 4096  # rows of queries of the cases of attention that are not for decoding
FEW = 32  # rows of a tile that passes each weight or key once: nothing is shared in L2
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Peaks:
    """Published peak rates of one GPU; those per clock are of one unit, but for L2.

    Attributes:
        units: streaming multiprocessors or compute units.
        clock: in Hz.
        flops16, flops32: a clock, of products of 16-bit and of float32 elements (a TF32 product's
            rate over 3 on NVIDIA, where float32 takes three).
        shared: bytes a clock.
        l2: bytes a clock, of the whole GPU.
        dram: bytes a second, of the whole GPU.
        exp2: a clock.
    """

    units: int
    clock: float
    flops16: float
    flops32: float
    shared: float
    l2: float
    dram: float
    exp2: float


PEAKS = {
    "sm_80": Peaks(108, 1.41e9, 2048, 1024 / 3, 128, 5120, 2.039e12, 16),
    "sm_90": Peaks(132, 1.83e9, 4096, 2048 / 3, 128, 5120, 3.352e12, 16),
    "sm_100": Peaks(148, 1.85e9, 8192, 4096 / 3, 128, 5120, 7.7e12, 16),
    "gfx942": Peaks(304, 2.1e9, 2048, 256, 128, 8 * 2048, 5.3e12, 16),
    "gfx950": Peaks(256, 2.4e9, 4096, 256, 128, 8 * 2048, 8.0e12, 16),
}


@dataclass(frozen=True)
class Step:
    """What one step of one program's main loop takes."""

    flops: float = 0
    shared: float = 0
    l2: float = 0
    dram: float = 0
    exp2: float = 0


@dataclass(frozen=True)
class Prediction:
    """`clocks` of one unit for one step on each resource; the largest is the bound.

    `ceiling` is the share of the matrix units' peak that the bound leaves; None where nothing is
    multiplied and the bound is the speed.
    """

    clocks: dict[str, float]

    @property
    def bound(self) -> str:
        return max(self.clocks, key=lambda resource: self.clocks[resource])

    @property
    def ceiling(self) -> float | None:
        tensor = self.clocks["tensor"]
        return tensor / self.clocks[self.bound] if tensor else None


def predict(row: Row, facts: Facts, promise: Promise) -> Prediction | None:
    """The model of one row; None of a kernel with products whose tile says nothing of its loop."""
    extents = {name: int(size) for name, size in re.findall(r"([A-Z]\w*?)(\d+)\b", row.tile)}
    if not promise.products:
        step = Step(dram=1)
    elif {"M", "N", "K"} <= extents.keys():
        step = product(row, extents, facts)
    elif {"M", "N", "D"} <= extents.keys():
        step = attention(row, extents, facts, *promise.rows)
    else:
        return None
    return clocks(step, row.target, BYTES.get(row.element, 4))


def clocks(step: Step, target: str, itemsize: int) -> Prediction:
    peaks = PEAKS[target]
    return Prediction(
        {
            "tensor": step.flops / (peaks.flops32 if itemsize == 4 else peaks.flops16),
            "shared": step.shared / peaks.shared,
            "L2": step.l2 / (peaks.l2 / peaks.units),
            "DRAM": step.dram / (peaks.dram / peaks.clock / peaks.units),
            "exp2": step.exp2 / peaks.exp2,
        }
    )


def product(row: Row, extents: dict[str, int], facts: Facts) -> Step:
    """One slice of K of a matrix product: [M, K] and [K, N] arrive and are multiplied; a product
    that is gated by another has the columns of both."""
    m, n, k = (extents[name] for name in "MNK")
    n *= COLUMNS.get(row.kernel, 1)
    itemsize = BYTES.get(row.element, 4)
    arriving: float = (m + n) * k * itemsize
    missing: float
    if m <= FEW:
        missing = n * k * itemsize
    else:
        # Programs that run together form GROUP_M rows of tiles; each row and column comes once.
        together = PEAKS[row.target].units * max(UNITS[row.target].programs(facts), 1)
        columns = max(together / GROUP_M, 1)
        missing = (GROUP_M * m + columns * n) * k * itemsize / together
    return Step(
        flops=2 * m * n * k,
        shared=arriving + operands(m, n, k, itemsize, facts),
        l2=arriving,
        dram=missing,
    )


def attention(row: Row, extents: dict[str, int], facts: Facts, owned: str = "M") -> Step:
    """One tile of N keys against the M queries that a program owns (or of queries against its keys,
    where `owned` is N): scores, exponentials and weighted values; the gradients compute the scores
    anew and take more products. What is owned stays in registers but where a product reads its rows
    from shared memory."""
    m, n = extents[owned], extents["N" if owned == "M" else "M"]
    head = max(extents["D"], extents.get("DV", 0))
    itemsize = BYTES.get(row.element, 4)
    products = next((count for name, count in PRODUCTS.items() if name in row.kernel), 2)
    arriving = 2 * n * head * itemsize
    rows = m * head * itemsize * (_generation(facts) in GROUPS)
    decodes = "few" in row.case.split()
    return Step(
        flops=2 * m * n * head * products,
        shared=arriving + rows + products * row_groups(m, facts) * n * head * itemsize,
        l2=arriving,
        dram=arriving * (1 if decodes else min(1, m / LONG)),
        exp2=m * n,
    )


COLUMNS = {"tiled_gated_product": 2, "persistent_gated_product": 2}

# Products of one step: scores and weighted values forward; the gradients of keys and values take
# scores, their gradients and one product each, those of queries one less.
PRODUCTS = {"backward_keys": 4, "backward_queries": 3}

# Rows of one instruction, of a group of warps and of one warp.
GROUPS = {"HGMMA": 64, "UTC": 128}
WARPS = {"HMMA": 16, "v_mfma": 32}


def _generation(facts: Facts) -> str:
    names = [*GROUPS, *WARPS]
    return next((n for n in names if any(o.startswith(n) for o in facts.matrix_opcodes)), "HMMA")


def row_groups(m: int, facts: Facts) -> int:
    """How often the columns of a product of m rows are read from shared memory, if all warps stand
    one below the other, as in attention."""
    generation = _generation(facts)
    if generation in GROUPS:
        return -(-m // GROUPS[generation])
    return min(_warps(facts), -(-m // WARPS[generation]))


def operands(m: int, n: int, k: int, itemsize: int, facts: Facts) -> float:
    """Bytes that the matrix instructions of a product of m × k and k × n read from shared memory.

    A group of warps (Hopper, Blackwell) reads its own rows once and all columns for each 64 or 128
    rows. Instructions of one warp take operands from registers, which warps that share rows or
    columns each load: the cheapest arrangement of the warps is counted.
    """
    if _generation(facts) in GROUPS:
        return (m + row_groups(m, facts) * n) * k * itemsize
    warps = _warps(facts)
    across = [2**i for i in range(warps.bit_length()) if warps % 2**i == 0]
    return min(m * a + n * (warps // a) for a in across) * k * itemsize


def _warps(facts: Facts) -> int:
    return max(facts.threads // (64 if _generation(facts) == "v_mfma" else 32), 1)
