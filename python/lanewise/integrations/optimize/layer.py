"""Transformer layers: as one op where they may be, else with their residual additions fused into
what comes before or after them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lanewise.integrations.optimize.attention import Attention
from lanewise.integrations.optimize.fused import FusedLayer, Parts
from lanewise.integrations.optimize.linear import PackedReplacement
from lanewise.integrations.optimize.mlp import GPT2MLP, GatedMLP
from lanewise.integrations.optimize.swap import Replacement, plain


class DecoderLayer(Replacement, FusedLayer):
    """What the layers share: part by part is left to `by_parts`."""

    def withdraw(self) -> None:
        self.__dict__.pop("_plan", None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.__dict__.pop("_plan", None)  # it is made of this module's own children
        return super().__reduce_ex__(protocol)

    def by_parts(self, x: Tensor, **inputs: Any) -> Tensor | None:
        """The layer's output by its modules; None, with nothing done, where one of them is not
        ours alone, so that the model's own code must call them."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = None
        if not args:
            y = self.fused(hidden_states, **kwargs)
            if y is None:
                y = self.by_parts(hidden_states, **kwargs)
        return super().forward(hidden_states, *args, **kwargs) if y is None else y


class PreNormLayer(DecoderLayer):
    """Llama's, Mistral's and Qwen's: both residuals are added by the last product of a half."""

    def by_parts(self, x: Tensor, **inputs: Any) -> Tensor | None:
        if not plain(self.self_attn, self.mlp):
            return None
        x, _ = self.self_attn(self.input_layernorm(x), residual=x, **inputs)
        return self.mlp(self.post_attention_layernorm(x), residual=x)

    def parts(self) -> Parts | None:
        attention, mlp = self.self_attn, self.mlp
        if not (isinstance(attention, Attention) and isinstance(mlp, GatedMLP)):
            return None
        return Parts(
            attention,
            mlp,
            activation=mlp.act_fn,
            qkv=attention,
            o=attention.o_proj,
            up=mlp.up_proj,
            down=mlp.down_proj,
            gate=mlp.gate_proj,
            attention_norm=self.input_layernorm,
            mlp_norm=self.post_attention_layernorm,
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
        )


class SandwichLayer(PreNormLayer):
    """Gemma's, with a norm before and after each half: the residual of the first is added by the
    norm before the second."""

    def by_parts(self, x: Tensor, **inputs: Any) -> Tensor | None:
        if not plain(self.pre_feedforward_layernorm):
            return None
        y, _ = self.self_attn(self.input_layernorm(x), **inputs)
        normed, x = self.pre_feedforward_layernorm(self.post_attention_layernorm(y), x)
        return x + self.post_feedforward_layernorm(self.mlp(normed))

    def parts(self) -> Parts | None:
        parts = super().parts()
        return parts and parts._replace(
            mlp_norm=self.pre_feedforward_layernorm,
            attention_post_norm=self.post_attention_layernorm,
            mlp_post_norm=self.post_feedforward_layernorm,
        )


class GPT2Block(DecoderLayer):
    """GPT-2's, without cross-attention."""

    def forward(
        self,
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if args or encoder_hidden_states is not None:
            return self.original.forward(
                self, hidden_states, cache, attention_mask, encoder_hidden_states, *args, **kwargs
            )
        kwargs.pop("encoder_attention_mask", None)
        kwargs.setdefault("cache", cache)
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)

    def by_parts(self, x: Tensor, **inputs: Any) -> Tensor | None:
        if not plain(self.attn, self.mlp):
            return None
        x, _ = self.attn(self.ln_1(x), residual=x, **inputs)
        return self.mlp(self.ln_2(x), residual=x)

    def parts(self) -> Parts | None:
        attention, mlp = self.attn, self.mlp
        if not (isinstance(attention, Attention) and isinstance(mlp, GPT2MLP)):
            return None
        if not isinstance(attention.c_attn, PackedReplacement):
            return None
        return Parts(
            attention,
            mlp,
            activation=mlp.act,
            qkv=attention.c_attn,
            o=attention.c_proj,
            up=mlp.c_fc,
            down=mlp.c_proj,
            gate=None,
            attention_norm=self.ln_1,
            mlp_norm=self.ln_2,
        )
