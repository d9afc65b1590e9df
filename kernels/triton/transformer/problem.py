"""What the launcher of a layer checks of its arguments, in the words of csrc/transformer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import check
from ..gemm.arguments import require_weight
from ..gemm.packed_header import require_packed, rows_of
from ..norm.problem import check_columns

OP = "decoder_layer"


class Sizes(NamedTuple):
    """What the caches and the projection's weight say of the heads."""

    heads: int
    heads_kv: int
    size: int
    size_v: int


def check_x(x: Tensor, k_cache: Tensor, v_cache: Tensor, norm: str) -> None:
    check.require_floating(OP, "x", x)
    check.require_rank(OP, "x", x, 2)
    check.require_unit_stride(OP, "x", x)
    check.require_rank(OP, "k_cache", k_cache, 4)
    check.require_rank(OP, "v_cache", v_cache, 4)
    check.require(norm in ("rms", "layer"), OP, f"norm must be rms or layer, got '{norm}'")


def sizes_of(qkv: Tensor, k_cache: Tensor, v_cache: Tensor) -> Sizes:
    heads_kv, size, size_v = k_cache.size(2), k_cache.size(3), v_cache.size(3)
    width_kv = heads_kv * (size + size_v)
    width_q = qkv.size(0) - width_kv
    check.require(
        width_q > 0 and size > 0 and width_q % size == 0,
        OP,
        f"qkv has {qkv.size(0)} output features, which are not heads of {size} before the cache's"
        f" keys and values, {width_kv}",
    )
    return Sizes(width_q // size, heads_kv, size, size_v)


def weight_of(name: str, weight: Tensor, features: int, x: Tensor) -> Tensor:
    """[out, features] of x's dtype: a plain weight, or what pack_weight made of one."""
    if weight.dtype == torch.uint8:
        require_packed(OP, name, weight, x, features)
        return rows_of(weight, features, x.dtype)
    require_weight(OP, name, weight, x, features)
    return weight


def require_width(name: str, weight: Tensor, width: int, whose: str) -> None:
    check.require(
        weight.size(0) == width,
        OP,
        f"{name} has {weight.size(0)} output features, which is not {whose} {width}",
    )


def check_angles(cos: Tensor | None, sin: Tensor | None, x: Tensor, size: int) -> None:
    check.require((cos is None) == (sin is None), OP, "cos and sin must come together")
    if cos is None or sin is None:
        return
    for name, t in (("cos", cos), ("sin", sin)):
        check.require_device(OP, name, t, x.device)
        check.require_dtype(OP, name, t, torch.float32)
        check.require(
            t.dim() == 2 and t.size(0) == x.size(0) and 2 * t.size(1) <= size,
            OP,
            f"{name} must have shape [{x.size(0)}, at most {size // 2}], got {list(t.shape)}",
        )
        check.require_unit_stride(OP, name, t)
    check.require(
        cos.size(1) == sin.size(1),
        OP,
        f"sin has {sin.size(1)} pairs, which is not cos's {cos.size(1)}",
    )


def check_norms(
    norm: str,
    x: Tensor,
    columns: dict[str, Tensor | None],
    biases: dict[str, Tensor | None],
) -> None:
    """`columns` are the weights of the norms of x's rows, `biases` those of layer norms."""
    for name, t in (columns | biases).items():
        if t is not None:
            check_columns(OP, name, t, x)
    for name, t in biases.items():
        check.require(
            norm == "layer" or t is None,
            OP,
            f"{name} must come with norm 'layer', got norm 'rms'",
        )


def check_last(starts: Tensor) -> None:
    """That each sequence has a token, where indexes are checked."""
    if not check.index_values_checked():
        return
    for b, tokens in enumerate(starts.diff().tolist()):
        check.require(
            tokens > 0,
            OP,
            f"last_only needs a token of every sequence, cu_seqlens_q has none of sequence {b}",
        )
