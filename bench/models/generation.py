"""A prompt of 512 tokens, and the tokens after it, by every decoder that runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, whole
from bench.models import checkpoints
from bench.models.decoders import Decoder, Transformers, loaded
from bench.models.shape import Shape
from bench.remote.client import ROOT

PROMPT, STEPS = 512, 8  # tokens

REMOTE = ("ctranslate2", "llama.cpp")  # they tell tokens alone

Make = Callable[[], Decoder]


@dataclass(frozen=True)
class Model:
    """What all sides run."""

    name: str
    path: Callable[[], Path]  # of transformers' form; what it is made of takes time
    prompt: Callable[[], Tensor]  # [PROMPT]


def prefill(
    model: Model,
    dtype: torch.dtype,
    ours: Mapping[str, Make],
    peers: Mapping[str, Make],
) -> Case:
    """The prompt from scratch, and the prediction that follows it."""
    prompt, reference = model.prompt(), _reference(model)
    present, absent = _present(peers)
    compared = _compared(dtype)
    return Case(
        Shape.of(model.path()).task(f"{model.name} prefill, {PROMPT} tokens", dtype, 0, PROMPT, 1),
        ours={way: partial(make().prefill, prompt) for way, make in ours.items()},
        peers={peer: partial(side.prefill, prompt) for peer, side in present.items()},
        reference=lambda: compared(reference.prefill(prompt)),
        references=dict.fromkeys(REMOTE, lambda: reference.prefill(prompt)[:1]),
        compared=compared,
        absent=absent,
    )


def decode(
    model: Model,
    dtype: torch.dtype,
    ours: Mapping[str, Make],
    peers: Mapping[str, Make],
) -> Case:
    """A few tokens after the prompt, which does not count."""
    prompt, forced, following, logits = _path(model)
    present, absent = _present(peers)
    compared = _compared(dtype)
    task = Shape.of(model.path()).task(
        f"{model.name} decode, {STEPS} tokens after {PROMPT}", dtype, PROMPT, STEPS, STEPS
    )
    return Case(
        task,
        ours={way: partial(make().decode, prompt, forced) for way, make in ours.items()},
        peers={peer: partial(side.decode, prompt, forced) for peer, side in present.items()},
        reference=lambda: compared((following, logits)),
        references={"ctranslate2": lambda: (following,), "llama.cpp": lambda: (following[-1:],)},
        compared=compared,
        absent=absent,
    )


def _compared(dtype: torch.dtype) -> Callable[[Any], Any]:
    """In float32 the likeliest tokens and the logits; else the logits, for there may be near ties.

    A side that knows no logits is held to its tokens.
    """
    return whole if dtype is torch.float32 else lambda output: output[-1:]


def _present(peers: Mapping[str, Make]) -> tuple[dict[str, Decoder], dict[str, str]]:
    """The peers that run here, and why others do not."""
    present: dict[str, Decoder] = {}
    absent = {}
    for name, make in peers.items():
        try:
            present[name] = make()
        except RuntimeError as error:  # Absent is one; another tells why loading failed
            absent[name] = str(error)
    return present, absent


def text() -> Tensor:
    """The beginning of a text, for weights that know some."""
    from lanewise.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoints.gemma_gguf())
    return torch.tensor(tokenizer.encode((ROOT / "LICENSE").read_text()).ids[:PROMPT])


def noise() -> Tensor:
    """Random tokens, for random weights."""
    return torch.randint(1, 50000, (PROMPT,), generator=torch.Generator().manual_seed(0))


def _reference(model: Model) -> Transformers:
    side = loaded(Transformers, model.path(), torch.float32)
    assert isinstance(side, Transformers)
    return side


@cache
def _path(model: Model) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The prompt, the greedy tokens after it but for the last, those but for the first, and the
    logits that gave the last: all by transformers in float32."""
    prompt, reference = model.prompt(), _reference(model)
    with torch.inference_mode():
        tokens, _ = reference.prefill(prompt)
        for _ in range(STEPS):
            sample = reference.decode(prompt, tokens)
            tokens = torch.cat((tokens, sample.output[0][-1:]))
    return prompt, tokens[:-1], tokens[1:], sample.output[1]
