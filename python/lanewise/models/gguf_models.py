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

MAX_SIZE = 1 << 24  # of every size in a config; the longest contexts come close to it

# general.architecture → model_type of Hugging Face. Mistral's files say llama.
_MODEL_TYPES = {"gemma3": "gemma3_text", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_END_TOKENS = ("eos", "eot", "eom")  # of a text, a turn, a message
# What a key must be, if it is there, for the model to be the plain one.
_PLAIN = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
}
_SCALING = {"type", "factor", "original_context_length", "finetuned"}

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
        ValueError: the architecture is not one of gemma3, llama, qwen2 and qwen3, a key is missing
            or makes no sense, or the model is a variant that is not served.
    """
    fields = _Fields(file)
    arch = fields.architecture
    _check_variant(file, fields)
    config: dict[str, Any] = {"model_type": _MODEL_TYPES[arch]}
    config |= {key: fields.size(name) for key, name in _SIZES.items()}
    heads = config["num_attention_heads"]
    head_dim = fields.size("attention.key_length", config["hidden_size"] // heads)
    if (width := fields.size("attention.value_length", head_dim)) != head_dim:
        raise fields.error("attention.value_length", f"the keys' {head_dim}", width)
    config |= {
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocab_size(file, fields),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 1e6 if arch == "gemma3" else 1e4),
        "rope_scaling": _rope_scaling(file, fields, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }
    ends = [fields.token(name) for name in _END_TOKENS]
    config |= {
        "bos_token_id": fields.token("bos"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)) or None,
        "pad_token_id": fields.token("padding"),
    }
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
    if "split.count" in file.metadata:
        raise ValueError(f"{file.path}: the file must be a whole model, not a part of a split one")
    plain: dict[str, tuple[Any, ...]] = dict(_PLAIN)
    if fields.architecture != "gemma3":
        plain["attention.sliding_window"] = (0,)
    for name, served in plain.items():
        if (value := fields.get(name, served[0])) not in served:
            raise fields.error(name, " or ".join(map(str, served)), value)


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
        "final_logit_softcapping": _optional(fields, "final_logit_softcapping"),
        "attn_logit_softcapping": _optional(fields, "attn_logit_softcapping"),
    }


def _optional(fields: _Fields, name: str) -> float | None:
    return None if fields.get(name) is None else fields.number(name)


def _vocab_size(file: GgufFile, fields: _Fields) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path}: the tensor token_embd.weight is missing")
    size = file.tensors["token_embd.weight"].shape[0]
    if (stated := fields.size("vocab_size", size)) != size:
        raise fields.error("vocab_size", f"the {size} rows of token_embd.weight", stated)
    return size


def _rope_scaling(file: GgufFile, fields: _Fields, head_dim: int) -> dict[str, Any] | None:
    if (rotated := fields.size("rope.dimension_count", head_dim)) != head_dim:
        raise fields.error("rope.dimension_count", f"the heads' {head_dim}", rotated)
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, fields, head_dim)
    if unknown := fields.names("rope.scaling.") - _SCALING:
        raise ValueError(f"{file.path}: rope.scaling.{min(unknown)} is not served")
    if (kind := fields.get("rope.scaling.type", "none")) == "none":
        return None
    if kind != "linear":
        raise fields.error("rope.scaling.type", "none or linear", kind)
    return {"rope_type": "linear", "factor": fields.number("rope.scaling.factor")}


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
        """A value that is not an array."""
        value = self._file.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, list | np.ndarray):
            raise self.error(name, "one value", f"{len(value)}")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer, or one per layer if all are equal."""
        value = self._file.metadata.get(f"{self.architecture}.{name}", default)
        if isinstance(value, np.ndarray) and len(values := set(value.tolist())) == 1:
            value = values.pop()
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.error(name, f"an integer from 1 to {MAX_SIZE}", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(name, "a positive number", value)
        return float(value)

    def token(self, name: str) -> int | None:
        """The number of a special token, if the file has one."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._file.metadata.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"{self._file.path}: {key} must be a token number, got {value!r}")
        return value

    def names(self, prefix: str) -> set[str]:
        """The rests of the names that start with ``prefix``."""
        whole = f"{self.architecture}.{prefix}"
        return {key.removeprefix(whole) for key in self._file.metadata if key.startswith(whole)}

    def error(self, name: str, what: str, value: Any) -> ValueError:
        return ValueError(
            f"{self._file.path}: {self.architecture}.{name} must be {what}, got {value!r}"
        )
