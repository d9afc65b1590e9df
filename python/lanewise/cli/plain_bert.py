"""The same sentence encoder in plain torch: the yardstick for accuracy and speed.

Written as one would without lanewise, straight from the checkpoint's own names, and sharing no code
with `lanewise.nn` and `lanewise.models`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class PlainBert:
    """BERT, mean pooling, length 1, in any dtype that torch computes in."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.config = json.loads((path / "config.json").read_text())
        weights = load_file(path / "model.safetensors")
        self.weights = {
            name: weight.to(dtype) for name, weight in weights.items() if weight.is_floating_point()
        }

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """input_ids [B, S], mask bool [B, S] or None → embeddings [B, E]."""
        x = self.embed(input_ids)
        attended = None if mask is None else mask[:, None, None, :]
        for number in range(self.config["num_hidden_layers"]):
            x = self.layer(x, attended, f"encoder.layer.{number}.")
        if mask is None:
            pooled = x.mean(1)
        else:
            kept = mask[:, :, None].to(x.dtype)
            pooled = (x * kept).sum(1) / kept.sum(1)
        return F.normalize(pooled, dim=-1)

    def embed(self, input_ids: Tensor) -> Tensor:
        table = "embeddings.{}_embeddings.weight"
        x = F.embedding(input_ids, self.weights[table.format("word")])
        x = x + self.weights[table.format("position")][: input_ids.shape[1]]
        x = x + self.weights[table.format("token_type")][0]
        return self.norm(x, "embeddings.LayerNorm")

    def layer(self, x: Tensor, mask: Tensor | None, name: str) -> Tensor:
        batch, length, size = x.shape
        heads = (batch, length, self.config["num_attention_heads"], -1)
        q, k, v = (
            self.linear(x, f"{name}attention.self.{part}").view(heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, length, size)
        mixed = self.linear(mixed, f"{name}attention.output.dense")
        x = self.norm(mixed + x, f"{name}attention.output.LayerNorm")
        hidden = F.gelu(self.linear(x, f"{name}intermediate.dense"))
        return self.norm(self.linear(hidden, f"{name}output.dense") + x, f"{name}output.LayerNorm")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.config["layer_norm_eps"])
