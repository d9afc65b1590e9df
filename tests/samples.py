"""One small, valid call of every op, by argument name: where registration and error tests start."""

from __future__ import annotations

from typing import Any

import torch
from strategies import randn

import lanewise

Arguments = dict[str, Any]

PUBLIC = (
    "attention",
    "attention_varlen",
    "paged_attention",
    "paged_cache_write",
    "matmul",
    "linear",
    "gated_linear",
    "pack_weight",
    "linear_packed",
    "gated_linear_packed",
    "rms_norm",
    "layer_norm",
    "add_rms_norm",
    "add_layer_norm",
    "rope",
    "decoder_layer",
)
DIFFERENTIABLE = tuple(
    op for op in PUBLIC if "pack" not in op and "paged" not in op and op != "decoder_layer"
)


def sample(op: str, dtype: torch.dtype = torch.float32) -> Arguments:
    """The tensors of a valid call of the named public op; optional ones included."""

    def t(*shape: int) -> torch.Tensor:
        return randn(shape, dtype, seed=sum(shape))

    if op == "attention":
        return {
            "q": t(2, 6, 5, 8),
            "k": t(2, 2, 7, 8),
            "v": t(2, 2, 7, 4),
            "bias": t(2, 1, 5, 7),
            "sinks": t(6),
            "alibi_slopes": randn((6,)).abs(),
        }
    if op == "attention_varlen":
        return {
            "q": t(6, 6, 8),
            "k": t(9, 2, 8),
            "v": t(9, 2, 4),
            "cu_seqlens_q": torch.tensor([0, 5, 5, 6]),
            "cu_seqlens_k": torch.tensor([0, 6, 8, 9], dtype=torch.int32),
            "max_seqlen_q": 5,
            "max_seqlen_k": 7,
            "bias": t(3, 1, 5, 7),
            "sinks": t(6),
            "alibi_slopes": randn((6,)).abs(),
        }
    if op == "paged_attention":
        return {
            "q": t(6, 6, 8),
            "k_cache": t(5, 4, 2, 8),
            "v_cache": t(5, 4, 2, 3),
            "cu_seqlens_q": torch.tensor([0, 5, 6]),
            "block_table": torch.tensor([[3, 1, -1], [0, 3, 4]], dtype=torch.int32),
            "context_lens": torch.tensor([7, 9], dtype=torch.int32),
            "max_seqlen_q": 5,
            "bias": t(2, 1, 5, 12),
            "sinks": t(6),
            "alibi_slopes": randn((6,)).abs(),
        }
    if op == "paged_cache_write":
        return {
            "k": t(4, 2, 8),
            "v": t(4, 2, 3),
            "k_cache": t(5, 3, 2, 8),
            "v_cache": t(5, 3, 2, 3),
            "slots": torch.tensor([5, -1, 14, 0]),
        }
    if op == "decoder_layer":  # 2 heads of 6, values of 3
        return {
            "x": t(3, 16),
            "k_cache": t(5, 4, 1, 6),
            "v_cache": t(5, 4, 1, 3),
            "cu_seqlens_q": torch.tensor([0, 2, 3]),
            "block_table": torch.tensor([[3, 1, -1], [0, 2, 4]], dtype=torch.int32),
            "context_lens": torch.tensor([7, 9], dtype=torch.int32),
            "slots": torch.tensor([5, 6, 16]),
            "max_seqlen_q": 2,
            "qkv": t(21, 16),
            "o": t(16, 6),
            "up": t(12, 16),
            "down": t(16, 12),
            "gate": t(12, 16) * 0.5,
            "qkv_bias": t(21),
            "o_bias": t(16),
            "gate_bias": t(12),
            "up_bias": t(12),
            "down_bias": t(16),
            "attention_norm": t(16),
            "attention_norm_bias": t(16),
            "mlp_norm": t(16),
            "mlp_norm_bias": t(16),
            "attention_post_norm": t(16),
            "mlp_post_norm": t(16),
            "q_norm": t(6),
            "k_norm": t(6),
            "cos": randn((3, 2)).cos(),
            "sin": randn((3, 2)).sin(),
            "sinks": t(2),
            "norm": "layer",
        }
    if op == "matmul":
        return {"a": t(2, 3, 8), "b": t(2, 8, 5)}
    if op == "linear":
        return {"x": t(2, 3, 8), "weight": t(5, 8), "bias": t(5), "residual": t(2, 3, 5)}
    if op == "gated_linear":
        return {
            "x": t(2, 3, 8),
            "gate": t(5, 8),
            "up": t(5, 8) * 0.5,
            "gate_bias": t(5),
            "up_bias": t(5),
        }
    if op == "pack_weight":
        return {"weight": t(5, 8)}
    if op in ("linear_packed", "gated_linear_packed"):
        arguments = sample(op.removesuffix("_packed"), dtype)
        for name in ("weight", "gate", "up"):
            if name in arguments:
                arguments[name] = lanewise.pack_weight(arguments[name])
        return arguments
    if op in ("rms_norm", "add_rms_norm"):
        arguments = {"x": t(2, 3, 8), "residual": t(2, 3, 8), "weight": t(8)}
    elif op in ("layer_norm", "add_layer_norm"):
        arguments = {"x": t(2, 3, 8), "residual": t(2, 3, 8), "weight": t(8), "bias": t(8)}
    elif op == "rope":
        arguments = {"x": t(2, 3, 4, 8), "cos": randn((4, 3)).cos(), "sin": randn((4, 3)).sin()}
    else:
        raise KeyError(op)
    if not op.startswith("add_"):
        arguments.pop("residual", None)
    return arguments


def backward_sample(op: str) -> Arguments:
    """A valid call of a gradient op, which autograd makes and anybody may."""
    forward = sample(op.removesuffix("_backward"))
    x_grad = randn((2, 3, 8), seed=1)
    if op in ("attention_backward", "attention_varlen_backward"):
        out, lse = call(op.removesuffix("_backward"), forward)
        grads = {"grad_out": torch.ones_like(out), "grad_lse": torch.ones_like(lse)}
        return {**grads, **forward, "out": out, "lse": lse, "needs_bias": True, "needs_sinks": True}
    if op == "rope_backward":
        return {"grad": forward.pop("x"), **forward, "interleaved": False}
    if op.endswith("norm_backward"):
        forward.pop("bias", None)
        options = {"eps": 1e-5} | ({"weight_offset": 0.0} if "rms" in op else {})
        return {"grad": x_grad, "grad_sum": x_grad, **forward, "residual": x_grad, **options}
    forward.pop("residual", None)
    needs = {"needs_x": True, "needs_weight": True, "needs_bias": True}
    if op == "gated_linear_backward":
        forward |= {"gate_sums": randn((2, 3, 5), seed=2), "up_sums": randn((2, 3, 5), seed=3)}
    return {"grad": randn((2, 3, 5)), **forward, "activation": "silu", **needs}


def call(op: str, arguments: Arguments) -> tuple[torch.Tensor, ...]:
    """The op's outputs, through torch.ops; none where it writes its arguments."""
    out = getattr(torch.ops.lanewise, op)(**arguments)
    if out is None:
        return ()
    return (out,) if isinstance(out, torch.Tensor) else tuple(out)
