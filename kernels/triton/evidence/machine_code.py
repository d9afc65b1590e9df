"""What a compiled kernel takes and does, read from its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

import triton


@dataclass(frozen=True)
class Facts:
    """Numbers of one compiled kernel; counts are of instructions in its code, not of executions.

    Attributes:
        threads: of one program.
        registers: of one thread.
        spills: registers spilled (AMD), or stores of registers to local memory (NVIDIA).
        stack: bytes of one thread.
        shared_bytes: of shared memory, of one program.
        tensor_columns: of tensor memory (Blackwell), of one program.
        matrix_instructions: on tensor or matrix cores.
        matrix_opcodes: the different ones among them.
        async_copies: instructions that copy from global to shared memory and pass no register.
        async_copies_16: those that move 16 bytes a thread, or a whole box (TMA).
        loads: from global memory to registers.
        loads_16: those that move 16 bytes a thread.
        local: instructions that access local (scratch) memory.
        barriers: of a whole program.
        exp2: exponentials of one thread.
        wide_products: 64-bit integer products in Triton's own code, before the compiler chooses.
        instructions: all.
    """

    threads: int = 0
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared_bytes: int = 0
    tensor_columns: int = 0
    matrix_instructions: int = 0
    matrix_opcodes: tuple[str, ...] = ()
    async_copies: int = 0
    async_copies_16: int = 0
    loads: int = 0
    loads_16: int = 0
    local: int = 0
    barriers: int = 0
    exp2: int = 0
    wide_products: int = 0
    instructions: int = 0


def read(compiled: Any) -> Facts:
    """The facts of what `triton.compile` gave."""
    of_target = _read_amd if "amdgcn" in compiled.asm else _read_nvidia
    return Facts(
        threads=compiled.metadata.num_warps * compiled.metadata.warp_size,
        shared_bytes=compiled.metadata.shared,
        tensor_columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
        wide_products=len(re.findall(r"arith\.muli .*i64", compiled.asm["ttir"])),
        **of_target(compiled),
    )


class Opcodes(Counter[str]):
    def matching(self, pattern: str) -> int:
        """How many instructions have an opcode that matches `pattern` from its start."""
        return sum(n for opcode, n in self.items() if re.match(pattern, opcode))


def _matrix(opcodes: Opcodes, pattern: str) -> dict[str, Any]:
    return {
        "matrix_instructions": opcodes.matching(pattern),
        "matrix_opcodes": tuple(sorted(o for o in opcodes if re.match(pattern, o))),
    }


def _read_nvidia(compiled: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    taken = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert taken, usage
    return {
        "registers": int(taken[1]),
        "stack": int(taken[2]),
        **count_sass(Opcodes(re.findall(SASS_OPCODE, code, re.M))),
    }


SASS_OPCODE = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"


def count_sass(opcodes: Opcodes) -> dict[str, Any]:
    """What the opcodes of NVIDIA's machine code say."""
    boxes = opcodes.matching(r"UTMALDG|UBLKCP")
    return {
        "spills": opcodes.matching("STL"),
        "local": opcodes.matching("STL|LDL"),
        **_matrix(opcodes, r"[A-Z]*MMA\b|UTC[A-Z]*MMA\b"),
        "async_copies": boxes + opcodes.matching("LDGSTS"),
        "async_copies_16": boxes + opcodes.matching(r"LDGSTS\..*\b128\b"),
        "loads": opcodes.matching(r"LDG\b"),
        "loads_16": opcodes.matching(r"LDG\..*\b(128|256)\b"),
        "barriers": opcodes.matching(r"BAR\b"),
        "exp2": opcodes.matching(r"MUFU\.EX2"),
        "instructions": opcodes.total() - opcodes.matching("NOP"),
    }


def _cuobjdump(option: str, file: str) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
        **count_amdgcn(code),
    }


def count_amdgcn(code: str) -> dict[str, Any]:
    """What AMD's assembly says."""
    # A load with the modifier `lds` writes to shared memory: it is another instruction.
    lines = re.findall(r"^\s+([a-z]\w+)(.*)$", code, re.M)
    opcodes = Opcodes(f"{o}_lds" if re.search(r"\blds\b", rest) else o for o, rest in lines)
    memory = "(global|buffer|flat)_load"
    to_lds = r"(global|buffer)_load_\w+_lds"
    width = r"_(dwordx4|b128)"
    return {
        "local": opcodes.matching("scratch_(load|store)"),
        **_matrix(opcodes, "v_mfma"),
        "async_copies": opcodes.matching(to_lds),
        "async_copies_16": opcodes.matching(rf"(global|buffer)_load(_lds)?{width}_lds"),
        "loads": opcodes.matching(memory) - opcodes.matching(to_lds),
        "loads_16": opcodes.matching(rf"{memory}{width}$"),
        "barriers": opcodes.matching("s_barrier"),
        "exp2": opcodes.matching("v_exp_f32"),
        "instructions": opcodes.matching("[vs]_|ds_|buffer_|global_|flat_|scratch_"),
    }
