"""Compiles every shipped configuration for GPUs that are not here, and reads the machine code.

The launchers themselves run, over tensors of the meta device; `target.record` hands each launch to
the compiler instead of a driver, with the signature, alignment facts and options that Triton would
derive from the same arguments on a GPU. What is read is what would run.

    python -m lanewise.kernels.aot [architecture ...]      prints the table of docs/triton.md
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from . import attention, gemm, target

GPUS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
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


# --- what is shipped -----------------------------------------------------------------------------


def _attention(kind: str, dtype: torch.dtype, size: int) -> None:
    """A launch of one row of attention's table with every option that its tile serves."""
    batch, heads, heads_kv, keys = 2, 32, 8, 4096
    queries = {"few": 1}.get(kind, keys)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    bare = kind == "bare"
    attention.attention(
        empty(batch, heads, queries, size),
        empty(batch, heads_kv, keys, size),
        empty(batch, heads_kv, keys, size),
        bias=None if bare else empty(batch, 1, queries, keys),
        sinks=empty(heads, dtype=torch.float32),
        alibi_slopes=None if bare else empty(batch, heads, dtype=torch.float32),
        causal=True,
        window_left=1000,
        softcap=0.0 if bare else 30.0,
    )


def _linear(kind: str, dtype: torch.dtype, depth: int) -> None:
    """A launch of one row of linear's table with the costliest epilogue."""
    rows, columns = {"large": (4096, 4096), "small": (256, 512), "few": (1, 4096)}[kind]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    gemm.linear(
        empty(rows, depth),
        empty(columns, depth),
        empty(columns),
        empty(rows, columns),
        activation="gelu",
    )


def cases() -> dict[str, Callable[[], None]]:
    """Every tile of every table with aligned inputs; beside them float16, which shares bfloat16's
    tiles, and a head size or depth that fills no tile."""
    types = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
    launches: list[tuple[Callable[[str, torch.dtype, int], None], str, str, int]] = [
        (_attention, kind, name, size)
        for kind in ("bare", "scored", "few")
        for name in ("bf16", "f32")
        for size in (64, 128, 256, 512)
    ]
    launches += [
        (_linear, kind, name, 4096)
        for kind in ("large", "small", "few")
        for name in ("bf16", "f32")
    ]
    launches += [
        (_attention, "bare", "f16", 128),
        (_attention, "scored", "bf16", 80),
        (_attention, "few", "f32", 33),
        (_linear, "large", "f16", 4096),
        (_linear, "large", "bf16", 1001),
    ]
    return {
        f"{launch.__name__[1:]} {kind} {name} {size}": functools.partial(
            launch, kind, types[name], size
        )
        for launch, kind, name, size in launches
    }


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
        cases()[case]()
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
