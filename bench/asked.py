"""Sections that the command line asks for: the shapes of a model by name, or one shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn

from bench import norm, peers, rope
from bench.attention.forward import forward
from bench.attention.problem import Problem
from bench.case import Case
from bench.gemm.linear import linear
from bench.section import Section
from lanewise.explain.presets import PRESETS
from lanewise.explain.run import build
from lanewise.nn import Attention, LayerNorm, RMSNorm

# One token, a few sequences' tokens, and a prompt; keys that a new token looks back on.
ROWS = (1, 16, 512)
CONTEXT = 4096
# Operands are drawn in float32, cast, packed, and solved in float32 or float64 to be checked.
COPIES = 3

Points = Iterator[Callable[..., Case]]


@dataclass(frozen=True)
class Family:
    """How the cases of a family follow from a model, or from a shape: its form in words and as a
    pattern, whose groups are the arguments."""

    form: str
    pattern: str
    elements: Callable[..., float]  # of all operands and results of a shape
    of_model: Callable[[nn.Module], Points]
    of_shape: Callable[..., Points]


def sections(
    families: Iterable[str], models: Sequence[str], shapes: Sequence[str], dtypes: Sequence[str]
) -> dict[str, list[Section]]:
    """One section per family and model or shape.

    Raises:
        ValueError: a family has no such cases, a model is unknown, or a shape is not of the
            family's form.
    """
    found: dict[str, list[Section]] = {}

    def add(family: str, title: str, points: Points) -> None:
        builders = [partial(_built, build, dtype) for build in points for dtype in dtypes]
        if builders:
            found.setdefault(family, []).append(Section(title, builders))

    for name in families:
        if name not in FAMILIES:
            raise ValueError(
                f"family must be one of {', '.join(FAMILIES)} with --model or --shape, got '{name}'"
            )
        family = FAMILIES[name]
        for model in models:
            if model not in PRESETS:
                raise ValueError(f"model must be one of {', '.join(PRESETS)}, got '{model}'")
            add(name, f"{name} of {model}", family.of_model(build(PRESETS[model], torch.float32)))
        for shape in shapes:
            matched = re.fullmatch(family.pattern, shape)
            if not matched or any(n is not None and int(n) < 1 for n in matched.groups()):
                raise ValueError(
                    f"shape must be {family.form} for {name}, in numbers above 0, got '{shape}'"
                )
            extents = [None if n is None else int(n) for n in matched.groups()]
            _require_memory(shape, COPIES * family.elements(*extents) * 4)
            add(name, f"{name} {shape}", family.of_shape(*extents))
    return found


def _require_memory(shape: str, need: float) -> None:
    free = psutil.virtual_memory().available
    if need > free:
        raise ValueError(
            f"shape {shape} needs {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB "
            "are free"
        )


def _built(build: Callable[..., Case], dtype: str) -> Case:
    return build(dtype=getattr(torch, dtype))


def _linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Case:
    return linear(rows, inputs, outputs, dtype, peers.ALL)


def _products(model: nn.Module) -> Points:
    shapes = dict.fromkeys(
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)
    )
    for rows in ROWS:
        for inputs, outputs in shapes:
            yield partial(_linear, rows, inputs, outputs)


def _product(rows: int, inputs: int, outputs: int) -> Points:
    yield partial(_linear, rows, inputs, outputs)


def _attentions(model: nn.Module) -> Points:
    config: Any = model.config
    most = getattr(config, "max_positions", None) or config.max_position_embeddings
    problems: dict[Problem, None] = {}
    for m in model.modules():
        if isinstance(m, Attention):
            heads = (m.num_heads, m.num_kv_heads)
            tokens, window = min(2048, most), m.window_left + 1
            problems[Problem(1, *heads, tokens, tokens, m.head_dim, m.causal, window)] = None
            if m.causal:
                problems[Problem(1, *heads, 1, min(CONTEXT, most), m.head_dim)] = None
    for problem in problems:
        yield partial(forward, problem, names=peers.ALL)


def _attention(
    batch: int, heads: int, kv_heads: int | None, queries: int, keys: int | None, size: int
) -> Points:
    causal = queries > 1  # a single query sees every key
    problem = Problem(batch, heads, kv_heads or heads, queries, keys or queries, size, causal)
    yield partial(forward, problem, names=peers.ALL)


def _norms(model: nn.Module) -> Points:
    found = dict.fromkeys(
        (norm.layer_norm if isinstance(m, LayerNorm) else norm.rms_norm, m.weight.numel())
        for m in model.modules()
        if isinstance(m, LayerNorm | RMSNorm) and m.weight is not None
    )
    for rows in ROWS:
        for make, size in found:
            yield partial(make, rows, size)


def _norm(rows: int, columns: int) -> Points:
    for make in (norm.layer_norm, norm.rms_norm, norm.add_rms_norm):
        yield partial(make, rows, columns)


def _ropes(model: nn.Module) -> Points:
    attentions = [m for m in model.modules() if isinstance(m, Attention) and m.rotary is not None]
    for heads, size in dict.fromkeys((m.num_heads, m.head_dim) for m in attentions):
        for tokens in ROWS:
            yield partial(rope.rotate, 1, heads, tokens, size)


def _rope(batch: int, heads: int, tokens: int, size: int) -> Points:
    yield partial(rope.rotate, batch, heads, tokens, size)


FAMILIES = {
    "gemm": Family(
        "MxKxN",
        r"(\d+)x(\d+)x(\d+)",
        lambda m, k, n: m * k + k * n + m * n,
        _products,
        _product,
    ),
    "attention": Family(
        "BxHxSxD, or BxH/HkvxSqxSkxD",
        r"(\d+)x(\d+)(?:/(\d+))?x(\d+)(?:x(\d+))?x(\d+)",
        lambda b, h, kv, q, k, d: 2.0 * b * d * (h * q + (kv or h) * (k or q)),
        _attentions,
        _attention,
    ),
    "norm": Family(
        "ROWSxCOLUMNS", r"(\d+)x(\d+)", lambda rows, columns: 3.0 * rows * columns, _norms, _norm
    ),
    "rope": Family(
        "BxHxSxD",
        r"(\d+)x(\d+)x(\d+)x(\d+)",
        lambda b, h, s, d: 2.0 * b * h * s * d,
        _ropes,
        _rope,
    ),
}
