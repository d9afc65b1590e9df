"""Keys and values appended to transformers' dynamic caches without copying what is there.

``DynamicCache`` concatenates: every token copies all tokens before it. Here the tensors of a cache
layer are views of larger buffers, which the next tokens are written to. What a view that was handed
out shows is never written again: as soon as a cache layer holds other tensors than the last ones
made here (cropped, reordered for beams, shared with a copy of the cache), its tokens move to new
buffers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = "_lanewise_room"
# Tokens that a buffer has room for beside twice what it must hold.
_SPARE = 64


class Room:
    """Buffers [B, capacity, Hkv, D] behind a cache layer, whose tokens are ``start`` … ``end``."""

    def __init__(self, layer: DynamicLayer, keys: Tensor, values: Tensor) -> None:
        kept = length(layer)
        self.capacity = 2 * (kept + keys.shape[2]) + _SPARE
        self.keys, self.values = (_buffer(x, self.capacity) for x in (keys, values))
        self.start, self.end = 0, kept
        if kept:
            self.keys[:, :kept] = layer.keys.transpose(1, 2)
            self.values[:, :kept] = layer.values.transpose(1, 2)

    def holds(self, layer: DynamicLayer) -> bool:
        return layer.keys is self._shown[0] and layer.values is self._shown[1]

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Puts new tokens [B, Hkv, S, D] at the end."""
        end = self.end + keys.shape[2]
        self.keys[:, self.end : end] = keys.transpose(1, 2)
        self.values[:, self.end : end] = values.transpose(1, 2)

    def advance(self, layer: DynamicLayer, count: int) -> tuple[Tensor, Tensor]:
        """Counts ``count`` tokens that were written; what they may attend, [B, Hkv, T, D]."""
        self.end += count
        full = self._show()
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length += count
            self.start = max(self.start, self.end - layer.sliding_window + 1)
        self._shown = self._show()
        layer.keys, layer.values = self._shown
        return full

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (x[:, self.start : self.end] for x in (self.keys, self.values))
        return keys.transpose(1, 2), values.transpose(1, 2)

    _shown: tuple[Tensor, Tensor]


def append(cache: Any, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
    """``cache.update(keys, values, layer_idx)``: all keys and values the new tokens may attend."""
    layer = growing_layer(cache, layer_idx)
    if layer is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return cache.update(keys, values, layer_idx)
    room = room_for(layer, keys, values)
    room.write(keys, values)
    return room.advance(layer, keys.shape[2])


def growing_layer(cache: Any, layer_idx: int) -> DynamicLayer | None:
    """The layer of the cache, if it is one of those that only concatenate."""
    if type(cache) is not DynamicCache or cache.offloading:
        return None
    if layer_idx >= len(cache.layers):
        if cache.layer_class_to_replicate is not DynamicLayer:
            return None
        cache.layers += [DynamicLayer() for _ in range(layer_idx + 1 - len(cache.layers))]
    layer = cache.layers[layer_idx]
    kind = type(layer)
    if kind is DynamicLayer or (kind is DynamicSlidingWindowLayer and not layer.record_past):
        return layer
    return None


def room_for(layer: DynamicLayer, keys: Tensor, values: Tensor) -> Room:
    """Room in ``layer`` for tokens like ``keys`` and ``values`` [B, Hkv, S, D].

    Raises:
        ValueError: the layer holds tokens of another batch size, heads, head size or dtype.
    """
    if not layer.is_initialized:
        layer.lazy_initialization(keys, values)
    room: Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.holds(layer) or room.end + keys.shape[2] > room.capacity:
        if length(layer):
            _check_alike("keys", layer.keys, keys)
            _check_alike("values", layer.values, values)
        room = Room(layer, keys, values)
        setattr(layer, _ROOM, room)
    elif room.keys.shape[0] != keys.shape[0] or room.keys.dtype is not keys.dtype:
        _check_alike("keys", layer.keys, keys)
    return room


def length(layer: DynamicLayer) -> int:
    """How many tokens the layer's tensors hold."""
    keys = layer.keys  # None in a new layer, then empty and of one dimension
    return 0 if keys is None or keys.dim() == 1 else keys.shape[2]


def _check_alike(name: str, held: Tensor, new: Tensor) -> None:
    if (held.shape[:2], held.shape[3:], held.dtype) != (new.shape[:2], new.shape[3:], new.dtype):
        raise ValueError(
            f"lanewise.optimize: the cache's {name} must be like the new tokens', "
            f"{list(new.shape)} {new.dtype}, got {list(held.shape)} {held.dtype}"
        )


def _buffer(tokens: Tensor, capacity: int) -> Tensor:
    batch, heads, _, dim = tokens.shape
    with torch.inference_mode(False):  # a buffer made inside could only be written to inside
        return tokens.new_empty(batch, capacity, heads, dim)
