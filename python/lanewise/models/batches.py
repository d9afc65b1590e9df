"""Batches of rows of tokens, for encoders: padded, but little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def batches(
    rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
    """Yields (indices of the rows, ids [B, S], mask or None), as `pad` gives them.

    Rows of like length share a batch, so that little work goes into padding.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, *pad([rows[i] for i in indices])


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Rows of token numbers → ids [B, S] padded with 0, and the mask, None if all are as long."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    if int(lengths.min()) == ids.shape[1]:
        return ids, None
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
