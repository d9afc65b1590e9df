"""What each GPU architecture allows, and the one door through which every kernel is launched."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Architecture:
    """Limits of one architecture. `shared` is what one program may take, in bytes; `tiles` names
    the architecture whose rows of the tables of tiles serve it, and `tuned` holds tiles that were
    measured on the GPU at hand, by table and class of problem."""

    name: str
    shared: int
    units: int  # streaming multiprocessors or compute units of its largest part
    float32_dots: str  # the `input_precision` that keeps float32 products within float32 rounding
    tiles: str
    chiplets: int = 1  # dies with an L2 cache each, to which programs are dealt in turn
    tuned: Mapping[tuple[str, str], Any] = field(default_factory=dict, compare=False, repr=False)


# Tensor cores multiply float32 as three TF32 products, hi·hi + hi·lo + lo·hi; CDNA has a float32
# matrix instruction. sm_80 is held to the 99 KB of its siblings sm_86 and sm_89: one table for all.
ARCHITECTURES = {
    "sm_80": Architecture("sm_80", 99 << 10, 108, "tf32x3", "sm_80"),
    "sm_90": Architecture("sm_90", 227 << 10, 132, "tf32x3", "sm_90"),
    "sm_100": Architecture("sm_100", 227 << 10, 148, "tf32x3", "sm_100"),
    "gfx942": Architecture("gfx942", 64 << 10, 304, "ieee", "gfx942", 8),
    "gfx950": Architecture("gfx950", 160 << 10, 256, "ieee", "gfx942", 8),
}

Launch = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
_recorder: ContextVar[tuple[Architecture, Launch] | None] = ContextVar("recorder", default=None)


@contextlib.contextmanager
def record(architecture: Architecture, launch: Launch) -> Iterator[None]:
    """Inside the block every launch goes to `launch`, with `architecture`'s tiles; nothing runs."""
    token = _recorder.set((architecture, launch))
    try:
        yield
    finally:
        _recorder.reset(token)


def of(device: torch.device) -> Architecture:
    """The architecture whose tiles serve `device`; the interpreter, on the CPU, gets sm_90's."""
    recorder = _recorder.get()
    if recorder:
        return recorder[0]
    return ARCHITECTURES["sm_90"] if device.type == "cpu" else _of_gpu(device.index or 0)


@functools.cache
def _of_gpu(index: int) -> Architecture:
    from . import tuned  # which knows tables, and they architectures

    architecture = untuned(index)
    tiles = tuned.load(torch.cuda.get_device_name(index), architecture)
    return replace(architecture, tuned=tiles) if tiles else architecture


def untuned(index: int) -> Architecture:
    """The architecture of a GPU with the tiles that lanewise ships."""
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return ARCHITECTURES["gfx950" if name == "gfx950" else "gfx942"]
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        raise RuntimeError(
            f"lanewise: cuda:{index} must have compute capability 8.0 or more, got {major}.{minor}"
        )
    # sm_120 has neither the shared memory nor the tensor memory of sm_100.
    return ARCHITECTURES[{9: "sm_90", 10: "sm_100"}.get(major, "sm_80")]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` over `grid` on the device of its first tensor or tensor descriptor."""
    # Stated, not left to the default: a score is scaled and shifted by one fused multiply-add.
    options["enable_fp_fusion"] = True
    recorder = _recorder.get()
    if recorder:
        return recorder[1](kernel, grid, args, options)
    tensors = (getattr(a, "base", a) for a in args)
    tensor = next(a for a in tensors if isinstance(a, torch.Tensor))
    with torch.cuda.device_of(tensor):
        kernel[grid](*args, **options)


def block(size: int) -> int:
    """The tile extent that holds `size` elements: a power of two that matrix instructions take."""
    return max(16, power_of_2(size))


def power_of_2(size: int) -> int:
    """The least power of two that is not less; Triton's own takes ten times as long to say."""
    return 1 << (size - 1).bit_length()


def divide_up(a: int, b: int) -> int:
    return -(-a // b)
