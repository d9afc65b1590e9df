"""Sentence embeddings from a model directory of the sentence-transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanewise.models.batches import batches
from lanewise.models.bert import Bert
from lanewise.models.config import read_json
from lanewise.models.optional import require
from lanewise.models.tokenizer import load_tokenizer


class SentenceEncoder(nn.Module):
    """A `Bert`, its tokenizer, and the mean of its last states, normalised to length 1.

    Args:
        bert: the encoder.
        tokenizer: a ``tokenizers.Tokenizer``; its padding and truncation are replaced.
        max_tokens: longer sentences are cut, as the model was trained.
        normalize: whether embeddings have length 1.
    """

    def __init__(
        self, bert: Bert, tokenizer: Any, *, max_tokens: int = 512, normalize: bool = True
    ) -> None:
        super().__init__()
        self.bert = bert
        self.normalize = normalize
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> SentenceEncoder:
        """Reads a sentence-transformers directory: modules.json and the files it names,
        tokenizer.json.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: the model pools otherwise than by the mean, or has other modules.
            ImportError: the package tokenizers or safetensors is missing.
        """
        path = Path(path)
        require("tokenizers", "embedding sentences")
        modules = {
            module["type"].rpartition(".")[2]: path / module["path"]
            for module in read_json(path / "modules.json")
        }
        if unknown := modules.keys() - {"Transformer", "Pooling", "Normalize"}:
            raise ValueError(f"SentenceEncoder: unknown module {sorted(unknown)[0]}")
        _check_pooling(read_json(modules["Pooling"] / "config.json"))
        return cls(
            Bert.from_pretrained(path, device=device, dtype=dtype),
            load_tokenizer(path),
            max_tokens=read_json(path / "sentence_bert_config.json")["max_seq_length"],
            normalize="Normalize" in modules,
        ).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids [B, S], attention_mask [B, S] (see `Bert.forward`) → embeddings [B, E]."""
        states = self.bert(input_ids, attention_mask)
        if attention_mask is None:
            pooled = states.mean(1)
        else:
            kept = attention_mask.to(states.dtype)
            pooled = torch.einsum("bs,bse->be", kept, states) / kept.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], *, batch_size: int = 32) -> Tensor:
        """Sentences → embeddings [len(sentences), E], on the CPU, in their order."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]
        device = self.bert.embeddings.norm.weight.device
        found = torch.empty(len(rows), self.bert.config.hidden_size)
        for indices, ids, mask in batches(rows, batch_size):
            mask = None if mask is None else mask.to(device)
            found[indices] = self(ids.to(device), mask).float().cpu()
        return found


def _check_pooling(config: dict[str, Any]) -> None:
    modes = sorted(
        name.removeprefix("pooling_mode_")
        for name, on in config.items()
        if name.startswith("pooling_mode_") and on
    )
    if modes != ["mean_tokens"]:
        raise ValueError(f"SentenceEncoder: pooling must be mean_tokens, got {', '.join(modes)}")
