"""A decoder layer as one op, beside its parts one by one and beside plain torch in float64."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreted import interpreting
from strategies import DTYPES
from torch import Tensor, nn

from lanewise.nn import (
    MLP,
    Attention,
    LayerNorm,
    Linear,
    PagedCache,
    RMSNorm,
    RotaryEmbedding,
    TransformerLayer,
    fused,
    pack,
)

E, D = 48, 16
# The tokens of two sequences at each step, together TOKENS; more than a window, and some none.
CUTS = [[6, 9], [1, 1], [3, 1], [1, 2], [2, 0]]
if interpreting:
    CUTS = [[4, 8], [1, 1], [4, 0]]
TOKENS = sum(first for first, _ in CUTS)


def make(kind: str, dtype: torch.dtype = torch.float32) -> TransformerLayer:
    torch.manual_seed(0)
    rotary = RotaryEmbedding(D, 64)
    norm: Any = RMSNorm
    if kind == "gpt2":
        attention = Attention(E, 3, causal=True)
        layer = TransformerLayer(attention, MLP(E, 80, activation="gelu_tanh"), norm=LayerNorm)
    elif kind == "llama":
        attention = Attention(E, 4, 2, head_dim=D, bias=False, causal=True, rotary=rotary)
        mlp = MLP(E, 80, activation="silu", gated=True, bias=False)
        layer = TransformerLayer(attention, mlp, norm=norm)
    elif kind == "biased":  # biases and sinks everywhere, partly rotated in neighbours
        rotary = RotaryEmbedding(8, 64, interleaved=True)
        attention = Attention(
            E, 6, 2, head_dim=D, causal=True, sinks=True, softcap=5.0, rotary=rotary
        )
        layer = TransformerLayer(attention, MLP(E, 33, activation="gelu", gated=True), norm=norm)
    else:
        norm = partial(RMSNorm, eps=1e-5, weight_offset=1.0)
        attention = Attention(
            *(E, 4, 1),
            head_dim=D,
            bias=False,
            causal=True,
            window_left=6,
            scale=0.3,
            qk_norm=norm,
            rotary=rotary,
        )
        mlp = MLP(E, 80, activation="gelu_tanh", gated=True, bias=False)
        layer = TransformerLayer(attention, mlp, norm=norm, norm_last=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer.to(dtype).eval()


KINDS = ("gpt2", "llama", "gemma", "biased")


def exact(layer: TransformerLayer, x: Tensor) -> Tensor:
    """x [B, S, E] through the layer in float64, by torch's own functions."""
    layer = copy.deepcopy(layer)
    attention = layer.attention

    def norm(module: nn.Module, t: Tensor) -> Tensor:
        weight = module.weight.double()  # type: ignore[union-attr, operator]
        if isinstance(module, LayerNorm):
            return F.layer_norm(t, t.shape[-1:], weight, module.bias.double(), module.eps)
        assert isinstance(module, RMSNorm)
        weight = weight + module.weight_offset
        return F.rms_norm(t, t.shape[-1:], weight, module.eps)

    def linear(module: nn.Linear, t: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.double()
        return F.linear(t, module.weight.double(), bias)

    def heads(module: nn.Linear, t: Tensor, scaler: nn.Module | None, turn: bool) -> Tensor:
        h = linear(module, t).unflatten(-1, (-1, attention.head_dim))
        h = (h if scaler is None else norm(scaler, h)).transpose(1, 2)
        if attention.rotary is None or not turn:
            return h
        rotary = attention.rotary
        cos, sin = (a.double() for a in rotary.angles(h.shape[2]))
        part, rest = h[..., : rotary.dim], h[..., rotary.dim :]
        if rotary.interleaved:
            a, b = part[..., ::2], part[..., 1::2]
            part = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = part.chunk(2, -1)
            part = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([part, rest], -1)

    x = x.double()
    normed = norm(layer.attention_norm, x)
    q = heads(attention.q_proj, normed, attention.q_norm, True)
    k = heads(attention.k_proj, normed, attention.k_norm, True)
    v = heads(attention.v_proj, normed, None, False)
    group = attention.num_heads // attention.num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    scores = q @ k.transpose(-1, -2) * scale
    if attention.softcap:
        scores = torch.tanh(scores / attention.softcap) * attention.softcap
    at = torch.arange(x.shape[1])
    seen = at <= at[:, None]
    if attention.window_left >= 0:
        seen &= at[:, None] - at <= attention.window_left
    scores = scores.masked_fill(~seen, -torch.inf)
    if attention.sinks is not None:
        sink = attention.sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    out = linear(attention.o_proj, (weights @ v).transpose(1, 2).flatten(2))
    x = x + (out if layer.attention_post_norm is None else norm(layer.attention_post_norm, out))
    mlp, normed = layer.mlp, norm(layer.mlp_norm, x)
    functions = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
    }
    act = functions[mlp.activation]
    up = linear(mlp.up_proj, normed)
    hidden = act(up) if mlp.gate_proj is None else act(linear(mlp.gate_proj, normed)) * up
    out = linear(mlp.down_proj, hidden)
    return x + (out if layer.mlp_post_norm is None else norm(layer.mlp_post_norm, out))


def stepwise(layer: TransformerLayer, x: Tensor, last: bool = False) -> Tensor:
    """x [2, S, E] through a cache: a ragged prompt, single tokens, and chunks; its output in order,
    or with `last` only where a chunk ends (zeros elsewhere)."""
    cache = PagedCache(
        1,
        layer.attention.num_kv_heads,
        layer.attention.head_dim,
        batch=2,
        max_tokens=x.shape[1],
        block_size=4,
        dtype=x.dtype,
    )
    out, at = torch.zeros_like(x), [0, 0]
    for counts in CUTS:
        step = cache.extend(counts)
        new = torch.cat([x[b, at[b] : at[b] + counts[b]] for b in range(2)])
        ends = [a + c for a, c in zip(at, counts, strict=True)]
        if last and 0 not in counts:
            y = layer.last(new, cache.layer(0, step))
            for b in range(2):
                out[b, ends[b] - 1] = y[b]
        else:
            y = layer(new, cache=cache.layer(0, step))
            for b, part in enumerate(y.split(counts)):
                out[b, at[b] : ends[b]] = part
        at = ends
    assert at == [x.shape[1]] * 2
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_op_is_as_exact_as_its_parts(kind: str, dtype: torch.dtype) -> None:
    layer = make(kind, dtype)
    x = torch.randn(2, TOKENS, E, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        expected = exact(layer, x)
        parts = stepwise(layer, x)
        dense = layer(x)
        whole = stepwise(pack(layer), x)
        assert fused.plan(layer, x) is not None
        ends = stepwise(layer, x, last=True)
    error, allowed, at_once = (
        float((t.double() - expected).abs().max()) for t in (whole, parts, dense)
    )
    ulp = torch.finfo(dtype).eps * float(expected.abs().max())
    assert allowed <= 2 * at_once + ulp
    assert error <= 2 * at_once + ulp
    some = ends != 0
    assert 0 < int(some.sum()) < some.numel()
    error = float((ends.double() - expected)[some].abs().max())
    assert error <= 2 * at_once + ulp


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_in_chunks_is_the_prompt(kind: str) -> None:
    """Another cut of the tokens changes no more than rounding."""
    layer = pack(make(kind))
    x = torch.randn(2, TOKENS, E)
    with torch.inference_mode():
        torch.testing.assert_close(stepwise(layer, x), layer(x), rtol=1e-4, atol=1e-5)


def cached(layer: TransformerLayer, x: Tensor) -> Tensor:
    cache = PagedCache(
        1,
        layer.attention.num_kv_heads,
        layer.attention.head_dim,
        batch=1,
        max_tokens=len(x),
        dtype=x.dtype,
    )
    return layer(x, cache=cache.layer(0, cache.extend([len(x)])))


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * self.inner(x)


def test_a_hook_an_adapter_and_a_changed_weight_are_served() -> None:
    layer, x = pack(make("llama")), torch.randn(7, E)
    with torch.no_grad():
        before = cached(layer, x)
        assert fused.plan(layer, x) is not None

        handle = layer.mlp.down_proj.register_forward_hook(lambda *_: torch.zeros(7, E))
        assert fused.plan(layer, x) is None
        assert not torch.allclose(cached(layer, x), before)
        handle.remove()
        assert torch.equal(cached(layer, x), before)

        plain = layer.attention.o_proj
        layer.attention.o_proj = adapter = Counted(plain)  # type: ignore[assignment]
        assert fused.plan(layer, x) is None
        assert not torch.allclose(cached(layer, x), before)
        assert adapter.calls == 1
        layer.attention.o_proj = plain
        assert torch.equal(cached(layer, x), before)

        layer.attention.v_proj.weight.mul_(2)
        assert fused.plan(layer, x) is None
        changed = cached(layer, x)
        assert not torch.allclose(changed, before)
        torch.testing.assert_close(cached(pack(layer), x), changed, rtol=1e-4, atol=1e-5)
        layer.mlp_norm.weight = nn.Parameter(torch.zeros(E))
        assert not torch.allclose(cached(layer, x), changed)


def test_an_option_a_wrapper_and_a_copy_are_seen() -> None:
    layer, x = pack(make("gemma")), torch.randn(20, E)
    with torch.no_grad():
        before = cached(layer, x)
        layer.attention.window_left = 2
        assert not torch.allclose(cached(layer, x), before)
        layer.attention.window_left = 6
        assert torch.equal(cached(layer, x), before)

        inner = layer.mlp.down_proj.forward
        layer.mlp.down_proj.forward = lambda *a, **k: 2 * inner(*a, **k)  # type: ignore[method-assign]
        assert not torch.allclose(cached(layer, x), before)
        del layer.mlp.down_proj.forward
        handle = layer.attention.rotary.register_forward_hook(lambda *_: torch.zeros(1))
        with pytest.raises((RuntimeError, IndexError)):
            cached(layer, x)
        handle.remove()

        twin = copy.deepcopy(layer)
        twin.mlp.up_proj.weight.data.mul_(2)  # which leaves no trace
        assert not torch.allclose(cached(twin, x), before)
        assert torch.equal(cached(layer, x), before)


def with_half_its_output(cls: type[nn.Module]) -> type[nn.Module]:
    class Half(cls):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs) * 0.5

    return Half


@pytest.mark.parametrize(
    "name",
    [
        *("attention", "attention.q_proj", "attention.v_proj", "attention.o_proj"),
        *("attention.q_norm", "attention.rotary", "attention_norm", "mlp_post_norm"),
        *("mlp", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", ""),
    ],
)
def test_the_forward_of_a_subclass_is_called(name: str) -> None:
    layer, x = make("gemma"), torch.randn(2, TOKENS, E)
    with torch.no_grad():
        plain = stepwise(layer, x)
        module = layer.get_submodule(name)
        module.__class__ = with_half_its_output(type(module))  # type: ignore[assignment]
        expected, ends = stepwise(layer, x), stepwise(layer, x, last=True)
        assert not torch.allclose(expected, plain)
        pack(layer)
        torch.testing.assert_close(stepwise(layer, x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stepwise(layer, x, last=True), ends, rtol=1e-4, atol=1e-5)


def test_a_feed_forward_half_of_another_kind_is_called() -> None:
    layer, x = make("llama"), torch.randn(7, E)

    class Experts(nn.Module):
        def forward(self, x: Tensor, *, residual: Tensor) -> Tensor:
            return x.sin() + residual

    layer.mlp = Experts()  # type: ignore[assignment]
    with torch.no_grad():
        expected = cached(layer, x)
        torch.testing.assert_close(cached(pack(layer), x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention_norm", "mlp.down_proj"])
def test_a_parametrization_is_followed(name: str) -> None:
    layer, x = make("llama"), torch.randn(7, E)
    module = layer.get_submodule(name)
    nn.utils.parametrize.register_parametrization(module, "weight", nn.Tanh())
    with torch.no_grad():
        cached(pack(layer), x)
        module.parametrizations.weight.original.mul_(-1)  # type: ignore[union-attr]
        expected = exact(layer, x[None])[0].float()
        torch.testing.assert_close(cached(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_around_a_head_leaves_the_others_packed() -> None:
    layer, x = make("llama"), torch.randn(7, E)
    layer.attention.q_proj = Counted(layer.attention.q_proj)  # type: ignore[assignment]
    with torch.no_grad():
        before = cached(layer, x)
        pack(layer)
        assert layer.attention.packed_weight is None
        assert isinstance(layer.attention.k_proj, Linear)
        assert layer.attention.k_proj.packed_weight is not None
        torch.testing.assert_close(cached(layer, x), before, rtol=1e-4, atol=1e-5)


def test_queries_keys_and_values_are_packed_as_one() -> None:
    layer = pack(make("gpt2"))
    assert layer.attention.packed_weight is not None
    assert layer.attention.q_proj.packed_weight is None
    x = torch.randn(2, 7, E)
    with torch.no_grad():
        packed = layer(x)
        layer.attention.k_proj.bias.add_(1.0)
        layer.attention.v_proj.bias.add_(1.0)
        moved = layer(x)  # the copy of the biases is no longer current
    assert not torch.allclose(packed, moved)
    torch.testing.assert_close(moved.double(), exact(layer, x), rtol=1e-4, atol=1e-4)


def test_released_weights() -> None:
    layer, x = make("gemma"), torch.randn(7, E)
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    with torch.no_grad():
        before = cached(pack(layer), x)
        pack(layer, release=True)
        assert torch.equal(cached(layer, x), before)
    assert {name: p.shape for name, p in layer.named_parameters()} == shapes
    linear = [p for name, p in layer.named_parameters() if "proj" in name]
    assert all(p.is_meta for p in linear)
    layer.eval()
    for change in (
        lambda: layer.train(),
        lambda: layer.to(torch.bfloat16),
        lambda: copy.deepcopy(layer),
        lambda: layer.load_state_dict(make("gemma").state_dict()),
        lambda: pack(layer),
        lambda: layer.state_dict(),
        lambda: layer.mlp.state_dict(),
        lambda: layer.attention.unpack(),
        lambda: layer.mlp.up_proj.unpack(),
    ):
        with pytest.raises(RuntimeError, match=r"lanewise\.nn\.\w+: its weights were released"):
            change()
    with torch.no_grad():
        assert torch.equal(cached(layer, x), before)


def test_released_weights_have_no_gradient() -> None:
    layer, x = pack(make("llama"), release=True).requires_grad_(False), torch.randn(2, 7, E)
    assert layer(x).shape == x.shape
    with pytest.raises(RuntimeError, match=r"released .* under torch\.no_grad"):
        layer(x.requires_grad_())


def test_nothing_is_released_where_something_cannot_be_packed() -> None:
    both = nn.Sequential(Linear(8, 8), Linear(8, 8).double())
    with pytest.raises(RuntimeError, match="float64"):
        pack(both, release=True)
    assert not any(p.is_meta for p in both.parameters())


def test_a_cache_with_a_mask_is_refused() -> None:
    layer = make("llama")
    cache = PagedCache(1, 2, D, batch=1, max_tokens=8)
    with torch.no_grad(), pytest.raises(ValueError, match="without mask and positions"):
        layer(torch.randn(3, E), torch.ones(3, 3).bool(), cache=cache.layer(0, cache.extend([3])))


def test_last_wants_a_token_of_every_sequence() -> None:
    layer = pack(make("llama"))
    cache = PagedCache(1, 2, D, batch=2, max_tokens=8)
    with torch.no_grad(), pytest.raises(RuntimeError, match="last_only needs a token"):
        layer.last(torch.randn(2, E), cache.layer(0, cache.extend([2, 0])))


def test_a_cache_is_for_causal_layers() -> None:
    layer = TransformerLayer(Attention(E, 3), MLP(E, 80))
    with torch.no_grad(), pytest.raises(ValueError, match="causal"):
        cached(layer, torch.randn(3, E))


def test_norm_last_needs_norm_first() -> None:
    with pytest.raises(ValueError, match="norm_last needs norm_first"):
        TransformerLayer(Attention(E, 3), MLP(E, 80), norm_first=False, norm_last=True)
