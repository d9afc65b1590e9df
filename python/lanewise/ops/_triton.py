"""The GPU side of every op, registered under the CUDA key (which ROCm shares).

Triton and the kernels are imported when the first CUDA tensor arrives: importing lanewise needs
neither.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from lanewise.ops import _library  # noqa: F401  the schemas must exist before their kernels

# op: the module of lanewise.kernels whose function of the op's name launches it
KERNELS = {
    "attention": "attention",
    "attention_backward": "attention",
    "attention_varlen": "attention",
    "attention_varlen_backward": "attention",
    "paged_attention": "attention",
    "paged_cache_write": "attention",
    "gated_linear": "gemm",
    "gated_linear_backward": "gemm",
    "gated_linear_for_backward": "gemm",
    "gated_linear_packed": "gemm",
    "linear": "gemm",
    "linear_backward": "gemm",
    "linear_packed": "gemm",
    "matmul": "gemm",
    "pack_weight": "gemm",
    "rms_norm": "norm",
    "layer_norm": "norm",
    "add_rms_norm": "norm",
    "add_layer_norm": "norm",
    "rms_norm_backward": "norm",
    "layer_norm_backward": "norm",
    "rope": "rope",
    "rope_backward": "rope",
    "decoder_layer": "transformer",
}

_cuda = torch.library.Library("lanewise", "IMPL", "CUDA")


def backends() -> dict[str, tuple[str, ...]]:
    """Every op, and the devices that it has a kernel for: ``{"attention": ("cpu", "gpu"), …}``."""
    return {
        op: tuple(
            device
            for device, present in (("cpu", _has_cpu_kernel(op)), ("gpu", op in KERNELS))
            if present
        )
        for op in _ops()
    }


def _ops() -> list[str]:
    names = sorted(torch._C._dispatch_get_all_op_names())
    return [name.removeprefix("lanewise::") for name in names if name.startswith("lanewise::")]


def _has_cpu_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "CPU")


def launcher(op: str) -> Callable[..., Any]:
    """What runs `op` on a GPU; the first call imports Triton."""

    def launch(*args: Any, **kwargs: Any) -> Any:
        try:
            module = importlib.import_module(f"lanewise.kernels.{KERNELS[op]}")
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise RuntimeError(
                f"lanewise.{op}: Triton runs this op on a GPU and is not installed"
            ) from error
        return getattr(module, op)(*args, **kwargs)

    return launch


for _op in KERNELS:
    _cuda.impl(_op, launcher(_op))
