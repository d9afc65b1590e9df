"""From llama.cpp's conventions to Hugging Face's: the config, the names and the layout of weights.

llama.cpp's converter (convert_hf_to_gguf.py) renames tensors, adds 1 to the norms of Gemma, whose
weights are stored as w - 1, and reorders the rows of the query and key projections of Llama for
rotary pairs (2i, 2i+1). All three are undone here, so that models see one convention.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lanewise.models.gguf import GgufFile

Restore = Callable[[Tensor], Tensor]

# general.architecture → model_type of Hugging Face. Mistral's files say llama.
_MODEL_TYPES = {"gemma3": "gemma3_text", "llama": "llama", "qwen3": "qwen3"}

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_INNER_GEMMA = {
    **_INNER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]*)\.)?([a-z_]+)\.(weight|bias)")


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """What Hugging Face's ``config.json`` would say of the model in ``file``.

    Raises:
        ValueError: the architecture is not one of gemma3, llama and qwen3, a key is missing, or the
            model is a variant that is not served here.
    """
    fields = _Fields(file)
    arch = fields.architecture
    _check_variant(file, fields)
    config: dict[str, Any] = {"model_type": _MODEL_TYPES[arch]}
    config |= {key: fields.size(name) for key, name in _SIZES.items()}
    heads = config["num_attention_heads"]
    head_dim = fields.size("attention.key_length", config["hidden_size"] // heads)
    config |= {
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocab_size(file),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 1e6 if arch == "gemma3" else 1e4),
        "rope_scaling": _rope_scaling(file, fields, head_dim, config["max_position_embeddings"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }
    config |= {key: file.metadata.get(name) for key, name in _TOKENS.items()}
    config |= _gemma3(fields, config) if arch == "gemma3" else {"hidden_act": "silu"}
    return config


def restored_names(file: GgufFile) -> dict[str, str]:
    """Hugging Face's name → the name in ``file``, of every tensor.

    A tensor whose name means nothing for the architecture keeps it, so that whoever loads a model
    refuses it; the factors of the rotary frequencies are part of `gguf_config` instead.

    Raises:
        ValueError: two tensors would have one name.
    """
    inner = _INNER_GEMMA if _Fields(file).architecture == "gemma3" else _INNER
    names: dict[str, str] = {}
    for name in file.tensors:
        if name == _ROPE_FACTORS:
            continue
        new = name
        if found := _NAME.fullmatch(name):
            layer, module, parameter = found.groups()
            if layer is None and module in _OUTER:
                new = f"{_OUTER[module]}.{parameter}"
            elif layer is not None and module in inner:
                new = f"model.layers.{layer}.{inner[module]}.{parameter}"
        if new in names:
            raise ValueError(f"{file.path}: the tensors {names[new]!r} and {name!r} are the same")
        names[new] = name
    return names


def restore(file: GgufFile, name: str) -> Restore | None:
    """What undoes the converter's change to the values of the tensor ``name`` of ``file``.

    A function from float32 values or rows; None where nothing was changed.
    """
    fields = _Fields(file)
    if fields.architecture == "gemma3" and name.endswith("norm.weight"):
        return lambda values: values - 1
    if fields.architecture != "llama" or not (
        found := re.fullmatch(r"blk\.[0-9]+\.attn_([qk])\.(weight|bias)", name)
    ):
        return None
    heads = fields.size("attention.head_count")
    if found[1] == "k":
        heads = fields.size("attention.head_count_kv", heads)
    if (rows := file.tensors[name].shape[0]) % (2 * heads):
        raise ValueError(f"{file.path}: {name} must have an even number of rows in each of {heads}"
                         f" heads, got {rows}")  # fmt: skip
    return lambda values: _from_interleaved(values, heads)


def _from_interleaved(values: Tensor, heads: int) -> Tensor:
    """Rows (2i, 2i+1) of each head → (i, i + D/2), which undoes LlamaModel.permute there."""
    pairs = values.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(values.shape)


def _check_variant(file: GgufFile, fields: _Fields) -> None:
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise ValueError(f"{file.path}: one part of a split file is not a model: merge the parts")
    if fields.get("expert_count", 0):
        raise ValueError(f"{file.path}: a mixture of experts is not served")
    if (window := fields.get("attention.sliding_window")) and fields.architecture != "gemma3":
        raise ValueError(f"{file.path}: a sliding window of {window} is not served for llama files")


def _gemma3(fields: _Fields, config: dict[str, Any]) -> dict[str, Any]:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    # As llama.cpp has it: only the model of 62 layers (27B) scales by the width per head.
    scalar = config["hidden_size"] // heads if layers == 62 else config["head_dim"]
    pattern = fields.size("attention.sliding_window_pattern", 6)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": fields.size("attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "sliding_attention" if (layer + 1) % pattern else "full_attention"
            for layer in range(layers)
        ],
        "rope_local_base_freq": fields.number("rope.freq_base_swa", 1e4),
        "final_logit_softcapping": fields.get("final_logit_softcapping"),
        "attn_logit_softcapping": fields.get("attn_logit_softcapping"),
    }


def _vocab_size(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: the tensor token_embd.weight is missing")
    return file.tensors["token_embd.weight"].shape[0]


def _rope_scaling(
    file: GgufFile, fields: _Fields, head_dim: int, context: int
) -> dict[str, Any] | None:
    if (rotated := fields.size("rope.dimension_count", head_dim)) != head_dim:
        raise ValueError(f"{file.path}: rotating {rotated} of {head_dim} dimensions is not served")
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, fields, head_dim)
    kind = fields.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
    if kind == "linear":
        return scaling
    if kind == "yarn":
        original = fields.size("rope.scaling.original_context_length", context)
        return {**scaling, "original_max_position_embeddings": original}
    raise ValueError(f"{file.path}: rope.scaling.type must be none, linear or yarn, got {kind!r}")


def _llama3_scaling(file: GgufFile, fields: _Fields, head_dim: int) -> dict[str, Any]:
    """Llama 3's rule, of which the file holds only what it divides each frequency by.

    All released models share the rule's other numbers; the factors are computed again to make sure.
    """
    low, high, original = 1.0, 4.0, 8192
    found = file.read(_ROPE_FACTORS).double()
    theta = fields.number("rope.freq_base", 1e4)
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = original * frequency / (2 * torch.pi)
    factor = round(float(found.max()), 4) if found.isfinite().all() else 0.0
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    rule = 1 / ((1 - smooth) / factor + smooth) if factor > 0 else found.new_zeros(1)
    if found.shape != rule.shape or not torch.allclose(found, rule, rtol=1e-4):
        raise ValueError(
            f"{file.path}: the factors in {_ROPE_FACTORS} do not follow Llama 3's rule"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


class _Fields:
    """The metadata under the architecture's prefix, checked on the way out."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.architecture: Any = file.metadata.get("general.architecture")
        if not isinstance(self.architecture, str) or self.architecture not in _MODEL_TYPES:
            known = ", ".join(_MODEL_TYPES)
            raise ValueError(
                f"{file.path}: general.architecture must be one of {known}, "
                f"got {self.architecture!r}"
            )

    def get(self, name: str, default: Any = None) -> Any:
        return self._file.metadata.get(f"{self.architecture}.{name}", default)

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer, or one per layer if all are equal."""
        value = self.get(name, default)
        if isinstance(value, np.ndarray) and len(values := set(value.tolist())) == 1:
            value = values.pop()
        if type(value) is not int or value < 1:
            raise self._error(name, "a positive integer", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._error(name, "a positive number", value)
        return float(value)

    def _error(self, name: str, what: str, value: Any) -> ValueError:
        return ValueError(
            f"{self._file.path}: {self.architecture}.{name} must be {what}, got {value!r}"
        )
