"""The activation kernel through its torch-free face, on every target this CPU runs."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
EPS = 2.0**-23
ACTIVATIONS = {
    "none": lambda z: z * 1.0,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}

pytestmark = [
    pytest.mark.parametrize("target", TARGETS),
    pytest.mark.parametrize("activation", ACTIVATIONS),
]


def run(target, activation, z, up, grad, threads=1):
    """(gradient of z, gradient of up) of copies."""
    z = z.astype(np.float32)
    up = None if up is None else up.astype(np.float32)
    _host.activation_backward(target, activation, z, up, grad, threads)
    return z, up


def value_and_slope(activation, z):
    z = torch.from_numpy(z).double().requires_grad_()
    value = ACTIVATIONS[activation](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach().numpy(), slope.numpy()


def bound(z):
    """A few roundings of a result no larger than |z| or 1, whichever is larger."""
    return 4 * EPS * np.maximum(np.abs(z), 1.0)


@pytest.fixture
def z():
    rng = np.random.default_rng(0)
    sweep = np.linspace(-110, 110, 5001, dtype=np.float32)
    small = np.float32(10.0) ** rng.uniform(-30, 1, 2000).astype(np.float32)
    return np.concatenate([sweep, small, -small, np.float32([0, 1e10, -1e10, 3e38, -3e38])])[None]


def test_values_and_slopes(target, activation, z):
    one = np.ones_like(z)
    slope, value = run(target, activation, z, one, one)
    expected_value, expected_slope = value_and_slope(activation, z)
    assert np.all(np.abs(value - expected_value) <= bound(z))
    expected_slope = np.nan_to_num(expected_slope, nan=1.0)  # torch: inf * 0 at 3e38
    assert np.all(np.abs(slope - expected_slope) <= bound(np.minimum(np.abs(z), 1)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("cols", [0, 1, 7, 16, 33])
def test_shapes_strides_and_gates(target, activation, dtype, cols):
    rng = np.random.default_rng(cols)
    rows = 5
    z, up = rng.standard_normal((2, rows, cols)).astype(np.float32) * 3
    grad = torch.from_numpy(rng.standard_normal((rows, cols + 3))).to(getattr(torch, dtype))
    bits = grad.view(torch.uint16).numpy() if dtype == "bfloat16" else grad.numpy()
    bits, grad = bits[:, :cols], grad[:, :cols].double().numpy()
    value, slope = value_and_slope(activation, z)
    tolerance = 8 * EPS * np.abs(grad) * np.maximum(np.abs(up), 1) * np.maximum(np.abs(z), 1)

    plain, _ = run(target, activation, z, None, bits)
    assert np.all(np.abs(plain - grad * slope) <= tolerance)
    grad_z, grad_up = run(target, activation, z, up, bits)
    assert np.all(np.abs(grad_z - grad * up * slope) <= tolerance)
    assert np.all(np.abs(grad_up - grad * value) <= tolerance)


def test_rows_may_have_any_stride(target, activation):
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((4, 30)).astype(np.float32)
    grad = rng.standard_normal((4, 13)).astype(np.float32)
    expected, _ = run(target, activation, wide[:, 5:18].copy(), None, grad)
    kept = wide.copy()
    _host.activation_backward(target, activation, wide[:, 5:18], None, grad)
    np.testing.assert_array_equal(wide[:, 5:18], expected)
    np.testing.assert_array_equal(wide[:, :5], kept[:, :5])
    np.testing.assert_array_equal(wide[:, 18:], kept[:, 18:])


def test_nan_stays_nan(target, activation):
    nan, one = np.full((1, 19), np.nan, np.float32), np.ones((1, 19), np.float32)
    grad_z, grad_up = run(target, activation, nan, one, one)
    assert np.isnan(grad_up).all()
    assert np.isnan(grad_z).all() or activation == "none"


def test_threads_do_not_change_a_bit(target, activation):
    rng = np.random.default_rng(2)
    z, up, grad = rng.standard_normal((3, 300, 101)).astype(np.float32)
    alone = run(target, activation, z, up, grad, threads=1)
    shared = run(target, activation, z, up, grad, threads=3)
    np.testing.assert_array_equal(alone, shared)
