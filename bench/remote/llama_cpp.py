"""llama.cpp over a GGUF file, by llama-cpp-python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.remote.serve import serve


class LlamaCpp:
    """One model. Tokens are what the model finds likeliest."""

    def start(self) -> str:
        """Imports it; its version."""
        import llama_cpp

        return str(llama_cpp.__version__)

    def load(self, path: str, threads: int, max_tokens: int) -> None:
        """Flash attention measured a few percent faster than without, the rest is the default.

        The whole of every layer's cache is kept, or sequences over sliding windows could not be cut
        back to the prompt.
        """
        import llama_cpp

        self._model = llama_cpp.Llama(
            model_path=path,
            n_ctx=max_tokens,
            n_batch=max_tokens,
            n_ubatch=max_tokens,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            swa_full=True,
            verbose=False,
        )
        self._prompt: list[int] = []

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Reads the prompt and predicts the next token."""
        self._model.reset()
        start = time.perf_counter()
        tokens = [self._next(prompt)]
        seconds = time.perf_counter() - start
        self._prompt = prompt
        return {"tokens": tokens, "seconds": seconds}

    def decode(self, prompt: list[int], forced: list[int]) -> dict[str, Any]:
        """Goes on from the prompt with the forced tokens, one by one; the prediction after each."""
        if prompt != self._prompt:
            self.prefill(prompt)
        self._model.n_tokens = len(prompt)  # what lies beyond is dropped by the next call
        start = time.perf_counter()
        tokens = [self._next([token]) for token in forced]
        return {"tokens": tokens, "seconds": time.perf_counter() - start}

    def _next(self, tokens: Sequence[int]) -> int:
        import llama_cpp

        self._model.eval(tokens)
        logits = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),)).argmax())


if __name__ == "__main__":
    serve(LlamaCpp())
