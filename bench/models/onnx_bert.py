"""BERT for ONNX Runtime, of the fused ops that its own optimizer makes of such a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FUSED = "com.microsoft"
# github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
OPSETS = (("", 17), (FUSED, 1))


def session(model: nn.Module, threads: int) -> Callable[[Tensor], Tensor]:
    """transformers' BertModel as a function of token numbers [B, S], the last states [B, S, E].

    Its threads sleep while others compute instead of spinning.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = _build(model).SerializeToString()
    run = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"]).run

    def forward(ids: Tensor) -> Tensor:
        numbers = ids.to(torch.int32).numpy()
        (states,) = run(None, {"ids": numbers, "types": np.zeros_like(numbers)})
        return torch.from_numpy(states)

    return forward


def _build(model: Any) -> Any:
    """The graph: embeddings, then for each layer attention, a sum and norm, two products, again."""
    from onnx import TensorProto, helper, numpy_helper

    config = model.config
    nodes: list[Any] = []
    values: list[Any] = []

    def value(tensor: Tensor) -> str:
        name = f"w{len(values)}"
        values.append(numpy_helper.from_array(tensor.detach().numpy().copy(), name))
        return name

    def node(kind: str, *inputs: str, domain: str = FUSED, outputs: int = 1, **options: Any) -> str:
        names = [f"n{len(nodes)}.{i}" for i in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, names, domain=domain, **options))
        return names[0]

    def product(x: str, linear: nn.Linear) -> str:
        return node("MatMul", x, value(linear.weight.T), domain="")

    def norm(x: str, skip: str, layer: nn.LayerNorm, bias: Tensor) -> str:
        parts = (layer.weight, layer.bias, bias)
        epsilon = config.layer_norm_eps
        return node(
            "SkipLayerNormalization", x, skip, *(value(part) for part in parts), epsilon=epsilon
        )

    embeddings = model.embeddings
    tables = (
        embeddings.word_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.LayerNorm.weight,
        embeddings.LayerNorm.bias,
    )
    x = node(
        "EmbedLayerNormalization",
        "ids",
        "types",
        *(value(table) for table in tables),
        outputs=2,
        epsilon=config.layer_norm_eps,
    )
    for layer in model.encoder.layer:
        own, output = layer.attention.self, layer.attention.output
        projections = (own.query, own.key, own.value)
        attended = node(
            "Attention",
            x,
            value(torch.cat([part.weight for part in projections]).T),
            value(torch.cat([part.bias for part in projections])),
            num_heads=config.num_attention_heads,
        )
        x = norm(product(attended, output.dense), x, output.LayerNorm, output.dense.bias)
        inner, outer = layer.intermediate.dense, layer.output.dense
        grown = node("BiasGelu", product(x, inner), value(inner.bias))
        x = norm(product(grown, outer), x, layer.output.LayerNorm, outer.bias)

    graph = helper.make_graph(
        nodes,
        "bert",
        [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["B", "S"])
            for name in ("ids", "types")
        ],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["B", "S", config.hidden_size])],
        values,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
