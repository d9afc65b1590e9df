"""What Gpt2, Llama and Gemma3 share: token numbers in, logits out, with or without a cache."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lanewise import ops
from lanewise.models import generation
from lanewise.nn import LearnedPositionEmbedding, Linear, PagedCache, TransformerLayer
from lanewise.nn.packing import HoldsPackings


class Decoder(HoldsPackings):
    """A stack of causal transformer layers between an embedding and a head over the vocabulary.

    Args:
        config: the model's configuration, with vocab_size, hidden_size and max_positions.
        layers: the stack.
        norm: over the last states.
        positions: learned position vectors, added to the embeddings.
        tied: the head's weight is the embedding's.
        embedding_scale: factor on the embeddings, rounded to their dtype first.
        logit_softcap: c > 0 turns a logit z into ``c * tanh(z / c)``.
    """

    def __init__(
        self,
        config: Any,
        layers: Iterable[TransformerLayer],
        norm: nn.Module,
        *,
        positions: LearnedPositionEmbedding | None = None,
        tied: bool = True,
        embedding_scale: float = 1.0,
        logit_softcap: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = positions
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = None if tied else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.embedding_scale = embedding_scale
        self.logit_softcap = logit_softcap

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids [B, S] → logits [B, S, vocab_size].

        Args:
            attention_mask: [B, S], nonzero for tokens and zero for padding, on either side. Leave
                it out where there is no padding. Logits at padding mean nothing.
        """
        if not torch.compiler.is_compiling():
            self._check_tokens(input_ids)
        if input_ids.shape[1] > self.config.max_positions:
            raise ValueError(
                f"{type(self).__name__}: input_ids may have at most {self.config.max_positions} "
                f"tokens in a row, got {input_ids.shape[1]}"
            )
        if attention_mask is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = None
        else:
            places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            mask = attention_mask.bool()[:, None, None, :]
        x = self._embed(input_ids, places)
        for layer in self.layers:
            x = layer(x, mask, positions=places)
        return self._logits(self.norm(x))

    def new_cache(self, batch: int, max_tokens: int) -> PagedCache:
        """An empty cache for ``batch`` sequences of at most ``max_tokens`` tokens each.

        Raises:
            ValueError: the model has fewer positions.
        """
        if max_tokens > self.config.max_positions:
            raise ValueError(
                f"{type(self).__name__}: a sequence may have at most {self.config.max_positions} "
                f"tokens, got {max_tokens}"
            )
        attention = self._attention(0)
        weight = self.embedding.weight
        return PagedCache(
            len(self.layers),
            attention.num_kv_heads,
            attention.head_dim,
            batch=batch,
            max_tokens=max_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.inference_mode()
    def extend(self, tokens: Tensor, counts: Sequence[int], cache: PagedCache) -> Tensor:
        """Appends new tokens to the cache's sequences and predicts the next one of each.

        Args:
            tokens: [T], the new tokens, one sequence after another.
            counts: how many of them each sequence has; 0 leaves a sequence as it is.
            cache: what `new_cache` made, and earlier calls filled.

        Returns:
            logits [B, vocab_size] after each sequence's last token; NaN for one without a new
            token.

        Raises:
            ValueError: counts do not add up to T, a sequence grows too long, or a token is not in
                the vocabulary. Nothing has changed then.
        """
        name = type(self).__name__
        if tokens.dim() != 1 or tokens.shape[0] != sum(counts):
            raise ValueError(
                f"{name}: tokens must have shape [{sum(counts)}], the sum of counts, got "
                f"{list(tokens.shape)}"
            )
        if cache.max_tokens > self.config.max_positions:
            raise ValueError(
                f"{name}: cache must be one for at most {self.config.max_positions} tokens of a "
                f"sequence, got one for {cache.max_tokens}"
            )
        self._check_tokens(tokens)
        step = cache.extend(counts)
        x = self._embed(tokens, step.positions)
        last = len(self.layers) - 1
        for i in range(last):
            x = self.layers[i](x, cache=cache.layer(i, step))
        if 0 not in counts:
            x = self._layer(last).last(x, cache.layer(last, step))
            return self._logits(self.norm(x))
        x = self.layers[last](x, cache=cache.layer(last, step))
        new = torch.tensor(counts) > 0
        found = self._logits(self.norm(x[(step.cu_seqlens_q[1:] - 1)[new]]))
        logits = found.new_full((len(counts), found.shape[1]), torch.nan)
        logits[new] = found
        return logits

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """The tokens that follow each prompt: `lanewise.models.generation.generate`, whose options
        these are."""
        return generation.generate(self, prompts, **options)

    def _embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.embedding_scale != 1.0:
            x = x * _rounded(self.embedding_scale, x.dtype)
        return x if self.positions is None else x + self.positions(places)

    def _logits(self, x: Tensor) -> Tensor:
        logits = ops.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        if self.logit_softcap:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"{type(self).__name__}: tokens must be int64 or int32, got {tokens.dtype}"
            )
        if tokens.numel() == 0:
            return
        least, most = (int(value) for value in tokens.aminmax())
        if least < 0 or most >= self.config.vocab_size:
            raise ValueError(
                f"{type(self).__name__}: tokens must be from 0 to {self.config.vocab_size - 1}, "
                f"got {least if least < 0 else most}"
            )

    def _layer(self, index: int) -> TransformerLayer:
        layer = self.layers[index]
        assert isinstance(layer, TransformerLayer)
        return layer

    def _attention(self, index: int) -> Any:
        return self._layer(index).attention


@functools.cache
def _rounded(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=dtype))
