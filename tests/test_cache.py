"""The paged cache: where tokens go, what is refused, and that blocks come back."""

from __future__ import annotations

import pytest
import torch

from lanewise.nn import PagedCache


def make(batch: int = 2, max_tokens: int = 10) -> PagedCache:
    return PagedCache(3, 2, 8, batch=batch, max_tokens=max_tokens, block_size=4)


def test_tokens_follow_one_another_in_blocks() -> None:
    cache = make()
    step = cache.extend([5, 2])
    assert step.cu_seqlens_q.tolist() == [0, 5, 7]
    assert step.context_lens.tolist() == [5, 2]
    assert step.positions.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert step.max_seqlen_q == 5
    step = cache.extend([1, 3])
    assert cache.lengths == [6, 5]
    assert step.context_lens.tolist() == [6, 5]
    assert step.positions.tolist() == [5, 2, 3, 4]
    expected = [
        int(step.block_table[b, p // 4]) * 4 + p % 4 for b, p in ((0, 5), (1, 2), (1, 3), (1, 4))
    ]
    assert step.slots.tolist() == expected


def test_no_slot_is_given_twice() -> None:
    cache = make(batch=3)
    slots = [cache.extend(counts).slots for counts in ([3, 0, 7], [1, 1, 1], [0, 9, 2])]
    every = torch.cat(slots).tolist()
    assert len(set(every)) == len(every) == 24


def test_one_token_each_is_the_general_case() -> None:
    one, general = make(), make()
    for cache in (one, general):
        cache.extend([3, 6])
    step = one.extend([1, 1])
    parts = [general.extend([1, 0]), general.extend([0, 1])]
    assert step.positions.tolist() == [*parts[0].positions.tolist(), *parts[1].positions.tolist()]
    assert step.slots.tolist() == [*parts[0].slots.tolist(), *parts[1].slots.tolist()]
    assert step.context_lens.tolist() == parts[1].context_lens.tolist()


def test_dropped_sequences_give_their_blocks_back() -> None:
    cache = make(batch=3)
    for _ in range(20):
        cache.extend([10, 10, 10])
        cache.keep([2])
        assert cache.lengths == [10]
        kept = cache.extend([0]).block_table
        assert kept.shape == (1, 3)
        cache = make(batch=3)
    cache.extend([4, 8, 1])
    order = cache.extend([0, 0, 0]).block_table
    cache.keep([2, 0])
    assert cache.lengths == [1, 4]
    assert cache.extend([0, 0]).block_table[:, 0].tolist() == [int(order[2, 0]), int(order[0, 0])]
    # The blocks of the dropped one serve the others.
    step = cache.extend([9, 6])
    assert len(set(step.block_table[:, :3].flatten().tolist())) == 6


@pytest.mark.parametrize(
    ("counts", "message"),
    [([1], "counts .* 2 sequences, got 1"), ([1, -1], "negative, got -1"), ([3, 11], "at most 10")],
)
def test_a_step_that_is_refused_changes_nothing(counts: list[int], message: str) -> None:
    cache = make()
    cache.extend([3, 0])
    with pytest.raises(ValueError, match=message):
        cache.extend(counts)
    assert cache.lengths == [3, 0]
    assert cache.extend([1, 0]).positions.tolist() == [3]


@pytest.mark.parametrize("name", ["batch", "max_tokens", "block_size"])
def test_an_empty_cache_is_refused(name: str) -> None:
    sizes = {"batch": 2, "max_tokens": 10, "block_size": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PagedCache(3, 2, 8, **sizes)


@pytest.mark.parametrize("indices", [[-1], [0, 0], [2]])
def test_indices_that_are_refused(indices: list[int]) -> None:
    cache = make()
    cache.extend([3, 4])
    with pytest.raises(ValueError, match="indices must be different ones from 0 to 1"):
        cache.keep(indices)
    assert cache.lengths == [3, 4]
    assert len(set(cache.extend([7, 6]).slots.tolist())) == 13


def test_a_step_lies_where_the_cache_lies() -> None:
    cache = PagedCache(1, 1, 8, batch=2, max_tokens=9, device="meta")
    step = cache.extend([3, 1])
    for name in ("cu_seqlens_q", "block_table", "context_lens", "slots", "positions"):
        assert getattr(step, name).device.type == "meta", name
