"""Every option of the attention ops with every other, pair by pair."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from attention_calls import Call, check_forward
from strategies import DTYPES, randn
from test_attention_paged import paged_call
from test_attention_varlen import packing
from torch import Tensor

FACTORS: dict[str, tuple[Any, ...]] = {
    "op": ("attention", "attention_varlen", "paged_attention"),
    "causal": (False, True),
    "window": ((-1, -1), (9, -1), (-1, 3), (20, 0)),
    "softcap": (0.0, 2.0),
    "sinks": (False, True),
    "slopes": ("none", "head", "batch"),
    "bias": ("none", "bool", "float", "float of keys", "-inf"),
    "group": (1, 3, 5, 8, 71),
    "dims": ((16, 16), (40, 24), (17, 64)),
    "dtype": DTYPES,
    "queries": (1, 2, 6, 33, 70),
}
Case = dict[str, Any]


def pairs(case: Case) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))


def covering(factors: dict[str, tuple[Any, ...]], tries: int = 30) -> list[Case]:
    """Cases that hold every pair of values of every two factors, few of them: each is the best of
    some random ones that begin with a pair not yet met."""
    generator = random.Random(1)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(sorted(factors), 2)
        for x, y in itertools.product(factors[a], factors[b])
    }
    cases = []
    while missing:
        pair = min(missing, key=repr)
        candidates = [
            {**{n: generator.choice(values) for n, values in factors.items()}, **dict(pair)}
            for _ in range(tries)
        ]
        best = max(candidates, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        cases.append(best)
    return cases


CASES = covering(FACTORS)


def test_the_cases_hold_every_pair_and_are_few() -> None:
    met = set().union(*(pairs(case) for case in CASES))
    wanted = sum(len(a) * len(b) for a, b in itertools.combinations(FACTORS.values(), 2))
    assert len(met) == wanted
    assert len(CASES) <= 60


def bias_of(kind: str, scores: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    values = randn(scores, dtype, 11)
    return {
        "none": None,
        "bool": values > -0.5,
        "float": values,
        "float of keys": randn((scores[0], 1, 1, scores[3]), dtype, 11),
        "-inf": values.masked_fill(values > 1, -math.inf),
    }[kind]


def call_of(case: Case) -> Call:
    """Three sequences, of the case's queries, of one query and of none, over more keys."""
    kv_heads = 1 if case["group"] == 71 else 2
    heads, (dim, value_dim), dtype = kv_heads * case["group"], case["dims"], case["dtype"]
    lengths = [(case["queries"], case["queries"] + 50), (1, 38), (0, 3)]
    options = {}
    if case["op"] == "attention":
        batch, queries, keys = 2, *lengths[0]
        tensors: dict[str, Tensor | None] = {
            "q": randn((batch, heads, queries, dim), dtype, 1, "transposed"),
            "k": randn((batch, kv_heads, keys, dim), dtype, 2),
            "v": randn((batch, kv_heads, keys, value_dim), dtype, 3, "sliced"),
        }
    elif case["op"] == "attention_varlen":
        batch, queries, keys = 3, *lengths[0]
        starts, options = packing(lengths)
        tensors = {
            "q": randn((sum(q for q, _ in lengths), heads, dim), dtype, 1, "sliced"),
            "k": randn((sum(k for _, k in lengths), kv_heads, dim), dtype, 2),
            "v": randn((sum(k for _, k in lengths), kv_heads, value_dim), dtype, 3, "transposed"),
            **starts,
        }
    else:
        sizes = {"kv_heads": kv_heads, "group": case["group"], "dims": case["dims"]}
        paged = paged_call(lengths, 16, dtype, **sizes)
        tensors, options = paged.tensors, paged.options
        table = tensors["block_table"]
        assert table is not None
        batch, queries, keys = 3, case["queries"], 16 * table.shape[1]
    slopes = randn((heads,) if case["slopes"] == "head" else (batch, heads), seed=5).abs()
    left, right = case["window"]
    extra = {
        "bias": bias_of(case["bias"], (batch, heads, queries, keys), dtype),
        "sinks": randn((heads,), dtype, 4) if case["sinks"] else None,
        "alibi_slopes": None if case["slopes"] == "none" else slopes * 0.1,
    }
    return Call(
        {**tensors, **extra},
        {
            **options,
            "causal": case["causal"],
            "window_left": left,
            "window_right": right,
            "softcap": case["softcap"],
        },
        case["op"],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_forward(case: Case) -> None:
    check_forward(call_of(case))
