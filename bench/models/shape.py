"""What a decoder cannot avoid to compute and to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.case import Task


@dataclass(frozen=True)
class Shape:
    """Counts of numbers, of the whole model."""

    matrices: int  # weights of the linear layers
    head: int  # weights of the product with the vocabulary
    windows: tuple[int, ...]  # of each layer, the most keys that a token attends
    queries: int  # of a token in one layer: heads times their size
    keys: int  # of a token in one layer: as many values
    makes_keys: int  # weights of one layer that make keys and values

    @classmethod
    def of(cls, path: Path) -> Shape:
        """Of the GPT-2, Llama or Gemma 3 in a directory."""
        from bench.models.quiet import transformers

        config = transformers.AutoConfig.from_pretrained(path)
        size, layers, heads = (
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
        )
        dim = getattr(config, "head_dim", None) or size // heads
        queries, keys = heads * dim, (getattr(config, "num_key_value_heads", None) or heads) * dim
        plain = config.model_type == "gpt2"
        inner = 4 * size if plain else config.intermediate_size
        layer = size * (2 * queries + 2 * keys + (2 if plain else 3) * inner)
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
        far = config.max_position_embeddings
        windows = tuple(config.sliding_window if "sliding" in kind else far for kind in kinds)
        head = config.vocab_size * size
        return cls(layers * layer, head, windows, queries, keys, 2 * keys * size)

    def task(self, work: str, dtype: torch.dtype, past: int, new: int, predictions: int) -> Task:
        """`new` tokens after `past` ones, of which so many predict a token, each in one step."""
        every, last = range(past, past + new), range(past + new - predictions, past + new)
        # Nobody needs more of the last layer than its keys and values, but for the predictions.
        layer = self.matrices // len(self.windows)
        products = (
            new * (self.matrices - layer + self.makes_keys)
            + predictions * (layer - self.makes_keys)
            + predictions * self.head
        )
        scores = self._attended(every, self.windows[:-1]) + self._attended(last, self.windows[-1:])
        # In one step the keys are read once; step by step, for each token again.
        read = self._attended(last, self.windows)
        return Task(
            work,
            dtype,
            flops=2 * products + 4 * scores * self.queries,
            bytes=dtype.itemsize
            * (predictions * (self.matrices + self.head) + 2 * read * self.keys),
            rows=new,
        )

    def _attended(self, positions: Iterable[int], windows: Iterable[int]) -> int:
        """The keys that tokens attend, over some layers."""
        windows = tuple(windows)
        return sum(min(window, at + 1) for at in positions for window in windows)
