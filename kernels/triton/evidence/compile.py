"""Compiles what a launcher would launch, for GPUs that are not here.

The launchers themselves run, over tensors of the meta device; `target.record` hands each launch to
the compiler instead of a driver, with the signature, alignment facts and options that Triton would
derive from the same arguments on a GPU. What is compiled is what would run.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .. import target
from . import machine_code
from .case import Case, rows_anywhere
from .source import module_hash, source_hash

GPUS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
EXTENTS = ("BLOCK_", "STEP_")  # constants of a kernel with these names are extents of its tile


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments, options and target that decide its machine code."""

    source: ASTSource
    options: dict[str, Any]
    gpu: GPUTarget

    @property
    def kernel(self) -> str:
        return self.source.fn.__name__

    @property
    def takes_descriptors(self) -> bool:
        return any(str(type_).startswith("tensordesc") for type_ in self.source.signature.values())

    def element(self) -> str:
        """The element type of its first tensor: "bf16"."""
        types = " ".join(str(type_) for type_ in self.source.signature.values())
        found = re.search(r"\*k?(\w+)|tensordesc<(\w+)", types)
        assert found, types
        return found[1] or found[2]

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments of the kernel, by name."""
        names = self.source.fn.arg_names
        return {names[path[0]]: value for path, value in self.source.constants.items()}

    def extents(self) -> dict[str, int]:
        """The extents of its tile: {"M": 128, "N": 64}."""
        return {
            name.removeprefix(prefix): value
            for prefix in EXTENTS
            for name, value in self.constants().items()
            if name.startswith(prefix)
        }

    def tile(self) -> str:
        """Its tile in a word: the extents, warps and stages."""
        extents = [f"{name}{value}" for name, value in self.extents().items()]
        return " ".join(
            [*extents, f"w{self.options['num_warps']}", f"s{self.options['num_stages']}"]
        )

    def key(self) -> str:
        """A hash of all that decides the facts: compilers, target, options, source, types,
        constants, alignment, and how the machine code is read. Equal on every machine, in every
        checkout."""
        backend = make_backend(self.gpu)
        constants = sorted((path, _name(value)) for path, value in self.source.constants.items())
        parts = [
            module_hash(machine_code),
            triton.__version__,
            backend.hash(),
            backend.parse_options(dict(self.options)).hash(),
            source_hash(self.source.fn),
            list(self.source.signature.items()),
            sorted(self.source.attrs.items()),
            constants,
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def compile(self) -> Any:
        return triton.compile(self.source, target=self.gpu, options=dict(self.options))


def _name(constant: Any) -> str:
    """A constant argument in words; functions by their source."""
    return source_hash(constant) if hasattr(constant, "cache_key") else str(constant)


def launches(architecture: str, case: Case, divisible: bool = True) -> list[Launch]:
    """What `case` would launch on `architecture`, without repetitions.

    Unless `divisible`, no row of an operand starts on 16 bytes, so that the launcher takes the tile
    of such a problem; and of what it makes itself, the compiler is not told what is a multiple.
    """
    found: dict[str, Launch] = {}

    def keep(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], options: dict) -> None:
        launch = prepare(GPUS[architecture], kernel, args, options, divisible)
        found[launch.key()] = launch

    rows = contextlib.nullcontext() if divisible else rows_anywhere()
    with target.record(target.ARCHITECTURES[architecture], keep), rows:
        case.launch("meta")
    return list(found.values())


def prepare(
    gpu: GPUTarget,
    kernel: Any,
    args: Sequence[Any],
    options: dict[str, Any],
    divisible: bool = True,
) -> Launch:
    """What `kernel[grid](*args, **options)` would compile on `gpu`."""
    backend = make_backend(gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*args, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, _
    )
    if not divisible:
        attributes = {
            path: [pair for pair in pairs if pair[0] != "tt.divisibility"]
            for path, pairs in attributes.items()
        }
    return Launch(ASTSource(kernel, signature, constants, attributes), parsed.__dict__, gpu)


def compilers() -> str:
    """Triton's version, and those of what it hands its code to."""
    versions: dict[str, list[str]] = {}
    for name, gpu in GPUS.items():
        versions.setdefault(_assembler(gpu), []).append(name)
    assemblers = (f"{version} ({', '.join(names)})" for version, names in versions.items())
    return f"Triton {triton.__version__}, with {', '.join(assemblers)}"


def _assembler(gpu: GPUTarget) -> str:
    found = make_backend(gpu).hash()
    if gpu.backend == "hip":
        revision = re.search(r"-([0-9a-f]{12})", found)
        return f"LLVM {revision[1]}" if revision else "LLVM"
    release = re.search(r"\bV(\d[\d.]+)", found)
    assert release, found
    return f"ptxas {release[1]}"
