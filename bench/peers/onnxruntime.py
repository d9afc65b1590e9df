"""ONNX Runtime: a graph of one op, or of those that its optimizer fuses such ops into.

Its CPU provider computes in float32 alone; 16 bits it would convert op by op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
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

FUSED = "com.microsoft"  # github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
OPSETS = (("", 23), (FUSED, 1))
IR_VERSION = 11


class Graph:
    """A graph as it grows: values are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: dict[str, Tensor] = {}

    def input(self, tensor: Tensor) -> str:
        """What a call is given."""
        name = f"in{len(self._inputs)}"
        self._inputs[name] = tensor.contiguous()
        return name

    def constant(self, tensor: Tensor) -> str:
        """What is known beforehand, so that the session can lay it out as it likes."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def node(
        self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **options: Any
    ) -> str:
        """The first output of an op; the others are called like it, with .1, .2 behind."""
        name = f"n{len(self._nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, inputs, names, domain=domain, **options))
        return name

    def fused(self, kind: str, *inputs: str, outputs: int = 1, **options: Any) -> str:
        """An op of ONNX Runtime's own."""
        return self.node(kind, *inputs, domain=FUSED, outputs=outputs, **options)

    def side(self, *outputs: str) -> Side:
        """A session of the graph that gives these values."""
        graph = helper.make_graph(
            self._nodes,
            "question",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(t.numpy().dtype), list(t.shape)
                )
                for name, t in self._inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._constants,
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
        model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )
        given = {name: t.numpy() for name, t in self._inputs.items()}
        return lambda: alone(session.run(outputs, given))


def answer(question: Question) -> Side:
    """A session's run."""
    if question.dtype != torch.float32:
        raise Unanswered
    return _answer(question)


@singledispatch
def _answer(question: Question) -> Side:
    raise Unanswered


@_answer.register
def _(q: Linear) -> Side:
    g = Graph()
    product = g.node("MatMul", g.input(q.x), g.constant(q.weight.T))
    if q.activation == "gelu" and q.bias is not None:
        return g.side(g.fused("BiasGelu", product, g.constant(q.bias)))
    if q.bias is not None or q.activation != "none":
        raise Unanswered
    return g.side(product)


@_answer.register
def _(q: GatedLinear) -> Side:
    g = Graph()
    x = g.input(q.x)
    gate, up = (g.node("MatMul", x, g.constant(w.T)) for w in (q.gate, q.up))
    return g.side(g.node("Mul", g.fused("QuickGelu", gate, alpha=1.0), up))


@_answer.register
def _(q: Matmul) -> Side:
    g = Graph()
    return g.side(g.node("MatMul", g.input(q.a), g.input(q.b)))


@_answer.register
def _(q: Attention) -> Side:
    """MultiHeadAttention, or its grouped sister of prompts; both take heads side by side."""
    batch, heads, queries, _ = q.q.shape
    g = Graph()
    operands = [g.input(t.transpose(1, 2).flatten(2)) for t in (q.q, q.k, q.v)]
    if not q.grouped and not q.window:
        causal = int(q.causal)
        out = g.fused("MultiHeadAttention", *operands, num_heads=heads, unidirectional=causal)
    elif q.causal:
        last = g.input(torch.full((batch,), queries - 1, dtype=torch.int32))
        total = g.input(torch.tensor([queries], dtype=torch.int32))
        out = g.fused(
            "GroupQueryAttention",
            *operands,
            *("", ""),  # no keys and values of the past
            last,
            total,
            outputs=3,
            num_heads=heads,
            kv_num_heads=q.k.shape[1],
            local_window_size=q.window or -1,
        )
    else:
        raise Unanswered
    run: Callable[[], Any] = g.side(out)
    return lambda: torch.from_numpy(run()).unflatten(2, (heads, -1)).transpose(1, 2)


@_answer.register
def _(q: LayerNorm) -> Side:
    g = Graph()
    parts = (g.input(q.x), g.constant(q.weight), g.constant(q.bias))
    return g.side(g.node("LayerNormalization", *parts, epsilon=q.eps))


@_answer.register
def _(q: RMSNorm) -> Side:
    g = Graph()
    parts = (g.input(q.x), g.constant(q.weight))
    return g.side(g.node("SimplifiedLayerNormalization", *parts, axis=-1, epsilon=q.eps))


@_answer.register
def _(q: AddRMSNorm) -> Side:
    g = Graph()
    parts = (g.input(q.x), g.input(q.residual), g.constant(q.weight))
    norm = g.fused("SkipSimplifiedLayerNormalization", *parts, outputs=4, epsilon=q.eps)
    return g.side(norm, f"{norm}.3")


@_answer.register
def _(q: Rope) -> Side:
    g = Graph()
    batch, _, tokens, _ = q.x.shape
    positions = g.constant(torch.arange(tokens).expand(batch, -1))
    parts = (g.input(q.x), positions, g.constant(q.cos), g.constant(q.sin))
    return g.side(g.fused("RotaryEmbedding", *parts))
