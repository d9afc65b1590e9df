"""No kernel touches a byte outside its arrays: each array ends, or starts, at an unmapped page.

An access outside kills the process: a crash here is the failure. The results must also be those of
ordinary arrays, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
Place = Callable[[np.ndarray], np.ndarray]


def guarded(at_start: bool) -> Place:
    """Copies an array to the edge of an unmapped page."""

    def place(array: np.ndarray) -> np.ndarray:
        copy = _host.guarded(array.nbytes, at_start).view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    return place


class Case:
    """Random arrays of one dtype, the same ones in every run."""

    def __init__(self, target: str, dtype: str, place: Place) -> None:
        self.target, self.dtype, self.place = target, DTYPES[dtype], place
        self.rng = np.random.default_rng(0)

    def random(self, *shape: int, dtype: type | None = None) -> np.ndarray:
        values = self.rng.standard_normal(shape, dtype=np.float32)
        return self.place(self.narrow(values, dtype or self.dtype))

    def floats(self, *shape: int) -> np.ndarray:
        return self.random(*shape, dtype=np.float32)

    def zeros(self, *shape: int, dtype: type | None = None) -> np.ndarray:
        return self.place(np.zeros(shape, dtype=dtype or self.dtype))

    @staticmethod
    def narrow(values: np.ndarray, dtype: type) -> np.ndarray:
        if dtype is np.uint16:
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(dtype)


def rope(case: Case, size: int) -> list[np.ndarray]:
    x, out = case.random(2, 3, 2, size), case.zeros(2, 3, 2, size)
    cos, sin = case.floats(2, size // 2), case.floats(2, size // 2)
    for interleaved in (False, True):
        _host.rope(case.target, x, cos, sin, out, interleaved=interleaved)
    return [out]


def elementary(case: Case, size: int) -> list[np.ndarray]:
    x = case.random(size)
    outs = [case.zeros(size) for _ in range(3)] + [case.zeros(size, dtype=np.float32)]
    for function, out in zip(("exp", "tanh", "erf", "identity"), outs, strict=True):
        _host.elementary(case.target, function, x, out)
    return outs


def norm(case: Case, size: int) -> list[np.ndarray]:
    shape = (3, size)
    x, residual, grad, grad_sum = (case.random(*shape) for _ in range(4))
    weight, bias = case.random(size), case.random(size)
    y, total, grad_x = (case.zeros(*shape) for _ in range(3))
    grad_weight, grad_bias = case.zeros(size), case.zeros(size, dtype=np.float32)
    for centred in (False, True):
        _host.norm(
            case.target, centred, x, residual, weight, bias if centred else None, y, total, 1e-5
        )
        _host.norm_backward(
            case.target,
            centred,
            grad,
            grad_sum,
            x,
            residual,
            weight,
            grad_x,
            grad_weight,
            grad_bias if centred else None,
            1e-5,
        )
    return [y, total, grad_x, grad_weight, grad_bias]


def gemm(case: Case, size: int) -> list[np.ndarray]:
    outs = []
    width = _host.panel_width(case.target)
    for rows in (1, 2, 3, 4, 5, 7, 19):  # every width of tile, and more than dot products take
        cols, depth = size, size + 2
        a, b, gate = case.random(rows, depth), case.random(depth, cols), case.random(depth, cols)
        columns = case.random(cols, depth).T  # a weight as linear has it
        bias, residual = case.random(cols), case.random(rows, cols)
        pairs = depth % 2 if case.dtype is np.uint16 else 0  # bfloat16 panels hold pairs of k
        panels = case.zeros(-(-cols // width), depth + pairs, width)
        _host.pack_panels(case.target, b, panels)
        for right in (b, columns, panels):
            out = case.zeros(rows, cols)
            _host.gemm(case.target, a, right, out, bias, residual, activation="gelu")
            outs.append(out)
        out = case.zeros(rows, cols)
        _host.gemm(case.target, a, b, out, gate=gate, activation="silu")
        total = case.zeros(depth)
        _host.column_sum(case.target, a, total)
        outs += [out, total]
    return outs


def activation(case: Case, size: int) -> list[np.ndarray]:
    z, up, grad = case.floats(3, size), case.floats(3, size), case.random(3, size)
    for name in ("relu", "gelu", "gelu_tanh", "silu", "tanh"):
        _host.activation_backward(case.target, name, z, up, grad)
    return [z, up]


def attention(case: Case, size: int) -> list[np.ndarray]:
    dim, value_dim = size, size // 2 + 1
    queries, keys = 7, size + 1
    q, k, v = (
        case.random(1, 4, queries, dim),
        case.random(1, 2, keys, dim),
        case.random(1, 2, keys, value_dim),
    )
    out, lse = case.zeros(1, 4, queries, value_dim), case.zeros(1, 4, queries, dtype=np.float32)
    options = _host.AttentionOptions(
        bias=case.random(1, 4, queries, keys),
        sinks=case.floats(4),
        slopes=case.floats(1, 4),
        window_right=2,
        softcap=5.0,
        scale=0.1,
    )
    _host.attention(case.target, q, k, v, out, lse, options)
    grad_out, grad_lse = case.random(1, 4, queries, value_dim), case.floats(1, 4, queries)
    grads = [case.zeros(*t.shape) for t in (q, k, v)]
    grad_bias = case.zeros(1, 4, queries, keys, dtype=np.float32)
    grad_sinks = case.zeros(4, dtype=np.float32)
    _host.attention_backward(
        case.target, grad_out, grad_lse, q, k, v, out, lse, *grads, grad_bias, grad_sinks, options
    )
    return [out, lse, *grads, grad_bias, grad_sinks]


def packed_attention(case: Case, size: int) -> list[np.ndarray]:
    queries, keys = 9, size + 4
    query_starts = case.place(np.array([0, 1, 1, queries]))
    key_starts = case.place(np.array([0, size, size + 2, keys]))
    q, k = case.random(queries, 4, size), case.random(keys, 2, size)
    v = case.random(keys, 2, size // 2 + 1)
    out, grad_out = case.zeros(queries, 4, v.shape[2]), case.random(queries, 4, v.shape[2])
    lse, grad_lse = case.zeros(4, queries, dtype=np.float32), case.floats(4, queries)
    options = _host.AttentionOptions(
        bias=case.random(3, 1, queries - 1, max(size, 2)),
        softcap=5.0,
        scale=0.1,
        query_starts=query_starts,
        key_starts=key_starts,
    )
    _host.attention(case.target, q, k, v, out, lse, options)
    grads = [case.zeros(*t.shape) for t in (q, k, v)]
    _host.attention_backward(
        case.target, grad_out, grad_lse, q, k, v, out, lse, *grads, None, None, options
    )
    return [out, lse, *grads]


def paged_attention(case: Case, size: int) -> list[np.ndarray]:
    """The last block of each sequence is partly filled, and the cache ends with one."""
    block_size, blocks = 3, size + 2
    counts = np.array([2, 3 * (size - 1) + 1], np.int32)
    table = np.full((2, size), -7, np.int32)
    table[0, 0], table[1] = blocks - 1, np.arange(size)[::-1]
    q = case.random(4, 4, size)
    k_cache = case.zeros(blocks, block_size, 2, size)
    v_cache = case.zeros(blocks, block_size, 2, size // 2 + 1)
    slots = np.arange(blocks * block_size - 1)
    slots[1] = -1
    _host.paged_cache_write(
        case.target,
        case.random(len(slots), 2, size),
        case.random(len(slots), 2, size // 2 + 1),
        k_cache,
        v_cache,
        case.place(slots),
    )
    out, lse = case.zeros(4, 4, v_cache.shape[3]), case.zeros(4, 4, dtype=np.float32)
    options = _host.AttentionOptions(
        window_right=0,
        query_starts=case.place(np.array([0, 1, 4])),
        key_counts=case.place(counts),
        block_table=case.place(table),
    )
    _host.attention(case.target, q, k_cache, v_cache, out, lse, options)
    return [k_cache, v_cache, out, lse]


KERNELS = (
    activation,
    attention,
    elementary,
    gemm,
    norm,
    packed_attention,
    paged_attention,
    rope,
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_kernel_stays_inside(
    kernel: Callable[[Case, int], list[np.ndarray]], dtype: str, target: str
) -> None:
    for size in (1, 2, 7, 8, 13, 16, 31, 33, 70):
        plain = kernel(Case(target, dtype, lambda array: array), size)
        for at_start in (False, True):
            inside = kernel(Case(target, dtype, guarded(at_start)), size)
            for expected, got in zip(plain, inside, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_a_guarded_buffer_touches_its_page() -> None:
    for nbytes in (0, 1, 4096, 5000):
        end = _host.guarded(nbytes)
        start = _host.guarded(nbytes, at_start=True)
        assert end.nbytes == start.nbytes == nbytes
        assert (end.ctypes.data + nbytes) % 4096 == 0
        assert start.ctypes.data % 4096 == 0
    with pytest.raises(ValueError, match="nbytes must not be negative"):
        _host.guarded(-1)


def test_the_guard_guards() -> None:
    """Reading one byte past the end kills the process that does it."""
    program = """
from lanewise import _host
import ctypes
buffer = _host.guarded(10)
ctypes.string_at(buffer.ctypes.data, 10)
print("inside", flush=True)
ctypes.string_at(buffer.ctypes.data, 11)
print("outside")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stdout == "inside\n"
