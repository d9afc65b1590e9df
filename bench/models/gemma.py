"""Gemma 3 270M from its packaged file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.case import Case
from bench.models import checkpoints, tokens
from bench.models.bars import Bar, of_the_limit, over
from bench.models.decoders import Lanewise, LlamaCpp, Transformers, loaded
from bench.models.generation import PROMPT, STEPS, Model, decode, prefill, text
from bench.section import Section

MODEL = Model("Gemma 3 270M", checkpoints.gemma, text)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
BEST = ("transformers float32", "transformers bfloat16")


def ours(dtype: torch.dtype) -> Lanewise:
    """Read from the quantized file itself."""
    side = loaded(Lanewise, checkpoints.gemma_gguf(), dtype)
    assert isinstance(side, Lanewise)
    return side


def case(kind: Callable[..., Case], dtype: torch.dtype) -> Case:
    """Beside transformers in both dtypes, and llama.cpp over the quantized weights."""
    peers = {
        "transformers float32": lambda: loaded(Transformers, checkpoints.gemma(), FLOAT32),
        "transformers bfloat16": lambda: loaded(Transformers, checkpoints.gemma(), BFLOAT16),
        "llama.cpp": lambda: loaded(LlamaCpp, checkpoints.gemma_gguf(), PROMPT + STEPS),
    }
    if dtype is FLOAT32:
        del peers["transformers bfloat16"]
    return kind(MODEL, dtype, {"": partial(ours, dtype)}, peers)


_PREFILL, _DECODE = f"{MODEL.name} prefill", f"{MODEL.name} decode"
SECTION = Section(
    "gemma",
    [partial(case, kind, dtype) for kind in (prefill, decode) for dtype in (FLOAT32, BFLOAT16)],
    seconds=1.0,
    passes=2,
    tables=tokens.tables(
        [
            Bar(
                "prefill, × the better of transformers float32 and llama.cpp",
                1.5,
                over(_PREFILL, "float32", ("transformers float32", "llama.cpp")),
            ),
            Bar(
                "decode in bfloat16, × transformers' best dtype",
                3,
                over(_DECODE, "bfloat16", BEST),
            ),
            Bar(
                "decode in bfloat16, share of the read bandwidth",
                0.75,
                of_the_limit(_DECODE, "bfloat16"),
            ),
        ]
    ),
    plot="bars",
)
