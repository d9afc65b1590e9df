"""Configs of well-known models, under the keys of Hugging Face's ``config.json``.

Sizes only: as the models' publishers give them.
"""

from __future__ import annotations

from typing import Any


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads}


def _bert(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }


def _decoder(
    kind: str,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    head_dim: int,
    inner: int,
    vocab: int,
    positions: int,
    **more: Any,
) -> dict[str, Any]:
    """``heads``: of queries, and of keys and values."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        **more,
    }


_TIED = {"tie_word_embeddings": True}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "minilm": _bert(384, 6, 12),
    "llama-3.2-1b": _decoder("llama", 2048, 16, (32, 8), 64, 8192, 128256, 131072, **_TIED),
    "llama-3.2-3b": _decoder("llama", 3072, 28, (24, 8), 128, 8192, 128256, 131072, **_TIED),
    "llama-3.1-8b": _decoder("llama", 4096, 32, (32, 8), 128, 14336, 128256, 131072),
    "llama-3.1-70b": _decoder("llama", 8192, 80, (64, 8), 128, 28672, 128256, 131072),
    "mistral-7b": _decoder(
        "mistral", 4096, 32, (32, 8), 128, 14336, 32768, 32768, sliding_window=None
    ),
    "qwen2.5-0.5b": _decoder("qwen2", 896, 24, (14, 2), 64, 4864, 151936, 32768, **_TIED),
    "qwen3-0.6b": _decoder("qwen3", 1024, 28, (16, 8), 128, 3072, 151936, 40960, **_TIED),
    "qwen3-8b": _decoder("qwen3", 4096, 36, (32, 8), 128, 12288, 151936, 40960),
    "gemma-3-270m": _decoder(
        "gemma3_text", 640, 18, (4, 1), 256, 2048, 262144, 32768, sliding_window=512
    ),
    "gemma-3-1b": _decoder(
        "gemma3_text", 1152, 26, (4, 1), 256, 6912, 262144, 32768, sliding_window=512
    ),
    "gemma-3-4b": _decoder(
        "gemma3_text", 2560, 34, (8, 4), 256, 10240, 262208, 131072, sliding_window=1024
    ),
}
