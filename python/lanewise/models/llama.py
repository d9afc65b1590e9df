"""Llama 3 (Grattafiori et al., 2024) and its kin: Mistral, Qwen 2 and Qwen 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lanewise.models.config_reader import ConfigReader
from lanewise.models.decoder import Decoder
from lanewise.models.loading import FromPretrained, Source
from lanewise.models.rotary import make_rotary, rope_parameters
from lanewise.nn import MLP, Attention, RMSNorm, TransformerLayer


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a model, mostly under the names of Hugging Face's ``config.json``.

    qkv_bias, out_bias and mlp_bias tell which linear layers have a bias; qk_norm whether queries
    and keys are normalised, as in Qwen 3; windows holds each layer's sliding window, None for full
    attention.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    activation: str = "silu"
    rms_norm_eps: float = 1e-6
    rope: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LlamaConfig:
        """Reads the content of a ``config.json``.

        Raises:
            ValueError: a value is missing or makes no sense, or the config describes a variant that
                is not built here.
        """
        read = ConfigReader("Llama", values)
        read.only("model_type", "llama", "mistral", "qwen2", "qwen3")
        kind = values.get("model_type", "llama")
        heads, layers = read.size("num_attention_heads"), read.size("num_hidden_layers")
        hidden = read.size("hidden_size")
        bias = read.flag("attention_bias", False)
        return cls(
            vocab_size=read.size("vocab_size"),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=read.size("num_key_value_heads", heads),
            head_dim=read.size("head_dim", 128 if kind == "qwen3" else max(hidden // heads, 1)),
            intermediate_size=read.size("intermediate_size"),
            max_positions=read.size("max_position_embeddings", 2048),
            activation=read.activation("hidden_act", "silu"),
            rms_norm_eps=read.positive("rms_norm_eps", 1e-6),
            rope=rope_parameters(values),
            windows=_windows(kind, layers, values, read),
            qkv_bias=bias or kind == "qwen2",
            out_bias=bias,
            mlp_bias=read.flag("mlp_bias", False),
            qk_norm=kind == "qwen3",
            tied=read.flag("tie_word_embeddings", False),
            bos_token_id=next(iter(read.tokens("bos_token_id")), None),
            eos_token_ids=read.tokens("eos_token_id"),
        )


def _windows(
    kind: str, layers: int, values: Mapping[str, Any], read: ConfigReader
) -> tuple[int | None, ...]:
    # What is absent has the default of the model's kind.
    window = values.get("sliding_window", 4096 if kind != "llama" else None)
    uses = read.flag("use_sliding_window", False) if kind.startswith("qwen") else True
    if window is None or not uses or kind == "llama":
        return (None,) * layers
    window = read.size("sliding_window", 4096)
    sliding = read.sliding(layers)
    if sliding is None and kind.startswith("qwen"):  # the first layers attend in full
        full = read.size("max_window_layers", 28)
        sliding = tuple(i >= full for i in range(layers))
    return tuple(window if slides else None for slides in sliding or (True,) * layers)


class Llama(FromPretrained, Decoder):
    """Pre-norm layers with rotary positions, grouped-query attention and a gated MLP."""

    config: LlamaConfig
    config_class = LlamaConfig
    prefixes = ("model.", "", "language_model.model.", "model.language_model.")
    left_out = r"rotary_emb\.inv_freq$|^model\.vision|^vision|^multi_modal"

    def __init__(self, config: LlamaConfig) -> None:
        rotary = make_rotary("Llama", config.rope, config.head_dim, config.max_positions)
        norm = partial(RMSNorm, eps=config.rms_norm_eps)
        windows = config.windows or (None,) * config.num_hidden_layers

        def layer(window: int | None) -> TransformerLayer:
            attention = Attention(
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                head_dim=config.head_dim,
                bias=config.qkv_bias,
                out_bias=config.out_bias,
                causal=True,
                window_left=-1 if window is None else window - 1,
                qk_norm=norm if config.qk_norm else None,
                rotary=rotary,
            )
            mlp = MLP(
                config.hidden_size,
                config.intermediate_size,
                activation=config.activation,
                gated=True,
                bias=config.mlp_bias,
            )
            return TransformerLayer(attention, mlp, norm=norm)

        layers = [layer(window) for window in windows]
        super().__init__(config, layers, norm(config.hidden_size), tied=config.tied)

    def source(self, name: str) -> Source:
        return llama_source(name, _NORMS)


_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def llama_source(name: str, norms: Mapping[str, str]) -> Source:
    """Hugging Face's name, less its prefix, of our parameter; ``norms`` maps those of a layer."""
    module, _, parameter = name.rpartition(".")
    if module == "head":
        return Source(f"lm_head.{parameter}", prefixed=False)
    if not module.startswith("layers."):
        return Source(f"{'embed_tokens' if module == 'embedding' else module}.{parameter}")
    _, number, inner = module.split(".", 2)
    inner = norms.get(inner, inner.replace("attention.", "self_attn."))
    return Source(f"layers.{number}.{inner}.{parameter}")
