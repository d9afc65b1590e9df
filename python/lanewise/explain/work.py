"""What a call of an op computes and moves at least, from the shapes of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """Multiplications and additions, and bytes that must be read or written once.

    ``weights`` are bytes of parameters, ``cache`` of keys and values of a cache, ``activations`` of
    everything else.
    """

    flops: float = 0.0
    weights: float = 0.0
    activations: float = 0.0
    cache: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weights + self.activations + self.cache

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


@dataclass(frozen=True)
class Sequences:
    """The lengths that ops over a cache have as numbers in tensors: ``batch`` sequences of
    ``queries`` new tokens, with ``keys`` tokens each, the new ones included."""

    batch: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Call:
    """A call of an op: its arguments by name, its outputs, and which tensors are parameters."""

    arguments: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    is_weight: Callable[[Tensor], bool]
    sequences: Sequences

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)


def visible(queries: int, keys: int, causal: bool, left: int, right: int) -> int:
    """Pairs of query and key that a mask lets through; the last query stands at the last key."""
    right = 0 if causal else right
    apart = keys - queries
    total = 0
    if left < 0 and right < 0:
        return queries * keys
    for query in range(queries):
        first = 0 if left < 0 else max(0, query + apart - left)
        last = keys - 1 if right < 0 else min(keys - 1, query + apart + right)
        total += max(0, last - first + 1)
    return total


def _product(rows: float, columns: float, depth: float) -> float:
    return 2.0 * rows * columns * depth


def _linear(call: Call, weights: int = 1) -> float:
    rows, depth = call["x"].shape[:-1].numel(), call["x"].shape[-1]
    return weights * _product(rows, call.outputs[0].shape[-1], depth)


def _linear_backward(call: Call, weights: int = 1) -> float:
    rows, depth = call["x"].shape[:-1].numel(), call["x"].shape[-1]
    one = _product(rows, call["grad"].shape[-1], depth)
    return weights * one * (int(call["needs_x"]) + int(call["needs_weight"]))


def _matmul(call: Call) -> float:
    return 2.0 * call.outputs[0].numel() * call["a"].shape[-1]


def _pairs(call: Call, queries: int, keys: int) -> int:
    left = -1 if call["window_left"] is None else call["window_left"]
    right = -1 if call["window_right"] is None else call["window_right"]
    return visible(queries, keys, bool(call["causal"]), left, right)


def _attention(call: Call) -> float:
    q, v = call["q"], call["v"]
    pairs = _pairs(call, q.shape[2], v.shape[2])
    return 2.0 * q.shape[0] * q.shape[1] * pairs * (q.shape[3] + v.shape[3])


def _attention_backward(call: Call) -> float:
    """Five products where forward has two (Dao 2023, FlashAttention-2): three over the head size
    of queries and keys, two over that of values."""
    q, v = call["q"], call["v"]
    pairs = _pairs(call, q.shape[2], v.shape[2])
    return 2.0 * q.shape[0] * q.shape[1] * pairs * (3 * q.shape[3] + 2 * v.shape[3])


def _paged_attention(call: Call) -> float:
    q, v, s = call["q"], call["v_cache"], call.sequences
    pairs = s.batch * _pairs(call, s.queries, s.keys)
    return 2.0 * q.shape[1] * pairs * (q.shape[2] + v.shape[3])


FLOPS: dict[str, Callable[[Call], float]] = {
    "lanewise::matmul": _matmul,
    "lanewise::linear": _linear,
    "lanewise::linear_packed": _linear,
    "lanewise::linear_backward": _linear_backward,
    "lanewise::gated_linear": lambda call: _linear(call, 2),
    "lanewise::gated_linear_packed": lambda call: _linear(call, 2),
    "lanewise::gated_linear_for_backward": lambda call: _linear(call, 2),
    "lanewise::gated_linear_backward": lambda call: _linear_backward(call, 2),
    "lanewise::attention": _attention,
    "lanewise::attention_backward": _attention_backward,
    "lanewise::paged_attention": _paged_attention,
    # Sum of squares, the factor and the weight; with a mean, its sum and the difference too.
    "lanewise::rms_norm": lambda call: 4.0 * call.outputs[0].numel(),
    "lanewise::add_rms_norm": lambda call: 5.0 * call.outputs[0].numel(),
    "lanewise::layer_norm": lambda call: 7.0 * call.outputs[0].numel(),
    "lanewise::add_layer_norm": lambda call: 8.0 * call.outputs[0].numel(),
    # Two products and a sum per element that is rotated.
    "lanewise::rope": lambda call: 3.0 * call["x"][..., : 2 * call["cos"].shape[-1]].numel(),
}


def work_of(op: str, call: Call) -> Work:
    """The least that a call of ``op`` (``namespace::name``) computes and moves."""
    if op in FLOPS:
        flops = FLOPS[op](call)
    elif op.startswith("aten::") and op.removeprefix("aten::") not in _MOVES:
        flops = float(sum(t.numel() for t in call.outputs))
    else:
        flops = 0.0
    read = list(tensors_in(call.arguments.values()))
    written = list(call.outputs)
    weights = sum(_nbytes(t) for t in read if call.is_weight(t))
    activations = sum(_nbytes(t) for t in (*read, *written) if not call.is_weight(t))
    cache = 0.0
    if op == "lanewise::paged_attention":
        s = call.sequences
        caches = (call["k_cache"], call["v_cache"])
        token = sum(c.shape[2:].numel() * c.element_size() for c in caches)
        seen = (
            s.keys
            if call["window_left"] in (None, -1)
            else min(s.keys, s.queries + call["window_left"])
        )
        cache = float(s.batch * seen * token)
        activations -= sum(_nbytes(c) for c in caches)
    elif op == "lanewise::paged_cache_write":
        cache = float(_nbytes(call["k"]) + _nbytes(call["v"]))
        activations -= _nbytes(call["k_cache"]) + _nbytes(call["v_cache"])
    elif op == "aten::embedding":  # only the rows that are asked for
        rows = float(_nbytes(written[0]))
        return Work(0.0, rows, rows, 0.0)
    return Work(flops, float(weights), float(activations), cache)


# Ops of torch that move elements and compute none.
_MOVES = {
    *("cat", "copy_", "_to_copy", "clone", "index", "index_select", "embedding", "fill_", "zero_"),
    *("zeros", "ones", "zeros_like", "ones_like", "new_zeros", "arange", "scatter", "gather"),
    *("slice_backward", "select_backward", "index_put_", "constant_pad_nd", "to", "contiguous"),
    *("reshape", "flatten"),
}


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among ``values`` and in the lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _nbytes(t: Tensor) -> int:
    """Of the elements that are there in memory: an expanded one is there once."""
    there = [n for n, stride in zip(t.shape, t.stride(), strict=True) if stride != 0]
    if 0 in t.shape:
        return 0
    return math.prod(there) * torch.empty((), dtype=t.dtype).element_size()
