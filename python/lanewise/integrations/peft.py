"""peft's adapters beside packed weights.

peft merges an adapter by ``weight.data += delta``, which leaves no trace: the parameter is the same
object, at the same address, with the same version. After `watch` (or after importing this module)
every merge and unmerge counts as an in-place change of the base layer's parameters, so that packed
copies made of them are dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


def watch() -> None:
    """Makes every adapter layer announce that it has merged or unmerged; a second call does
    nothing."""
    for cls in _subclasses(BaseTunerLayer):
        for name in ("merge", "unmerge"):
            method = cls.__dict__.get(name)
            if method is not None and not hasattr(method, "_announces"):
                setattr(cls, name, _announcing(method))


def _announcing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def announcing(self: BaseTunerLayer, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:  # half a merge is a change too
            for parameter in self.get_base_layer().parameters():
                if not parameter.is_inference():
                    torch.autograd.graph.increment_version(parameter)

    announcing._announces = True  # type: ignore[attr-defined]
    return announcing


def _subclasses(cls: Any) -> Iterator[Any]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


watch()
