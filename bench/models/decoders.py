"""A language model as each side runs it: a prompt, then one token after another."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

import lanewise
from bench.case import Sample
from bench.remote.client import remote
from lanewise import models

TIMED = "decode"  # what a profile calls the part of `decode` that counts


class Decoder(Protocol):
    """Greedy: the prediction is the likeliest token."""

    def prefill(self, prompt: Tensor) -> object:
        """Reads a prompt [S] from scratch; what follows it."""

    def decode(self, prompt: Tensor, forced: Tensor) -> Sample:
        """Goes on from the prompt with forced tokens, one by one; what follows each.

        That these are given keeps the sides in step where they round differently. Reading the
        prompt does not count.
        """


class InProcess:
    """A model of torch; its outputs are the likeliest tokens [N] and the last logits [V].

    Subclasses hold ``_step(tokens [S], state) -> logits [V]`` and ``_empty() -> state``.
    """

    _filled: tuple[Tensor, Any] | None = None

    def prefill(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token [1] and the logits [V]."""
        logits = self._step(prompt, self._empty(len(prompt) + 1))
        return logits.argmax()[None], logits.float()

    def decode(self, prompt: Tensor, forced: Tensor) -> Sample:
        """The likeliest token after each forced one, and the logits after the last."""
        state = self._after(prompt, len(forced))
        found = []
        start = time.perf_counter()
        with record_function(TIMED):
            for token in forced.split(1):
                logits = self._step(token, state)
                found.append(int(logits.argmax()))
        seconds = time.perf_counter() - start
        return Sample((torch.tensor(found), logits.float()), seconds)

    def _after(self, prompt: Tensor, room: int) -> Any:
        """A state of its own that has read the prompt."""
        if self._filled is None or not torch.equal(self._filled[0], prompt):
            state = self._empty(len(prompt) + room)
            self._step(prompt, state)
            self._filled = prompt, state
        return copy.deepcopy(self._filled[1])

    def _empty(self, max_tokens: int) -> Any:
        raise NotImplementedError

    def _step(self, tokens: Tensor, state: Any) -> Tensor:
        raise NotImplementedError


class Lanewise(InProcess):
    """`lanewise.models`, packed."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.model = models.load(path, dtype=dtype)

    def _empty(self, max_tokens: int) -> Any:
        return self.model.new_cache(1, max_tokens)

    def _step(self, tokens: Tensor, state: Any) -> Tensor:
        return self.model.extend(tokens, [len(tokens)], state)[0]


class Transformers(InProcess):
    """transformers' own class for the model, with one of its attentions; optimized, if asked."""

    def __init__(
        self, path: Path, dtype: torch.dtype, attention: str = "sdpa", optimize: bool = False
    ) -> None:
        from bench.models.quiet import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention
        ).eval()
        if optimize:
            lanewise.optimize(self.model, pack=True)

    def _empty(self, max_tokens: int) -> Any:
        from bench.models.quiet import transformers

        return transformers.DynamicCache(config=self.model.config)

    def _step(self, tokens: Tensor, state: Any) -> Tensor:
        found = self.model(tokens[None], cache=state, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1]


class LlamaCpp:
    """llama.cpp; it tells the likeliest tokens alone."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._remote = remote("llama_cpp")
        threads = torch.get_num_threads()
        self._remote.call("load", path=str(path), threads=threads, max_tokens=max_tokens)

    def prefill(self, prompt: Tensor) -> Sample:
        """The likeliest token [1]."""
        return _sample(self._remote.call("prefill", prompt=prompt.tolist()))

    def decode(self, prompt: Tensor, forced: Tensor) -> Sample:
        """The likeliest token after the last forced one [1]: its weights' rounding is coarse."""
        arguments = {"prompt": prompt.tolist(), "forced": forced.tolist()}
        sample = _sample(self._remote.call("decode", **arguments))
        return Sample((sample.output[0][-1:],), sample.seconds)


class CTranslate2:
    """CTranslate2 in float32; it tells the likeliest tokens alone, and follows its own."""

    def __init__(self, path: Path) -> None:
        self._remote = remote("ctranslate2")
        self._remote.call("load", path=str(path), threads=torch.get_num_threads())

    def prefill(self, prompt: Tensor) -> Sample:
        """The likeliest token [1]."""
        return _sample(self._remote.call("prefill", prompt=prompt.tolist()))

    def decode(self, prompt: Tensor, forced: Tensor) -> Sample:
        """The tokens after the first [N]."""
        return _sample(self._remote.call("decode", prompt=prompt.tolist(), steps=len(forced)))


def _sample(answer: dict[str, Any]) -> Sample:
    return Sample((torch.tensor(answer["tokens"]),), answer["seconds"])


@lru_cache(maxsize=6)  # what one section needs: two gigabytes each, some of them
def loaded(make: Callable[..., Decoder], *arguments: object) -> Decoder:
    """It is kept, since a section comes back to it."""
    return make(*arguments)
