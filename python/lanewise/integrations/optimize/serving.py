"""What the kernels serve, and how an op is called with the least overhead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lanewise.integrations.optimize.swap import unobserved
from lanewise.ops._library import in_transform

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_PLAIN = (Tensor, nn.Parameter)


def served(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether an op takes ``x`` beside ``weight``: on the CPU, strided, in a dtype that has
    kernels, of no class that overrides torch's ops and not ours (a DTensor), and not inside a
    transform such as ``torch.func.jvp``, for which the ops have no rule.
    """
    if x.device.type != "cpu" or x.dtype not in DTYPES or not _is_plain(x):
        return False
    if x.layout is not torch.strided or x.is_nested or in_transform():
        return False
    return weight is None or (
        weight.dtype is x.dtype and weight.device == x.device and _is_plain(weight)
    )


def _is_plain(x: Tensor) -> bool:
    # A compiler's own tensors stand for plain ones.
    return type(x) in _PLAIN or torch.compiler.is_compiling()


def autocasts() -> bool:
    """Whether torch chooses dtypes op by op, which fused blocks would take out of its hands."""
    return torch.is_autocast_enabled("cpu")


def without_autograd() -> AbstractContextManager[Any]:
    """Around ops only: passes autograd by where nobody asks for a gradient.

    An op with a registered gradient costs 3 µs more a call, which decoding feels.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


# The classes of activation modules → the name of the same function in the ops' epilogues.
_ACTIVATIONS = {
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Tanh": "tanh",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",  # the name of the last before 5.0
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.SiLUActivation": "silu",
}


def epilogue(function: nn.Module | Callable[[Tensor], Tensor]) -> str | None:
    """The name by which an op computes ``function``; None if none does, or a hook watches it."""
    if not isinstance(function, nn.Module) or not unobserved(function):
        return None
    cls = type(function)
    if isinstance(function, nn.GELU):
        return "gelu" if function.approximate == "none" else "gelu_tanh"
    return _ACTIVATIONS.get(f"{cls.__module__}.{cls.__qualname__}")
