"""A packed decoder layer as one op: which layers can be, and the arguments of the call.

The arguments are collected once. Before each call only what may have changed is compared, since at
one token a layer's arithmetic takes as long as a few hundred lines of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lanewise.nn.attention import Attention
from lanewise.nn.cache import LayerCache
from lanewise.nn.linear import fuses, is_plain, is_watched
from lanewise.nn.mlp import MLP
from lanewise.nn.norm import LayerNorm, RMSNorm
from lanewise.nn.packing import Packing, state_of
from lanewise.nn.position import RotaryEmbedding

if TYPE_CHECKING:
    from lanewise.nn.transformer import TransformerLayer


class Plan(NamedTuple):
    """The call of one layer, and what must still be so for it to be right."""

    modules: tuple[nn.Module, ...]  # without hooks, with these
    # (a dictionary of a module: its children, parameters, buffers or options; name; value)
    values: tuple[tuple[dict[str, Any], str, Any], ...]
    states: tuple[tuple[Tensor, tuple[int, int]], ...]  # what the packed copies were made of
    rotary: RotaryEmbedding | None
    weights: tuple[Tensor | None, ...]
    options: dict[str, Any]

    def holds(self) -> bool:
        return (
            all(owner.get(name) is value for owner, name, value in self.values)
            and not any(
                m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__
                for m in self.modules
            )
            and all(state_of(source) == state for source, state in self.states)
        )


def plan(layer: TransformerLayer, x: Tensor) -> Plan | None:
    """How to call the op for ``layer``; None where it is not packed, has hooks, adapters or modules
    of a class of their own, or where gradients, autocast or a compiler must see its parts."""
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch.is_grad_enabled()
    ):
        return None
    found: Plan | None = layer.__dict__.get("_plan")
    if found is None or not found.holds():
        found = _make(layer)
        layer.__dict__["_plan"] = found
    return found


def run(plan: Plan, x: Tensor, cache: LayerCache, *, last_only: bool = False) -> Tensor:
    """The layer's output, [T, E], or [B, E] with ``last_only``."""
    step = cache.step
    cos, sin = (None, None) if plan.rotary is None else step.angles(plan.rotary)
    return _op(
        x,
        cache.k,
        cache.v,
        step.cu_seqlens_q,
        step.block_table,
        step.context_lens,
        step.slots,
        step.max_seqlen_q,
        *plan.weights[:-1],
        cos,
        sin,
        plan.weights[-1],
        **plan.options,
        last_only=last_only,
    )


_op = torch.ops.lanewise.decoder_layer.default
# Attributes of the modules that are options of the op.
_OPTIONS = {
    *("causal", "window_left", "window_right", "softcap", "scale", "activation", "norm_first"),
    *("eps", "weight_offset", "interleaved", "num_heads", "num_kv_heads", "head_dim"),
}


def _make(layer: TransformerLayer) -> Plan | None:
    attention, mlp = layer.attention, layer.mlp
    if not (is_plain(attention, Attention) and is_plain(mlp, MLP)):
        return None
    norms = [
        norm
        for norm in (
            layer.attention_norm,
            layer.attention_post_norm,
            layer.mlp_norm,
            layer.mlp_post_norm,
            attention.q_norm,
            attention.k_norm,
        )
        if norm is not None
    ]
    packs = [attention, attention.o_proj, mlp.up_proj, mlp.down_proj]
    packs += [mlp.gate_proj] if mlp.gate_proj is not None else []
    modules = [attention, mlp, *packs, *norms]
    modules += [attention.q_proj, attention.k_proj, attention.v_proj]
    modules += [attention.rotary] if attention.rotary is not None else []
    if not (
        layer.norm_first
        and attention.causal
        and attention.window_right == -1
        and fuses(*packs[1:])
        and all(p.activation == "none" for p in packs[1:])
        and all(isinstance(p, Packing) and p.usable_pack() is not None for p in packs)
        and (attention.rotary is None or is_plain(attention.rotary, RotaryEmbedding))
        and not any(is_watched(m) or parametrize.is_parametrized(m) for m in modules)
        and (norm_options := _norm_options(norms, attention.head_dim, attention.embed_dim))
    ):
        return None

    def of(module: nn.Module | None, name: str) -> Any:
        return getattr(module, name, None)

    rotary = attention.rotary
    values: list[tuple[dict[str, Any], str, Any]] = []
    for module in (layer, *modules):
        for owner in (module._modules, module._parameters, module._buffers):
            values += [(owner, name, value) for name, value in owner.items()]
        values += [
            (vars(module), name, vars(module)[name]) for name in _OPTIONS & set(vars(module))
        ]
    return Plan(
        tuple(modules),
        tuple(values),
        tuple(pair for p in packs for pair in p._packed_from),
        rotary,
        (
            of(attention, "packed_weight"),
            of(attention.o_proj, "packed_weight"),
            of(mlp.up_proj, "packed_weight"),
            of(mlp.down_proj, "packed_weight"),
            of(mlp.gate_proj, "packed_weight"),
            attention.packed_bias,
            of(attention.o_proj, "bias"),
            of(mlp.gate_proj, "bias"),
            of(mlp.up_proj, "bias"),
            of(mlp.down_proj, "bias"),
            of(layer.attention_norm, "weight"),
            of(layer.attention_norm, "bias"),
            of(layer.mlp_norm, "weight"),
            of(layer.mlp_norm, "bias"),
            of(layer.attention_post_norm, "weight"),
            of(layer.mlp_post_norm, "weight"),
            of(attention.q_norm, "weight"),
            of(attention.k_norm, "weight"),
            attention.sinks,
        ),
        {
            **norm_options,
            "activation": mlp.activation,
            "interleaved": rotary is not None and rotary.interleaved,
            "window_left": attention.window_left,
            "softcap": attention.softcap,
            "scale": attention.scale,
        },
    )


def _norm_options(norms: list[nn.Module], head_dim: int, embed_dim: int) -> dict[str, Any] | None:
    """The options that all ``norms`` share, None where they share none."""
    found = []
    for norm in norms:
        if is_plain(norm, RMSNorm) and norm.weight is not None and norm.eps is not None:
            found.append({"norm": "rms", "eps": norm.eps, "weight_offset": norm.weight_offset})
        elif is_plain(norm, LayerNorm):
            found.append({"norm": "layer", "eps": norm.eps, "weight_offset": 0.0})
        else:
            return None
    # Post-norms and those of heads have no place for a bias.
    plain = all(options == found[0] for options in found)
    return found[0] if plain and (found[0]["norm"] == "rms" or len(norms) == 2) else None
