"""The tokenizer of a model on disk: ``tokenizer.json``, or the vocabulary in a GGUF file.

Of a GGUF file's three kinds of vocabulary, two are served: SentencePiece's byte-pair encoding
(``llama``), and GPT-2's over bytes (``gpt2``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lanewise.models.config import read_json
from lanewise.models.gguf import GgufFile
from lanewise.models.optional import require

_CONTROL, _USER_DEFINED = 3, 4  # llama_token_type
_MAX_TOKENS = 1 << 22
_MAX_TOKEN_LENGTH = 256  # characters; merges are sought at every place in a token

# How text is cut before bytes are merged, by tokenizer.ggml.pre: the expressions of the models'
# own tokenizer.json, which llama.cpp names.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _LETTERS + r"\p{N}{1,3}" + _REST
_QWEN2 = _LETTERS + r"\p{N}" + _REST
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    **dict.fromkeys(("gpt-2", "default"), None),  # the library's own
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": _TEKKEN,
}


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens with a meaning for generation, and the template of a chat, as plain data.

    Attributes:
        bos_id: the token that starts a text; None where there is none.
        eos_ids: the tokens that end one.
        pad_id: the token that fills a batch.
        chat_template: a Jinja template for messages; nothing here runs it.
    """

    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    chat_template: str | None


def load_tokenizer(path: str | Path) -> Any:
    """The ``tokenizers.Tokenizer`` of the model at ``path``.

    ``encode(text)`` starts with the bos token where the model wants one, as transformers does. It
    does not pad or cut: what the file says of that is dropped.

    Args:
        path: what `open_checkpoint` takes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, or its kind of vocabulary is not served.
        ImportError: the package tokenizers is missing.
    """
    path = Path(path)
    library = require("tokenizers", "reading a tokenizer")
    if _is_gguf(path):
        with GgufFile(path) as file:
            return _build(_Vocabulary(file), library)
    file_path = _directory(path) / "tokenizer.json"
    if not file_path.exists():
        raise FileNotFoundError(f"load_tokenizer: there is no {file_path}")
    try:
        tokenizer = library.Tokenizer.from_file(str(file_path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a")  # the library finds some faults only now
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # nothing narrower: a panic of the library is no Exception
        raise ValueError(f"{file_path}: {error}") from None
    return tokenizer


def read_special_tokens(path: str | Path) -> SpecialTokens:
    """The special tokens of the model at ``path`` (see `load_tokenizer`).

    A directory's come from its ``generation_config.json`` or ``config.json``, and its template from
    ``chat_template.jinja`` or ``tokenizer_config.json``. None of these files must be there.

    Raises:
        ValueError: a file is malformed, or an id is not a natural number.
    """
    path = Path(path)
    if _is_gguf(path):
        with GgufFile(path) as file:
            return _Vocabulary(file).special_tokens()
    directory = _directory(path)
    return SpecialTokens(
        bos_id=_single(_ids(directory, "bos_token_id")),
        eos_ids=_ids(directory, "eos_token_id"),
        pad_id=_single(_ids(directory, "pad_token_id")),
        chat_template=_chat_template(directory),
    )


class _Vocabulary:
    """What the metadata of a GGUF file says of its tokenizer."""

    def __init__(self, file: GgufFile) -> None:
        self._path = file.path
        self._metadata = file.metadata
        self.gemma = str(self._metadata.get("general.architecture")).startswith("gemma")
        self.kind = self.get("model")
        self.tokens: list[str] = self._strings("tokens", _MAX_TOKENS)
        if len(set(self.tokens)) != len(self.tokens):
            raise self.error("tokens", "strings that differ", "the same one twice")

    def get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def id(self, name: str) -> int | None:
        """The number of a special token, if the file has one."""
        number = self.get(f"{name}_token_id")
        if number is not None and (type(number) is not int or not 0 <= number < len(self.tokens)):
            raise self.error(f"{name}_token_id", "the number of a token", number)
        return number

    def numbers(self, name: str) -> np.ndarray:
        """One number per token."""
        found = self.get(name)
        if not isinstance(found, np.ndarray) or len(found) != len(self.tokens):
            raise self.error(name, "one number per token", type(found).__name__)
        return found

    def merges(self) -> list[tuple[str, str]] | None:
        if self.get("merges") is None:
            return None
        pairs = [merge.split(" ") for merge in self._strings("merges", 4 * _MAX_TOKENS)]
        if not all(len(pair) == 2 for pair in pairs):
            raise self.error("merges", "pairs of tokens with a space between", "another form")
        return [(left, right) for left, right in pairs]

    def special_tokens(self) -> SpecialTokens:
        ends = [self.id(name) for name in ("eos", "eot", "eom")]
        template = self._metadata.get("tokenizer.chat_template")
        return SpecialTokens(
            bos_id=self.id("bos"),
            eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            pad_id=self.id("padding"),
            chat_template=template if isinstance(template, str) else None,
        )

    def error(self, name: str, what: str, got: object) -> ValueError:
        return ValueError(f"{self._path}: tokenizer.ggml.{name} must be {what}, got {got!r}")

    def _strings(self, name: str, limit: int) -> list[str]:
        found = self.get(name)
        if not isinstance(found, list) or not 0 < len(found) <= limit:
            got = len(found) if isinstance(found, list) else type(found).__name__
            raise self.error(name, f"1 to {limit} strings", got)
        return found


def _build(vocabulary: _Vocabulary, library: ModuleType) -> Any:
    """The tokenizer that the vocabulary was learned with, of which the file has only the tables."""
    if vocabulary.kind not in ("llama", "gpt2"):
        raise vocabulary.error("model", "llama or gpt2", vocabulary.kind)
    try:
        if vocabulary.kind == "gpt2":
            tokenizer = _byte_level(vocabulary, library)
        elif vocabulary.gemma:
            tokenizer = _gemma(vocabulary, library)
        else:
            tokenizer = _llama(vocabulary, library)
        _add_special(tokenizer, vocabulary, library)
        _add_ends(tokenizer, vocabulary, library)
    except ValueError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise vocabulary.error("tokens", "a vocabulary with its merges", str(error)) from None
    return tokenizer


def _gemma(vocabulary: _Vocabulary, library: ModuleType) -> Any:
    """No space in front. Runs of spaces are tokens, which the file spells with spaces.

    Merges follow the order of the tokens, since Gemma's scores do not follow its merges.
    """
    tokens = ["▁" * len(token) if not token.strip(" ") else token for token in vocabulary.tokens]
    tokenizer = _sentencepiece(vocabulary, library, tokens, range(len(tokens)))
    tokenizer.normalizer = library.normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = library.decoders.Sequence(_sentencepiece_decoders(library))
    return tokenizer


def _llama(vocabulary: _Vocabulary, library: ModuleType) -> Any:
    """A space in front, unless the file says otherwise. Merges follow the scores, highest first."""
    ranks = (-vocabulary.numbers("scores")).tolist()
    tokenizer = _sentencepiece(vocabulary, library, vocabulary.tokens, ranks)
    prefix = vocabulary.get("add_space_prefix", True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(
        prepend_scheme="first" if prefix else "never", split=False
    )
    steps = _sentencepiece_decoders(library)
    if prefix:
        steps.append(library.decoders.Strip(" ", left=1))
    tokenizer.decoder = library.decoders.Sequence(steps)
    return tokenizer


def _sentencepiece(
    vocabulary: _Vocabulary, library: ModuleType, tokens: list[str], ranks: Sequence[float]
) -> Any:
    """Merges of characters; what is not in the vocabulary becomes its bytes."""
    numbers = _numbered(tokens)
    unknown = vocabulary.id("unknown")
    if unknown is None and not numbers.keys() >= {f"<0x{byte:02X}>" for byte in range(256)}:
        raise vocabulary.error("tokens", "all bytes, or have an unknown token", "neither")
    merges = vocabulary.merges()
    if merges is None:
        if len(longest := max(tokens, key=len)) > _MAX_TOKEN_LENGTH:
            raise vocabulary.error("tokens", f"of at most {_MAX_TOKEN_LENGTH} characters", longest)
        merges = _derive_merges(numbers, ranks)
    model = library.models.BPE(
        numbers,
        merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    return library.Tokenizer(model)


def _sentencepiece_decoders(library: ModuleType) -> list[Any]:
    decoders = library.decoders
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def _byte_level(vocabulary: _Vocabulary, library: ModuleType) -> Any:
    """Merges of bytes, each spelled as one character."""
    pre = vocabulary.get("pre", "default")
    if pre not in _SPLITS:
        raise vocabulary.error("pre", f"one of {', '.join(_SPLITS)}", pre)
    numbers = _numbered(vocabulary.tokens)
    if missing := set(library.pre_tokenizers.ByteLevel.alphabet()) - numbers.keys():
        raise vocabulary.error("tokens", "all bytes", f"none for {min(missing)}")
    merges = vocabulary.merges()
    if merges is None:
        raise vocabulary.error("merges", "pairs of tokens", None)
    # As llama.cpp and Llama 3's own tokenizer.json: a word that is a token needs no merges.
    model = library.models.BPE(numbers, merges, ignore_merges=_SPLITS[pre] is _LLAMA3)
    tokenizer = library.Tokenizer(model)
    byte_level = library.pre_tokenizers.ByteLevel
    if split := _SPLITS[pre]:
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(
            [
                library.pre_tokenizers.Split(library.Regex(split), "isolated"),
                byte_level(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _derive_merges(numbers: dict[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that a vocabulary implies: every cut of a token into two tokens, in the order of
    the tokens' ranks, the longer first part first."""
    cuts = [
        (rank, -cut, cut - len(token), number, token)
        for (token, number), rank in zip(numbers.items(), ranks, strict=True)
        for cut in range(1, len(token))
        if token[:cut] in numbers and token[cut:] in numbers
    ]
    cuts.sort()
    return [(token[:-cut], token[-cut:]) for _, cut, _, _, token in cuts]


def _add_special(tokenizer: Any, vocabulary: _Vocabulary, library: ModuleType) -> None:
    """Tokens that stay whole in a text: control tokens, which decoding may skip, and the user's."""
    if vocabulary.get("token_type") is None:
        return
    types = vocabulary.numbers("token_type").tolist()

    def of_type(number: int) -> list[Any]:
        return [
            library.AddedToken(token, normalized=False, special=number == _CONTROL)
            for token, kind in zip(vocabulary.tokens, types, strict=True)
            if kind == number and tokenizer.token_to_id(token) is not None
        ]

    tokenizer.add_special_tokens(of_type(_CONTROL))
    tokenizer.add_tokens(of_type(_USER_DEFINED))


def _add_ends(tokenizer: Any, vocabulary: _Vocabulary, library: ModuleType) -> None:
    """The tokens that every text starts and ends with, where the file asks for them.

    A file that does not say has a first token with SentencePiece and with Llama 3, as in llama.cpp.
    """
    llama3 = _SPLITS.get(vocabulary.get("pre", "default")) is _LLAMA3
    wanted = {
        "bos": vocabulary.get("add_bos_token", vocabulary.kind == "llama" or llama3),
        "eos": vocabulary.get("add_eos_token", False),
    }
    ends = {name: vocabulary.id(name) for name, on in wanted.items() if on}
    found = {name: number for name, number in ends.items() if number is not None}
    if not found:
        return
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=[*(["bos"] if "bos" in found else []), "$A", *(["eos"] if "eos" in found else [])],
        special_tokens=[
            {"id": name, "ids": [number], "tokens": [tokenizer.id_to_token(number)]}
            for name, number in found.items()
        ],
    )


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and not path.is_dir()


def _directory(path: Path) -> Path:
    return path.parent if path.suffix == ".safetensors" else path


def _ids(directory: Path, key: str) -> tuple[int, ...]:
    """The ids under ``key`` in the first of the two files that has any."""
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if not file.exists() or (value := _object(file).get(key)) is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(number) is int and number >= 0 for number in ids):
            raise ValueError(f"{file}: {key} must be natural numbers, got {value!r}")
        return tuple(ids)
    return ()


def _single(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _chat_template(directory: Path) -> str | None:
    if (file := directory / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    if not (file := directory / "tokenizer_config.json").exists():
        return None
    template = _object(file).get("chat_template")
    return template if isinstance(template, str) else None


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: the content must be an object, got {type(content).__name__}")
    return content
