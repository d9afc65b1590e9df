"""A decoder without layers, for the tests of what is built on decoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

VOCABULARY, POSITIONS, STOP = 50, 40, 7


@dataclass
class FakeConfig:
    vocab_size: int = VOCABULARY
    max_positions: int = POSITIONS
    eos_token_ids: tuple[int, ...] = (STOP,)
    bos_token_id: int | None = None


class FakeCache:
    """The tokens themselves stand for what a layer would have computed from them."""

    def __init__(self, batch: int, max_tokens: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.max_tokens = max_tokens

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[index] for index in indices]


class FakeDecoder(nn.Module):
    """Logits made of a hash of the whole sequence; keeps what it was called with."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        super().__init__()
        self.config = config or FakeConfig()
        self.weight = nn.Parameter(torch.zeros(1))
        self.caches: list[FakeCache] = []
        self.steps: list[list[int]] = []

    def new_cache(self, batch: int, max_tokens: int) -> FakeCache:
        self.caches.append(FakeCache(batch, max_tokens))
        return self.caches[-1]

    def extend(self, tokens: Tensor, counts: list[int], cache: FakeCache) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert tokens.dtype == torch.int64
        assert tokens.shape == (sum(counts),)
        self.steps.append(counts)
        size, logits = self.config.vocab_size, []
        for row, new in zip(cache.rows, tokens.split(counts), strict=True):
            row.extend(new.tolist())
            assert len(row) <= cache.max_tokens
            # What the row of a sequence without new tokens holds is not promised.
            logits.append(self.logits(row) if len(new) else torch.full((size,), torch.nan))
        return torch.stack(logits)

    def logits(self, row: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(hash(tuple(row)) % 2**63)
        return torch.randn(self.config.vocab_size, generator=generator)


class RecitingDecoder(FakeDecoder):
    """Knows documents by heart and goes on with the one that begins like the prompt."""

    def __init__(self, config: FakeConfig, documents: list[list[int]]) -> None:
        super().__init__(config)
        self.documents = documents

    def logits(self, row: list[int]) -> Tensor:
        logits = torch.zeros(self.config.vocab_size)
        for document in self.documents:
            if document[: len(row)] == row and len(document) > len(row):
                logits[document[len(row)]] = 1.0
        return logits
