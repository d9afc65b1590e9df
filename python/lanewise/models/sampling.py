"""Choosing the next token from the logits: greedily, or drawn from a filtered distribution.

Works on one row of logits at a time, in NumPy: most of a vocabulary is ruled out in one pass, and
whatever needs an order (top-k, top-p) then sorts a few thousand values instead of 262144.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The filters apply in the order of the fields, as in transformers.

    A filter that cuts between equally likely tokens keeps all of them, so that the result does not
    depend on the order of the vocabulary.

    Args:
        repetition_penalty: divides the positive logits of tokens that the prompt or the text so far
            holds, and multiplies their negative ones (Keskar et al., "CTRL", 2019); 1 leaves them.
        temperature: divides the logits; 0, or less than float32's normal numbers, takes the
            likeliest token.
        top_k: keeps the k likeliest tokens (Fan et al., 2018).
        top_p: then keeps the likeliest tokens that together reach this probability, at least one
            (nucleus sampling, Holtzman et al., 2020).
        min_p: then keeps the tokens that are at least this fraction as likely as the likeliest
            (Nguyen et al., 2024).
        seed: makes the draws repeatable, the same for a prompt whatever else is in its batch; drawn
            from torch's default generator if None.

    Raises:
        ValueError: a value is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature < np.finfo(np.float32).smallest_normal

    def __post_init__(self) -> None:
        # Written so that NaN fails.
        _check("repetition_penalty", self.repetition_penalty, "a positive number", 0, np.inf)
        _check("temperature", self.temperature, "0 or a positive number", 0, np.inf, lowest=True)
        if self.top_k is not None and not (isinstance(self.top_k, int) and self.top_k >= 1):
            raise ValueError(f"Sampling: top_k must be an integer of at least 1, got {self.top_k}")
        if self.top_p is not None:
            _check("top_p", self.top_p, "above 0 and at most 1", 0, 1, highest=True)
        if self.min_p is not None:
            _check("min_p", self.min_p, "from 0 to 1", 0, 1, lowest=True, highest=True)
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise ValueError(
                f"Sampling: seed must be an integer from 0 to 2**63 - 1, got {self.seed}"
            )


def _check(
    name: str,
    value: float,
    meaning: str,
    low: float,
    high: float,
    *,
    lowest: bool = False,
    highest: bool = False,
) -> None:
    inside = low < value < high or (lowest and value == low) or (highest and value == high)
    if not inside:
        raise ValueError(f"Sampling: {name} must be {meaning}, got {value}")


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """The draws of one sequence: its own random numbers, and the tokens that it holds so far.

    Args:
        prompt: the tokens before the first draw.
        generator: where the random numbers come from, one per token.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], generator: torch.Generator
    ) -> None:
        self._sampling = sampling
        self._generator = generator
        self._seen = set(prompt)

    def draw(self, logits: Tensor) -> int:
        """Logits [V] of any floating dtype → the next token."""
        token = self._choose(logits)
        self._seen.add(token)
        return token

    def _choose(self, logits: Tensor) -> int:
        sampling = self._sampling
        row = _penalized(_row(logits), self._seen, sampling.repetition_penalty)
        if sampling.greedy:
            return int(row.argmax())
        tokens, weights = _filtered(row, sampling)
        uniform = torch.rand((), dtype=torch.float64, generator=self._generator).item()
        return int(tokens[_inverse_cumulative(weights, uniform)])


def distribution(
    logits: Tensor, sampling: Sampling, seen: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Logits [V] → the tokens that may be drawn, int64 [N] and ascending, and their probabilities,
    float64 [N].

    Args:
        seen: the tokens that the repetition penalty applies to.

    Raises:
        ValueError: the largest logit is not a finite number.
    """
    row = _penalized(_row(logits), set(seen), sampling.repetition_penalty)
    tokens: Ints
    weights: Floats
    if sampling.greedy:
        tokens, weights = np.array([row.argmax()]), np.ones(1, row.dtype)
    else:
        tokens, weights = _filtered(row, sampling)
    probabilities = torch.from_numpy(weights).double()
    return torch.tensor(tokens), probabilities / probabilities.sum()


def _row(logits: Tensor) -> Floats:
    logits = logits.detach().cpu()
    row = (logits if logits.dtype == torch.float64 else logits.float()).numpy()
    if not np.isfinite(peak := row.max()):  # the maximum of a row with NaN is NaN
        raise ValueError(f"sampling: the largest logit must be finite, got {peak}")
    return row


def _penalized(row: Floats, seen: set[int], penalty: float) -> Floats:
    if penalty == 1 or not seen:
        return row
    tokens = np.fromiter(seen, np.int64, len(seen))
    found = row[tokens]
    row = row.copy()
    row[tokens] = np.where(found < 0, found * penalty, found / penalty)
    return row


def _filtered(row: Floats, sampling: Sampling) -> tuple[Ints, Floats]:
    """The tokens that pass the filters and their weights, which are the probabilities over that of
    the likeliest token."""
    tokens = _vocabulary(len(row))
    k, p = sampling.top_k, sampling.top_p
    if k is not None and k < len(row):
        tokens, row = _at_least(_bound_of_largest(row, k), tokens, row)
        tokens, row = _at_least(np.partition(row, -k)[-k], tokens, row)
    with np.errstate(over="ignore"):  # a tiny temperature sends logits to -inf
        weights = np.exp((row - row.max()) / sampling.temperature)
    if p is not None and p < 1:
        total = weights.sum()
        # Tokens below the mean weight of the rest, 1 - p, hold less than it: none is needed.
        tokens, weights = _at_least((1 - p) * total / len(weights), tokens, weights)
        tokens, weights = _at_least(_nucleus_floor(weights, p * total), tokens, weights)
    if sampling.min_p is not None:
        tokens, weights = _at_least(sampling.min_p, tokens, weights)
    return tokens, weights


@lru_cache(maxsize=1)
def _vocabulary(size: int) -> Ints:
    tokens = np.arange(size)
    tokens.flags.writeable = False
    return tokens


def _at_least(floor: float | np.floating, tokens: Ints, values: Floats) -> tuple[Ints, Floats]:
    kept = np.flatnonzero(values >= floor)
    return tokens[kept], values[kept]


def _bound_of_largest(row: Floats, k: int) -> np.floating:
    """A value that k others reach, and not many more: the k-th largest of the maxima of parts."""
    parts = len(row) // _PART
    if k > parts:
        return row.min()
    maxima = row[: parts * _PART].reshape(_PART, parts).max(axis=0)
    return np.partition(maxima, -k)[-k]


_PART = 64  # values to a part: as cheap a pass as larger ones, with parts enough for any usual k


def _nucleus_floor(weights: Floats, mass: float) -> np.floating:
    """The weight of the last of the largest weights that are needed to reach ``mass``."""
    largest = np.sort(weights)[::-1]
    reached = largest.cumsum(dtype=np.float64)
    return largest[np.searchsorted(reached[:-1], mass)]


def _inverse_cumulative(weights: Floats, uniform: float) -> int:
    """The index that a number from [0, 1) falls on, were the weights laid end to end."""
    # Torch's cumulative sum is several times as fast as NumPy's.
    reached = torch.from_numpy(weights).cumsum(0, dtype=torch.float64).numpy()
    total = reached[-1]
    aim = min(uniform * total, np.nextafter(total, 0))  # the product may round up to the total
    return int(np.searchsorted(reached, aim, side="right"))
