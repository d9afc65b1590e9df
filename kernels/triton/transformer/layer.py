"""A whole decoder layer over a paged cache, made of the kernels of its parts."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import check
from ..attention.cache import write
from ..attention.launch import Options
from ..attention.paged import attend_pages
from ..attention.problem import check_options, check_paged, check_starts, check_write
from ..gemm.arguments import require_activation, require_bias
from ..gemm.gated import checked_gated
from ..gemm.product import product
from ..norm.launch_forward import normalise
from ..norm.problem import check_columns
from ..rope import rope
from .guard import guarded
from .last import last_of
from .problem import (
    OP,
    check_angles,
    check_last,
    check_norms,
    check_x,
    require_width,
    sizes_of,
    weight_of,
)


def decoder_layer(
    x: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    slots: Tensor,
    max_seqlen_q: int,
    qkv: Tensor,
    o: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None = None,
    qkv_bias: Tensor | None = None,
    o_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    attention_norm: Tensor | None = None,
    attention_norm_bias: Tensor | None = None,
    mlp_norm: Tensor | None = None,
    mlp_norm_bias: Tensor | None = None,
    attention_post_norm: Tensor | None = None,
    mlp_post_norm: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    sinks: Tensor | None = None,
    norm: str = "rms",
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    activation: str = "silu",
    interleaved: bool = False,
    window_left: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    last_only: bool = False,
) -> Tensor:
    """What the ops of its parts give one after another; see `lanewise.decoder_layer`, which also
    tells what each argument is.

    Nothing is written unless all arguments are right. Index tensors are read on the host only with
    LANEWISE_CHECK_INDEXES=1; without it, a sequence whose indexes are wrong gives NaN, as in
    `paged_attention` and `paged_cache_write`.

    Returns:
        [T, E] in x's dtype, or [B, E] with `last_only`; contiguous.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, rank, shape, stride or value.
    """
    check_x(x, k_cache, v_cache, norm)
    tokens, width = x.shape
    given = (qkv, o, up, gate, down)
    qkv = weight_of("qkv", qkv, width, x)
    heads, heads_kv, size, size_v = sizes_of(qkv, k_cache, v_cache)
    o = weight_of("o", o, heads * size_v, x)
    require_width("o", o, width, "x's")
    up = weight_of("up", up, width, x)
    if gate is not None:
        gate = weight_of("gate", gate, width, x)
        require_width("up", up, gate.size(0), "gate's")
    down = weight_of("down", down, up.size(0), x)
    require_width("down", down, width, "x's")
    for name, bias, weight in (
        ("qkv_bias", qkv_bias, qkv),
        ("o_bias", o_bias, o),
        ("up_bias", up_bias, up),
        ("down_bias", down_bias, down),
        ("gate_bias", gate_bias, gate),
    ):
        check.require(weight is not None or bias is None, OP, "gate_bias must come with gate")
        require_bias(OP, name, bias, x, 0 if weight is None else weight.size(0))
    check_norms(
        norm,
        x,
        {
            "attention_norm": attention_norm,
            "mlp_norm": mlp_norm,
            "attention_post_norm": attention_post_norm,
            "mlp_post_norm": mlp_post_norm,
        },
        {"attention_norm_bias": attention_norm_bias, "mlp_norm_bias": mlp_norm_bias},
    )
    check_angles(cos, sin, x, size)
    require_activation(OP, activation)
    check_options(window_left, -1, softcap, size**-0.5 if scale is None else scale, OP)
    check_starts(OP, "q", cu_seqlens_q, max_seqlen_q, x, "x")

    def normed(
        t: Tensor, weight: Tensor | None, bias: Tensor | None = None, after: Tensor | None = None
    ) -> Tensor:
        return normalise(OP, t, None, after, weight, bias, eps, weight_offset, norm == "layer")[0]

    # The heads.
    projected = _linear(normed(x, attention_norm, attention_norm_bias), qkv, qkv_bias)
    qk = _heads_of(projected, 0, heads + heads_kv, size)
    v = _heads_of(projected, (heads + heads_kv) * size, heads_kv, size_v)
    if q_norm is None and k_norm is None:
        qk = _rotated(qk, cos, sin, interleaved)
        q, k = qk[:, :heads], qk[:, heads:]
    else:
        q, k = qk[:, :heads], qk[:, heads:]
        for name, weight, t in (("q_norm", q_norm, q), ("k_norm", k_norm, k)):
            if weight is not None:
                check_columns(OP, name, weight, t)
        q = _rotated(q if q_norm is None else normed(q, q_norm), cos, sin, interleaved)
        k = _rotated(k if k_norm is None else normed(k, k_norm), cos, sin, interleaved)

    # From here on only the tokens whose output is wanted.
    stream, starts, longest, batch = x, cu_seqlens_q, max_seqlen_q, cu_seqlens_q.size(0) - 1
    if last_only:
        check_last(starts)
        if batch < tokens:
            stream, q = last_of(x[:, None], starts)[:, 0], last_of(q, starts)
            starts = torch.arange(batch + 1, dtype=torch.int32, device=x.device)
            longest = 1
    sequences = (k_cache, v_cache, starts, block_table, context_lens, longest)
    check_paged(OP, q, *sequences, None, sinks, None)
    check_write(OP, k, v, k_cache, v_cache, slots)
    write(k, v, k_cache, v_cache, slots)
    options = Options(None, sinks, None, True, window_left, -1, softcap, scale)
    mixed = attend_pages(OP, q, *sequences, options)[0].flatten(1)

    # The two residuals: in the product's epilogue, or after the norm that follows it.
    if attention_post_norm is None:
        stream = _linear(mixed, o, o_bias, stream)
    else:
        stream = normed(_linear(mixed, o, o_bias), attention_post_norm, after=stream)
    inputs = normed(stream, mlp_norm, mlp_norm_bias)
    if gate is None:
        hidden = _linear(inputs, up, up_bias, activation=activation)
    else:
        hidden = checked_gated(OP, inputs, gate, up, gate_bias, up_bias, activation)
    down_bias = guarded(x, down_bias, given, heads * size_v)
    if mlp_post_norm is None:
        return _linear(hidden, down, down_bias, stream)
    return normed(_linear(hidden, down, down_bias), mlp_post_norm, after=stream)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    out = x.new_empty(x.size(0), weight.size(0))
    product(x, weight.mT, out, bias, residual, activation)
    return out


def _heads_of(rows: Tensor, first: int, heads: int, size: int) -> Tensor:
    """The heads [T, heads, size] that begin at column `first` of dense rows [T, width]."""
    return rows.as_strided((rows.size(0), heads, size), (rows.size(1), size, 1), first)


def _rotated(x: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> Tensor:
    """Heads [T, H, D], turned by their tokens' angles."""
    if cos is None or sin is None:
        return x
    return rope(x.transpose(0, 1)[None], cos, sin, interleaved)[0].transpose(0, 1)
