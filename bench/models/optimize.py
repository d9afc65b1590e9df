"""`lanewise.optimize` on transformers' own models: how much of our models' gain it brings."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench.case import Case, Result
from bench.limits import Limits
from bench.models import checkpoints, gemma, tokens
from bench.models.bars import Bar, Found
from bench.models.decoders import Lanewise, Transformers, loaded
from bench.models.generation import Model, decode, noise, prefill
from bench.section import Section

LLAMA_MODEL = Model(
    f"Llama 3.2 1B, {checkpoints.LLAMA_LAYERS} of 16 layers", checkpoints.llama, noise
)
OPTIMIZED = "optimized"


def case(kind: Callable[..., Case], model: Model, dtype: torch.dtype) -> Case:
    """Ours, and transformers' before and after."""
    return kind(
        model,
        dtype,
        {
            "": lambda: loaded(Lanewise, model.path(), dtype),
            OPTIMIZED: lambda: loaded(Transformers, model.path(), dtype, "sdpa", True),
        },
        {"transformers": lambda: loaded(Transformers, model.path(), dtype)},
    )


def share(model: Model) -> Found:
    """The gain over transformers as a share of our model's, the mean over what was measured."""

    def found(results: Sequence[Result], limits: Limits) -> float | None:
        shares = [
            optimized / own
            for result in results
            if result.task.work.startswith(model.name)
            and (own := result.ratio("", "transformers")) is not None
            and (optimized := result.ratio(OPTIMIZED, "transformers")) is not None
        ]
        return statistics.geometric_mean(shares) if shares else None

    return found


def _section(name: str, model: Model) -> Section:
    return Section(
        name,
        [
            partial(case, kind, model, dtype)
            for kind, dtype in (
                (prefill, torch.float32),
                (decode, torch.float32),
                (decode, torch.bfloat16),
            )
        ],
        seconds=1.0,
        tables=tokens.tables(
            [Bar(f"{model.name}: share of our own model's gain", 0.8, share(model))]
        ),
        plot="bars",
    )


GEMMA = _section("optimize-gemma", gemma.MODEL)
LLAMA = _section("optimize-llama", LLAMA_MODEL)
