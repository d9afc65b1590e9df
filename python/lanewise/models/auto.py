"""The model that a config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lanewise.models.checkpoint import open_checkpoint
from lanewise.models.config import read_config
from lanewise.models.decoder import Decoder
from lanewise.models.gemma3 import Gemma3
from lanewise.models.gpt2 import Gpt2
from lanewise.models.llama import Llama
from lanewise.models.loading import FromPretrained

DECODERS: dict[str, type[FromPretrained]] = {
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
}


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    pack: bool | None = None,
    device: Any = None,
) -> Decoder:
    """Reads the language model at ``path``, of whichever kind its config names; eval mode.

    Args:
        path: a directory with ``config.json`` and safetensors, or a GGUF file.
        dtype: of all parameters; by default what the file holds, float32 for a GGUF file.
        pack: for inference on the CPU: see `from_pretrained` of the models. Without it the model
            can be trained, moved and saved. By default it is packed where it goes to the CPU.

    Raises:
        FileNotFoundError, ImportError: as `from_pretrained`.
        ValueError: so too, or the config names a kind of model that is not built here.
    """
    values = read_config(path)
    kind = values["model_type"]
    if not isinstance(kind, str) or kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise ValueError(f"lanewise.models.load: model_type must be one of {known}, got {kind!r}")
    if pack is None:
        pack = device is None or torch.device(device).type == "cpu"
    cls = DECODERS[kind]
    config = cls.config_class.from_dict(values)
    with open_checkpoint(path) as checkpoint:
        model = cls.from_checkpoint(config, checkpoint, dtype=dtype, device=device, pack=pack)
    assert isinstance(model, Decoder)
    return model
