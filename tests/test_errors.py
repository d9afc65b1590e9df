"""Every bad argument of every op: one sentence that names the op, the argument and what came."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import PUBLIC, Arguments, backward_sample, call, sample
from strategies import or_interpreted, randn
from torch import Tensor
from torch.testing import assert_close

import lanewise
from lanewise import _host


@dataclass(frozen=True)
class Bad:
    """A valid call of `op` with `argument` spoilt; the message must hold `argument` and `came`."""

    op: str
    argument: str
    came: str
    spoil: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.op}-{self.argument}-{self.came}"


def replaced(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def shaped(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda t: randn(shape, t.dtype)


def apart(t: Tensor) -> Tensor:
    """The same values, every other element of the last dimension."""
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def wrong_dtypes(op: str, *arguments: str) -> list[Bad]:
    return [
        case
        for name in arguments
        for case in (
            Bad(op, name, "float64", Tensor.double),
            Bad(op, name, "int64", Tensor.long),
        )
    ]


def other_dtypes(op: str, *arguments: str) -> list[Bad]:
    """A dtype the op knows, but not that of its other arguments."""
    return [Bad(op, name, "bfloat16", Tensor.bfloat16) for name in arguments]


def wrong_strides(op: str, *arguments: str) -> list[Bad]:
    return [Bad(op, name, "stride 2", apart) for name in arguments]


def wrong_shapes(op: str, argument: str, *shapes: tuple[int, ...]) -> list[Bad]:
    return [Bad(op, argument, str(list(shape)), shaped(*shape)) for shape in shapes]


def not_finite(op: str, *arguments: str) -> list[Bad]:
    return [
        Bad(op, name, str(value), replaced(value))
        for name in arguments
        for value in (math.nan, math.inf, -math.inf)
    ]


ATTENTION = [
    *wrong_dtypes("attention", "q", "k", "v", "bias", "sinks", "alibi_slopes"),
    *other_dtypes("attention", "k", "v"),
    *wrong_strides("attention", "q", "k", "v"),
    *(case for name in "qkv" for case in wrong_shapes("attention", name, (6, 5, 8), (8,), ())),
    *wrong_shapes("attention", "bias", (3, 7), (2, 5, 5, 7), (1, 2, 1, 5, 7), (8,)),
    *wrong_shapes("attention", "sinks", (5,), (1,), (2, 6), ()),
    *wrong_shapes("attention", "alibi_slopes", (5,), (3, 6), (2, 5), (1, 2, 6), ()),
    Bad("attention", "q", "513", shaped(2, 6, 5, 513)),
    Bad("attention", "q", "0", shaped(2, 6, 5, 0)),
    Bad("attention", "k", "batch", shaped(3, 2, 7, 8)),
    Bad("attention", "k", "4 heads", shaped(2, 4, 7, 8)),
    Bad("attention", "k", "0 heads", shaped(2, 0, 7, 8)),
    Bad("attention", "k", "16", shaped(2, 2, 7, 16)),
    Bad("attention", "v", "batch", shaped(1, 2, 7, 4)),
    Bad("attention", "v", "3 heads", shaped(2, 3, 7, 4)),
    Bad("attention", "v", "6", shaped(2, 2, 6, 4)),
    Bad("attention", "v", "513", shaped(2, 2, 7, 513)),
    Bad("attention", "v", "0", shaped(2, 2, 7, 0)),
    *not_finite("attention", "softcap", "scale"),
    Bad("attention", "softcap", "-1", replaced(-1.0)),
    Bad("attention", "window_left", "-2", replaced(-2)),
    Bad("attention", "window_right", "-7", replaced(-7)),
]


def counts(*values: int, dtype: torch.dtype = torch.int32) -> Callable[[Any], Tensor]:
    return replaced(torch.tensor(values, dtype=dtype))


def changed(index: Any, value: int) -> Callable[[Tensor], Tensor]:
    """The same tensor but for one element."""
    return lambda t: t.index_put([torch.tensor(i) for i in index], torch.tensor(value).to(t.dtype))


def option_cases(op: str) -> list[Bad]:
    """Of the options that the ops over packed queries share, for 3 sequences at most."""
    return [
        *wrong_dtypes(op, "bias", "sinks", "alibi_slopes"),
        *wrong_shapes(op, "bias", (4, 12), (5, 5, 7), (4, 1, 5, 7), (1, 2, 1, 5, 7)),
        *wrong_shapes(op, "sinks", (5,), (1,), (2, 6), ()),
        *wrong_shapes(op, "alibi_slopes", (5,), (4, 6), (2, 5), (1, 2, 6), ()),
        *not_finite(op, "softcap", "scale"),
        Bad(op, "softcap", "-1", replaced(-1.0)),
        Bad(op, "window_left", "-2", replaced(-2)),
        Bad(op, "window_right", "-7", replaced(-7)),
    ]


def start_cases(op: str, name: str, longest: str, right: list[int]) -> list[Bad]:
    """Of cumulative lengths whose right values are `right`, and of the bound of the lengths."""
    total = right[-1]
    return [
        Bad(op, name, "float32", Tensor.float),
        Bad(op, name, "uint8", Tensor.byte),
        *wrong_shapes(op, name, (2, 3), (), (0,)),
        Bad(op, name, "start at 0, got 1", counts(1, *right[1:])),
        Bad(op, name, "start at 0, got -1", counts(-1, *right[1:])),
        Bad(op, name, f"got {total} before {total - 1}", counts(0, total, total - 1, total)),
        Bad(op, name, f"{total} tokens, got {total - 1}", counts(*right[:-1], total - 1)),
        Bad(op, name, f"{total} tokens, got {total + 1}", counts(*right[:-1], total + 1)),
        Bad(op, name, f"{total} tokens, got 0", counts(0)),
        Bad(op, name, f"got {2**62}", counts(*right[:-1], 2**62, dtype=torch.int64)),
        Bad(op, longest, "3", replaced(3)),
        Bad(op, longest, "negative, got -1", replaced(-1)),
    ]


VARLEN = [
    *wrong_dtypes("attention_varlen", "q", "k", "v"),
    *other_dtypes("attention_varlen", "k", "v"),
    *wrong_strides("attention_varlen", "q", "k", "v"),
    *(c for n in "qkv" for c in wrong_shapes("attention_varlen", n, (1, 6, 6, 8), (6, 8), ())),
    Bad("attention_varlen", "q", "513", shaped(6, 6, 513)),
    Bad("attention_varlen", "q", "got 0", shaped(6, 6, 0)),
    Bad("attention_varlen", "k", "4 heads", shaped(9, 4, 8)),
    Bad("attention_varlen", "k", "0 heads", shaped(9, 0, 8)),
    Bad("attention_varlen", "k", "16", shaped(9, 2, 16)),
    Bad("attention_varlen", "v", "3 heads", shaped(9, 3, 4)),
    Bad("attention_varlen", "v", "8 tokens", shaped(8, 2, 4)),
    Bad("attention_varlen", "v", "513", shaped(9, 2, 513)),
    *start_cases("attention_varlen", "cu_seqlens_q", "max_seqlen_q", [0, 5, 5, 6]),
    *start_cases("attention_varlen", "cu_seqlens_k", "max_seqlen_k", [0, 6, 8, 9]),
    Bad("attention_varlen", "cu_seqlens_k", "2 sequences", counts(0, 6, 9)),
    *option_cases("attention_varlen"),
]

PAGED = [
    *wrong_dtypes("paged_attention", "q", "k_cache", "v_cache"),
    *other_dtypes("paged_attention", "k_cache", "v_cache"),
    *wrong_strides("paged_attention", "q", "k_cache", "v_cache"),
    *wrong_shapes("paged_attention", "q", (1, 6, 6, 8), (6, 8), ()),
    *wrong_shapes("paged_attention", "k_cache", (5, 2, 8), (8,), (1, 5, 4, 2, 8), (5, 0, 2, 8)),
    *wrong_shapes("paged_attention", "v_cache", (5, 2, 3), (8,), (1, 5, 4, 2, 3)),
    Bad("paged_attention", "q", "513", shaped(6, 6, 513)),
    Bad("paged_attention", "k_cache", "4 heads", shaped(5, 4, 4, 8)),
    Bad("paged_attention", "k_cache", "16", shaped(5, 4, 2, 16)),
    Bad("paged_attention", "v_cache", "3 heads", shaped(5, 4, 3, 3)),
    Bad("paged_attention", "v_cache", "4 blocks", shaped(4, 4, 2, 3)),
    Bad("paged_attention", "v_cache", "blocks of 3", shaped(5, 3, 2, 3)),
    *start_cases("paged_attention", "cu_seqlens_q", "max_seqlen_q", [0, 5, 6]),
    Bad("paged_attention", "block_table", "int64", Tensor.long),
    Bad("paged_attention", "block_table", "float32", Tensor.float),
    *wrong_shapes("paged_attention", "block_table", (3, 3), (2,), (1, 2, 3), ()),
    Bad("paged_attention", "block_table", "got -1 for block 1 of sequence 0", changed((0, 1), -1)),
    Bad("paged_attention", "block_table", "5 blocks, got 5 for block 2", changed((1, 2), 5)),
    Bad("paged_attention", "block_table", "2 blocks of 4", lambda t: t[:, :2]),
    Bad("paged_attention", "block_table", "0 blocks of 4", lambda t: t[:, :0]),
    Bad("paged_attention", "context_lens", "int64", Tensor.long),
    *wrong_shapes("paged_attention", "context_lens", (3,), (1, 2), ()),
    Bad("paged_attention", "context_lens", "got -1 for sequence 0", counts(-1, 9)),
    Bad("paged_attention", "context_lens", "4 keys for sequence 0", counts(4, 9)),
    Bad("paged_attention", "context_lens", "13 keys for sequence 1", counts(7, 13)),
    Bad("paged_attention", "context_lens", str(2**31 - 1), counts(7, 2**31 - 1)),
    *option_cases("paged_attention"),
    *wrong_dtypes("paged_cache_write", "k", "v", "k_cache", "v_cache"),
    *other_dtypes("paged_cache_write", "v", "k_cache", "v_cache"),
    *wrong_strides("paged_cache_write", "k", "v", "k_cache", "v_cache"),
    *wrong_shapes("paged_cache_write", "k", (1, 4, 2, 8), (8,), ()),
    *wrong_shapes("paged_cache_write", "v", (1, 4, 2, 3), (3,), ()),
    *wrong_shapes("paged_cache_write", "k_cache", (15, 2, 8), (8,), ()),
    *wrong_shapes("paged_cache_write", "v_cache", (15, 2, 3), (3,), ()),
    Bad("paged_cache_write", "k", "7", shaped(4, 2, 7)),
    Bad("paged_cache_write", "v", "3 tokens", shaped(3, 2, 3)),
    Bad("paged_cache_write", "v", "3 heads", shaped(4, 3, 3)),
    Bad("paged_cache_write", "k_cache", "4 heads", shaped(5, 3, 4, 8)),
    Bad("paged_cache_write", "k_cache", "[5, 0, 2, 8]", shaped(5, 0, 2, 8)),
    Bad("paged_cache_write", "k_cache", "head size 9", shaped(5, 3, 2, 9)),
    Bad("paged_cache_write", "v_cache", "4 blocks", shaped(4, 3, 2, 3)),
    Bad("paged_cache_write", "v_cache", "blocks of 4", shaped(5, 4, 2, 3)),
    Bad("paged_cache_write", "k_cache", "dimension 0", lambda t: t[:1].expand(t.shape)),
    Bad("paged_cache_write", "v_cache", "dimension 1", lambda t: t[:, :1].expand(t.shape)),
    Bad("paged_cache_write", "slots", "int32", Tensor.int),
    Bad("paged_cache_write", "slots", "float32", Tensor.float),
    *wrong_shapes("paged_cache_write", "slots", (3,), (4, 1), ()),
    Bad("paged_cache_write", "slots", "got -2 for token 1", changed((1,), -2)),
    Bad("paged_cache_write", "slots", "15 places, got 15 for token 3", changed((3,), 15)),
    Bad("paged_cache_write", "slots", str(-(2**63)), changed((3,), -(2**63))),
    Bad("paged_cache_write", "slots", "got 14 for tokens 2 and 3", changed((3,), 14)),
]


def linear_cases(op: str) -> list[Bad]:
    return [
        *wrong_dtypes(op, "x", "bias", "residual"),
        *other_dtypes(op, "bias", "residual"),
        *wrong_strides(op, "residual"),
        *wrong_shapes(op, "x", ()),
        Bad(op, "x", "7", shaped(2, 3, 7)),
        Bad(op, "bias", "4", shaped(4)),
        *wrong_shapes(op, "bias", (1, 5), ()),
        *wrong_shapes(op, "residual", (2, 3, 4), (3, 2, 5), (2, 2, 3, 5), ()),
        Bad(op, "activation", "swish", replaced("swish")),
        Bad(op, "activation", "''", replaced("")),
        Bad(op, "activation", "GELU", replaced("GELU")),
    ]


def gated_cases(op: str) -> list[Bad]:
    return [
        *wrong_dtypes(op, "x", "gate_bias", "up_bias"),
        *other_dtypes(op, "gate_bias", "up_bias"),
        *wrong_shapes(op, "x", ()),
        Bad(op, "x", "7", shaped(2, 3, 7)),
        Bad(op, "gate_bias", "4", shaped(4)),
        *wrong_shapes(op, "gate_bias", (1, 5), ()),
        Bad(op, "up_bias", "4", shaped(4)),
        *wrong_shapes(op, "up_bias", (1, 5), ()),
        Bad(op, "activation", "swiglu", replaced("swiglu")),
    ]


def packed(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    return lambda _: lanewise.pack_weight(randn(shape, dtype))


def packed_cases(op: str, *weights: str) -> list[Bad]:
    return [
        case
        for name in weights
        for case in (
            Bad(op, name, "float32", shaped_float(5, 8)),
            Bad(op, name, "[1, 5, ", lambda t: t[None]),
            Bad(op, name, "", lambda t: t[:3]),
            Bad(op, name, "", lambda t: t[:, :-1]),
            Bad(op, name, "", lambda t: t[:, :-1].contiguous()),
            Bad(op, name, "", lambda t: t[:, : t.shape[1] // 2].contiguous()),
            Bad(op, name, "", lambda t: t[:, :0]),
            Bad(op, name, "", lambda t: torch.cat([t, t])),
            Bad(op, name, "", lambda t: torch.cat([t, t], 1)),
            Bad(op, name, "", lambda t: t.mT.contiguous()),
            Bad(op, name, "", lambda t: t.mT.contiguous().mT),
            Bad(op, name, "", torch.zeros_like),
            Bad(op, name, "", lambda t: t.flip(0)),
            Bad(op, name, "", apart),
            Bad(op, name, "bfloat16", packed(5, 8, dtype=torch.bfloat16)),
            Bad(op, name, "9", packed(5, 9)),
        )
    ]


def shaped_float(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda _: randn(shape)


GEMM = [
    *linear_cases("linear"),
    *wrong_dtypes("linear", "weight"),
    *other_dtypes("linear", "weight"),
    *wrong_shapes("linear", "weight", (8,), (1, 5, 8), ()),
    Bad("linear", "weight", "9", shaped(5, 9)),
    *gated_cases("gated_linear"),
    *wrong_dtypes("gated_linear", "gate", "up"),
    *other_dtypes("gated_linear", "gate", "up"),
    *wrong_shapes("gated_linear", "gate", (8,), (1, 5, 8)),
    *wrong_shapes("gated_linear", "up", (8,), (1, 5, 8)),
    Bad("gated_linear", "gate", "9", shaped(5, 9)),
    Bad("gated_linear", "up", "9", shaped(5, 9)),
    Bad("gated_linear", "up", "6", shaped(6, 8)),
    *wrong_dtypes("matmul", "a", "b"),
    *other_dtypes("matmul", "b"),
    *wrong_shapes("matmul", "a", (8,), ()),
    *wrong_shapes("matmul", "b", (8,), ()),
    Bad("matmul", "b", "9", shaped(2, 9, 5)),
    Bad("matmul", "b", "3", shaped(3, 8, 5)),
    *wrong_dtypes("pack_weight", "weight"),
    *wrong_shapes("pack_weight", "weight", (8,), (1, 5, 8), ()),
    *linear_cases("linear_packed"),
    *packed_cases("linear_packed", "weight"),
    *gated_cases("gated_linear_packed"),
    *packed_cases("gated_linear_packed", "gate", "up"),
    Bad("gated_linear_packed", "up", "6", packed(6, 8)),
]


def norm_cases(op: str) -> list[Bad]:
    columns = ["weight", "bias"] if "layer" in op else ["weight"]
    cases = [
        *wrong_dtypes(op, "x", *columns),
        *wrong_strides(op, "x", *columns),
        *wrong_shapes(op, "x", ()),
        *(case for name in columns for case in wrong_shapes(op, name, (7,), (1, 8), ())),
        *not_finite(op, "eps"),
        Bad(op, "eps", "-1", replaced(-1.0)),
    ]
    if "rms" in op:
        cases += not_finite(op, "weight_offset")
    if op.startswith("add_"):
        cases += [
            *wrong_dtypes(op, "residual"),
            *other_dtypes(op, "residual"),
            *wrong_strides(op, "residual"),
            *wrong_shapes(op, "residual", (2, 3, 7), (3, 8), (8,), (1, 3, 8)),
        ]
    return cases


NORM = [case for op in PUBLIC if op.endswith("norm") for case in norm_cases(op)]

ROPE = [
    *wrong_dtypes("rope", "x", "cos", "sin"),
    *other_dtypes("rope", "cos", "sin"),
    *wrong_strides("rope", "x", "cos", "sin"),
    *wrong_shapes("rope", "x", (3, 4, 8), (1, 2, 3, 4, 8)),
    *wrong_shapes("rope", "cos", (3,), (1, 2, 4, 3)),
    *wrong_shapes("rope", "sin", (3,), (1, 2, 4, 3)),
    Bad("rope", "cos", "5 positions", shaped(5, 3)),
    Bad("rope", "sin", "5 positions", shaped(5, 3)),
    Bad("rope", "cos", "batch", shaped(3, 4, 3)),
    Bad("rope", "sin", "batch", shaped(3, 4, 3)),
    Bad("rope", "cos", "10", shaped(4, 5)),
    Bad("rope", "sin", "2 pairs", shaped(4, 2)),
]

WEIGHTS = {"qkv": (21, 16), "o": (16, 6), "up": (12, 16), "down": (16, 12), "gate": (12, 16)}
NORMS = [
    *("attention_norm", "attention_norm_bias", "mlp_norm", "mlp_norm_bias"),
    *("attention_post_norm", "mlp_post_norm"),
]
LAYER = [
    *wrong_dtypes("decoder_layer", "x", *WEIGHTS, *NORMS, "q_norm", "k_norm", "cos", "sin"),
    *other_dtypes("decoder_layer", *WEIGHTS, "k_cache", "v_cache", "cos", "sin"),
    *wrong_strides("decoder_layer", "x", *NORMS, "cos", "sin", "k_cache", "v_cache"),
    *wrong_shapes("decoder_layer", "x", (16,), (1, 3, 16)),
    *wrong_shapes("decoder_layer", "k_cache", (20, 1, 6), ()),
    *wrong_shapes("decoder_layer", "v_cache", (20, 1, 3), ()),
    Bad("decoder_layer", "v_cache", "4 blocks", shaped(4, 4, 1, 3)),
    *(
        case
        for name, (rows, columns) in WEIGHTS.items()
        for case in (
            *wrong_shapes("decoder_layer", name, (columns,), (1, rows, columns)),
            Bad("decoder_layer", name, str(columns + 1), shaped(rows, columns + 1)),
            Bad("decoder_layer", name, "header", lambda t: torch.zeros(2, 200, dtype=torch.uint8)),
        )
    ),
    Bad("decoder_layer", "qkv", "9 output", shaped(9, 16)),
    Bad("decoder_layer", "qkv", "22 output", shaped(22, 16)),
    Bad("decoder_layer", "o", "17", shaped(17, 6)),
    Bad("decoder_layer", "up", "13", shaped(13, 16)),
    Bad("decoder_layer", "down", "17", shaped(17, 12)),
    *(
        case
        for name in ("qkv_bias", "o_bias", "gate_bias", "up_bias", "down_bias")
        for case in (
            *wrong_dtypes("decoder_layer", name),
            *wrong_strides("decoder_layer", name),
            Bad("decoder_layer", name, "7", shaped(7)),
        )
    ),
    *(case for name in NORMS for case in wrong_shapes("decoder_layer", name, (7,), (1, 16), ())),
    *wrong_shapes("decoder_layer", "q_norm", (5,), (1, 6)),
    *wrong_shapes("decoder_layer", "k_norm", (5,), (1, 6)),
    *wrong_shapes("decoder_layer", "cos", (2, 2), (3, 4), (1, 3, 2)),
    *wrong_shapes("decoder_layer", "sin", (2, 2), (3, 4), (1, 3, 2)),
    Bad("decoder_layer", "sin", "1 pairs", shaped_float(3, 1)),
    Bad("decoder_layer", "sin", "together", replaced(None)),
    *wrong_shapes("decoder_layer", "sinks", (3,), (1, 2)),
    *wrong_dtypes("decoder_layer", "sinks"),
    Bad("decoder_layer", "cu_seqlens_q", "got 4", replaced(torch.tensor([0, 2, 4]))),
    Bad("decoder_layer", "max_seqlen_q", "1", replaced(1)),
    Bad("decoder_layer", "block_table", "got 9 for block 1", changed((0, 1), 9)),
    Bad("decoder_layer", "context_lens", "13 keys", changed((0,), 13)),
    Bad("decoder_layer", "slots", "got 20 for token 2", changed((2,), 20)),
    Bad("decoder_layer", "slots", "tokens 0 and 1", changed((1,), 5)),
    Bad("decoder_layer", "norm", "batch", replaced("batch")),
    Bad("decoder_layer", "norm", "rms", replaced("rms")),
    *not_finite("decoder_layer", "eps", "weight_offset", "softcap", "scale"),
    Bad("decoder_layer", "eps", "-1", replaced(-1.0)),
    Bad("decoder_layer", "softcap", "-1", replaced(-1.0)),
    Bad("decoder_layer", "activation", "swish", replaced("swish")),
    Bad("decoder_layer", "window_left", "-2", replaced(-2)),
]

TABLE = LAYER + ATTENTION + VARLEN + PAGED + GEMM + NORM + ROPE


def message_of(op: str, arguments: Arguments) -> str:
    with pytest.raises(RuntimeError) as error:
        getattr(torch.ops.lanewise, op)(**arguments)
    return str(error.value)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_bad_argument(case: Bad) -> None:
    arguments = sample(case.op)
    arguments[case.argument] = case.spoil(arguments.get(case.argument))
    message = message_of(case.op, arguments)
    assert message.startswith(f"lanewise.{case.op}: ")
    assert re.search(rf"\b{case.argument}\b", message), message
    assert case.came in message
    assert "\n" not in message


@pytest.mark.parametrize("op", PUBLIC)
def test_every_argument_has_a_case(op: str) -> None:
    """Flags cannot be wrong; everything else can."""
    schema = getattr(torch.ops.lanewise, op).default._schema
    arguments = {a.name for a in schema.arguments if str(a.type) != "bool"}
    assert arguments == {case.argument for case in TABLE if case.op == op}


@pytest.mark.parametrize("op", PUBLIC)
def test_the_good_call_is_good(op: str) -> None:
    """Or the table above would prove nothing."""
    arguments = sample(op)
    getattr(torch.ops.lanewise, op)(**arguments)
    getattr(lanewise, op)(**arguments)


@pytest.mark.parametrize("op", PUBLIC)
def test_tensors_on_two_devices(op: str) -> None:
    arguments = sample(op)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    for name in names if len(names) > 1 else []:
        message = message_of(op, {**arguments, name: arguments[name].to("meta")})
        assert message.startswith(f"lanewise.{op}: "), message
        assert "meta" in message
        assert "\n" not in message


# --- gradient ops: torch.ops lets anybody call them ----------------------------------------------

BACKWARD = tuple(
    f"{op}_backward"
    for op in (
        "attention",
        "attention_varlen",
        "linear",
        "gated_linear",
        "rms_norm",
        "layer_norm",
        "rope",
    )
)
SPOILS: dict[str, Callable[[Tensor], Tensor]] = {
    "float64": Tensor.double,
    "rank": lambda t: t[None, None, None],
    "first": lambda t: torch.cat([t, t]),
    "last": lambda t: torch.cat([t, t], -1),
    "none": lambda t: t[..., :0],
}
# A rotation's gradient may have any batch size, and any size of its part that is not rotated.
RIGHT = (("rope_backward", "grad", "first"), ("rope_backward", "grad", "last"))


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("op", BACKWARD)
def test_bad_argument_of_a_gradient_op(op: str, spoil: str) -> None:
    arguments = backward_sample(op)
    call(op, arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and (op, name, spoil) not in RIGHT:
            message = message_of(op, {**arguments, name: SPOILS[spoil](value)})
            assert re.match(rf"lanewise\.{op}: ", message), (name, message)
            assert "\n" not in message


# --- a storage may be resized under its tensors, as FSDP frees parameters ------------------------


def resized(t: Tensor, short: int) -> Tensor:
    """The same values at the end of a storage that then loses its last `short` bytes, or all."""
    room = torch.cat([t.new_zeros(3), t.flatten()])
    view = room[3:].view(t.shape)
    storage = room.untyped_storage()
    storage.resize_(storage.nbytes() - short if short else 0)
    return view


def any_sample(op: str) -> Arguments:
    if op == "gated_linear_for_backward":
        return sample("gated_linear")
    return backward_sample(op) if op in BACKWARD else sample(op)


@pytest.mark.cpu
@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("op", [*PUBLIC, *BACKWARD, "gated_linear_for_backward"])
def test_a_storage_too_small_is_refused(op: str, short: int) -> None:
    arguments = any_sample(op)
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        needed = (3 + value.numel()) * value.element_size()
        came = needed - short if short else 0
        message = message_of(op, {**arguments, name: resized(value, short)})
        assert message.startswith(f"lanewise.{op.removesuffix('_for_backward')}: {name} of shape ")
        assert f"at least {needed} bytes, got {came}" in message
        assert "\n" not in message


@pytest.mark.cpu
def test_a_backward_through_freed_weights_is_refused() -> None:
    x, weight = randn((3, 8)).requires_grad_(), randn((5, 8)).requires_grad_()
    loss = lanewise.linear(x, weight).sum()
    loss.backward(retain_graph=True)
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^lanewise\.linear_backward: weight .* got 0: "):
        loss.backward()


@pytest.mark.cpu
def test_storages_that_are_large_enough() -> None:
    """Whatever owns them, wherever the tensor begins, and whatever the strides of no elements."""
    x, weight = randn((3, 8)), randn((5, 8))
    expected = lanewise.linear(x, weight)
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(4) + weight.numpy().tobytes())
        file.flush()
        mapped = np.memmap(file.name, np.float32, mode="r", offset=4, shape=(5, 8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is read-only
            read_only = torch.from_numpy(mapped)
        assert_close(lanewise.linear(x, read_only), expected, rtol=0, atol=0)
    bytes_of = torch.cat([torch.zeros(4, dtype=torch.uint8), weight.flatten().view(torch.uint8)])
    inside = bytes_of[4:].view(torch.float32).view(5, 8)
    assert_close(lanewise.linear(x, inside), expected, rtol=0, atol=0)
    expanded = weight[:1].expand(5, 8)
    assert_close(lanewise.linear(x, expanded), lanewise.linear(x, expanded.clone()))
    nothing = torch.empty(0).as_strided((0, 2**40), (2**40, 1))
    assert lanewise.rms_norm(nothing).shape == nothing.shape


# --- packed buffers are untrusted ----------------------------------------------------------------


def test_every_truncation_is_refused() -> None:
    x, whole = randn((2, 20)), lanewise.pack_weight(randn((9, 20)))
    rows = [whole[:size].clone() for size in range(1, whole.shape[0])]
    columns = [whole[:, :size].clone() for size in range(whole.shape[1])]
    for truncated in rows + columns:
        with pytest.raises(RuntimeError, match=r"^lanewise\.linear_packed: weight "):
            lanewise.linear_packed(x, truncated)


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_a_corrupt_header_never_reads_out_of_bounds(bit: int) -> None:
    """Every byte in turn: refused, or (where it is a weight) a result of the right shape."""
    size = or_interpreted(20, 4)
    x, whole = randn((2, size)), lanewise.pack_weight(randn((9, size)))
    messages = []
    for i in range(whole.numel()):
        corrupt = whole.clone()
        corrupt.view(-1)[i] ^= 1 << bit
        try:
            assert lanewise.linear_packed(x, corrupt).shape == (2, 9)
        except RuntimeError as error:
            messages.append(str(error))
    assert len(messages) > 8
    assert all(m.startswith("lanewise.linear_packed: weight ") for m in messages)


OTHER_TARGETS = [
    name for name, usable in _host.targets().items() if usable and name not in ("wide", _host.isa())
]


@pytest.mark.cpu
@pytest.mark.parametrize("target", OTHER_TARGETS)
def test_a_buffer_for_another_instruction_set(target: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.pt"
    program = (
        "import sys, torch, lanewise;"
        "torch.save(lanewise.pack_weight(torch.ones(5, 8)), sys.argv[1])"
    )
    environment = {**os.environ, "LANEWISE_ISA": target}
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
    packed_there = torch.load(path)
    message = message_of("linear_packed", {"x": torch.ones(2, 8), "weight": packed_there})
    assert message.startswith("lanewise.linear_packed: weight ")
    assert target in message
    assert _host.isa() in message


# --- LANEWISE_ISA --------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.parametrize("value", ["sse9", "AVX2", "wide", "generic,avx2"])
def test_an_unknown_instruction_set_fails_the_import(value: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import lanewise"],
        env={**os.environ, "LANEWISE_ISA": value},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert re.search(rf"LANEWISE_ISA must be one of .*generic.*, got '{value}'", last), last
