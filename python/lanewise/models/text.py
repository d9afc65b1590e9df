"""Text in, text out: a decoder with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from lanewise.models import generation
from lanewise.models.sampling import Sampling

if TYPE_CHECKING:
    from lanewise.models.decoder import Decoder


class TextGenerator:
    """A decoder and its tokenizer.

    Args:
        model: the decoder.
        tokenizer: a ``tokenizers.Tokenizer``, which also adds what a text begins with.
        stop_tokens: the tokens that end a text; those of the model's config if None.
    """

    def __init__(
        self, model: Decoder, tokenizer: Any, *, stop_tokens: Iterable[int] | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        stops = model.config.eos_token_ids if stop_tokens is None else stop_tokens
        self.stop_tokens = tuple(stops)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> TextGenerator:
        """Reads a model directory of Hugging Face, or a GGUF file; eval mode.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: the model is of an architecture that is not built here, or the weights do
                not fit its config.
            ImportError: a package for reading the files is missing.
        """
        from lanewise.models.auto import load
        from lanewise.models.tokenizer import load_tokenizer, read_special_tokens

        model = load(path, device=device, dtype=dtype)
        # A directory may name more of them for generation than in its config.
        stops = read_special_tokens(path).eos_ids or None
        return cls(model, load_tokenizer(path), stop_tokens=stops)

    @overload
    def generate(self, prompts: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]: ...
    def generate(self, prompts: str | Sequence[str], **options: Any) -> str | list[str]:
        """The text that follows the prompt, or each prompt of a batch.

        Takes the options of `stream_batch`.
        """
        batch = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = [""] * len(batch)
        for index, piece in self.stream_batch(batch, **options):
            texts[index] += piece
        return texts[0] if isinstance(prompts, str) else texts

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The same text in pieces as they are found, without empty ones."""
        return (piece for _, piece in self.stream_batch([prompt], **options) if piece)

    def stream_batch(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_tokens: Iterable[int] | None = None,
        prefill_chunk: int = 512,
    ) -> Iterator[tuple[int, str]]:
        """Yields (index of the prompt, piece of text), one for each new token.

        A piece is empty where the token completes no character, or ends the text. Special tokens
        have no text. The options are those of `lanewise.models.generation.generate`.

        Raises:
            ValueError: as there; in the call, before the first step.
        """
        stops = self.stop_tokens if stop_tokens is None else tuple(stop_tokens)
        rows = [self.encode(prompt) for prompt in prompts]
        tokens = generation.stream(
            self.model,
            rows,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_tokens=stops,
            prefill_chunk=prefill_chunk,
        )
        texts = [_Text(self.tokenizer, row) for row in rows]
        return self._pieces(tokens, texts, max_new_tokens, frozenset(stops))

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens; for an empty one the token that begins a text, if there is one."""
        tokens = self.tokenizer.encode(prompt).ids
        bos = self.model.config.bos_token_id
        return tokens if tokens or bos is None else [bos]

    @staticmethod
    def _pieces(
        tokens: Iterator[tuple[int, int]],
        texts: list[_Text],
        max_new_tokens: int,
        stops: frozenset[int],
    ) -> Iterator[tuple[int, str]]:
        counts = [0] * len(texts)
        for index, token in tokens:
            counts[index] += 1
            text = texts[index]
            piece = "" if token in stops else text.add(token)
            if token in stops or counts[index] == max_new_tokens:
                piece += text.rest()
            yield index, piece


class _Text:
    """A text that grows by tokens. Characters come when their last byte does.

    Tokens cannot be decoded one by one: some tokenizers spell a character with several, and drop
    the space before a first word. So a token is decoded behind those that came with the piece
    before it. (``tokenizers.decoders.DecodeStream`` does the same, and fails on bytes that never
    become a character.)
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = prompt
        self._told, self._told_text = len(prompt), self._decode(prompt)

    def add(self, token: int) -> str:
        """The characters that are whole now."""
        self._tokens = [*self._tokens, token]
        text = self._decode(self._tokens)
        if len(text) <= len(self._told_text) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = text[len(self._told_text) :]
        self._tokens = self._tokens[self._told :]
        self._told, self._told_text = len(self._tokens), self._decode(self._tokens)
        return piece

    def rest(self) -> str:
        """What stands for the last bytes if they are not a whole character."""
        return self._decode(self._tokens)[len(self._told_text) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
