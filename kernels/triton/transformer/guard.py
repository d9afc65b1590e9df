"""The headers of a layer's packed weights, compared by the GPU in one launch."""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from .. import target
from ..gemm.packed_header import header, kind, words_of
from .tiles import GUARD


@triton.jit
def differences(p_header, kind, len_n, len_k):
    """How many words are not those of a weight [len_n, len_k]; a plain weight has no header."""
    if p_header is None:
        return 0
    b_due = header(kind, len_n, len_k)  # [8]
    b_header = tl.load(p_header + tl.arange(0, b_due.shape[0]))
    return tl.sum((b_header != b_due).to(tl.int32))


@triton.jit(do_not_specialize=["kind"])
def guarded_layer_bias(
    p_qkv, p_o, p_up, p_gate, p_down, p_bias, p_out,
    kind, len_e, len_qkv, len_o, len_f,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The last bias of a layer in float32, zeros without one; NaN where a header is wrong."""
    wrong = differences(p_qkv, kind, len_qkv, len_e) + differences(p_o, kind, len_e, len_o)
    wrong += differences(p_up, kind, len_f, len_e) + differences(p_gate, kind, len_f, len_e)
    wrong += differences(p_down, kind, len_e, len_f)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    b_bias = tl.zeros([BLOCK_N], tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + o_n, mask=o_n < len_e, other=0.0).to(tl.float32)
    tl.store(p_out + o_n, tl.where(wrong == 0, b_bias, float("nan")), mask=o_n < len_e)


def guarded(
    x: Tensor,
    bias: Tensor | None,
    weights: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor],
    mixed: int,
) -> Tensor | None:
    """The bias [E] of `down`: itself if all weights are plain; else a copy that is NaN, and so the
    layer's output, if a packed one's header is not what its shape and x say.

    `weights` are qkv, o, up, gate and down, of the right sizes; `mixed` features enter `o`.
    """
    headers = [
        None if t is None or t.dtype != torch.uint8 or t.size(0) == 0 else words_of(t)
        for t in weights
    ]
    width, qkv, up = x.size(1), weights[0], weights[2]
    if width == 0 or all(t is None for t in headers):
        return bias
    out = x.new_empty(width, dtype=torch.float32)
    tile = GUARD.choose(target.of(x.device), "any")
    target.launch(
        guarded_layer_bias,
        (target.divide_up(width, tile.n),),
        *headers,
        bias,
        out,
        kind(x.dtype),
        width,
        qkv.size(0),
        mixed,
        up.size(0),
        BLOCK_N=tile.n,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
