"""``python -m lanewise info``: plain text without dependencies, fit to paste into a bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import lanewise
from lanewise import _host
from lanewise.ops._triton import backends

_COLUMNS = ("CPU", "GPU", "gradient")


def run() -> int:
    """Prints the facts and the ops."""
    rows = [*machine(), ("", ""), *_op_rows()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}".rstrip())
    return 0


def machine() -> list[tuple[str, str]]:
    """Name and value of everything that decides speed and results here."""
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in _host.cache_sizes().items())
    return [
        ("lanewise", lanewise.__version__),
        ("instruction set", _chosen()),
        ("built", _built()),
        ("CPU", f"{_cpu_name()}, {os.cpu_count()} cores, {caches}"),
        ("threads", str(torch.get_num_threads())),
        ("GPU", _gpu()),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("Python", platform.python_version()),
    ]


def ops() -> dict[str, dict[str, bool]]:
    """For every op, which back ends it has, and whether it is differentiable."""
    return {
        op: {
            "CPU": "cpu" in devices,
            "GPU": "gpu" in devices,
            "gradient": _is_differentiable(op),
        }
        for op, devices in backends().items()
        if not op.endswith("_backward")
    }


def _is_differentiable(op: str) -> bool:
    # Packed ops register a gradient only to refuse it.
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "Autograd")
    return registered and not op.endswith("_packed")


def _op_rows() -> list[tuple[str, str]]:
    def row(cells: list[str]) -> str:
        return "".join(f"{cell:10}" for cell in cells)

    header = [("op", row(list(_COLUMNS)))]
    return header + [
        (name, row(["yes" if has[column] else "-" for column in _COLUMNS]))
        for name, has in ops().items()
    ]


def _chosen() -> str:
    isa = _host.isa()
    asked = os.environ.get("LANEWISE_ISA")
    why = f"LANEWISE_ISA={asked}" if asked else "the highest that this CPU runs"
    return f"{isa}, {_host.lanes(isa)} float32 lanes ({why})"


def _built() -> str:
    return ", ".join(
        name if usable else f"{name} (not on this CPU)"
        for name, usable in _host.targets().items()
        if name != "wide"  # for tests alone
    )


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
