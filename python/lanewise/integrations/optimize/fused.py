"""A decoder layer as one op over a dynamic cache, for inference with packed weights.

`lanewise.decoder_layer` works on a paged cache, and the buffers behind a cache layer (`cache.Room`)
are one: each sequence has a single block, as long as the buffer.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lanewise.integrations.optimize.cache import growing_layer, length, room_for
from lanewise.integrations.optimize.linear import Linear, PackedReplacement
from lanewise.integrations.optimize.norm import LayerNorm, RMSNorm
from lanewise.integrations.optimize.rotary import half_tables
from lanewise.integrations.optimize.serving import epilogue
from lanewise.integrations.optimize.swap import plain, unobserved
from lanewise.integrations.transformers.mask import pattern_of
from lanewise.nn.packing import state_of

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicLayer

    from lanewise.integrations.optimize.attention import Attention

# What transformers' models hand to their layers; whatever else comes is for their own code.
_KNOWN = {
    "attention_mask",
    "position_embeddings",
    "position_ids",
    "cache",
    "past_key_values",
    "cache_position",
    "use_cache",
}


class Parts(NamedTuple):
    """The modules of a layer, in the roles that `lanewise.decoder_layer` knows."""

    attention: Attention
    mlp: Any
    activation: Any
    qkv: PackedReplacement  # the module that packs them
    o: Any
    up: Any
    down: Any
    gate: Any
    attention_norm: Any
    mlp_norm: Any
    attention_post_norm: Any = None
    mlp_post_norm: Any = None
    q_norm: Any = None
    k_norm: Any = None


class Plan(NamedTuple):
    """The call of the op, made once, and what must still be so for it to be right."""

    attention: Attention
    dtype: torch.dtype
    weights: tuple[Tensor | None, ...]
    options: dict[str, Any]
    entries: tuple[tuple[dict[str, Any], str, Any], ...]  # (of an owner, name, value)
    states: tuple[tuple[Tensor, tuple[int, int]], ...]
    modules: tuple[nn.Module, ...]  # called by nobody, so that hooks of theirs would be missed

    def holds(self) -> bool:
        return (
            all(owner.get(name) is value for owner, name, value in self.entries)
            and all(state_of(source) == state for source, state in self.states)
            and all(unobserved(module) for module in self.modules)
        )


class FusedLayer(nn.Module):
    """Mixin of a decoder layer that may be one op."""

    _plan: Plan | None = None

    def parts(self) -> Parts | None:
        """The layer's modules, None if one of them is not where it was."""
        raise NotImplementedError

    def fused(self, x: Tensor, **inputs: Any) -> Tensor | None:
        """The layer's output [B, S, E], its tokens being in the cache then; None, with nothing
        done, where the layer must be computed part by part."""
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or not inputs.keys() <= _KNOWN
        ):
            return None
        plan: Plan | None = self.__dict__.get("_plan")
        if plan is None or not plan.holds():
            plan = self.__dict__["_plan"] = _make(self)
        cache = inputs.get("cache", inputs.get("past_key_values"))
        if plan is None or cache is None or x.dtype is not plan.dtype:
            return None
        layer = growing_layer(cache, plan.attention.layer_idx)
        if layer is None or not _in_order(plan.attention, layer, x, inputs.get("attention_mask")):
            return None
        return _run(plan, layer, x, inputs.get("position_embeddings"))


def _in_order(attention: Attention, layer: DynamicLayer, x: Tensor, mask: Tensor | None) -> bool:
    """Whether each token attends the cache up to itself, or the window before it, and no more is
    asked for."""
    window = attention.window()
    if (
        not attention.serves(x)
        or attention.dropout_rate()
        or (layer.is_sliding and layer.sliding_window != window)
    ):
        return False
    if mask is None:
        return bool(attention.is_causal)
    keys = length(layer) + x.shape[1]
    pattern = pattern_of(mask, x.shape[1], keys)
    return (
        pattern is not None
        and pattern.padding is None
        and pattern.causal
        and pattern.keys == keys
        and pattern.window_left == (-1 if window is None else window - 1)
    )


def _run(
    plan: Plan,
    layer: DynamicLayer,
    x: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None,
) -> Tensor:
    batch, count, _ = x.shape
    attention = plan.attention
    like = x.new_empty(()).expand(batch, attention.kv_heads(), count, attention.head_dim)
    room = room_for(layer, like, like)
    angles: tuple[Tensor | None, ...] = (None, None)
    if position_embeddings is not None:
        halves = half_tables(position_embeddings)
        angles = tuple(half.expand(batch, -1, -1).flatten(0, 1) for half in halves)
    window = attention.window()
    with torch._C._AutoDispatchBelowAutograd():
        y = _op(
            x.flatten(0, 1),
            room.keys,
            room.values,
            *_step(batch, count, room.capacity, room.end),
            count,
            *plan.weights,
            *angles,
            window_left=-1 if window is None else window - 1,
            **plan.options,
        )
    room.advance(layer, count)
    return y.view(x.shape)


_op = torch.ops.lanewise.decoder_layer.default


@functools.lru_cache(maxsize=8)
def _step(batch: int, count: int, capacity: int, end: int) -> tuple[Tensor, ...]:
    """cu_seqlens_q, block_table, context_lens and slots of ``count`` tokens after ``end``: the same
    for every layer."""
    sequence = torch.arange(batch)
    slots = sequence[:, None] * capacity + torch.arange(end, end + count)
    return (
        torch.arange(batch + 1) * count,
        sequence[:, None].int(),
        torch.full((batch,), end + count, dtype=torch.int32),
        slots.flatten(),
    )


def _make(layer: FusedLayer) -> Plan | None:
    parts = layer.parts()
    if parts is None:
        return None
    norms = [norm for norm in parts[-6:] if norm is not None]
    products = [part for part in (parts.o, parts.up, parts.down, parts.gate) if part is not None]
    activation = epilogue(parts.activation)
    modules = [parts.attention, parts.mlp, parts.qkv, *products, *norms, *parts.qkv._owners()]
    if (
        activation is None
        or not plain(*modules)
        or any(map(parametrize.is_parametrized, modules))
        or not all(isinstance(product, Linear) for product in products)
        or (norm_options := _norm_options(norms)) is None
    ):
        return None
    packs = [parts.qkv, *products]
    packed = {pack: pack.usable_pack() for pack in packs}
    if any(weight is None for weight in packed.values()):
        return None
    dtype = parts.up.weight.dtype
    parameters = [parameter for module in modules for parameter in module.parameters(False)]
    if any(p.dtype is not dtype or type(p) is not nn.Parameter for p in parameters):
        return None

    def weight(module: Any) -> Tensor | None:
        return None if module is None else module.weight

    def bias(module: Any) -> Tensor | None:
        return None if module is None else module.bias

    def laid_out(module: Any) -> Tensor | None:
        return None if module is None else packed[module]

    attention = parts.attention
    layer_norms = norm_options["norm"] == "layer"
    entries: list[tuple[dict[str, Any], str, Any]] = []
    for module in {layer, *modules, parts.activation}:
        for owned in (module._modules, module._parameters):
            entries += [(owned, name, value) for name, value in owned.items()]
        if isinstance(module, PackedReplacement):
            entries.append((module._buffers, "packed_weight", module.packed_weight))
    return Plan(
        attention,
        dtype,
        (
            laid_out(parts.qkv),
            laid_out(parts.o),
            laid_out(parts.up),
            laid_out(parts.down),
            laid_out(parts.gate),
            attention.packed_bias if parts.qkv is attention else bias(parts.qkv),
            bias(parts.o),
            bias(parts.gate),
            bias(parts.up),
            bias(parts.down),
            weight(parts.attention_norm),
            bias(parts.attention_norm) if layer_norms else None,
            weight(parts.mlp_norm),
            bias(parts.mlp_norm) if layer_norms else None,
            weight(parts.attention_post_norm),
            weight(parts.mlp_post_norm),
            weight(parts.q_norm),
            weight(parts.k_norm),
        ),
        {
            **norm_options,
            "activation": activation,
            "softcap": getattr(attention, "attn_logit_softcapping", None) or 0.0,
            "scale": attention.scaling,
        },
        tuple(entries),
        tuple(pair for pack in packs for pair in pack._packed_from),
        (*modules, parts.activation),
    )


def _norm_options(norms: list[nn.Module]) -> dict[str, Any] | None:
    """The options that all ``norms`` share, None where they share none."""
    found = []
    for norm in norms:
        if isinstance(norm, RMSNorm):
            found.append({"norm": "rms", "eps": norm.epsilon, "weight_offset": norm.weight_offset})
        elif isinstance(norm, LayerNorm) and norm.weight is not None and len(norms) == 2:
            found.append({"norm": "layer", "eps": norm.eps, "weight_offset": 0.0})
        else:
            return None
    return found[0] if all(options == found[0] for options in found) else None
