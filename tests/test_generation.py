"""The generation loop on a model whose every token depends on all tokens before it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from fake_decoder import POSITIONS, STOP, VOCABULARY, FakeDecoder

from lanewise.models.generation import generate, stream
from lanewise.models.sampling import Sampling


@pytest.fixture
def model() -> FakeDecoder:
    return FakeDecoder()


def prompts(count: int) -> list[list[int]]:
    """Of lengths 1 to 17, in no order."""
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randint(VOCABULARY, (1 + 5 * i % 17,), generator=generator).tolist()
        for i in range(count)
    ]


def alone(prompt: list[int], max_new_tokens: int, stop: tuple[int, ...] = (STOP,)) -> list[int]:
    row = list(prompt)
    while len(row) < len(prompt) + max_new_tokens:
        row.append(int(FakeDecoder().logits(row).argmax()))
        if row[-1] in stop:
            break
    return row[len(prompt) :]


@pytest.mark.parametrize("prefill_chunk", [1, 3, 16, 1000])
def test_a_ragged_batch(model: FakeDecoder, prefill_chunk: int) -> None:
    batch = prompts(12)
    expected = [alone(prompt, 20) for prompt in batch]
    assert len({len(row) for row in expected}) > 1, "all end together: not a test of leaving"
    assert generate(model, batch, max_new_tokens=20, prefill_chunk=prefill_chunk) == expected
    assert all(0 < sum(counts) <= max(prefill_chunk, 12) for counts in model.steps)


def test_finished_sequences_leave(model: FakeDecoder) -> None:
    batch = prompts(12)
    lengths = [len(row) for row in generate(model, batch, max_new_tokens=20)]
    decoded = [len(counts) for counts in model.steps[1:]]
    assert decoded == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_the_cache_is_as_large_as_needed(model: FakeDecoder) -> None:
    generate(model, prompts(5), max_new_tokens=9)
    (cache,) = model.caches
    assert cache.max_tokens == max(map(len, prompts(5))) + 8


def test_stop_tokens(model: FakeDecoder) -> None:
    prompt = prompts(3)[2]
    without = alone(prompt, 20, stop=())
    assert generate(model, [prompt], max_new_tokens=20, stop_tokens=()) == [without]
    first = [without.index(token) for token in without[4:9]]
    stops = torch.tensor(without[4:9])
    found = generate(model, [prompt], max_new_tokens=20, stop_tokens=stops)
    assert found == [without[: min(first) + 1]]


def test_one_new_token_takes_no_second_step(model: FakeDecoder) -> None:
    batch = prompts(4)
    assert generate(model, batch, max_new_tokens=1) == [alone(prompt, 1) for prompt in batch]
    assert len(model.steps) == 1


def test_a_full_context(model: FakeDecoder) -> None:
    prompt = [1] * POSITIONS
    assert generate(model, [prompt], max_new_tokens=1) == [alone(prompt, 1)]
    with pytest.raises(
        ValueError, match="prompt 1 has 40 tokens, which with max_new_tokens 2 need"
    ):
        generate(model, [[1], prompt], max_new_tokens=2)


def test_stream_is_generate_step_by_step(model: FakeDecoder) -> None:
    batch = prompts(6)
    pairs = list(stream(model, batch, max_new_tokens=10))
    found = generate(model, batch, max_new_tokens=10)
    for index, tokens in enumerate(found):
        assert [token for i, token in pairs if i == index] == tokens
    first = [i for i, _ in pairs[:6]]
    assert first == list(range(6))


def test_a_stream_computes_when_it_is_asked(model: FakeDecoder) -> None:
    tokens = stream(model, [[1, 2]], max_new_tokens=10)
    assert model.steps == []
    next(tokens)
    assert model.steps == [[2]]


def test_the_callers_mode_is_left_alone(model: FakeDecoder) -> None:
    for _ in stream(model, prompts(2), max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_no_prompts(model: FakeDecoder) -> None:
    assert generate(model, [], max_new_tokens=3) == []


def test_prompts_of_tensors(model: FakeDecoder) -> None:
    batch = prompts(3)
    tensors: Any = [torch.tensor(prompt, dtype=torch.int32) for prompt in batch]
    assert generate(model, tensors, max_new_tokens=5) == generate(model, batch, max_new_tokens=5)


# --- sampling ------------------------------------------------------------------------------------

SEEDED = Sampling(temperature=1.5, top_k=20, seed=3)


def test_a_seed_repeats_the_text_in_any_batch(model: FakeDecoder) -> None:
    batch = prompts(5)
    together = generate(model, batch, max_new_tokens=12, sampling=SEEDED)
    assert together == generate(model, batch, max_new_tokens=12, sampling=SEEDED)
    assert together != generate(model, batch, max_new_tokens=12)
    for prompt, tokens in zip(batch, together, strict=True):
        assert generate(model, [prompt], max_new_tokens=12, sampling=SEEDED) == [tokens]
    backwards = generate(model, batch[::-1], max_new_tokens=12, sampling=SEEDED, prefill_chunk=2)
    assert backwards == together[::-1]


def test_equal_prompts_draw_differently(model: FakeDecoder) -> None:
    prompt = prompts(1)[0]
    found = generate(model, [prompt] * 6, max_new_tokens=12, sampling=SEEDED)
    assert len({tuple(tokens) for tokens in found}) == 6
    assert found[0] == generate(model, [prompt], max_new_tokens=12, sampling=SEEDED)[0]


def test_without_a_seed_torchs_own_decides(model: FakeDecoder) -> None:
    def draws(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return generate(model, [[1, 2]], max_new_tokens=10, sampling=Sampling())

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)


def test_greedy_text_leaves_torchs_generator_alone(model: FakeDecoder) -> None:
    before = torch.get_rng_state()
    generate(model, prompts(3), max_new_tokens=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_repetition_penalty_sees_the_prompt(model: FakeDecoder) -> None:
    strong = Sampling(temperature=0.0, repetition_penalty=1e9)
    prompt = prompts(3)[2]
    (found,) = generate(model, [prompt], max_new_tokens=10, sampling=strong, stop_tokens=())
    assert len(set(found)) == 10
    assert not set(found) & set(prompt)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "values", "error", "message"),
    [
        ([[1], []], {}, ValueError, "prompt 1 must hold at least one token, got none"),
        ([[1, 50]], {}, ValueError, "prompt 0 must hold tokens from 0 to 49, got 50"),
        ([[-1]], {}, ValueError, "prompt 0 must hold tokens from 0 to 49, got -1"),
        ([[1.0]], {}, TypeError, "prompt 0 must be integer token numbers, got [1.0]"),
        (["a text"], {}, TypeError, "prompt 0 must be integer token numbers, got 'a text'"),
        ([[[1]]], {}, TypeError, "prompt 0 must be integer token numbers, got [[1]]"),
        ([1, 2], {}, TypeError, "prompt 0 must be integer token numbers, got 1"),
        ("a text", {}, TypeError, "prompt 0 must be integer token numbers, got 'a'"),
        ([[1]], {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ([[1]], {"max_new_tokens": 2.5}, TypeError, "max_new_tokens must be an integer, got 2.5"),
        ([[1]], {"prefill_chunk": 0}, ValueError, "prefill_chunk must be at least 1, got 0"),
        ([[1]], {"stop_tokens": [50]}, ValueError, "stop_tokens must hold tokens from 0 to 49, go"),
        ([[1]], {"stop_tokens": "."}, TypeError, "stop_tokens must be integer token numbers, got"),
        (
            [[1] * 38],
            {"max_new_tokens": 5},
            ValueError,
            "prompt 0 has 38 tokens, which with max_new_tokens 5 needs 42 positions, and the model "
            "has 40",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(
    model: FakeDecoder, batch: Any, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(f"generate: {message}")):
        stream(model, batch, **{"max_new_tokens": 3, **values})
    assert model.caches == []
