"""The norm kernels through their torch-free face, on every target this CPU runs."""

import pytest
import torch

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
EPS = 1e-5
ULP = 2.0**-23
DTYPES = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # half an ulp of one

pytestmark = [
    pytest.mark.parametrize("target", TARGETS),
    pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"]),
]


def bits(t):
    """A tensor's memory as NumPy has it: the bits of bfloat16."""
    return t.view(torch.uint16).numpy() if t.dtype == torch.bfloat16 else t.numpy()


def randn(seed, dtype, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(getattr(torch, dtype))


def forward(target, centred, x, residual, weight, bias, offset=0.0, threads=1):
    y = torch.full(x.shape, torch.nan, dtype=x.dtype)
    total = None if residual is None else torch.full_like(y, torch.nan)
    arrays = [None if t is None else bits(t) for t in (x, residual, weight, bias, y, total)]
    _host.norm(target, centred, *arrays, eps=EPS, weight_offset=offset, threads=threads)
    return y, total


def backward(target, centred, grad, grad_sum, x, residual, weight, offset=0.0, threads=1):
    grad_x = torch.full(x.shape, torch.nan, dtype=x.dtype)
    grad_weight = torch.full_like(weight, torch.nan)
    grad_bias = torch.full(weight.shape, torch.nan)
    outs = (grad_x, grad_weight, grad_bias)
    arrays = [None if t is None else bits(t) for t in (grad, grad_sum, x, residual, weight, *outs)]
    _host.norm_backward(target, centred, *arrays, eps=EPS, weight_offset=offset, threads=threads)
    return outs


def exact(centred, x, residual, weight, bias, offset):
    """The norm in float64: the specification."""
    v = x if residual is None else x + residual
    if centred:
        v = v - v.mean(-1, keepdim=True)
    y = v * (v.square().mean(-1, keepdim=True) + EPS).rsqrt() * (weight + offset)
    return y + bias if centred else y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [1, 3, 8, 16, 17, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("add", [False, True])
def test_forward(target, centred, dtype, cols, add):
    wide = randn(0, dtype, 7, cols + 5)
    x, residual = wide[:, :cols], randn(1, dtype, 7, cols) if add else None
    weight, bias = randn(2, dtype, cols), randn(3, "float32", cols)
    offset = 0.0 if centred else 1.0
    y, total = forward(target, centred, x, residual, weight, bias if centred else None, offset)
    doubles = [None if t is None else t.double() for t in (x, residual, weight, bias)]
    ref = exact(centred, *doubles, offset)
    normed = exact(centred, *doubles[:2], torch.ones(cols), torch.zeros(cols), 0.0)
    # Roundings of the statistics and of each step, for values about one.
    inner = 8 * ULP * (1 + normed.abs()) * (weight.double() + offset).abs() + ULP * ref.abs()
    assert ((y.double() - ref).abs() <= inner + DTYPES[dtype] * (ref.abs() + inner)).all()
    if add:
        exact_sum = (doubles[0] + doubles[1]).to(x.dtype)
        assert torch.equal(total, exact_sum)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 40, 77])
@pytest.mark.parametrize("cols", [3, 16, 33, 130])
@pytest.mark.parametrize("add", [False, True])
def test_backward(target, centred, dtype, rows, cols, add):
    x, grad = randn(0, dtype, rows, cols), randn(1, dtype, rows, cols)
    residual, grad_sum = randn(2, dtype, 2, rows, cols).unbind() if add else (None, None)
    weight, offset = randn(3, "float32", cols), 0.0 if centred else 0.5
    grads = backward(target, centred, grad, grad_sum, x, residual, weight, offset)

    leaf, w = x.double().requires_grad_(), weight.double().requires_grad_()
    bias = torch.zeros(cols, dtype=torch.float64, requires_grad=True)
    summand = None if residual is None else residual.double()
    y = exact(centred, leaf, summand, w, bias, offset)
    inputs = (leaf, w, bias) if centred else (leaf, w)
    refs = list(torch.autograd.grad(y, inputs, grad.double()))
    normed = exact(centred, leaf.detach(), summand, torch.ones(cols), bias.detach(), 0.0)
    g = (grad.double() * (weight.double() + offset)).abs().amax(-1, keepdim=True)
    if add:
        refs[0] = refs[0] + grad_sum.double()
    spread = 1 + normed.square().amax(-1, keepdim=True)
    # The errors of the terms that cancel, and those of sums over the rows.
    inner = [
        16 * ULP * spread * g * inverse_of(centred, leaf, summand),
        8 * ULP * (grad.double() * normed).abs().sum(0) + 8 * ULP * grad.double().abs().sum(0),
        2 * ULP * grad.double().abs().sum(0),
    ]
    for out, ref, bound in zip(grads, refs, inner, strict=False):
        half = DTYPES[str(out.dtype).removeprefix("torch.")]
        bound = bound + ULP * ref.abs()
        assert ((out.double() - ref).abs() <= bound + half * (ref.abs() + bound)).all()


def inverse_of(centred, x, residual):
    """1 / sqrt(variance + eps) of each row."""
    v = x.detach() if residual is None else x.detach() + residual
    if centred:
        v = v - v.mean(-1, keepdim=True)
    return (v.square().mean(-1, keepdim=True) + EPS).rsqrt()


def test_a_large_mean_does_not_cancel(target, centred):
    x = randn(0, "float32", 4, 500) + 1000
    weight, bias = torch.ones(500), torch.zeros(500)
    y, _ = forward(target, centred, x, None, weight, bias)
    ref = exact(centred, x.double(), None, weight.double(), bias.double(), 0.0)
    assert ((y.double() - ref).abs() <= 8 * ULP * (1 + ref.abs())).all()


@pytest.mark.parametrize("cols", [5, 100])
@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_row(target, centred, cols, special):
    x = randn(0, "float32", 3, cols)
    x[1, cols - 1] = special
    y, _ = forward(target, centred, x, None, None, None)
    assert y[1, cols - 1].isnan()
    assert y[[0, 2]].isfinite().all()


def test_no_rows_have_no_gradient(target, centred):
    x, weight = torch.empty(0, 9), torch.ones(9)
    _, grad_weight, grad_bias = backward(target, centred, x, None, x, None, weight)
    assert (grad_weight == 0).all()
    assert (grad_bias == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(target, centred, dtype):
    x, residual, grad, grad_sum = randn(0, dtype, 4, 300, 130).unbind()
    weight = randn(1, dtype, 130)
    for run in (
        lambda threads: forward(target, centred, x, residual, weight, None, threads=threads),
        lambda threads: backward(
            target, centred, grad, grad_sum, x, residual, weight, threads=threads
        ),
    ):
        for alone, shared in zip(run(1), run(3), strict=True):
            assert torch.equal(alone, shared)
