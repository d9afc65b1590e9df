"""Loads the compiled ops, and registers what each op needs beside its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from lanewise import _host

_host.isa()  # a wrong LANEWISE_ISA is an error of the import, not of the first call
torch.ops.load_library(str(Path(__file__).parents[1] / "_ops.so"))

ops = torch.ops.lanewise

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def register_fake(op: str) -> Callable[[Callable], Callable]:
    """Decorates the function that gives an op's output shapes without computing.

    The fake also runs where any argument is a meta tensor; beside tensors with data that is a
    mistake, which it would answer with memory that nobody wrote.
    """
    names = [a.name for a in getattr(ops, op).default._schema.arguments]

    def register(fake: Callable) -> Callable:
        @functools.wraps(fake)
        def checked(*args: Any, **kwargs: Any) -> Any:
            require_one_device(op, {**dict(zip(names, args, strict=False)), **kwargs})
            return fake(*args, **kwargs)

        return torch.library.register_fake(f"lanewise::{op}", checked)

    return register


def require_one_device(op: str, arguments: dict[str, Any]) -> None:
    tensors = {name: t for name, t in arguments.items() if isinstance(t, torch.Tensor)}
    first = next(iter(tensors))
    for name, t in tensors.items():
        if t.device != tensors[first].device:
            raise RuntimeError(
                f"lanewise.{op}: {name} must be on {tensors[first].device} like {first}, "
                f"got {t.device}"
            )


def in_transform() -> bool:
    """Whether forward mode or a transform of ``torch.func`` follows the calls: the ops have no
    rules for them."""
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.peek_interpreter_stack()  # type: ignore[attr-defined]
    return forward_ad._current_level >= 0 or stack is not None


class _AutogradKernels(torch.library.Library):
    """Registers kernels under the key Autograd, all of which refuse tangents: none has a rule for
    them, and forward mode would go on with zeros."""

    def impl(
        self,
        op_name: str,
        fn: Callable,
        dispatch_key: str = "",
        *,
        with_keyset: bool = False,
        **options: Any,
    ) -> None:
        overload = getattr(ops, op_name).default

        @functools.wraps(fn)
        def kernel(*args: Any, **kwargs: Any) -> Any:
            if forward_ad._current_level >= 0:
                refuse_tangents(overload, args[1:] if with_keyset else args, kwargs)
            return fn(*args, **kwargs)

        super().impl(op_name, kernel, dispatch_key, with_keyset=with_keyset, **options)


_autograd = _AutogradKernels("lanewise", "IMPL")


def refuse_tangents(overload: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> None:
    names = [a.name for a in overload._schema.arguments]
    for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"lanewise.{overload._opname}: has no derivative in forward mode and {name} has a "
                "tangent: use torch's own operators there, or reverse mode"
            )


def register_autograd(op: str, backward: Callable, setup_context: Callable) -> None:
    """Makes an op differentiable.

    ``backward`` finds an entry in ``ctx.needs_input_grad`` for every positional argument; torch
    leaves out those that were not passed.
    """
    positional = sum(not a.kwarg_only for a in getattr(ops, op).default._schema.arguments)

    @functools.wraps(backward)
    def padded(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needs = ctx.needs_input_grad
        ctx.needs_input_grad = (*needs, *(False,) * (positional - len(needs)))
        return backward(ctx, *grads)

    torch.library.register_autograd(
        f"lanewise::{op}", padded, setup_context=setup_context, lib=_autograd
    )


def register_twin(op: str, twin: str) -> None:
    """Makes an op differentiable through another, whose first output is its own.

    The twin returns besides what its backward needs; where no gradient is wanted, ``op`` runs.
    """
    overload, keeping = getattr(ops, op).default, getattr(ops, twin).default

    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = (t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return keeping(*args, **kwargs)[0]
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args, **kwargs)

    _autograd.impl(op, kernel, "Autograd")


def register_no_gradient(op: str) -> None:
    """Makes backward through an op an error; torch would warn and go on with wrong numbers.

    An op that writes its arguments has no outputs to go back from, so that the call is the error.
    """
    overload = getattr(ops, op).default
    if overload._schema.is_mutable:

        def kernel(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                for value in (*args, *kwargs.values()):
                    if isinstance(value, torch.Tensor) and value.requires_grad:
                        raise RuntimeError(
                            f"lanewise.{op}: has no gradient and an input requires one: "
                            "call it under torch.no_grad()"
                        )
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args, **kwargs)

        _autograd.impl(op, kernel, "Autograd")
        return

    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise RuntimeError(f"lanewise.{op} has no gradient: its inputs must not require one")

    torch.library.register_autograd(f"lanewise::{op}", backward, lib=_autograd)


def register_autocast(op: str, cast: tuple[str, ...], *, widest: bool = False) -> None:
    """Under autocast, casts the named tensor arguments and no others.

    They take the autocast dtype or, with ``widest``, the widest among themselves, as the operands
    of a sum do; float64 is left for the op to refuse. torch.library.register_autocast would cast
    every floating tensor: masks, scales, tables of angles and float32 statistics too.
    """
    overload = getattr(ops, op).default
    names = [a.name for a in overload._schema.arguments]

    def kernel_for(device: str, key: str) -> Callable:
        below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any, **kwargs: Any) -> Any:
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            floating = {
                name: value
                for name, value in arguments.items()
                if name in cast and isinstance(value, torch.Tensor) and value.dtype in FLOATING
            }
            dtype = torch.get_autocast_dtype(device)
            if widest and floating:
                dtype = functools.reduce(torch.promote_types, (t.dtype for t in floating.values()))
            arguments.update({name: value.to(dtype) for name, value in floating.items()})
            with torch._C._ExcludeDispatchKeyGuard(below):
                return overload(**arguments)

        return kernel

    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        torch.library.impl(f"lanewise::{op}", key)(kernel_for(device, key))
