"""Layers with what follows them, as models hold them: a peer that cannot fuse passes twice."""

from __future__ import annotations

from functools import partial

import torch

import lanewise
from bench import peers
from bench.case import FLOAT32_AND_BFLOAT16, Case, Task
from bench.gemm.operands import activations, layer, linear_bytes, weight
from bench.peers import torch as eager
from bench.peers.question import GatedLinear, Linear
from bench.section import Section


def _gelu(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Case:
    """gelu(x @ weight.T + bias), BERT's intermediate layer."""
    x, bias = activations(rows, inputs, dtype), torch.randn(outputs).to(dtype)
    plain, panels = layer(inputs, outputs, dtype)
    others, absent = peers.ask(Linear(x, plain, bias, "gelu"))
    return Case(
        Task(
            f"linear + gelu {rows}×{inputs}→{outputs}",
            dtype,
            flops=2 * rows * inputs * outputs,
            bytes=linear_bytes(rows, inputs, outputs, dtype),
        ),
        ours={
            "": lambda: lanewise.linear(x, plain, bias, activation="gelu"),
            "packed": lambda: lanewise.linear_packed(x, panels, bias, activation="gelu"),
        },
        peers=others,
        reference=eager.answer(Linear(x.float(), plain.float(), bias.float(), "gelu")),
        absent=absent,
    )


def _gated(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Case:
    """silu(x @ gate.T) * (x @ up.T), the first half of Llama's MLP."""
    x = activations(rows, inputs, dtype)
    gate, up = (weight(inputs, outputs, dtype) for _ in range(2))
    packed = lanewise.pack_weight(gate), lanewise.pack_weight(up)
    others, absent = peers.ask(GatedLinear(x, gate, up))
    return Case(
        Task(
            f"gated_linear {rows}×{inputs}→{outputs}",
            dtype,
            flops=4 * rows * inputs * outputs,
            bytes=linear_bytes(rows, inputs, outputs, dtype) + gate.nbytes,
        ),
        ours={
            "": lambda: lanewise.gated_linear(x, gate, up),
            "packed": lambda: lanewise.gated_linear_packed(x, *packed),
        },
        peers=others,
        reference=eager.answer(GatedLinear(x.float(), gate.float(), up.float())),
        absent=absent,
    )


SECTION = Section(
    "fused",
    [
        partial(case, rows, inputs, outputs, dtype)
        for case, inputs, outputs in ((_gelu, 768, 3072), (_gated, 2048, 8192))
        for rows in (512, 1)
        for dtype in FLOAT32_AND_BFLOAT16
    ],
)
