"""Text generation as token numbers: a ragged batch in, the new tokens of each sequence out."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lanewise.models.sampling import GREEDY, Sampler, Sampling

if TYPE_CHECKING:  # a Decoder calls this module
    from lanewise.models.decoder import Decoder


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Iterable[int] | None = None,
    prefill_chunk: int = 512,
) -> list[list[int]]:
    """Continues every prompt, all in one batch without padding.

    A sequence ends with a stop token, which is part of the result, or after ``max_new_tokens``. It
    then leaves the batch, and its cache is free.

    Args:
        prompts: the token numbers of each prompt, special ones included; of any lengths.
        max_new_tokens: the most tokens that a sequence may grow by.
        sampling: how tokens are drawn; the likeliest token each time if None. With a seed, a
            prompt's draws do not depend on the other prompts; equal prompts draw differently.
        stop_tokens: the tokens that end a sequence; the end-of-text tokens of the model's config if
            None.
        prefill_chunk: the most prompt tokens in one step of the model, which bounds the memory of
            activations.

    Returns:
        The new tokens of each prompt.

    Raises:
        TypeError: a token or a count is not an integer.
        ValueError: a prompt is empty, holds a token outside the vocabulary, or does not fit into
            the model's positions together with ``max_new_tokens``; a count is below 1.
    """
    found: list[list[int]] = [[] for _ in prompts]
    for index, token in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_tokens=stop_tokens,
        prefill_chunk=prefill_chunk,
    ):
        found[index].append(token)
    return found


def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Iterable[int] | None = None,
    prefill_chunk: int = 512,
) -> Iterator[tuple[int, int]]:
    """`generate` as it goes: yields (index of the prompt, new token), one for each sequence that
    still runs, step by step.

    The arguments are checked in the call, before the first step.
    """
    config = model.config
    max_new_tokens = _count("max_new_tokens", max_new_tokens)
    prefill_chunk = _count("prefill_chunk", prefill_chunk)
    rows = [_tokens(f"prompt {i}", prompt, config) for i, prompt in enumerate(prompts)]
    for index, row in enumerate(rows):
        _check_length(index, len(row), max_new_tokens, config.max_positions)
    # A config may name a token that its vocabulary lacks: it cannot come, and ends nothing.
    known = (token for token in config.eos_token_ids if token < config.vocab_size)
    stops = known if stop_tokens is None else stop_tokens
    stop = frozenset(_tokens("stop_tokens", stops, config))
    samplers = _samplers(rows, GREEDY if sampling is None else sampling)
    return _run(model, rows, samplers, max_new_tokens, stop, prefill_chunk)


# The decorator enters inference mode for each step and leaves it at each yield.
@torch.inference_mode()
def _run(
    model: Decoder,
    rows: list[list[int]],
    samplers: list[Sampler],
    max_new_tokens: int,
    stop: frozenset[int],
    prefill_chunk: int,
) -> Iterator[tuple[int, int]]:
    if not rows:
        return
    # The last new token is not fed back.
    cache = model.new_cache(len(rows), max(map(len, rows)) + max_new_tokens - 1)
    device = next(model.parameters()).device

    newest = [0] * len(rows)
    for pieces in _prefill_steps(rows, prefill_chunk):
        tokens = [token for piece in pieces for token in piece]
        counts = [len(piece) for piece in pieces]
        logits = model.extend(torch.tensor(tokens, device=device), counts, cache)
        for index, length in enumerate(cache.lengths):
            if counts[index] and length == len(rows[index]):
                newest[index] = samplers[index].draw(logits[index])
                yield index, newest[index]

    running = list(range(len(rows)))
    for _ in range(max_new_tokens - 1):
        places = [place for place, index in enumerate(running) if newest[index] not in stop]
        if not places:
            return
        if len(places) < len(running):
            cache.keep(places)
            running = [running[place] for place in places]
        tokens = [newest[index] for index in running]
        logits = model.extend(torch.tensor(tokens, device=device), [1] * len(running), cache)
        for index, row in zip(running, logits, strict=True):
            newest[index] = samplers[index].draw(row)
            yield index, newest[index]


def _prefill_steps(rows: list[list[int]], chunk: int) -> Iterator[list[list[int]]]:
    """What every row adds in each step: in all at most ``chunk`` tokens, the first rows first."""
    starts = [0] * len(rows)
    while any(start < len(row) for start, row in zip(starts, rows, strict=True)):
        room = chunk
        pieces = []
        for index, row in enumerate(rows):
            piece = row[starts[index] : starts[index] + room]
            starts[index] += len(piece)
            room -= len(piece)
            pieces.append(piece)
        yield pieces


def _samplers(rows: list[list[int]], sampling: Sampling) -> list[Sampler]:
    """A stream of random numbers for each prompt: by the seed alone, so that the batch does not
    matter, and by how many equal prompts came before, so that each gets a text of its own."""
    seed = sampling.seed
    if seed is None:  # greedy text takes nothing from the generator that others share
        seed = 0 if sampling.greedy else int(torch.randint(2**62, ()))
    before: Counter[tuple[int, ...]] = Counter()
    samplers = []
    for row in rows:
        generator = torch.Generator().manual_seed((seed + before[tuple(row)]) % 2**63)
        before[tuple(row)] += 1
        samplers.append(Sampler(sampling, row, generator))
    return samplers


def _count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"generate: {name} must be an integer, got {value!r}") from None
    if count < 1:
        raise ValueError(f"generate: {name} must be at least 1, got {count}")
    return count


def _tokens(name: str, tokens: Iterable[int], config: Any) -> list[int]:
    values = tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
    try:
        found = [operator.index(token) for token in values]
    except TypeError:
        raise TypeError(f"generate: {name} must be integer token numbers, got {tokens!r}") from None
    for token in found:
        if not 0 <= token < config.vocab_size:
            raise ValueError(
                f"generate: {name} must hold tokens from 0 to {config.vocab_size - 1}, got {token}"
            )
    return found


def _check_length(index: int, length: int, max_new_tokens: int, max_positions: int) -> None:
    if length == 0:
        raise ValueError(f"generate: prompt {index} must hold at least one token, got none")
    needed = length + max_new_tokens - 1  # the last new token takes no position
    if needed > max_positions:
        raise ValueError(
            f"generate: prompt {index} has {length} tokens, which with max_new_tokens "
            f"{max_new_tokens} needs {needed} positions, and the model has {max_positions}"
        )
