"""The feed-forward halves: gated (Llama, Gemma), GPT-2's, and the parts of BERT's."""

from __future__ import annotations

from torch import Tensor, nn

from lanewise import ops
from lanewise.integrations.optimize.linear import Linear, project, skipped
from lanewise.integrations.optimize.serving import (
    autocasts,
    epilogue,
    served,
    without_autograd,
)
from lanewise.integrations.optimize.swap import Replacement, plain


class GatedMLP(Replacement):
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x)) + residual``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return project(self.down_proj, self._hidden(x), residual)

    def _hidden(self, x: Tensor) -> Tensor:
        gate, up, activation = self.gate_proj, self.up_proj, epilogue(self.act_fn)
        if activation is None or autocasts() or not _serve(x, gate, up):
            return self.act_fn(gate(x)) * up(x)
        packed_gate, packed_up = gate.usable_pack(x, gate.bias), up.usable_pack(x, up.bias)
        with without_autograd():
            if packed_gate is not None and packed_up is not None:
                return ops.gated_linear_packed(
                    x, packed_gate, packed_up, gate.bias, up.bias, activation=activation
                )
            return ops.gated_linear(
                x, gate.weight, up.weight, gate.bias, up.bias, activation=activation
            )


class GPT2MLP(Replacement):
    """``c_proj(act(c_fc(x))) + residual``."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        hidden = activated(self.c_fc, hidden_states, self.act)
        if skipped(self.dropout):
            return project(self.c_proj, hidden, residual)
        y = self.dropout(self.c_proj(hidden))
        return y if residual is None else y + residual


class BertIntermediate(Replacement):
    """``intermediate_act_fn(dense(x))``."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return activated(self.dense, hidden_states, self.intermediate_act_fn)


class BertOutput(Replacement):
    """``LayerNorm(dropout(dense(x)) + residual)``, the end of both halves of a layer."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        if not skipped(self.dropout) or autocasts():
            return super().forward(hidden_states, input_tensor)
        return self.LayerNorm(project(self.dense, hidden_states, input_tensor))


def activated(layer: nn.Module, x: Tensor, function: nn.Module) -> Tensor:
    """``function(layer(x))``, in one op where it may be."""
    activation = epilogue(function)
    if activation is None:
        return function(layer(x))
    return project(layer, x, activation=activation)


def _serve(x: Tensor, *layers: nn.Module) -> bool:
    return plain(*layers) and all(
        isinstance(layer, Linear) and served(x, layer.weight) for layer in layers
    )
