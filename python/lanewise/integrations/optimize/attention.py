"""Self-attention of transformers' models: one product for q, k and v, rotary, cache, attention."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AttentionInterface
from typing_extensions import Self

from lanewise import ops
from lanewise.integrations import transformers as _  # noqa: F401  registers the implementation
from lanewise.integrations.optimize.cache import append
from lanewise.integrations.optimize.linear import Linear, PackedReplacement, project, skipped
from lanewise.integrations.optimize.rotary import half_tables
from lanewise.integrations.optimize.serving import autocasts, served, without_autograd
from lanewise.integrations.optimize.swap import plain
from lanewise.nn.attention import _joint_bias
from lanewise.nn.packing import holds_weight

IMPLEMENTATION = "lanewise"


class Attention(PackedReplacement):
    """What the attention modules share: the choice of our implementation, and packed projections.

    `pack` lays the weights of the projections into one buffer; they themselves then hold none.
    """

    packed_bias: Tensor | None
    projections: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")

    def prepare(self) -> None:
        super().prepare()
        self.previous_implementation = self.config._attn_implementation
        if self.previous_implementation != IMPLEMENTATION:
            self.config._attn_implementation = IMPLEMENTATION

    def withdraw(self) -> None:
        super().withdraw()
        if self.config._attn_implementation == IMPLEMENTATION:
            self.config._attn_implementation = self.previous_implementation
        del self.previous_implementation
        self.__dict__.pop("packed_bias", None)

    def serves(self, x: Tensor) -> bool:
        """Whether this call may be computed here, and not by the model's own code."""
        return self.config._attn_implementation == IMPLEMENTATION and served(x) and not autocasts()

    def window(self) -> int | None:
        """How many keys a token may attend, itself included; None for all."""
        return getattr(self, "sliding_window", None)

    def dropout_rate(self) -> float:
        """The share of attention weights that this call drops."""
        raise NotImplementedError

    def kv_heads(self) -> int:
        raise NotImplementedError

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """q [B, H, S, D], k, v [B, Hkv, T, D] → [B, S, H * D], and the weights [B, H, S, T] if this
        call is to return them."""
        interface = AttentionInterface()[IMPLEMENTATION]
        options["dropout"] = self.dropout_rate()
        with without_autograd():
            out, weights = interface(self, q, k, v, mask, scaling=self.scaling, **options)
            return out.flatten(2), weights

    # The projections, packed as one.

    def _layers(self) -> list[Any]:
        return [getattr(self, name) for name in self.projections]

    def _owners(self) -> tuple[nn.Linear, ...]:
        layers = self._layers()
        ours = plain(*layers) and all(isinstance(x, Linear) and holds_weight(x) for x in layers)
        return tuple(layers) if ours else ()

    def _sources(self) -> tuple[Tensor, ...]:
        owners = self._owners()
        biases = (owner.bias for owner in owners if owner.bias is not None)
        return tuple(owner.weight for owner in owners) + tuple(biases)

    def pack(self, *, release: bool = False) -> Self:
        packed_bias = _joint_bias(self._owners())
        super().pack(release=release)
        self.packed_bias = packed_bias
        return self

    def unpack(self) -> Self:
        super().unpack()
        self.packed_bias = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "packed_bias": None}

    def heads(self, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, E] → q [B, H, S, D], k, v [B, Hkv, S, D], views of one product if packed."""
        layers = self._layers()
        packed = None if self.packed_weight is None else self.usable_pack(x)
        if packed is not None:
            with without_autograd():
                y = ops.linear_packed(x, packed, self.packed_bias)
            y = y.unflatten(-1, (-1, head_dim)).transpose(1, 2)
            q, k, v = y.split([layer.weight.shape[0] // head_dim for layer in layers], dim=1)
        else:
            q, k, v = (layer(x).unflatten(-1, (-1, head_dim)).transpose(1, 2) for layer in layers)
        return q, k, v


class RotaryAttention(Attention):
    """The attention of Llama, Mistral, Qwen and Gemma."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        *,
        residual: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states, residual [B, S, E] → ([B, S, E], the attention's weights if there are)."""
        cache = kwargs.pop("past_key_values", cache)  # its name before transformers 5.2x
        if position_embeddings is None or not self.serves(hidden_states):
            out, weights = super().forward(
                hidden_states, position_embeddings, attention_mask, cache, **kwargs
            )
            return (out if residual is None else out + residual), weights
        q, k, v = self.heads(hidden_states, self.head_dim)
        cos, sin = half_tables(position_embeddings)
        if cos.shape[0] != q.shape[0]:  # the same positions for the whole batch
            cos, sin = cos[0], sin[0]
        q, k = self._rotated(q, k, cos, sin)
        if cache is not None:
            k, v = append(cache, k, v, self.layer_idx)
        out, weights = self.attend(
            q,
            k,
            v,
            attention_mask,
            sliding_window=self.window(),
            softcap=getattr(self, "attn_logit_softcapping", None),
            **kwargs,
        )
        return project(self.o_proj, out, residual), weights

    def dropout_rate(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def kv_heads(self) -> int:
        return self.k_proj.weight.shape[0] // self.head_dim

    def _rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        with without_autograd():
            return ops.rope(q, cos, sin), ops.rope(k, cos, sin)


class NormedRotaryAttention(RotaryAttention):
    """The same with norms over each head of q and k (Qwen 3, Gemma 3)."""

    def _rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return super()._rotated(self.q_norm(q), self.k_norm(k), cos, sin)


class MistralAttention(RotaryAttention):
    """Mistral's, whose window is written in the config."""

    def window(self) -> int | None:
        return getattr(self.config, "sliding_window", None)


class GPT2Attention(Attention):
    """GPT-2's, with one projection for q, k and v from the start."""

    def _owners(self) -> tuple[nn.Linear, ...]:
        return ()  # c_attn keeps its own

    def dropout_rate(self) -> float:
        return self.attn_dropout.p if self.training else 0.0

    def kv_heads(self) -> int:
        return self.num_heads

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states, residual [B, S, E] → ([B, S, E], the attention's weights if there are)."""
        cache = kwargs.pop("past_key_values", cache)
        if (
            encoder_hidden_states is not None
            or _is_encoder_decoder(cache)
            or not self.serves(hidden_states)
            or not skipped(self.resid_dropout)
        ):
            out, weights = super().forward(
                hidden_states,
                cache,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                **kwargs,
            )
            return (out if residual is None else out + residual), weights
        qkv = self.c_attn(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=1)
        if cache is not None:
            k, v = append(cache, k, v, self.layer_idx)
        out, weights = self.attend(q, k, v, attention_mask, **kwargs)
        return project(self.c_proj, out, residual), weights


class BertSelfAttention(Attention):
    """BERT's, whose output projection is in the module after it."""

    projections = ("query", "key", "value")

    def dropout_rate(self) -> float:
        return self.dropout.p if self.training else 0.0

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [B, S, E] → ([B, S, E], the attention's weights if there are)."""
        cache = kwargs.pop("past_key_values", cache)
        if _is_encoder_decoder(cache) or not self.serves(hidden_states):
            return super().forward(hidden_states, attention_mask, cache, **kwargs)
        q, k, v = self.heads(hidden_states, self.attention_head_size)
        if cache is not None:
            k, v = append(cache, k, v, self.layer_idx)
        return self.attend(q, k, v, attention_mask, **kwargs)


def _is_encoder_decoder(cache: Any) -> bool:
    return hasattr(cache, "self_attention_cache")
