"""The backward passes of linear and gated_linear, alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

import lanewise
from bench.case import DTYPES, Case, Task
from bench.gemm.operands import activations, linear_bytes, weight
from bench.section import Section

ROWS, INPUTS, OUTPUTS = 512, 768, 3072

Op = Callable[..., torch.Tensor]


def _linear(dtype: torch.dtype, wants_x: bool) -> Case:
    return _backward("linear", lanewise.linear, F.linear, 1, dtype, wants_x)


def _gated(dtype: torch.dtype, wants_x: bool) -> Case:
    def unfused(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(F.linear(x, gate)) * F.linear(x, up)

    return _backward("gated_linear", lanewise.gated_linear, unfused, 2, dtype, wants_x)


def _backward(
    name: str, ours: Op, torchs: Op, products: int, dtype: torch.dtype, wants_x: bool
) -> Case:
    x = activations(ROWS, INPUTS, dtype).requires_grad_(wants_x)
    weights = [weight(INPUTS, OUTPUTS, dtype).requires_grad_(not wants_x) for _ in range(products)]
    upstream = activations(ROWS, OUTPUTS, dtype)

    def gradients(op: Op, dtype: torch.dtype = dtype) -> Callable[[], tuple[torch.Tensor, ...]]:
        operands = [t.detach().to(dtype).requires_grad_(t.requires_grad) for t in (x, *weights)]
        wanted = operands[:1] if wants_x else operands[1:]
        out = op(*operands)
        above = upstream.to(dtype)
        return lambda: torch.autograd.grad(out, wanted, above, retain_graph=True)

    return Case(
        Task(
            f"{name} {ROWS}×{INPUTS}→{OUTPUTS}, {'dX' if wants_x else 'dW'}",
            dtype,
            flops=2 * products * ROWS * INPUTS * OUTPUTS,
            bytes=linear_bytes(ROWS, INPUTS, OUTPUTS, dtype)
            + (products - 1) * INPUTS * OUTPUTS * dtype.itemsize,
        ),
        ours={"": gradients(ours)},
        peers={"torch": gradients(torchs)},
        reference=gradients(torchs, torch.float32),
        gradient=True,
    )


SECTION = Section(
    "gradient",
    [
        partial(case, dtype, wants_x)
        for case in (_linear, _gated)
        for wants_x in (True, False)
        for dtype in DTYPES
    ],
)
