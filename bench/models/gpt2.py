"""GPT-2 of 124M parameters, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.case import Case
from bench.models import checkpoints, tokens
from bench.models.bars import Bar, over
from bench.models.decoders import CTranslate2, Lanewise, Transformers, loaded
from bench.models.generation import Model, decode, noise, prefill
from bench.section import Section

MODEL = Model("GPT-2 124M", checkpoints.gpt2, noise)
FLOAT32 = torch.float32


def case(kind: Callable[..., Case]) -> Case:
    """Beside transformers with both its attentions, and CTranslate2."""
    return kind(
        MODEL,
        FLOAT32,
        {"": lambda: loaded(Lanewise, checkpoints.gpt2(), FLOAT32)},
        {
            "transformers eager": lambda: loaded(
                Transformers, checkpoints.gpt2(), FLOAT32, "eager"
            ),
            "transformers": lambda: loaded(Transformers, checkpoints.gpt2(), FLOAT32),
            "ctranslate2": lambda: loaded(CTranslate2, checkpoints.gpt2()),
        },
    )


_PREFILL, _DECODE = f"{MODEL.name} prefill", f"{MODEL.name} decode"
SECTION = Section(
    "gpt2",
    [partial(case, kind) for kind in (prefill, decode)],
    seconds=1.0,
    passes=2,
    tables=tokens.tables(
        [
            Bar("decode, × CTranslate2", 1.2, over(_DECODE, "float32", ["ctranslate2"])),
            Bar(
                "decode, × transformers eager",
                5,
                over(_DECODE, "float32", ["transformers eager"]),
            ),
            Bar(
                "prefill, × the better of both",
                1.4,
                over(_PREFILL, "float32", ["ctranslate2", "transformers eager"]),
            ),
        ]
    ),
    plot="bars",
)
