"""The config of a model on disk: ``config.json``, or the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lanewise.models.gguf import GgufFile
from lanewise.models.gguf_models import MAX_SIZE, gguf_config

# Tokenizers are the largest of these files, with tens of megabytes.
_MAX_JSON_BYTES = 256_000_000

# What sizes may be at most: a model is built of them before a weight is read.
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 10_000),
    **dict.fromkeys(
        (
            *("hidden_size", "intermediate_size", "vocab_size", "type_vocab_size", "head_dim"),
            *("num_attention_heads", "num_key_value_heads", "n_embd", "n_head", "n_inner"),
            *("max_position_embeddings", "n_positions", "n_ctx", "sliding_window"),
        ),
        MAX_SIZE,
    ),
}
# Keys that may be null: the model then has no such thing, or derives the size.
_NULLABLE = {"sliding_window", "n_inner", "head_dim", "num_key_value_heads"}


def read_config(path: str | Path, required: Iterable[str] = ("model_type",)) -> dict[str, Any]:
    """The config of the model at ``path``, under the keys of Hugging Face's ``config.json``.

    Args:
        path: what `open_checkpoint` takes. A safetensors file has its config.json beside it; a
            GGUF file holds its own config.
        required: the keys that must be there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, a key is missing, or a size is not a positive integer
            that a model may have.
    """
    path = Path(path)
    if path.suffix == ".gguf" and not path.is_dir():
        source = path
        with GgufFile(path) as file:
            config = gguf_config(file)
    else:
        source = (path.parent if path.suffix == ".safetensors" else path) / "config.json"
        config = read_json(source)
    if not isinstance(config, dict):
        raise ValueError(f"{source}: the config must be an object, got {type(config).__name__}")
    for key in required:
        if key not in config:
            raise ValueError(f"{source}: the key {key} is missing")
    _check_sizes(source, config)
    if isinstance(config.get("text_config"), dict):  # of a multimodal model
        _check_sizes(source, config["text_config"])
    return config


def _check_sizes(source: Path, config: dict[str, Any]) -> None:
    for key, limit in _LIMITS.items():
        value = config.get(key)
        if key not in config or (value is None and key in _NULLABLE):
            continue
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{source}: {key} must be an integer from 1 to {limit}, got {value!r}")


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError that names the file where it is malformed."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: the file must have at most {_MAX_JSON_BYTES} bytes")
    return parse_json(path, path.read_bytes())


def parse_json(path: Path, content: bytes) -> Any:
    """The value of the JSON in the file ``path``; ValueError also where a key is there twice."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: malformed JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found
