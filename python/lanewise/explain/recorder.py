"""Every op that a model calls, where in the model, what it has to do and how long it took."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from lanewise.explain.work import Call, Sequences, Work, tensors_in, work_of
from lanewise.nn import fused

# Nothing is computed or moved: memory is only reserved, or a number asked for.
_FREE = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "aminmax"),
    *("_local_scalar_dense", "item", "is_same_size"),
}


@dataclass(frozen=True)
class Record:
    """One call of an op. ``shape`` tells its extents in words; ``seconds`` only if it ran."""

    module: str
    op: str
    shape: str
    work: Work
    seconds: float | None


class Recorder(TorchDispatchMode):
    """Records what runs inside the block; on the meta device nothing runs, and all is counted.

    Args:
        model: whose modules and parameters the calls are attributed to. Inside the block no layer
            of it runs as one op.
        sequences: the lengths that ops over a cache cannot tell from shapes.
        timed: keep the time of each call.
    """

    def __init__(self, model: nn.Module, sequences: Sequences, *, timed: bool) -> None:
        super().__init__()
        self.records: list[Record] = []
        self._sequences, self._timed = sequences, timed
        self._stack: list[str] = [""]
        self._weights = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self._names = {module: name for name, module in model.named_modules()}

    def __enter__(self) -> Recorder:
        with contextlib.ExitStack() as stack:
            # Hooks of single modules would be served, and so change what runs; global ones are not.
            for hook in (
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, always_call=True),
            ):
                stack.callback(hook.remove)
            stack.enter_context(mock.patch.object(fused, "plan", return_value=None))
            super().__enter__()
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(self._names.get(module, ""))

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = func._schema.name
        if op in ("aten::_local_scalar_dense", "aten::item") and args[0].is_meta:
            return 0  # a check of values, of which there are none
        start = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - start if self._timed else None
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        outputs = tuple(tensors_in([result]))
        free = op.split("::")[1] in _FREE or _is_view(func, arguments, outputs)
        if not free:
            call = Call(arguments, outputs, self._is_weight, self._sequences)
            record = Record(
                self._module(arguments), op, shape_of(op, call), work_of(op, call), seconds
            )
            self.records.append(record)
        return result

    def _is_weight(self, t: Tensor) -> bool:
        return id(t) in self._weights or t.dtype == torch.uint8  # a packed one

    def _module(self, arguments: dict[str, Any]) -> str:
        """Of a gradient, which runs outside of any module, the one that owns its weight."""
        if len(self._stack) > 1:
            return self._stack[-1]
        for value in arguments.values():
            if isinstance(value, Tensor) and id(value) in self._weights:
                return self._weights[id(value)].rpartition(".")[0]
        return ""


def _is_view(func: Any, arguments: dict[str, Any], outputs: tuple[Tensor, ...]) -> bool:
    if func._schema.is_mutable or not outputs:
        return False
    storages = {t.untyped_storage()._cdata for t in tensors_in(arguments.values())}
    return all(t.untyped_storage()._cdata in storages for t in outputs)


def shape_of(op: str, call: Call) -> str:
    """The extents that decide the work of a call."""
    name = op.removeprefix("lanewise::")
    if "linear" in name:
        x = call["x"]
        out = call.outputs[0] if call["grad"] is None else call["grad"]
        return f"{x.shape[:-1].numel()}×{x.shape[-1]}→{out.shape[-1]}"
    if name == "paged_attention":
        s, heads, kv_heads = call.sequences, call["q"].shape[1], call["k_cache"].shape[2]
        return f"{s.batch}×{heads}/{kv_heads}×{s.queries}×{s.keys}×{call['q'].shape[2]}"
    if name in ("attention", "attention_backward"):
        (batch, heads, queries, size), k = call["q"].shape, call["k"]
        return f"{batch}×{heads}/{k.shape[1]}×{queries}×{k.shape[2]}×{size}"
    largest = max(call.outputs, key=Tensor.numel, default=None)
    if largest is None:
        largest = next(v for v in call.arguments.values() if isinstance(v, Tensor))
    return "×".join(map(str, largest.shape))
