"""Exchanges the class of a module for a subclass of it, and back.

The module stays the object it was: its parameters, buffers, hooks, children and name do not move,
and ``isinstance`` still finds its own class. Only ``forward`` is another.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.nn.modules import module as torch_module

from lanewise.integrations import capturing


class Replacement(nn.Module):
    """Mixin of every class that stands in for another; ``super().forward`` is the original's."""

    original: ClassVar[type[nn.Module]]
    mixin: ClassVar[type[Replacement]]

    if TYPE_CHECKING:  # children and attributes of the original, whichever it is

        def __getattr__(self, name: str) -> Any: ...

    def prepare(self) -> None:
        """Adds what the replacement keeps in the module beside the original's attributes."""

    def withdraw(self) -> None:
        """Takes away what `prepare` and later calls have added."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time: a copy or a pickle makes it again.
        reduced: Any = super().__reduce_ex__(protocol)
        return (_blank, (self.mixin, self.original), *reduced[2:])

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return f"{own}, lanewise" if own else "lanewise"


@functools.cache
def stand_in(mixin: Any, original: Any) -> type[Replacement]:
    """The subclass of both, made once. It keeps the name, which other libraries look at."""
    names = ("__module__", "__qualname__", "__doc__")
    attributes = {name: getattr(original, name) for name in names}
    return type(
        original.__name__, (mixin, original), {**attributes, "original": original, "mixin": mixin}
    )


def _blank(mixin: type[Replacement], original: type[nn.Module]) -> nn.Module:
    return object.__new__(stand_in(mixin, original))  # type: ignore[arg-type]


def replace(module: nn.Module, mixin: type[Replacement]) -> None:
    """Makes ``module`` an instance of ``mixin`` and of its own class."""
    module.__class__ = stand_in(mixin, type(module))  # type: ignore[arg-type, assignment]
    assert isinstance(module, Replacement)
    module.prepare()


def restore(module: Replacement) -> None:
    """Undoes `replace`. What came on top of the stand-in since (a parametrization, a wrapper for
    sharding) comes on top of the original."""
    module.withdraw()
    ours = stand_in(module.mixin, module.original)  # type: ignore[arg-type]
    module.__class__ = _rebased(type(module), ours, module.original)


def _rebased(cls: Any, ours: type[Replacement], original: type[nn.Module]) -> Any:
    """``cls`` with ``original`` in the place of ``ours``."""
    if cls is ours:
        return original
    if not issubclass(cls, ours):
        return cls
    bases = tuple(_rebased(base, ours, original) for base in cls.__bases__)
    attributes = dict(vars(cls))
    # transformers' layers wrap the forward that each new subclass inherits: so will the next.
    if inspect.unwrap(attributes.get("forward", ours.forward)) is inspect.unwrap(ours.forward):
        attributes.pop("forward", None)
    return type(cls)(cls.__name__, bases, attributes)


def plain(*modules: nn.Module) -> bool:
    """Whether all are replacements whose ``forward`` is all that a call of them runs.

    A hook, a wrapper around ``forward`` (accelerate sets one on the instance) or a module in the
    place of ours (an adapter) needs the call as it was written.
    """
    return all(isinstance(module, Replacement) and unobserved(module) for module in modules)


def unobserved(module: nn.Module) -> bool:
    """Whether no hook and no wrapped ``forward`` waits for a call of ``module``."""
    return not (
        (module._forward_hooks and not all(map(_idle, module._forward_hooks.values())))
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch_module._has_any_global_hook()
    )


def _idle(hook: Callable[..., Any]) -> bool:
    """Whether ``hook`` notes outputs of transformers' models, and none is asked for."""
    return getattr(hook, "__module__", None) == capturing.MODULE and not capturing.collected()
