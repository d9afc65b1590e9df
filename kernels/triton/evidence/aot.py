"""Compiles every shipped configuration for GPUs that are not here, and reads the machine code.

The launchers themselves run, over tensors of the meta device; `target.record` hands each launch to
the compiler instead of a driver, with the signature, alignment facts and options that Triton would
derive from the same arguments on a GPU. What is read is what would run.

    python -m lanewise.kernels.evidence.aot [architecture ...]      prints the table
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .. import target
from . import attention, gemm
from .case import Case

GPUS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}


@dataclass(frozen=True)
class Report:
    """What one compiled kernel takes and does.

    `spills` counts spilled registers (AMD) or local loads and stores (NVIDIA), `stack` is in bytes
    per thread, `shared` in bytes.
    """

    architecture: str
    case: str
    tile: str
    threads: int
    registers: int
    spills: int
    stack: int
    shared: int
    opcodes: dict[str, int]

    def count(self, pattern: str) -> int:
        """How many instructions have an opcode that matches `pattern` from its start."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))


def cases() -> dict[str, Case]:
    return {case.name: case for family in (attention, gemm) for case in family.cases()}


# --- compiling -----------------------------------------------------------------------------------


def compile_launch(gpu: GPUTarget, kernel: Any, args: tuple, options: dict[str, Any]) -> Any:
    """What `kernel[grid](*args, **options)` would compile on `gpu`."""
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*args, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=gpu, options=parsed.__dict__)


def report(architecture: str, case: str) -> Report:
    """Compiles one of `cases()`, and reads the result."""
    reports: list[Report] = []

    def launch(kernel: Any, grid: tuple[int, ...], args: tuple, options: dict[str, Any]) -> None:
        compiled = compile_launch(GPUS[architecture], kernel, args, options)
        blocks = [f"{v}" for k, v in options.items() if re.fullmatch("BLOCK_[MNK]|STEP_D", k)]
        tile = f"{'×'.join(blocks)} w{options['num_warps']} s{options['num_stages']}"
        read = _read_amd if architecture.startswith("gfx") else _read_nvidia
        reports.append(
            Report(
                architecture,
                case,
                tile,
                threads=compiled.metadata.num_warps * compiled.metadata.warp_size,
                shared=compiled.metadata.shared,
                **read(compiled),
            )
        )

    with target.record(target.ARCHITECTURES[architecture], launch):
        cases()[case].launch("meta")
    (only,) = reports
    return only


def _read_nvidia(compiled: Any) -> dict[str, Any]:
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            command = [cuobjdump, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
        code = dump("-sass")
    assert usage
    opcodes = Counter(re.findall(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", code, re.M))
    return {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "spills": sum(n for opcode, n in opcodes.items() if re.match(r"STL|LDL", opcode)),
        "opcodes": dict(opcodes),
    }


def _read_amd(compiled: Any) -> dict[str, Any]:
    code = compiled.asm["amdgcn"]

    def fact(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found, name
        return int(found[1])

    return {
        "registers": fact("vgpr_count"),
        "stack": fact("private_segment_fixed_size"),
        "spills": fact("vgpr_spill_count"),
        "opcodes": dict(Counter(re.findall(r"^\s+([a-z]\w+)", code, re.M))),
    }


def workers(processes: int = 2) -> ProcessPoolExecutor:
    """A pool for `report`, which is serial: processes of their own, safe to start from threads."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


def main() -> None:
    print("| architecture | kernel | tile | registers | spills | shared memory, KB |")
    print("|---|---|---|---:|---:|---:|")
    with workers() as pool:
        pairs = [(a, c) for a in sys.argv[1:] or GPUS for c in cases()]
        for r in pool.map(report, *zip(*pairs, strict=True)):
            row = [r.architecture, r.case, r.tile, r.registers, r.spills, r.shared >> 10]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
