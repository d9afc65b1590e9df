"""Text generation with tokenizers of the two usual kinds, on a decoder that recites."""

from __future__ import annotations

from typing import Any

import pytest
from fake_decoder import FakeConfig, FakeDecoder, RecitingDecoder

from lanewise.models.sampling import Sampling
from lanewise.models.text import TextGenerator

tokenizers = pytest.importorskip("tokenizers")
decoders, pre_tokenizers = tokenizers.decoders, tokenizers.pre_tokenizers

EOS = 0


def byte_level() -> Any:
    """As GPT-2's, one token per byte: every other character takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<eos>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def byte_fallback() -> Any:
    """As Llama 2's: words with the space before them, other characters as bytes; the space before
    the first word is not there."""
    symbols = ["<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words = ["▁the", "▁cat", "▁sleeps", "▁said", "."]
    scores = [(symbol, -1.0) for symbol in symbols + words]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, EOS, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


def reciter(
    tokenizer: Any, *documents: list[int], bos_token_id: int | None = None
) -> TextGenerator:
    config = FakeConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_positions=1000,
        eos_token_ids=(EOS,),
        bos_token_id=bos_token_id,
    )
    return TextGenerator(RecitingDecoder(config, list(documents)), tokenizer)


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("the", " cat sleeps ☃ the"),
        ("the cat", ". the 🙂🙂 said é"),
        ("☃", " the cat"),
        ("the", "🙂"),
    ],
)
def test_pieces_are_whole_characters(kind: Any, prompt: str, rest: str) -> None:
    tokenizer = kind()
    document = [*tokenizer.encode(prompt + rest).ids, EOS]
    assert document[: len(tokenizer.encode(prompt).ids)] == tokenizer.encode(prompt).ids
    generator = reciter(tokenizer, document)
    pieces = list(generator.stream(prompt, max_new_tokens=100))
    assert "".join(pieces) == rest
    assert len(pieces) >= len(rest.split())
    assert all(pieces)
    assert generator.generate(prompt, max_new_tokens=100) == rest


def test_one_piece_for_every_token() -> None:
    tokenizer = byte_level()
    document = [*tokenizer.encode("a é").ids, EOS]
    pieces = list(reciter(tokenizer, document).stream_batch(["a"], max_new_tokens=9))
    assert pieces == [(0, " "), (0, ""), (0, "é"), (0, "")]


def test_a_batch() -> None:
    tokenizer = byte_level()
    texts = {"a": "bc", "é": " 🙂", "the cat": " sleeps."}
    documents = [[*tokenizer.encode(start + end).ids, EOS] for start, end in texts.items()]
    generator = reciter(tokenizer, *documents)
    assert generator.generate(list(texts), max_new_tokens=50) == list(texts.values())
    assert generator.generate((), max_new_tokens=50) == []


def test_a_text_that_is_cut_within_a_character() -> None:
    tokenizer = byte_level()
    generator = reciter(tokenizer, tokenizer.encode("a🙂").ids)
    assert generator.generate("a", max_new_tokens=2) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_bytes_that_are_no_text(kind: Any) -> None:
    """Untrained models say such things: a broken character after a whole one, then a word."""
    tokenizer = kind()
    smile, word = tokenizer.encode("🙂").ids[-4:], tokenizer.encode(".").ids[-1:]
    document = [*tokenizer.encode("the").ids, *smile, *smile[1:3], *word, EOS]
    text = reciter(tokenizer, document).generate("the", max_new_tokens=50)
    assert text.startswith("🙂")
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert text.endswith(".")


def test_stop_tokens_have_no_text() -> None:
    tokenizer = byte_level()
    generator = reciter(tokenizer, tokenizer.encode("a b c").ids)
    stop = tokenizer.encode("b").ids
    assert generator.generate("a", max_new_tokens=50, stop_tokens=stop) == " "
    assert generator.generate("a", max_new_tokens=50, stop_tokens=iter(stop)) == " "


def test_an_empty_prompt_begins_a_text() -> None:
    tokenizer = byte_level()
    document = [EOS, *tokenizer.encode("Hi").ids, EOS]
    assert reciter(tokenizer, document, bos_token_id=EOS).generate("", max_new_tokens=2) == "Hi"
    with pytest.raises(ValueError, match="prompt 0 must hold at least one token, got none"):
        reciter(tokenizer, document).generate("", max_new_tokens=2)


def test_sampling_is_passed_on() -> None:
    tokenizer = byte_level()
    generator = TextGenerator(FakeDecoder(FakeConfig(vocab_size=257)), tokenizer)
    drawn = [
        generator.generate("a", max_new_tokens=30, sampling=Sampling(seed=seed), stop_tokens=())
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_errors_come_with_the_call() -> None:
    generator = reciter(byte_level(), [1])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        generator.stream("a", max_new_tokens=0)
