"""Packed copies of weights: made on request, dropped as soon as the weights they were made of
change."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lanewise import ops
from lanewise.ops._library import FLOATING

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Packing(nn.Module):
    """Mixin for a module that can keep a packed copy of its weights.

    The copy, laid out for this CPU by ``lanewise.pack_weight``, is the buffer ``packed_weight``; it
    is never part of the state dict. Packing is explicit because a weight can be overwritten in ways
    that leave no trace (``weight.data += delta``, as adapters merge themselves): after such a
    change call ``pack()`` or ``unpack()``. Every change that does leave a trace undoes it:
    ``load_state_dict``, a move to another dtype or device, ``train()``, a new parameter, new
    ``data`` of a parameter, an optimiser step or any other in-place operation. Copies and pickles
    of a packed module are unpacked.

    The packed copy serves inference. When a gradient is needed, or autocast is on, the module
    computes from its weights as if it were not packed.
    """

    packed_weight: Tensor | None
    # What it was made of, each with its state then.
    _packed_from: tuple[tuple[Tensor, tuple[int, int]], ...]
    _released = False

    def _owners(self) -> tuple[nn.Linear, ...]:
        """The modules whose weights, all [out_i, in], are packed as one [sum(out_i), in]."""
        raise NotImplementedError

    def _matrix(self) -> Tensor:
        """What is packed: the owners' weights, one under the other."""
        weights: list[Tensor] = [owner.weight for owner in self._owners()]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _sources(self) -> tuple[Tensor, ...]:
        """All that the copy is made of."""
        return tuple(owner.weight for owner in self._owners())

    def pack(self, *, release: bool = False) -> Self:
        """Packs the weights as they are now and returns the module.

        Args:
            release: frees the weights themselves, for inference in half the memory. Parameters on
                the meta device remain, which tell names, shapes and dtypes. From then on every
                change that would undo the packing is an error.

        Raises:
            RuntimeError: the weights have a dtype or device that ``lanewise.pack_weight`` does not
                take, were released, or are no plain parameters.
        """
        self._require_weights()
        if not self._owners():
            raise RuntimeError(
                f"lanewise.nn.{type(self).__name__}: its weights must be plain parameters of "
                "lanewise layers to be packed, and adapters, parametrizations or a subclass of "
                "Tensor make them"
            )
        with torch.no_grad():
            packed = ops.pack_weight(self._matrix())
        self.register_buffer("packed_weight", packed, persistent=False)
        if release:
            self._release()
        self._packed_from = tuple((source, state_of(source)) for source in self._sources())
        return self

    def _require_packable(self) -> None:
        self._require_weights()
        for owner in self._owners():
            if owner.weight.dtype not in FLOATING:
                raise RuntimeError(
                    f"lanewise.nn.{type(self).__name__}: a weight must be float32, bfloat16 or "
                    f"float16 to be packed, got {owner.weight.dtype}"
                )

    def _release(self) -> None:
        for owner in self._owners():
            if owner.bias is not None:
                owner.bias.requires_grad_(False)
            owner.weight = nn.Parameter(owner.weight.to("meta"), requires_grad=False)
        self._released = True

    def unpack(self) -> Self:
        """Drops the packed copy, if there is one, and returns the module.

        Raises:
            RuntimeError: the weights were released.
        """
        self._require_weights()
        self.register_buffer("packed_weight", None, persistent=False)
        self._packed_from = ()
        return self

    def _require_weights(self) -> None:
        if self._released:
            raise RuntimeError(
                f"lanewise.nn.{type(self).__name__}: its weights were released when it was packed, "
                "so that they cannot be trained, moved, copied, saved or loaded: make the model "
                "again"
            )

    def usable_pack(self, *inputs: Tensor | None) -> Tensor | None:
        """The packed copy, if there is one, it is current, and this call may use it."""
        packed = self.packed_weight
        if packed is None:
            return None
        sources = self._sources()
        if self._released:
            return self._released_pack(packed, inputs)
        if torch.is_autocast_enabled(packed.device.type):
            return None
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (*inputs, *sources)
        ):
            return None
        # A compiler cannot read states: there only the identity is compared.
        compiling = torch.compiler.is_compiling()
        current = len(sources) == len(self._packed_from) and all(
            source is seen and (compiling or state_of(source) == state)
            for source, (seen, state) in zip(sources, self._packed_from, strict=True)
        )
        return packed if current else None

    def _released_pack(self, packed: Tensor, inputs: tuple[Tensor | None, ...]) -> Tensor:
        gradient = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in inputs
        )
        if gradient or torch.is_autocast_enabled(packed.device.type):
            raise RuntimeError(
                f"lanewise.nn.{type(self).__name__}: its weights were released when it was packed: "
                "call it without autocast and under torch.no_grad()"
            )
        return packed

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.unpack()
        return super()._apply(*args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._require_weights()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._require_weights()
        buffers = {**self._buffers, "packed_weight": None}
        return {**self.__dict__, "_buffers": buffers, "_packed_from": ()}


def holds_weight(layer: nn.Module) -> bool:
    """Whether the layer's weight is a plain parameter: not made anew for every call, as by a
    parametrization, weight norm or pruning, and of no class of its own, such as DTensor."""
    return type(layer._parameters.get("weight")) is nn.Parameter


def state_of(weight: Tensor) -> tuple[int, int]:
    """What another value of the weight changes: how often it was written to, and where it lies,
    which ``weight.data = …`` changes alone."""
    # Tensors made in inference mode do not count their changes.
    return (0 if weight.is_inference() else weight._version), weight.data_ptr()


def packings(module: nn.Module) -> list[Packing]:
    """The modules inside ``module``, itself included, that keep a packed copy each: a module that
    packs the weights of several others stands for them."""
    found: list[Packing] = []
    covered: set[nn.Module] = set()
    for child in module.modules():  # parents first
        if isinstance(child, Packing) and child not in covered and (owners := child._owners()):
            found.append(child)
            covered.update(owners)
    return found


class HoldsPackings(nn.Module):
    """Mixin for a module with packed layers inside, which refuses as a whole what one of them would
    refuse because its weights were released: before any other part has changed."""

    def _require_weights(self) -> None:
        for module in packings(self):
            module._require_weights()

    def __getstate__(self) -> dict[str, Any]:
        # A plan of calls (fused.py) knows this module's own dictionaries, which no copy shares.
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._require_weights()
        return super().state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._require_weights()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._require_weights()
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._require_weights()
        return super().load_state_dict(*args, **kwargs)


def pack(module: ModuleT, *, release: bool = False) -> ModuleT:
    """Packs every lanewise layer inside ``module``, itself included, and returns it.

    ``release`` frees the weights themselves: see `Packing.pack`.
    """
    found = packings(module)
    for child in found:  # before the first one lets go of anything
        child._require_packable()
    for other in module.modules():
        if isinstance(other, Packing) and other not in found and other.packed_weight is not None:
            other.unpack()  # its weights are packed with others' now, or not at all
    for child in found:
        child.pack(release=release)
    return module


def unpack(module: ModuleT) -> ModuleT:
    """Drops every packed copy inside ``module`` (itself included) and returns it."""
    for child in module.modules():
        if isinstance(child, Packing):
            child.unpack()
    return module
