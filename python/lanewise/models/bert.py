"""BERT (Devlin et al., 2019): the post-norm encoder under most sentence-embedding models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lanewise.models.checkpoint import load_weights, open_checkpoint
from lanewise.models.config import read_config
from lanewise.nn import MLP, Attention, LayerNorm, LearnedPositionEmbedding, TransformerLayer

# Hugging Face's names for the functions that the ops call otherwise.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu"}


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT model, under the names of Hugging Face's ``config.json``."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"Bert: hidden_act must be one of {known}, got {self.hidden_act!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BertConfig:
        """Takes the fields it knows; ValueError for a variant that `Bert` does not compute."""
        for name, only in (
            ("model_type", "bert"),
            ("position_embedding_type", "absolute"),
            ("is_decoder", False),
        ):
            if values.get(name, only) != only:
                raise ValueError(f"Bert: {name} must be {only!r}, got {values[name]!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.position_embeddings = LearnedPositionEmbedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.norm = make_norm(config)(size)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """input_ids, token_type_ids [B, S] → [B, S, E]."""
        words = self.word_embeddings(input_ids)
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        places = self.position_embeddings(input_ids.shape[1]) + types
        y, _ = self.norm(words, residual=places.expand_as(words))
        return y


class Bert(nn.Module):
    """The encoder without a head: token numbers in, one vector per token out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S] → the last hidden states [B, S, E].

        Args:
            attention_mask: [B, S], nonzero for tokens and zero for padding. Leave it out where
                there is no
                padding: the attention is faster without. States at padding mean nothing.
            token_type_ids: [B, S], the segment of each token; all 0 by default.
        """
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Bert:
        """Reads ``config.json`` and ``model.safetensors`` in the directory ``path``; eval mode.

        The weights keep the file's dtype unless ``dtype`` is given. The pooler and the heads of
        pretraining, where the file has them, are left out.

        Raises:
            FileNotFoundError: one of the two files is not there.
            ValueError: the config describes a variant of BERT that is not built here, or the
                weights do not fit it.
            ImportError: the package safetensors is missing.
        """
        config = BertConfig.from_dict(read_config(path, required=()))
        with torch.device("meta"):
            model = cls(config)
        with open_checkpoint(path) as checkpoint:
            load_weights(model, checkpoint, rename, dtype)
        return model.to(device).eval()


def make_norm(config: BertConfig) -> Callable[..., LayerNorm]:
    """Makes the model's norms, called with the size, device and dtype."""
    return partial(LayerNorm, eps=config.layer_norm_eps)


def _layer(config: BertConfig) -> TransformerLayer:
    attention = Attention(config.hidden_size, config.num_attention_heads)
    activation = ACTIVATIONS[config.hidden_act]
    mlp = MLP(config.hidden_size, config.intermediate_size, activation=activation)
    return TransformerLayer(attention, mlp, norm=make_norm(config), norm_first=False)


# Hugging Face's name of a module inside a layer → ours.
_LAYER_NAMES = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "mlp_norm",
}
_LEFT_OUT = re.compile(r"(bert\.)?(pooler\.|embeddings\.position_ids$)|cls\.|classifier\.")


def rename(name: str) -> str | None:
    """Our name for a parameter of Hugging Face's BertModel, None for what we leave out."""
    if _LEFT_OUT.match(name):
        return None
    module, _, parameter = name.removeprefix("bert.").rpartition(".")
    parameter = {"gamma": "weight", "beta": "bias"}.get(parameter, parameter)  # TensorFlow's
    if layer := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module):
        number, inner = layer.groups()
        return f"layers.{number}.{_LAYER_NAMES.get(inner, inner)}.{parameter}"
    return f"{module.replace('LayerNorm', 'norm')}.{parameter}"
