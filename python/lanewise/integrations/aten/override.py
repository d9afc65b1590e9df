"""Standing in for one of torch's kernels, and giving it back."""

from __future__ import annotations

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


class Overrides:
    """The overrides in force, and the report that counts their calls."""

    def __init__(self) -> None:
        self.report = Report()
        self._overrides: Sequence[Override] = ()
        self._library: torch.library.Library | None = None

    def replace(self, overrides: Sequence[Override]) -> None:
        if overrides == self._overrides:
            return
        if self._library is not None:
            self._library._destroy()
            self._library, self._overrides = None, ()
        if not overrides:
            return
        library = torch.library.Library("aten", "IMPL")
        try:
            with warnings.catch_warnings():  # that a kernel is overridden is what we mean to do
                warnings.simplefilter("ignore")
                for override in overrides:
                    kernel = self._kernel(override)
                    library.impl(override.overload, kernel, override.key, with_keyset=True)
        except BaseException:
            library._destroy()
            raise
        self._library, self._overrides = library, overrides

    def _kernel(self, override: Override) -> Callable[..., Any]:
        original = torch.library.get_kernel(override.overload, override.key).call_boxed
        decline, serve, heavy = override.decline, override.serve, override.heavy
        name, tiny, too_small = override.name, override.tiny, (override.name, TOO_SMALL)

        def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
            if tiny(*args):
                self.report.calls[too_small] += 1
                return original(keyset, *args, **kwargs)
            reason = decline(*args, **kwargs)
            self.report.calls[name, reason] += 1
            if reason is SERVED:
                return serve(*args, **kwargs)
            if heavy is not None and reason is TORCH_IS_FASTER:
                return heavy(*args, **kwargs)
            return original(keyset, *args, **kwargs)

        return kernel


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
