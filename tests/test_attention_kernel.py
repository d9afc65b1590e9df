"""The torch-free attention kernels on every target, between guard pages."""

from __future__ import annotations

import ctypes
import math
import mmap

import numpy as np
import pytest
import reference
import torch

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
EPS = {np.float32: 2.0**-23, np.uint16: 2.0**-8, np.float16: 2.0**-10}

PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_regions: list[mmap.mmap] = []


@pytest.fixture(autouse=True)
def _close_regions():
    yield
    _regions.clear()


def guarded(values: np.ndarray) -> np.ndarray:
    """A copy that ends where an unreadable page begins: one element too far is a crash."""
    pages = -(-max(values.nbytes, 1) // mmap.PAGESIZE)
    region = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    protected = start + pages * mmap.PAGESIZE
    assert _libc.mprotect(protected, mmap.PAGESIZE, PROT_NONE) == 0
    _regions.append(region)
    offset = pages * mmap.PAGESIZE - values.nbytes
    array = np.frombuffer(region, values.dtype, values.size, offset).reshape(values.shape)
    array[...] = values
    return array


def encode(values: np.ndarray, dtype: type) -> np.ndarray:
    """float32 values in `dtype`; uint16 holds bfloat16's bits."""
    if dtype is np.uint16:
        return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    return values.astype(dtype)


def decode(values: np.ndarray) -> torch.Tensor:
    """Back to float64, in a tensor of its own."""
    tensor = torch.from_numpy(values.copy())
    return (tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor).double()


class Case:
    """Random inputs of one problem, in guarded memory, and its float64 solution."""

    def __init__(
        self,
        dtype: type,
        shape: tuple[int, ...],
        bias: tuple[int, ...] | None = None,
        boolean: bool = False,
        sinks: bool = False,
        slopes: bool = False,
        **options: float,
    ) -> None:
        batch, heads, kv_heads, queries, keys, dim, value_dim = shape
        rng = np.random.default_rng(sum(shape))

        def normal(*size: int) -> np.ndarray:
            return rng.standard_normal(size, np.float32)

        self.dtype = dtype
        self.q = guarded(encode(normal(batch, heads, queries, dim), dtype))
        self.k = guarded(encode(normal(batch, kv_heads, keys, dim), dtype))
        self.v = guarded(encode(normal(batch, kv_heads, keys, value_dim), dtype))
        self.grad_out = guarded(encode(normal(batch, heads, queries, value_dim), dtype))
        self.grad_lse = guarded(normal(batch, heads, queries))
        self.bias = None
        if bias is not None:
            self.bias = guarded(rng.random(bias) > 0.3 if boolean else normal(*bias))
        self.sinks = guarded(normal(heads)) if sinks else None
        self.slopes = guarded(np.abs(normal(batch, heads))) if slopes else None
        self.options = {"scale": dim**-0.5, **options}

    def kernel_options(self) -> _host.AttentionOptions:
        return _host.AttentionOptions(
            bias=self.bias, sinks=self.sinks, slopes=self.slopes, **self.options
        )

    def empty_like(self, array: np.ndarray) -> np.ndarray:
        """Poisoned, so that what is not written shows."""
        return guarded(np.full_like(array, 0x7FFF if array.dtype == np.uint16 else np.nan))

    def forward(self, target: str, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        out, lse = self.empty_like(self.grad_out), self.empty_like(self.grad_lse)
        options = self.kernel_options()
        _host.attention(target, self.q, self.k, self.v, out, lse, options, threads)
        return out, lse

    def backward(self, target: str, threads: int = 1) -> list[np.ndarray | None]:
        out, lse = self.forward(target)
        grads = [self.empty_like(a) for a in (self.q, self.k, self.v)]
        floating = self.bias is not None and self.bias.dtype != np.bool_
        grad_bias = guarded(np.zeros_like(self.bias)) if floating else None
        grad_sinks = self.empty_like(self.sinks) if self.sinks is not None else None
        _host.attention_backward(
            target,
            self.grad_out,
            self.grad_lse,
            self.q,
            self.k,
            self.v,
            out,
            lse,
            *grads,
            grad_bias,
            grad_sinks,
            self.kernel_options(),
            threads,
        )
        return [*grads, grad_bias, grad_sinks]

    def solve(self) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
        leaves = [decode(a).requires_grad_() for a in (self.q, self.k, self.v)]
        bias = None if self.bias is None else torch.from_numpy(self.bias.copy())
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.double().requires_grad_()
        sinks = None if self.sinks is None else decode(self.sinks).requires_grad_()
        slopes = None if self.slopes is None else torch.from_numpy(self.slopes.copy())
        out, lse = reference.attention(*leaves, bias, sinks, slopes, **self.options)
        finite = lse.masked_fill(lse == -math.inf, 0.0)
        loss = (out * decode(self.grad_out)).sum() + (finite * decode(self.grad_lse)).sum()
        loss.backward()
        grads = [t.grad if t is not None else None for t in (*leaves, bias, sinks)]
        return out.detach(), lse.detach(), grads


CASES = {
    "plain": ((2, 3, 3, 33, 50, 16, 16), {}),
    "tails": ((1, 2, 1, 19, 7, 5, 3), {}),
    "one": ((1, 1, 1, 1, 1, 1, 1), {}),
    "grouped": ((2, 6, 2, 21, 40, 24, 12), {"window_right": 0}),
    "decode": ((2, 8, 2, 1, 300, 32, 32), {"window_right": 0}),
    "blocks": ((1, 1, 1, 150, 700, 8, 9), {"window_left": 200, "window_right": 3}),
    "dead rows": ((1, 2, 2, 40, 20, 8, 8), {"window_right": 0}),
    "mask of keys": ((2, 2, 2, 9, 37, 8, 8), {"bias": (2, 1, 1, 37), "boolean": True}),
    "mask": ((1, 4, 2, 20, 37, 8, 8), {"bias": (1, 4, 20, 37), "boolean": True}),
    "bias": ((2, 4, 2, 20, 37, 8, 8), {"bias": (1, 4, 20, 37)}),
    "bias of queries": ((2, 2, 1, 20, 37, 8, 8), {"bias": (2, 1, 20, 1)}),
    "everything": (
        (2, 4, 2, 35, 70, 12, 20),
        {
            "bias": (1, 1, 35, 70),
            "sinks": True,
            "slopes": True,
            "softcap": 5.0,
            "window_left": 30,
            "window_right": 0,
        },
    ),
}


def close(actual: np.ndarray, expected: torch.Tensor, dtype: type, terms: int) -> None:
    """float32 sums of `terms` terms and one rounding to `dtype`, relative to the largest."""
    actual_values, finite = decode(actual), expected.isfinite()
    assert torch.equal(actual_values[~finite], expected[~finite])
    size = max(1.0, expected[finite].abs().max().item() if finite.any() else 0.0)
    bound = (16 * math.sqrt(terms) * EPS[np.float32] + EPS[dtype]) * size
    error = (actual_values - expected)[finite].abs().max().item() if finite.any() else 0.0
    assert error <= bound


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(target: str, dtype: type, name: str) -> None:
    shape, options = CASES[name]
    case = Case(dtype, shape, **options)
    expected_out, expected_lse, expected_grads = case.solve()
    out, lse = case.forward(target)
    terms = shape[4] + shape[5]
    close(out, expected_out, dtype, terms)
    close(lse, expected_lse, np.float32, terms)
    # The backward starts from the rounded output: its δ carries that rounding into every gradient.
    for grad, expected in zip(case.backward(target), expected_grads, strict=True):
        assert (grad is None) == (expected is None)
        if grad is not None:
            close(grad, expected, dtype, 4 * shape[0] * shape[1] * (terms + shape[3]))


@pytest.mark.parametrize("target", TARGETS)
def test_threads_give_the_same_bits(target: str) -> None:
    case = Case(np.float32, (2, 4, 2, 130, 200, 16, 16), bias=(1, 4, 130, 200), window_right=0)
    alone, together = case.forward(target, 1), case.forward(target, 3)
    alone += tuple(case.backward(target, 1)[:4])
    together += tuple(case.backward(target, 3)[:4])
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_that_attends_nothing(target: str) -> None:
    case = Case(np.float32, (1, 2, 2, 40, 20, 8, 8), window_right=0)
    out, lse = case.forward(target)
    dead = slice(0, 20)  # the last query stands at the last key
    assert (out[:, :, dead] == 0).all()
    assert (lse[:, :, dead] == -np.inf).all()
    assert (case.backward(target)[0][:, :, dead] == 0).all()


ONLY_KEYS = {
    "panels": ((2, 3, 3, 150, 170, 40, 24), {}),
    "long heads": ((1, 1, 1, 40, 40, 300, 257), {}),
    "few queries": ((1, 2, 2, 3, 300, 65, 33), {}),
    "one query": ((2, 2, 2, 1, 50, 64, 64), {}),
    "softcap": ((1, 2, 2, 40, 50, 16, 16), {"softcap": 2.0}),
    "everything": (
        (2, 2, 2, 40, 50, 16, 16),
        {"bias": (2, 1, 40, 50), "slopes": True, "softcap": 30.0},
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", ONLY_KEYS)
def test_an_only_key_weighs_exactly_one(target: str, dtype: type, name: str) -> None:
    shape, options = ONLY_KEYS[name]
    case = Case(dtype, shape, window_left=0, window_right=0, **options)
    case.grad_lse[...] = 0
    queries, keys = shape[3:5]
    out, _ = case.forward(target)
    grad_q, grad_k, grad_v, grad_bias, _ = case.backward(target)
    # Decoding and panels round scores differently, the weight of the only one is 1 for both.
    np.testing.assert_array_equal(out, case.v[:, :, keys - queries :])
    np.testing.assert_array_equal(grad_v[:, :, keys - queries :], case.grad_out)
    for zero in (grad_q, grad_k, grad_v[:, :, : keys - queries], grad_bias):
        assert zero is None or (decode(zero) == 0).all()


@pytest.mark.parametrize("target", TARGETS)
def test_nan_reaches_exactly_the_rows_that_attend_it(target: str) -> None:
    case = Case(np.float32, (1, 1, 1, 60, 60, 8, 8), window_right=0)
    case.k[0, 0, 30, 3] = np.nan
    out, lse = case.forward(target)
    assert np.isnan(out[0, 0, 30:]).all()
    assert np.isnan(lse[0, 0, 30:]).all()
    assert np.isfinite(out[0, 0, :30]).all()
    assert np.isfinite(lse[0, 0, :30]).all()


def test_an_output_of_another_dtype_is_refused() -> None:
    q = np.zeros((1, 1, 2, 4), np.float32)
    lse, options = np.zeros((1, 1, 2)), _host.AttentionOptions()
    with pytest.raises(TypeError):
        _host.attention(TARGETS[0], q, q, q, np.empty_like(q), lse, options)
