"""Batches of products: many small ones, and the two of attention."""

from __future__ import annotations

from functools import partial

import torch

import lanewise
from bench import peers
from bench.case import DTYPES, Case, Task
from bench.peers.question import Matmul
from bench.section import Section


def _matmul(
    batch: int,
    m: int,
    k: int,
    n: int,
    dtype: torch.dtype,
    transpose_a: bool = False,
    transpose_b: bool = False,
    note: str = "",
) -> Case:
    """batch × (m×k · k×n); what is transposed is a view of the other layout."""
    a = torch.randn(batch, k, m).to(dtype).mT if transpose_a else torch.randn(batch, m, k).to(dtype)
    b = torch.randn(batch, n, k).to(dtype).mT if transpose_b else torch.randn(batch, k, n).to(dtype)
    others, absent = peers.ask(Matmul(a, b), peers.EAGER)  # which take views as they are
    names = f"a{'ᵀ' * transpose_a}·b{'ᵀ' * transpose_b}"
    return Case(
        Task(
            f"matmul {batch}×({m}×{k}·{k}×{n}), {note or names}",
            dtype,
            flops=2 * batch * m * k * n,
            bytes=batch * (m * k + k * n + m * n) * dtype.itemsize,
        ),
        ours={"": lambda: lanewise.matmul(a, b)},
        peers=others,
        reference=lambda: a.float() @ b.float(),
        absent=absent,
    )


SECTION = Section(
    "batched",
    [
        partial(work, dtype=dtype)
        for work in (
            *(
                partial(_matmul, 96, 64, 64, 64, transpose_a=a, transpose_b=b)
                for a in (False, True)
                for b in (False, True)
            ),
            partial(_matmul, 12, 512, 64, 512, transpose_b=True, note="q·kᵀ"),
            partial(_matmul, 12, 512, 512, 64, note="p·v"),
            partial(_matmul, 384, 16, 16, 16),
        )
        for dtype in DTYPES
    ],
)
