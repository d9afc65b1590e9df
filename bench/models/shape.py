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
        return cls(layers * layer, config.vocab_size * size, windows, queries, keys)

    def task(self, work: str, dtype: torch.dtype, past: int, new: int, predictions: int) -> Task:
        """`new` tokens after `past` ones, of which so many predict a token, each in one step."""
        attended = sum(self._attended(range(past, past + new)))
        # In one step the keys are read once; step by step, for each token again.
        read = attended if predictions == new else sum(self._attended([past + new - 1]))
        steps = predictions
        return Task(
            work,
            dtype,
            flops=2 * new * self.matrices
            + 2 * predictions * self.head
            + 4 * attended * self.queries,
            bytes=dtype.itemsize * (steps * (self.matrices + self.head) + 2 * read * self.keys),
            rows=new,
        )

    def _attended(self, positions: Iterable[int]) -> Iterable[int]:
        """Of each token, the keys it attends, over all layers."""
        return (sum(min(window, at + 1) for window in self.windows) for at in positions)
