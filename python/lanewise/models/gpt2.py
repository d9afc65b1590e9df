"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lanewise.models.config_reader import ConfigReader
from lanewise.models.decoder import Decoder
from lanewise.models.loading import FromPretrained, Source
from lanewise.nn import MLP, Attention, LayerNorm, LearnedPositionEmbedding, TransformerLayer


@dataclass(frozen=True)
class Gpt2Config:
    """The sizes of a model; Hugging Face's ``config.json`` calls them n_embd, n_layer and so on."""

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 1024
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-5
    scale_attention: bool = True
    tied: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gpt2Config:
        """Reads the content of a ``config.json``.

        Raises:
            ValueError: a value is missing or makes no sense, or the config describes a variant that
                is not built here.
        """
        read = ConfigReader("Gpt2", values)
        read.only("model_type", "gpt2")
        read.only("scale_attn_by_inverse_layer_idx", False)
        read.only("add_cross_attention", False)
        hidden = read.size("n_embd", 768)
        return cls(
            vocab_size=read.size("vocab_size", 50257),
            hidden_size=hidden,
            num_hidden_layers=read.size("n_layer", 12),
            num_attention_heads=read.size("n_head", 12),
            intermediate_size=read.size("n_inner", 4 * hidden),
            max_positions=read.size("n_positions", 1024),
            activation=read.activation("activation_function", "gelu_new"),
            layer_norm_eps=read.positive("layer_norm_epsilon", 1e-5),
            scale_attention=read.flag("scale_attn_weights", True),
            tied=read.flag("tie_word_embeddings", True),
            bos_token_id=next(iter(read.tokens("bos_token_id")), None),
            eos_token_ids=read.tokens("eos_token_id"),
        )


class Gpt2(FromPretrained, Decoder):
    """Pre-norm layers with learned positions, multi-head attention and a plain MLP."""

    config: Gpt2Config
    config_class = Gpt2Config
    prefixes = ("transformer.", "")
    left_out = r"\.attn\.(bias|masked_bias)$"

    def __init__(self, config: Gpt2Config) -> None:
        norm = partial(LayerNorm, eps=config.layer_norm_eps)

        def layer() -> TransformerLayer:
            attention = Attention(
                config.hidden_size,
                config.num_attention_heads,
                causal=True,
                scale=None if config.scale_attention else 1.0,
            )
            mlp = MLP(config.hidden_size, config.intermediate_size, activation=config.activation)
            return TransformerLayer(attention, mlp, norm=norm)

        super().__init__(
            config,
            [layer() for _ in range(config.num_hidden_layers)],
            norm(config.hidden_size),
            positions=LearnedPositionEmbedding(config.max_positions, config.hidden_size),
            tied=config.tied,
        )

    def source(self, name: str) -> Source:
        module, _, parameter = name.rpartition(".")
        if module == "head":
            return Source(f"lm_head.{parameter}", prefixed=False)
        if not module.startswith("layers."):
            return Source(f"{_OUTER[module]}.{parameter}")
        _, number, inner = module.split(".", 2)
        return Source(f"h.{number}.{_INNER[inner]}.{parameter}", _FORMS.get(inner))


_OUTER = {"embedding": "wte", "positions": "wpe", "norm": "ln_f"}
_INNER = {
    "attention_norm": "ln_1",
    "attention.q_proj": "attn.c_attn",
    "attention.k_proj": "attn.c_attn",
    "attention.v_proj": "attn.c_attn",
    "attention.o_proj": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}


# Its linear layers are stored [in, out], those of queries, keys and values side by side.
def _transposed(t: Tensor) -> Tensor:
    return t.T if t.dim() == 2 else t


def _third(index: int, t: Tensor) -> Tensor:
    return t.chunk(3, -1)[index].T if t.dim() == 2 else t.chunk(3)[index]


_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention.q_proj": partial(_third, 0),
    "attention.k_proj": partial(_third, 1),
    "attention.v_proj": partial(_third, 2),
    "attention.o_proj": _transposed,
    "mlp.up_proj": _transposed,
    "mlp.down_proj": _transposed,
}
