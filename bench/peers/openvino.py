"""OpenVINO: a graph of one op, or of those that its CPU plugin fuses, in the operands' dtype.

16 bits run as such only where the plugin says that the CPU multiplies them; elsewhere it converts,
and computes in float32.
"""

from __future__ import annotations

import os
from functools import singledispatch
from typing import Any

import openvino as ov
import torch
from openvino import opset13 as ops
from torch import Tensor

from bench.case import Side
from bench.peers.question import (
    AddRMSNorm,
    Attention,
    GatedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Question,
    RMSNorm,
    Rope,
    Unanswered,
    alone,
)

TYPES = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16, torch.float16: ov.Type.f16}
CAPABILITIES = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}
DTYPES = {kind.get_type_name(): dtype for dtype, kind in TYPES.items()}


class Graph:
    """Parameters and the tensors that they are given."""

    def __init__(self) -> None:
        self._parameters: list[Any] = []
        self._given: list[Any] = []
        self._held: list[Tensor] = []  # memory that OpenVINO sees and does not own

    def input(self, tensor: Tensor) -> Any:
        """What a call is given."""
        parameter = ops.parameter(list(tensor.shape), TYPES[tensor.dtype])
        self._parameters.append(parameter)
        self._given.append(self._shared(tensor))
        return parameter

    def constant(self, tensor: Tensor) -> Any:
        """What is known beforehand, so that the plugin can lay it out as it likes."""
        return ops.constant(self._shared(tensor))

    def _shared(self, tensor: Tensor) -> Any:
        """The same memory as OpenVINO sees it."""
        tensor = tensor.contiguous()
        self._held.append(tensor)
        if tensor.dtype == torch.float32:
            return ov.Tensor(tensor.numpy(), shared_memory=True)
        return ov.Tensor(tensor.view(torch.int16).numpy(), list(tensor.shape), TYPES[tensor.dtype])

    def side(self, *outputs: Any) -> Side:
        """The compiled graph that gives these values."""
        model = ov.Model(list(outputs), self._parameters)
        dtype = self._held[0].dtype
        # The plugin asks the CPU and its oneDNN the environment: where they differ it crashes.
        own = "ONEDNN_MAX_CPU_ISA" not in os.environ and CAPABILITIES[dtype] in (
            ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        )
        compiled = ov.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": TYPES[dtype] if own else ov.Type.f32,
            },
        )
        request = compiled.create_infer_request()
        for index, tensor in enumerate(self._given):
            request.set_input_tensor(index, tensor)
        held = self._held

        def run() -> Any:
            assert held
            request.infer()
            return alone([_tensor(request.get_output_tensor(i)) for i in range(len(outputs))])

        return run


def _tensor(output: Any) -> Tensor:
    dtype = DTYPES[output.element_type.get_type_name()]
    return torch.frombuffer(output.data, dtype=dtype).view(*output.shape)


def answer(question: Question) -> Side:
    """A request's run."""
    g = Graph()
    return g.side(*_answer(question, g))


@singledispatch
def _answer(question: Question, g: Graph) -> tuple[Any, ...]:
    raise Unanswered


@_answer.register
def _(q: Linear, g: Graph) -> tuple[Any, ...]:
    out = ops.matmul(g.input(q.x), g.constant(q.weight), False, True)
    if q.bias is not None:
        out = ops.add(out, g.constant(q.bias))
    return (ops.gelu(out, "ERF") if q.activation == "gelu" else out,)


@_answer.register
def _(q: GatedLinear, g: Graph) -> tuple[Any, ...]:
    x = g.input(q.x)
    gate, up = (ops.matmul(x, g.constant(w), False, True) for w in (q.gate, q.up))
    return (ops.multiply(ops.multiply(gate, ops.sigmoid(gate)), up),)


@_answer.register
def _(q: Matmul, g: Graph) -> tuple[Any, ...]:
    return (ops.matmul(g.input(q.a), g.input(q.b), False, False),)


@_answer.register
def _(q: Attention, g: Graph) -> tuple[Any, ...]:
    if q.grouped or q.window:
        raise Unanswered
    parts = (g.input(t) for t in (q.q, q.k, q.v))
    return (ops.scaled_dot_product_attention(*parts, causal=q.causal),)


@_answer.register
def _(q: LayerNorm, g: Graph) -> tuple[Any, ...]:
    y = ops.mvn(g.input(q.x), [1], True, q.eps, "INSIDE_SQRT")
    return (ops.add(ops.multiply(y, g.constant(q.weight)), g.constant(q.bias)),)


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """The ops that the plugin takes for one RMSNorm."""
    kind = x.get_element_type()
    square = ops.power(x, ops.constant(2.0, kind))
    mean = ops.reduce_mean(square, ops.constant([-1]), True)
    root = ops.sqrt(ops.add(mean, ops.constant(eps, kind)))
    return ops.multiply(ops.multiply(x, ops.divide(ops.constant(1.0, kind), root)), weight)


@_answer.register
def _(q: RMSNorm, g: Graph) -> tuple[Any, ...]:
    return (_rms_norm(g.input(q.x), g.constant(q.weight), q.eps),)


@_answer.register
def _(q: AddRMSNorm, g: Graph) -> tuple[Any, ...]:
    total = ops.add(g.input(q.x), g.input(q.residual))
    return _rms_norm(total, g.constant(q.weight), q.eps), total


@_answer.register
def _(q: Rope, g: Graph) -> tuple[Any, ...]:
    """The ops that the plugin takes for one rotation, as in an exported Llama."""
    x = g.input(q.x)
    cos, sin = (g.constant(torch.cat((t, t), -1).to(q.x.dtype)[None, None]) for t in (q.cos, q.sin))
    halves = ops.split(x, -1, 2)
    minus = ops.multiply(halves.output(1), ops.constant(-1.0, x.get_element_type()))
    turned = ops.concat([minus, halves.output(0)], -1)
    return (ops.add(ops.multiply(x, cos), ops.multiply(turned, sin)),)
