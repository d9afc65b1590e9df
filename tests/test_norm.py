"""The four norms against float64, no worse than torch's own at the same dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_no_worse_than, assert_same_bits, assert_threads_agree
from strategies import (
    DTYPES,
    LAYOUTS,
    batch_shapes,
    dtypes,
    hidden_sizes,
    layouts,
    or_interpreted,
    randn,
    seeds,
)
from torch import Tensor

import lanewise

Op = Callable[..., Any]
NORMS = ["rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"]


def torch_rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, weight_offset: float = 0.0
) -> Tensor:
    scale = None if weight is None else weight + weight_offset
    return F.rms_norm(x, x.shape[-1:], scale, eps)


def torch_layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def added(norm: Op) -> Op:
    def op(x: Tensor, residual: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        total = x + residual
        return norm(total, *rest, **options), total

    return op


PEERS: dict[str, Op] = {
    "rms_norm": torch_rms_norm,
    "layer_norm": torch_layer_norm,
    "add_rms_norm": added(torch_rms_norm),
    "add_layer_norm": added(torch_layer_norm),
}


def outputs(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def check(name: str, inputs: list[Tensor | None], **options: float) -> None:
    out = outputs(getattr(lanewise, name)(*inputs, **options))
    ref = outputs(getattr(reference, name)(*inputs, **options))
    peer = outputs(PEERS[name](*inputs, **options))
    x = inputs[0]
    assert x is not None
    assert out[0].dtype == x.dtype
    assert_no_worse_than(out[0], ref[0], peer[0])
    if name.startswith("add_"):
        assert_same_bits(out[1], ref[1])


@pytest.mark.parametrize("name", NORMS)
@given(
    data=st.data(),
    batch=batch_shapes,
    hidden=hidden_sizes,
    dtype=dtypes,
    eps=st.sampled_from((1e-6, 1e-5, 0.1)),
    scale=st.sampled_from((1.0, 1e-3, 30.0)),
)
def test_forward(
    name: str,
    data: st.DataObject,
    batch: tuple[int, ...],
    hidden: int,
    dtype: torch.dtype,
    eps: float,
    scale: float,
) -> None:
    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return randn(shape, dtype, data.draw(seeds), data.draw(layouts), scale)

    inputs: list[Tensor | None] = [tensor(*batch, hidden, scale=scale)]
    if name.startswith("add_"):
        inputs.append(tensor(*batch, hidden, scale=scale))
    inputs.append(tensor(hidden) if data.draw(st.booleans()) else None)
    options = {"eps": eps}
    if "layer" in name:
        inputs.append(tensor(hidden) if data.draw(st.booleans()) else None)
    else:
        options["weight_offset"] = data.draw(st.sampled_from((0.0, 1.0, -0.5)))
    check(name, inputs, **options)


def example(name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> list[Tensor]:
    """Every tensor argument of the named op."""
    rows = 2 if name.startswith("add_") else 1
    columns = 2 if "layer" in name else 1
    return [randn(shape, dtype, i, layout) for i in range(rows)] + [
        randn(shape[-1:], dtype, 5 + i) for i in range(columns)
    ]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(or_interpreted(300, 40), 768), (2, 5000), (1, 1), (or_interpreted(64, 8), 2049)]
)
def test_forward_of_real_sizes(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(name, [*example(name, shape, dtype, "contiguous")])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_bits_of_contiguous_inputs(
    name: str, layout: str, dtype: torch.dtype
) -> None:
    inputs = example(name, (3, 5, 4, 33), dtype, layout)
    strided = outputs(getattr(lanewise, name)(*inputs))
    dense = outputs(getattr(lanewise, name)(*(t.contiguous() for t in inputs)))
    for a, b in zip(strided, dense, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm"])
def test_a_large_mean_does_not_cancel(name: str) -> None:
    inputs = example(name, (40, 500), torch.float32, "contiguous")
    inputs[0] = inputs[0] + 1000.0
    check(name, [*inputs])


@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_sees_the_unrounded_sum(name: str, dtype: torch.dtype) -> None:
    """Every sum rounds to the same number, so a norm of rounded sums would be constant."""
    x = torch.full((4, 64), 4.0 / torch.finfo(dtype).eps, dtype=dtype)
    residual = randn((4, 64), dtype, 1, scale=0.2)
    y, total = getattr(lanewise, name)(x, residual)
    assert torch.equal(total, x)
    ref, _ = getattr(reference, name)(x, residual)
    exact, _ = PEERS[name](x.float(), residual.float())
    assert_no_worse_than(y, ref, exact.to(dtype))
    if "layer" in name:
        assert y.std() > 0.5


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_and_zero_rows(name: str, dtype: torch.dtype) -> None:
    inputs = example(name, (3, 40), dtype, "contiguous")
    inputs[0] = torch.tensor([[0.0], [3.0], [-0.001]], dtype=dtype).expand(3, 40).contiguous()
    if name.startswith("add_"):
        inputs[1] = torch.zeros_like(inputs[0])
    check(name, [*inputs])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_stay_in_their_row(name: str, dtype: torch.dtype, special: float) -> None:
    inputs = example(name, (5, 37), dtype, "contiguous")
    inputs[0][2, 30] = special
    out = outputs(getattr(lanewise, name)(*inputs))[0]
    ref = outputs(getattr(reference, name)(*inputs))[0]
    assert torch.equal(out.isnan(), ref.isnan())
    assert out[2].isnan().any()
    assert not out[[0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("name", NORMS)
def test_nan_of_a_weight_reaches_its_column(name: str) -> None:
    for index in range(-2 if "layer" in name else -1, 0):
        inputs = example(name, (5, 37), torch.float32, "contiguous")
        inputs[index][11] = math.nan
        out = outputs(getattr(lanewise, name)(*inputs))[0]
        assert out[:, 11].isnan().all()
        assert out.isnan().sum() == 5


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 5)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    for out in outputs(getattr(lanewise, name)(*example(name, shape, torch.float32, "contiguous"))):
        assert out.shape == shape


@pytest.mark.cpu
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_agree(name: str, dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in example(name, (203, 500), dtype, "contiguous")]

    def run() -> tuple[Tensor, ...]:
        out = outputs(getattr(lanewise, name)(*inputs))
        return *out, *torch.autograd.grad(out, inputs, [torch.ones_like(t) for t in out])

    assert_threads_agree(run)


# --- gradients -----------------------------------------------------------------------------------


def check_gradients(name: str, inputs: list[Tensor], **options: float) -> None:
    """No worse than autograd through torch's own op at the same dtype."""

    def grads(op: Op, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        out = outputs(op(*leaves, **options))
        given = [randn(t.shape, inputs[0].dtype, 70 + i).to(t.dtype) for i, t in enumerate(out)]
        return torch.autograd.grad(out, leaves, given)

    dtype = inputs[0].dtype
    ours = grads(getattr(lanewise, name), dtype)
    exact = grads(PEERS[name], torch.float64)
    peer = grads(PEERS[name], dtype)
    for i, (a, b, c) in enumerate(zip(ours, exact, peer, strict=True)):
        assert a.dtype == dtype
        assert a.shape == inputs[i].shape
        assert_no_worse_than(a, b, c)


@pytest.mark.parametrize("name", NORMS)
@given(
    data=st.data(),
    rows=st.sampled_from((1, 2, 17, 70)),
    hidden=st.sampled_from((7, 16, 33, 100, 384)),
    dtype=dtypes,
    layout=layouts,
    arguments=st.integers(1, 4),
    eps=st.sampled_from((1e-5, 0.1)),
)
def test_gradients(
    name: str,
    data: st.DataObject,
    rows: int,
    hidden: int,
    dtype: torch.dtype,
    layout: str,
    arguments: int,
    eps: float,
) -> None:
    inputs = example(name, (2, rows, hidden), dtype, layout)
    inputs = inputs[: max(arguments, 2 if name.startswith("add_") else 1)]
    options = {"eps": eps}
    if "rms" in name:
        options["weight_offset"] = data.draw(st.sampled_from((0.0, 1.0)))
    check_gradients(name, inputs, **options)


@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
@pytest.mark.parametrize("output", [0, 1])
def test_gradients_of_one_output_alone(name: str, output: int) -> None:
    leaves = [t.requires_grad_() for t in example(name, (3, 20), torch.float32, "contiguous")]
    out = getattr(lanewise, name)(*leaves)[output]
    ours = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact_out = PEERS[name](*exact_leaves)[output]
    exact = torch.autograd.grad(exact_out.sum(), exact_leaves, allow_unused=True)
    for a, b in zip(ours, exact, strict=True):
        if b is None:
            assert a is None or (a == 0).all()
        else:
            torch.testing.assert_close(a, b.float())


@pytest.mark.parametrize("name", NORMS)
def test_empty_gradients(name: str) -> None:
    leaves = [t.requires_grad_() for t in example(name, (0, 8), torch.float32, "contiguous")]
    out = outputs(getattr(lanewise, name)(*leaves))[0]
    for grad, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert (grad == 0).all()


def test_the_gradient_of_an_empty_input_with_odd_strides() -> None:
    x = torch.empty(2, 3, 2, 3, 0, 7).permute(3, 0, 4, 2, 1, 5).requires_grad_()
    lanewise.rms_norm(x).sum().backward()
    assert x.grad.shape == x.shape


def test_an_eps_beyond_float32_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"lanewise\.rms_norm: eps must be finite"):
        lanewise.rms_norm(torch.zeros(2, 3), eps=1e300)
