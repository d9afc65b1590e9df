"""Distributions against transformers' logits processors, and draws against their distributions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lanewise.models.sampling import Sampler, Sampling, distribution


def logits(vocabulary: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


def scattered(row: Tensor, sampling: Sampling, seen: list[int]) -> Tensor:
    tokens, probabilities = distribution(row, sampling, seen)
    assert (tokens.diff() > 0).all()
    return torch.zeros(len(row), dtype=torch.float64).index_put((tokens,), probabilities)


def transformers_distribution(row: Tensor, sampling: Sampling, seen: list[int]) -> Tensor:
    """float64 logits through the processors that ``generate`` would build."""
    processors = pytest.importorskip("transformers").generation.logits_process
    chain: list[Any] = []
    if sampling.repetition_penalty != 1:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.append(processors.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        chain.append(processors.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        chain.append(processors.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        chain.append(processors.MinPLogitsWarper(sampling.min_p))
    scores = row.double()[None]
    for processor in chain:
        scores = processor(torch.tensor([seen]), scores)
    return scores.softmax(-1)[0]


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(temperature=2.5),
    Sampling(top_k=1),
    Sampling(top_k=7, temperature=0.8),
    Sampling(top_k=10**6),
    Sampling(top_p=0.9),
    Sampling(top_p=0.999, temperature=3.0),
    Sampling(top_p=1e-9),
    Sampling(top_p=1.0),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(top_k=40, top_p=0.8, min_p=0.05, temperature=1.3),
    Sampling(repetition_penalty=1.7, top_k=20),
    Sampling(repetition_penalty=0.6, top_p=0.5),
]


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 500, 32003])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_distributions_are_those_of_transformers(sampling: Sampling, vocabulary: int) -> None:
    """float64 logits: what is kept differs nowhere, not even by rounding."""
    for seed, spread in enumerate((0.1, 3.0, 10.0)):
        row = logits(vocabulary, spread, seed).double()
        seen = sorted({0, vocabulary // 2, vocabulary - 1, int(row.argmax())})
        ours = scattered(row, sampling, seen)
        theirs = transformers_distribution(row, sampling, seen)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_every_dtype_of_logits(sampling: Sampling, dtype: torch.dtype) -> None:
    """In 16 bits many tokens are equally likely: of those that transformers cuts, all stay."""
    row, seen = logits(50000).to(dtype), [1, 2, 3]
    ours = scattered(row, sampling, seen)
    theirs = transformers_distribution(row, sampling, seen)
    unfiltered = replace(sampling, top_k=None, top_p=None, min_p=None)
    expected = transformers_distribution(row, unfiltered, seen)
    expected[expected < expected[theirs > 0].min()] = 0
    # Rounding may move the cut of top-p by a token.
    assert (ours - expected / expected.sum()).abs().sum() < 1e-4


def test_equally_likely_tokens_are_kept_together() -> None:
    for row in ([0.0, 2.0, 1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0, 2.0, 0.0]):
        for sampling in (Sampling(top_k=2), Sampling(top_k=4), Sampling(top_p=0.6)):
            assert distribution(torch.tensor(row), sampling)[0].tolist() == [1, 2, 3, 4]
    many = torch.zeros(10000)  # more ties than the bound of top-k looks for
    assert len(distribution(many, Sampling(top_k=5))[0]) == 10000


def test_ruled_out_tokens_are_never_drawn() -> None:
    row = torch.full((300,), -torch.inf)
    row[[3, 200]] = torch.tensor([1.0, 1.5])
    for sampling in (Sampling(), Sampling(top_k=5), Sampling(top_p=0.99), Sampling(min_p=0.0)):
        sampler = Sampler(sampling, [], torch.Generator().manual_seed(0))
        assert {sampler.draw(row) for _ in range(100)} == {3, 200}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=9), Sampling(top_p=0.8), Sampling(temperature=0.5)]
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """Pearson's chi-squared over the likeliest tokens and the rest."""
    row, count = logits(200, spread=2.0), 20000
    sampler = Sampler(sampling, [], torch.Generator().manual_seed(1))
    drawn = torch.bincount(torch.tensor([sampler.draw(row) for _ in range(count)]), minlength=200)
    probabilities = transformers_distribution(row, sampling, [])
    assert drawn[probabilities == 0].sum() == 0
    bins = probabilities.argsort(descending=True)[:8]
    expected, found = count * probabilities[bins], drawn[bins].double()
    statistic = ((found - expected).square() / expected).sum()
    assert statistic < 26.1  # 8 degrees of freedom, exceeded with probability 0.001


def test_the_ends_of_the_uniform_range(monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf])
    for uniform, token in ((0.0, 1), (0.5, 2), (1 - 2**-53, 2)):
        value = torch.tensor(uniform, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, value=value, **__: value)
        assert Sampler(Sampling(), [], torch.Generator()).draw(row) == token


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-46, 1e-40])
def test_temperature_zero_is_the_first_likeliest(temperature: float) -> None:
    """And one that float32 rounds to 0, or may flush to it."""
    row = torch.tensor([0.0, 3.0, 3.0, -1.0])
    greedy = Sampling(temperature=temperature, top_k=3, top_p=0.1)
    assert Sampler(greedy, [], torch.Generator()).draw(row) == 1
    tokens, probabilities = distribution(row, greedy)
    assert (tokens.tolist(), probabilities.tolist()) == ([1], [1.0])


def test_tiny_temperatures_do_not_overflow() -> None:
    tokens, probabilities = distribution(logits(100) * 1e30, Sampling(temperature=1e-30))
    assert probabilities.isfinite().all()
    assert tokens[probabilities.argmax()] == logits(100).argmax()


def test_what_was_drawn_is_penalised_next() -> None:
    row = torch.tensor([1.0, 0.9, 0.8])
    penalised = Sampling(temperature=0.0, repetition_penalty=1.5)
    sampler = Sampler(penalised, [0], torch.Generator())
    assert [sampler.draw(row) for _ in range(3)] == [1, 2, 0]
    assert torch.equal(row, torch.tensor([1.0, 0.9, 0.8]))


def test_logits_that_require_grad_and_views() -> None:
    row = logits(64).repeat_interleave(2)[::2].requires_grad_()
    assert Sampler(Sampling(temperature=0.0), [], torch.Generator()).draw(row) == row.argmax()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or a positive number, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or a positive number, got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 or a positive number, got inf"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 1, got 2.5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, got -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number, got 0.0"),
        ({"seed": -1}, "seed must be an integer from 0 to 2**63 - 1, got -1"),
        ({"seed": 1.0}, "seed must be an integer from 0 to 2**63 - 1, got 1.0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Sampling: {message}")):
        Sampling(**values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_k=3)])
def test_logits_that_are_no_numbers_are_refused(sampling: Sampling, value: float) -> None:
    row = logits(1000)
    row[500] = value
    with pytest.raises(ValueError, match=f"the largest logit must be finite, got {value}"):
        Sampler(sampling, [], torch.Generator()).draw(row)
    with pytest.raises(ValueError, match="the largest logit must be finite, got -inf"):
        distribution(torch.full((9,), -torch.inf), sampling)
