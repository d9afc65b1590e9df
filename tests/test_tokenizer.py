"""Tokenizers, from tokenizer.json and from the vocabulary of a GGUF file, beside transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lanewise.models.tokenizer import SpecialTokens, load_tokenizer, read_special_tokens

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

import gguf_samples as samples  # noqa: E402 (it needs gguf)

TEXTS = [
    "",
    "Hello, world!",
    " one space in front",
    "  two spaces\n\n\n\tand a tab",
    "the quick brown fox jumps over the lazy dog 1234567 times",
    "Zażółć gęślą jaźń, 你好, مرحبا",
    "e\u0301 and é are not the same",
    "😀👩\u200d👩\u200d👧 \x01 \U0001f9ff",
    "<s>user\nit's<|turn|>, <tag> and</s>",
    "▁ x▁▁y",
    "def f(x):\r\n    return x  # 'tis\n",
]
CORPUS = TEXTS * 3 + ["the dog and the fox return user times", "it's and it'll"] * 5
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIALS = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|turn|>": CONTROL,
            "<tag>": USER_DEFINED}  # fmt: skip


def vocabulary(tokens: dict[str, int], **more: Any) -> dict[str, Any]:
    """The metadata of a vocabulary of tokens and their types."""
    values = {"tokens": list(tokens), "token_type": list(tokens.values()), **more}
    values |= {"bos_token_id": 1, "eos_token_id": 2, "eot_token_id": 3, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def sentencepiece(**more: Any) -> dict[str, Any]:
    """As Llama 2's: specials, bytes, and merges of characters in the order they were learned."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    learned = sorted(model.get_vocab(), key=model.get_vocab().get)
    learned = [token for token in learned if token not in SPECIALS]
    tokens = {
        **SPECIALS,
        **{f"<0x{byte:02X}>": BYTE for byte in range(256)},
        **dict.fromkeys(learned[40:], NORMAL),  # some characters have no token of their own
    }
    scores = [0.0] * (len(tokens) - len(learned[40:])) + [
        -float(i) for i in range(len(learned[40:]))
    ]
    return vocabulary(tokens, model="llama", scores=scores, **more)


def gemma() -> dict[str, Any]:
    """As Gemma's: runs of spaces and newlines are tokens, spelled as they are."""
    metadata = sentencepiece(add_space_prefix=False)
    tokens, types = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    runs = [text * n for text in ("\n", " ") for n in range(2, 6) if text * n not in tokens]
    tokens[5:5], types[5:5] = runs, [USER_DEFINED] * len(runs)
    return {**metadata, "tokenizer.ggml.scores": [0.0] * len(tokens)}


def byte_level(pre: str, **more: Any) -> dict[str, Any]:
    """As GPT-2's."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(CORPUS, trainer)
    content = json.loads(model.to_str())["model"]
    learned = sorted(content["vocab"], key=content["vocab"].get)
    merges = [" ".join(pair) for pair in content["merges"]]
    tokens = {**SPECIALS, **dict.fromkeys(learned, NORMAL)}
    return vocabulary(tokens, model="gpt2", pre=pre, merges=merges, **more)


KINDS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "gemma": ("gemma3_text", gemma),
    "llama": ("llama", sentencepiece),
    "llama, no space in front": ("llama", lambda: sentencepiece(add_space_prefix=False)),
    "llama, both ends": ("llama", lambda: sentencepiece(add_bos_token=True, add_eos_token=True)),
    "llama, no ends": ("llama", lambda: sentencepiece(add_bos_token=False)),
    "gpt2": ("qwen3", lambda: byte_level("gpt-2")),
    "gpt2, bos": ("qwen3", lambda: byte_level("gpt-2", add_bos_token=True)),
    "llama 3": ("llama", lambda: byte_level("llama-bpe", add_bos_token=True)),
    "qwen": ("qwen3", lambda: byte_level("qwen2")),
    "tekken": ("llama", lambda: byte_level("tekken", add_bos_token=True)),
}


def write(path: Path, metadata: dict[str, Any], kind: str = "llama") -> Path:
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = len(tokens) if isinstance(tokens, list) else 8
    model = samples.tiny(kind, num_hidden_layers=1, vocab_size=size)
    return samples.write_model(model, path, **metadata)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "space" not in kind])
def test_the_ids_are_transformers(kind: str, tmp_path: Path) -> None:
    """But for a file that wants no space in front, which it does not heed."""
    model, metadata = KINDS[kind]
    path = write(tmp_path / "model.gguf", metadata(), model)
    ours = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert ours.get_vocab_size() == len(metadata()["tokenizer.ggml.tokens"])
    assert ours.get_vocab().items() <= theirs.get_vocab().items()  # it adds tokens of its own
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text).ids == ids, text
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == plain
        for skip in (False, True):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_texts_survive(kind: str, tmp_path: Path) -> None:
    """Nothing is lost on the way to ids and back, characters without a token included.

    Except that SentencePiece spells a space ▁ already, and a space in front is not doubled.
    """
    model, metadata = KINDS[kind]
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", metadata(), model))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        expected = text
        if metadata()["tokenizer.ggml.model"] == "llama":
            expected = text.replace("▁", " ")
            if metadata().get("tokenizer.ggml.add_space_prefix", True):
                expected = expected.removeprefix(" ")
        assert tokenizer.decode(ids, skip_special_tokens=False) == expected


def test_llama3_takes_whole_words(tmp_path: Path) -> None:
    """A word that is a token needs no merges, as its own tokenizer.json and llama.cpp have it."""
    metadata = byte_level("llama-bpe")
    metadata["tokenizer.ggml.tokens"].append("xyzzy")
    metadata["tokenizer.ggml.token_type"].append(NORMAL)
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", metadata))
    number = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.encode("xyzzy").ids == [1, number]  # and a bos, where the file says nothing


def test_special_tokens(tmp_path: Path) -> None:
    metadata = {**sentencepiece(), "tokenizer.chat_template": "{{ messages }}"}
    path = write(tmp_path / "model.gguf", metadata)
    assert read_special_tokens(path) == SpecialTokens(1, (2, 3), None, "{{ messages }}")
    metadata["tokenizer.ggml.eot_token_id"] = 2
    metadata["tokenizer.ggml.padding_token_id"] = 0
    path = write(tmp_path / "model.gguf", metadata)
    assert read_special_tokens(path).eos_ids == (2,)
    assert read_special_tokens(path).pad_id == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "rwkv", "model must be llama or gpt2, got 'rwkv'"),
        ("model", None, "model must be llama or gpt2, got None"),
        ("tokens", None, "tokens must be 1 to 4194304 strings, got 'NoneType'"),
        ("tokens", [1, 2], "tokens must be 1 to 4194304 strings"),
        ("tokens", ["a", "a"], "tokens must be strings that differ, got 'the same one twice'"),
        ("scores", [0.5], "scores must be one number per token"),
        ("scores", None, "scores must be one number per token"),
        ("token_type", [1], "token_type must be one number per token"),
        ("bos_token_id", 100_000, "bos_token_id must be the number of a token, got 100000"),
        ("eos_token_id", -1, "eos_token_id must be the number of a token, got -1"),
        ("unknown_token_id", "x", "unknown_token_id must be the number of a token, got 'x'"),
        ("merges", ["a b c"], "merges must be pairs of tokens"),
        ("merges", ["a €€€"], "tokens must be a vocabulary with its merges"),
    ],
)
def test_vocabularies_that_are_refused(name: str, value: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", {**sentencepiece(), f"tokenizer.ggml.{name}": value})
    with pytest.raises(ValueError, match=rf"model\.gguf: tokenizer.ggml\.{message}"):
        (load_tokenizer(path), read_special_tokens(path))


def test_bytes_must_have_tokens(tmp_path: Path) -> None:
    """The library would drop what it has no token for."""
    metadata = byte_level("gpt-2")
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("Ł")] = "ŁŁ"
    path = write(tmp_path / "model.gguf", metadata)
    with pytest.raises(ValueError, match=r"tokens must be all bytes, got 'none for Ł'"):
        load_tokenizer(path)
    metadata = {**sentencepiece(), "tokenizer.ggml.unknown_token_id": None}
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("<0x00>")] = "zero"
    path = write(tmp_path / "model.gguf", metadata)
    with pytest.raises(ValueError, match=r"must be all bytes, or have an unknown token, got 'nei"):
        load_tokenizer(path)


def test_an_unknown_way_to_cut_words(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", byte_level("dolphin"))
    with pytest.raises(ValueError, match=r"ggml.pre must be one of gpt-2, default, .*'dolphin'"):
        load_tokenizer(path)


def test_a_long_token_is_refused(tmp_path: Path) -> None:
    metadata = sentencepiece()
    metadata["tokenizer.ggml.tokens"][-1] = "x" * 300
    path = write(tmp_path / "model.gguf", metadata)
    with pytest.raises(ValueError, match="tokens must be of at most 256 characters"):
        load_tokenizer(path)


# --- directories ---------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_a_directory(tmp_path: Path) -> None:
    made = load_tokenizer(write(tmp_path / "model.gguf", sentencepiece()))
    made.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert load_tokenizer(path).to_str() == made.to_str()
        assert read_special_tokens(path) == SpecialTokens(None, (), None, None)
    write_json(tmp_path / "config.json", {"bos_token_id": 1, "eos_token_id": 2})
    assert read_special_tokens(tmp_path) == SpecialTokens(1, (2,), None, None)
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 7], "pad_token_id": 0})
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "old"})
    assert read_special_tokens(tmp_path) == SpecialTokens(1, (2, 7), 0, "old")
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_special_tokens(tmp_path).chat_template == "new"


def test_padding_and_cutting_are_dropped(tmp_path: Path) -> None:
    """A hostile length of padding would take all memory at the first text."""
    made = load_tokenizer(write(tmp_path / "model.gguf", sentencepiece()))
    plain = made.encode("Hello, world!").ids
    made.enable_padding(length=2**40)
    made.enable_truncation(1)
    made.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("Hello, world!").ids == plain


def test_a_template_of_missing_tokens_is_refused(tmp_path: Path) -> None:
    """The library panics over it, at the first text."""
    made = load_tokenizer(write(tmp_path / "model.gguf", sentencepiece()))
    content = json.loads(made.to_str())
    content["post_processor"]["special_tokens"] = {}
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: no entry found for key"):
        load_tokenizer(tmp_path)


def test_directories_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    for content in ("", "{}", "[" * 100_000, '{"model": {"type": "BPE", "vocab": 3}}', "\xff"):
        (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"tokenizer\.json: "):
            load_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {"eos_token_id": "</s>"})
    with pytest.raises(
        ValueError, match=r"config\.json: eos_token_id must be natural numbers, got"
    ):
        read_special_tokens(tmp_path)
    write_json(tmp_path / "config.json", [])
    with pytest.raises(ValueError, match=r"config\.json: the content must be an object, got list"):
        read_special_tokens(tmp_path)


# --- the packaged model --------------------------------------------------------------------------

# By transformers 5.24's tokenizer of the same file (which takes it twelve seconds to make).
GEMMA_IDS = {
    "Hello, world!": [2, 9259, 236764, 1902, 236888],
    "  two spaces\n\n\n\tand a tab": [2, 138, 13498, 9952, 109, 255968, 624, 496, 6937],
    "Zażółć gęślą jaźń, 你好, مرحبا": [
        *(2, 236953, 40512, 24875, 237289, 549, 237202, 62081, 237198, 4828, 238992, 238041),
        *(236764, 43758, 237389, 236764, 150423),
    ],
    "😀👩\u200d👩\u200d👧 \x01": [
        *(2, 242398, 243767, 237243, 243767, 237243, 244814, 236743, 249732),
    ],
    "<start_of_turn>user\nHi<end_of_turn>": [2, 105, 2364, 107, 10979, 106],
    "<table>▁ x": [2, 168, 138, 236781],
    "\U0001f9ff\u1234": [2, 248979, 240735],
}


def test_gemma3_as_packaged() -> None:
    path = samples.packaged_gemma3()
    tokenizer = load_tokenizer(path)
    assert tokenizer.get_vocab_size() == 262144
    for text, ids in GEMMA_IDS.items():
        assert tokenizer.encode(text).ids == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>" + text.replace("▁", " ")
    assert read_special_tokens(path) == SpecialTokens(2, (1,), 0, None)
