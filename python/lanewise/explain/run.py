"""Runs a model of a given config once, with random weights or on the meta device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lanewise.explain.recorder import Record, Recorder
from lanewise.explain.work import Sequences
from lanewise.models.auto import DECODERS
from lanewise.models.bert import Bert, BertConfig
from lanewise.models.decoder import Decoder
from lanewise.nn import pack

PHASES = ("prefill", "decode", "train")


@dataclass(frozen=True)
class Question:
    """What is run: ``batch`` sequences of ``tokens`` new tokens (1 in decode) after ``context``
    earlier ones."""

    phase: str
    batch: int
    tokens: int
    context: int
    dtype: torch.dtype

    @property
    def sequences(self) -> Sequences:
        return Sequences(self.batch, self.tokens, self.context + self.tokens)

    @property
    def new_tokens(self) -> int:
        return self.batch * self.tokens


def build(values: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The model of a ``config.json``, on the meta device.

    Raises:
        ValueError: its model_type is not one that lanewise has, or a value makes no sense.
    """
    kind = values.get("model_type")
    known = ("bert", *DECODERS)
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"lanewise.explain: model_type must be one of {', '.join(known)}, got {kind!r}"
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            if kind == "bert":
                return Bert(BertConfig.from_dict(dict(values))).eval()
            cls: Any = DECODERS[kind]
            return cls(cls.config_class.from_dict(values)).eval()
    finally:
        torch.set_default_dtype(before)


def check(model: nn.Module, question: Question) -> None:
    """ValueError where the model cannot answer the question."""
    config: Any = model.config
    if question.phase == "decode" and not isinstance(model, Decoder):
        raise ValueError("lanewise.explain: phase must be prefill or train for bert, got 'decode'")
    most = getattr(config, "max_positions", None) or config.max_position_embeddings
    length = question.tokens + question.context
    if length > most:
        raise ValueError(
            f"lanewise.explain: tokens and context must be at most {most} together, got {length}"
        )


def needed_bytes(model: nn.Module, question: Question) -> int:
    """Memory that a real run takes at least: weights (and a packed copy or gradients), the cache,
    and the activations of what is alive at once."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    layers: Any = model.layers
    config: Any = model.config
    width = max(getattr(config, "intermediate_size", 0), config.hidden_size)
    size = torch.empty((), dtype=question.dtype).element_size()
    alive = (
        question.new_tokens * width * size * (24 * len(layers) if question.phase == "train" else 8)
    )
    if question.phase == "train":
        alive += question.new_tokens * config.vocab_size * 8
    cache = 0
    if isinstance(model, Decoder) and question.phase != "train":
        attention = layers[0].attention
        token = 2 * attention.num_kv_heads * attention.head_dim * size * len(layers)
        cache = question.batch * (question.context + question.tokens) * token
    return 2 * weights + alive + cache


def steps(model: nn.Module, question: Question, device: str) -> Callable[[], Any]:
    """One step of the question; each call is the same step anew."""
    config: Any = model.config
    vocab: int = config.vocab_size
    shape = (question.batch, question.tokens)
    ids = torch.randint(vocab, shape, device=device) if device != "meta" else _meta(shape)
    if question.phase == "train":
        return lambda: _train(model, ids)
    if not isinstance(model, Decoder):
        return lambda: _inferred(model, ids)
    length = question.context + question.tokens
    cache = model.new_cache(question.batch, length)
    before = [question.context] * question.batch
    if question.context:
        cache.extend(before)
        if device != "meta":
            for k, v in cache.layers:  # what a cache holds must be numbers
                k.normal_()
                v.normal_()

    def step() -> Tensor:
        cache.lengths = list(before)
        return model.extend(ids.flatten(), [question.tokens] * question.batch, cache)

    return step


@torch.inference_mode()
def _inferred(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids)


def _train(model: nn.Module, ids: Tensor) -> None:
    out = model(ids)
    if isinstance(model, Decoder):
        loss = nn.functional.cross_entropy(out.flatten(0, 1).float(), ids.flatten())
    else:
        loss = out.float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def _meta(shape: tuple[int, int]) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def count(model: nn.Module, question: Question) -> list[Record]:
    """Every op of one step, counted on the meta device."""
    step = steps(model, question, "meta")
    with Recorder(model, question.sequences, timed=False) as recorder:
        step()
    return recorder.records


def materialize(model: nn.Module, question: Question) -> nn.Module:
    """The model with random weights, packed for inference."""
    torch.manual_seed(0)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.ones_(parameter)
    if question.phase == "train":
        return model
    return pack(model.requires_grad_(False), release=True)


def measure(
    model: nn.Module, question: Question, rounds: int, between: Callable[[], None]
) -> tuple[list[Record], float]:
    """The best time of each op and of a whole step, of so many rounds in turn."""
    step = steps(model, question, "cpu")
    step()
    best: list[Record] = []
    whole = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        whole = min(whole, time.perf_counter() - start)
        with Recorder(model, question.sequences, timed=True) as recorder:
            step()
        found = recorder.records
        best = [min(pair, key=_seconds) for pair in zip(best or found, found, strict=True)]
        between()
    return best, whole


def _seconds(record: Record) -> float:
    assert record.seconds is not None
    return record.seconds
