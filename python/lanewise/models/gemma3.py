"""Gemma 3, the text model (Gemma Team, "Gemma 3 Technical Report", 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lanewise.models.config_reader import ConfigReader
from lanewise.models.decoder import Decoder
from lanewise.models.llama import llama_source
from lanewise.models.loading import FromPretrained, Source
from lanewise.models.rotary import make_rotary, rope_parameters
from lanewise.nn import MLP, Attention, RMSNorm, TransformerLayer

_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Gemma3Config:
    """The sizes of a model, mostly under the names of Hugging Face's ``config.json``.

    sliding tells for each layer whether it attends the last sliding_window tokens only; those
    layers rotate by local_rope, the others by rope.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    sliding_window: int
    sliding: tuple[bool, ...]
    query_pre_attn_scalar: float
    activation: str = "gelu_tanh"
    rms_norm_eps: float = 1e-6
    rope: Mapping[str, Any] = field(default_factory=dict)
    local_rope: Mapping[str, Any] = field(default_factory=dict)
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    bias: bool = False
    tied: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gemma3Config:
        """Reads the content of a ``config.json``; of a multimodal model, the part about text.

        Raises:
            ValueError: a value is missing or makes no sense, or the config describes a variant that
                is not built here.
        """
        outer = values
        if values.get("model_type") == "gemma3" and isinstance(values.get("text_config"), Mapping):
            values = {**values["text_config"], "model_type": "gemma3_text"}
        read = ConfigReader("Gemma3", values)
        read.only("model_type", "gemma3_text")
        read.only("use_bidirectional_attention", False, None)
        layers = read.size("num_hidden_layers")
        head_dim = read.size("head_dim", 256)
        eos = read.tokens("eos_token_id") or ConfigReader("Gemma3", outer).tokens("eos_token_id")
        rope, local_rope = _ropes(values, read)
        return cls(
            vocab_size=read.size("vocab_size", 262208),
            hidden_size=read.size("hidden_size"),
            num_hidden_layers=layers,
            num_attention_heads=read.size("num_attention_heads", 8),
            num_key_value_heads=read.size("num_key_value_heads", 4),
            head_dim=head_dim,
            intermediate_size=read.size("intermediate_size"),
            max_positions=read.size("max_position_embeddings", 131072),
            sliding_window=read.size("sliding_window", 4096),
            sliding=_sliding(layers, read),
            query_pre_attn_scalar=read.positive("query_pre_attn_scalar", float(head_dim)),
            activation=read.activation("hidden_activation", "gelu_pytorch_tanh"),
            rms_norm_eps=read.positive("rms_norm_eps", 1e-6),
            rope=rope,
            local_rope=local_rope,
            attention_softcap=read.number("attn_logit_softcapping", 0.0),
            logit_softcap=read.number("final_logit_softcapping", 0.0),
            bias=read.flag("attention_bias", False),
            tied=read.flag("tie_word_embeddings", True),
            bos_token_id=next(iter(read.tokens("bos_token_id")), None),
            eos_token_ids=eos,
        )


def _ropes(
    values: Mapping[str, Any], read: ConfigReader
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    by_kind = values.get("rope_parameters")
    if isinstance(by_kind, Mapping) and _FULL in by_kind:
        rope, local = by_kind[_FULL], by_kind.get(_SLIDING)
        if not isinstance(rope, Mapping) or not isinstance(local, Mapping):
            raise ValueError(
                f"Gemma3: rope_parameters must hold {_FULL} and {_SLIDING}, got {by_kind!r}"
            )
        return rope, local
    only = rope_parameters(values)
    only.setdefault("rope_theta", 1000000.0)
    return only, {"rope_theta": read.positive("rope_local_base_freq", 10000.0)}


def _sliding(layers: int, read: ConfigReader) -> tuple[bool, ...]:
    found = read.sliding(layers)
    if found is not None:
        return found
    pattern = read.size("sliding_window_pattern", 6)
    return tuple((i + 1) % pattern != 0 for i in range(layers))


class Gemma3(FromPretrained, Decoder):
    """Layers with norms on both sides of each half, most of them over a sliding window."""

    config: Gemma3Config
    config_class = Gemma3Config
    prefixes = ("model.", "", "language_model.model.", "model.language_model.")
    left_out = r"rotary_emb|vision_tower\.|multi_modal_projector\."

    def __init__(self, config: Gemma3Config) -> None:
        rotary = {
            sliding: make_rotary("Gemma3", parameters, config.head_dim, config.max_positions)
            for sliding, parameters in ((False, config.rope), (True, config.local_rope))
        }
        # Its weights lie around 0.
        norm = partial(RMSNorm, eps=config.rms_norm_eps, weight_offset=1.0)

        def layer(sliding: bool) -> TransformerLayer:
            attention = Attention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                head_dim=config.head_dim,
                bias=config.bias,
                causal=True,
                window_left=config.sliding_window - 1 if sliding else -1,
                softcap=config.attention_softcap,
                scale=config.query_pre_attn_scalar**-0.5,
                qk_norm=norm,
                rotary=rotary[sliding],
            )
            mlp = MLP(
                config.hidden_size,
                config.intermediate_size,
                activation=config.activation,
                gated=True,
                bias=False,
            )
            return TransformerLayer(attention, mlp, norm=norm, norm_last=True)

        super().__init__(
            config,
            [layer(sliding) for sliding in config.sliding],
            norm(config.hidden_size),
            tied=config.tied,
            embedding_scale=config.hidden_size**0.5,
            logit_softcap=config.logit_softcap,
        )

    def source(self, name: str) -> Source:
        return llama_source(name, _NORMS)


_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
