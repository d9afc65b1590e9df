"""A whole decoder layer over a paged cache, in one call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lanewise.ops._library import ops, register_fake, register_no_gradient


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
    *,
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
    """A pre-norm decoder layer for new tokens of a batch whose past lies in a paged cache.

    What the ops of its parts give one after another, without the way through Python between them:
    at one token that way takes longer than the arithmetic of a small model ::

        q, k, v = split(attention_norm(x) @ qkv.T + qkv_bias); q_norm, k_norm, rope
        paged_cache_write(k, v); a = paged_attention(q), causal
        x = x + attention_post_norm(a @ o.T + o_bias)
        h = activation(mlp_norm(x) @ gate.T + gate_bias) * (mlp_norm(x) @ up.T + up_bias)
        x = x + mlp_post_norm(h @ down.T + down_bias)

    Sequences, cache and errors of theirs are those of :func:`lanewise.paged_attention` and
    :func:`lanewise.paged_cache_write`.

    Args:
        x: ``[T, E]``, the new tokens of all sequences; float32, bfloat16 or float16.
        k_cache: ``[blocks, block_size, Hkv, D]``, x's dtype; written.
        v_cache: ``[blocks, block_size, Hkv, Dv]``, x's dtype; written.
        cu_seqlens_q, block_table, context_lens, max_seqlen_q: as in
            :func:`lanewise.paged_attention`; the contexts include the new tokens.
        slots: ``[T]``, int64, as in :func:`lanewise.paged_cache_write`.
        qkv: ``[H · D + Hkv · (D + Dv), E]``: the weights of queries, keys and values, one under the
            other. This and the other weights are plain, of x's dtype, or packed by
            :func:`lanewise.pack_weight`.
        o: ``[E, H · Dv]``.
        up: ``[F, E]``. ``gate``: the same, or None for a layer that is not gated.
        down: ``[E, F]``.
        qkv_bias, o_bias, gate_bias, up_bias, down_bias: of their weights' width, x's dtype or
            float32.
        attention_norm, mlp_norm: ``[E]``, weights of the norms before each half; None is one.
        attention_norm_bias, mlp_norm_bias: ``[E]``, of layer norms.
        attention_post_norm, mlp_post_norm: ``[E]``, weights of norms over what each half adds;
            None: there is no such norm.
        q_norm, k_norm: ``[D]``, weights of norms over each head, before its rotation; None: none.
        cos, sin: ``[T, R/2]``, float32: each token's angles, as in :func:`lanewise.rope`.
        sinks: ``[H]``, as in :func:`lanewise.attention`.
        norm: ``"rms"`` or ``"layer"``, for all norms, with ``eps`` and, for rms, ``weight_offset``.
        activation: as in :func:`lanewise.linear`; of the gate where there is one.
        interleaved: as in :func:`lanewise.rope`.
        window_left, softcap, scale: as in :func:`lanewise.attention`.
        last_only: computes the output of each sequence's last token only. All keys and values are
            written; every sequence must have a new token.

    Returns:
        ``[T, E]`` in x's dtype, or ``[B, E]`` with ``last_only``.

        Not differentiable: gradients must be disabled where an input requires one. Autocast casts
        nothing here.

    Raises:
        RuntimeError: on a wrong device, dtype, shape, stride or option of any argument.
    """
    return ops.decoder_layer(
        x,
        k_cache,
        v_cache,
        cu_seqlens_q,
        block_table,
        context_lens,
        slots,
        max_seqlen_q,
        qkv,
        o,
        up,
        down,
        gate,
        qkv_bias,
        o_bias,
        gate_bias,
        up_bias,
        down_bias,
        attention_norm,
        attention_norm_bias,
        mlp_norm,
        mlp_norm_bias,
        attention_post_norm,
        mlp_post_norm,
        q_norm,
        k_norm,
        cos,
        sin,
        sinks,
        norm=norm,
        eps=eps,
        weight_offset=weight_offset,
        activation=activation,
        interleaved=interleaved,
        window_left=window_left,
        softcap=softcap,
        scale=scale,
        last_only=last_only,
    )


@register_fake("decoder_layer")
def _(
    x: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    *_: Any,
    last_only: bool = False,
    **__: Any,
) -> Tensor:
    return x.new_empty(cu_seqlens_q.shape[0] - 1 if last_only else x.shape[0], x.shape[1])


register_no_gradient("decoder_layer")
