"""`lanewise.optimize` and `lanewise.unoptimize`."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lanewise.integrations.optimize import linear, norm
from lanewise.integrations.optimize.report import Report
from lanewise.integrations.optimize.serving import DTYPES
from lanewise.integrations.optimize.swap import Replacement, replace, restore
from lanewise.nn.packing import Packing
from lanewise.nn.packing import pack as pack_all
from lanewise.nn.packing import unpack as unpack_all

# Replaced wherever a class runs torch's own forward.
_TORCH: tuple[tuple[type[nn.Module], type[Replacement]], ...] = (
    (nn.Linear, linear.Linear),
    (nn.LayerNorm, norm.LayerNorm),
    (nn.RMSNorm, norm.TorchRMSNorm),
)


def optimize(model: nn.Module, dtype: torch.dtype | None = None, *, pack: bool = False) -> Report:
    """Makes a model's layers compute on lanewise, in place; `unoptimize` undoes it.

    Replaced are, anywhere, ``nn.Linear``, ``nn.LayerNorm`` and ``nn.RMSNorm``; in transformers'
    GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3 and BERT also ``Conv1D``, the RMS norms, the
    feed-forward halves, rotary positions, attention and the residual additions. A module only
    changes its class, for a subclass of its own: names, parameters, state dict, hooks and
    ``isinstance`` stay, so that saving, loading, peft and accelerate work as before. What a call
    needs and the kernels do not serve (another device or dtype, autocast in a fused block) is
    computed by the model's own code. A second call changes nothing that is replaced already.

    Args:
        model: any module; it may be wrapped by peft.
        dtype: casts the parameters first, as ``from_pretrained(dtype=…)`` would: float32, bfloat16
            or float16. Buffers that are not saved, such as rotary frequencies, keep their dtype,
            and what a model of transformers wants in float32 is. `unoptimize` does not undo the
            cast.
        pack: keeps a second copy of the weights laid out for this CPU, for inference. It is dropped
            when they change: by ``train()``, ``load_state_dict``, ``to()``, an optimizer step or an
            adapter that is merged. ``lanewise.nn.pack(model)`` makes it anew.

    Returns:
        A `Report` of what is replaced and what is not, and why.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``dtype`` is none of the three, or the model has float8 weights.
    """
    _check_module("optimize", model)
    if dtype is not None:
        if dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            raise ValueError(f"lanewise.optimize: dtype must be one of {known}, got {dtype}")
        _require_castable(model)
        _cast(model, dtype)
    report = Report()
    for name, module in model.named_modules():
        _optimize_one(name, module, report)
    if pack:
        pack_all(model)
    return report


def unoptimize(model: nn.Module) -> None:
    """Undoes `optimize`: every module has its own class again, and no packed weights.

    Raises:
        TypeError: ``model`` is not a module.
        RuntimeError: it was packed with ``release=True``, so that there are no weights to go back
            to. Nothing has changed then.
    """
    _check_module("unoptimize", model)
    replaced = [module for module in model.modules() if isinstance(module, Replacement)]
    for module in replaced:
        if isinstance(module, Packing):
            module._require_weights()
    for module in replaced:
        restore(module)


def _check_module(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"lanewise.{function}: model must be a torch.nn.Module, got {type(model).__name__}"
        )


def _optimize_one(name: str, module: nn.Module, report: Report) -> None:
    if not isinstance(module, Replacement):
        if type(module).__module__.startswith("lanewise."):
            return
        mixin = _replacement_for(module)
        reason = _obstacle(module, mixin)
        if mixin is None or reason is not None:
            if reason is not None:
                report.kept[name] = reason
            return
        replace(module, mixin)
    assert isinstance(module, Replacement)
    report.replaced[name] = f"{type(module).__name__} → {module.mixin.__name__}"


def _replacement_for(module: nn.Module) -> type[Replacement] | None:
    cls = type(module)
    for original, replacement in _TORCH:
        if isinstance(module, original):
            return replacement if cls.forward is original.forward else None
    if cls.__module__.startswith("transformers."):
        from lanewise.integrations.optimize.families import REPLACEMENTS

        return REPLACEMENTS.get(f"{cls.__module__}.{cls.__qualname__}")
    return None


def _obstacle(module: nn.Module, mixin: type[Replacement] | None) -> str | None:
    """Why a module with parameters of its own is left as it is, None if nothing is in the way."""
    own = list(module.parameters(recurse=False))
    cls = type(module).__name__
    if parametrize.is_parametrized(module):
        return f"{cls}: it is parametrized"
    if mixin is None:
        if not own:
            return None
        if any(isinstance(module, original) for original, _ in _TORCH):
            return f"{cls}: it has a forward of its own"
        return f"{cls}: lanewise has no counterpart"
    if "forward" in module.__dict__:
        return f"{cls}: its forward is wrapped"
    if cls == "NonDynamicallyQuantizableLinear":
        return f"{cls}: nn.MultiheadAttention reads its weight without calling it"
    for parameter in own:
        if type(parameter.data) is not Tensor or type(parameter) is not nn.Parameter:
            return f"{cls}: its parameters are {type(parameter).__name__}"
        if parameter.dtype not in DTYPES:
            return f"{cls}: lanewise has no kernels for {parameter.dtype}"
        if parameter.device.type not in ("cpu", "meta"):
            return f"{cls}: it is on {parameter.device}, and only the CPU is served"
    return None


def _require_castable(model: nn.Module) -> None:
    """Refuses weights of 8 bits, whose values mean nothing without the scales beside them."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() < 2:
            raise ValueError(
                f"lanewise.optimize: dtype must be None for a model with {parameter.dtype} weights "
                f"such as {name}, whose scales a cast would leave behind"
            )


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the floating-point parameters and saved buffers, which stay the same objects."""
    unpack_all(model)
    wide = _kept_in_float32(model, dtype)
    for module in model.modules():
        tensors: list[Tensor | None] = list(module._parameters.values())
        tensors += [
            buffer
            for name, buffer in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        ]
        for tensor in tensors:
            if tensor is not None and tensor.is_floating_point():
                target = torch.float32 if id(tensor) in wide else dtype
                tensor.data = tensor.data.to(target)
                if tensor.grad is not None:
                    tensor.grad = tensor.grad.to(target)


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> set[int]:
    """The ids of the tensors that transformers' ``from_pretrained`` would keep wide."""
    kept: set[int] = set()
    for module in model.modules():
        patterns: list[str] = []
        if dtype is not torch.float32:
            patterns += getattr(module, "_keep_in_fp32_modules_strict", None) or ()
        if dtype is torch.float16:  # bfloat16 has the range of float32
            patterns += getattr(module, "_keep_in_fp32_modules", None) or ()
        if not patterns:
            continue
        kept_name = re.compile("|".join(pattern.replace("*", ".*") for pattern in patterns))
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if kept_name.search(name):
                kept.add(id(tensor))
    return kept
