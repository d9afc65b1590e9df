"""Standing in for one of torch's kernels, and giving it back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lanewise import _host
from lanewise.integrations.aten.reason import SERVED, TOO_SMALL, TORCH_IS_FASTER
from lanewise.integrations.aten.report import Report


@dataclass(frozen=True)
class Override:
    """What a dispatch key of an aten op does while it is routed.

    Attributes:
        name: the op in the report.
        overload: torch's own.
        key: the dispatch key whose kernel is replaced.
        tiny: takes the positional arguments; tells at a glance that the call is not worth the look
            that `decline` takes.
        decline: takes the call's arguments; SERVED, or the reason why lanewise does not serve them.
        serve: takes the same arguments, and gives what torch's kernel would.
        heavy: as `serve`, where torch is faster: its kernel by a way on which other Python threads
            run meanwhile. The way back to the one that is replaced holds them up.
    """

    name: str
    overload: torch._ops.OpOverload
    key: str
    tiny: Callable[..., bool]
    decline: Callable[..., str]
    serve: Callable[..., Any]
    heavy: Callable[..., Any] | None = None


class _Kernel:
    """What stands in torch's table for an override, which it serves while it is in force."""

    def __init__(self, override: Override) -> None:
        self.override = override
        self.in_force = False
        self.original = torch.library.get_kernel(override.overload, override.key).call_boxed

    def is_topmost(self) -> bool:
        """Whether no other library has put a kernel over it, which may call it."""
        table = torch._C._dispatch_dump_table(self.override.overload.name())
        row = next(r for r in table.splitlines() if r.startswith(f"{self.override.key}:"))
        return f"{__file__}:" in row


class Overrides:
    """The overrides in force, and the report that counts their calls.

    torch's table of kernels has no lock for readers: a kernel that is taken out while another
    thread looks it up, or is in it, is freed under its feet. So it only is where there is no other
    thread, nor a library whose kernel may call it; else it stays and passes calls on.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._kernels: dict[Override, _Kernel] = {}
        self._library: torch.library.Library | None = None

    def replace(self, overrides: Sequence[Override]) -> None:
        if self._kernels.keys() - overrides and self._may_remove():
            self._remove()
        try:
            self._add([o for o in overrides if o not in self._kernels])
        except BaseException:
            self._remove()
            raise
        for override, kernel in self._kernels.items():
            kernel.in_force = override in overrides

    def _may_remove(self) -> bool:
        return _alone() and all(kernel.is_topmost() for kernel in self._kernels.values())

    def _remove(self) -> None:
        if self._library is not None:
            self._library._destroy()
        self._library, self._kernels = None, {}

    def _add(self, overrides: Sequence[Override]) -> None:
        if not overrides:
            return
        if self._library is None:
            self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden is what we mean to do
            warnings.simplefilter("ignore")
            for override in overrides:
                kernel = _Kernel(override)
                function = self._function(kernel)
                self._library.impl(override.overload, function, override.key, with_keyset=True)
                self._kernels[override] = kernel

    def _function(self, kernel: _Kernel) -> Callable[..., Any]:
        override, original = kernel.override, kernel.original
        decline, serve, heavy = override.decline, override.serve, override.heavy
        name, tiny, too_small = override.name, override.tiny, (override.name, TOO_SMALL)

        def function(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
            if kernel.in_force:
                if tiny(*args):
                    self.report.calls[too_small] += 1
                else:
                    reason = decline(*args, **kwargs)
                    self.report.calls[name, reason] += 1
                    if reason is SERVED:
                        return serve(*args, **kwargs)
                    if heavy is not None and reason is TORCH_IS_FASTER:
                        return heavy(*args, **kwargs)
            try:
                return original(keyset, *args, **kwargs)
            except RuntimeError as error:
                if "SafeKernelFunction has been invalidated" not in str(error):
                    raise
                raise RuntimeError(
                    f"lanewise.enable: the kernel of {override.overload.name()} that was there "
                    "before must stay while routing is on, and its library was unloaded: call "
                    "lanewise.disable() before that, and enable() after it"
                ) from error

        return function


def _alone() -> bool:
    return threading.active_count() == 1


ISA = _host.isa()
SERVED_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

# A lanewise op is called as a kernel is: no Python override of torch functions, no autocast and no
# autograd comes between, whatever the caller has switched on.
_ABOVE = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutogradCPU
)


def call(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunction(), torch._C._ExcludeDispatchKeyGuard(_ABOVE):
        return op(*args, **kwargs)


def laid_out_like(out: Tensor, strides: Sequence[int]) -> Tensor:
    """`out` with the strides that torch's kernel would give: a copy, unless only names differ."""
    own, wanted = out.stride(), tuple(strides)
    if own == wanted:
        return out
    if all(a == b or n == 1 for a, b, n in zip(own, wanted, out.shape, strict=True)):
        return out.as_strided(out.shape, wanted)
    return torch.empty_strided(out.shape, wanted, dtype=out.dtype).copy_(out)
