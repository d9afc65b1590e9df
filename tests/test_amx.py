"""Products of bfloat16 in the tiles of AMX: their edges, what the machine flushes, and what becomes
of the tile registers."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from lanewise import _host

needs_tiles = pytest.mark.skipif(
    not _host.targets().get("amx"), reason="needs AMX-BF16, and a system that grants its tiles"
)
Array = np.ndarray


def narrow(x: Array) -> Array:
    """The bits of float32 cut off to bfloat16."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widen(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return narrow(rng.standard_normal(shape, dtype=np.float32))


def panels(b: Array) -> Array:
    """Packed as a weight; an odd depth is a pair that ends in zero."""
    k, n = b.shape
    width = _host.panel_width("amx")
    made = np.zeros((-(-n // width), k + k % 2, width), np.uint16)
    _host.pack_panels("amx", b, made)
    return made


def product(a: Array, b: Array, n: int, threads: int = 1, **options: object) -> Array:
    out = np.full((a.shape[0], n), np.nan, np.float32)
    _host.gemm("amx", a, b, out, threads=threads, **options)
    return out


def assert_close(out: Array, a: Array, b: Array, what: object) -> None:
    exact = widen(a).astype(np.float64) @ widen(b).astype(np.float64)
    size = np.abs(widen(a)).astype(np.float64) @ np.abs(widen(b))
    bound = np.sqrt(max(a.shape[1], 1)) * 2.0**-23 * size
    assert np.all(np.abs(out - exact) <= bound), what


@needs_tiles
def test_edges_of_every_layout() -> None:
    """All of 1 to 40 in each of the three dimensions, beside random others."""
    rng = np.random.default_rng(0)
    pick = random.Random(0)
    sizes = range(1, 41)
    cases = [(s, pick.choice(sizes), pick.choice(sizes)) for s in sizes]
    cases += [(pick.choice(sizes), s, pick.choice(sizes)) for s in sizes]
    cases += [(pick.choice(sizes), pick.choice(sizes), s) for s in sizes]
    cases += [(33, 70, 257), (65, 33, 800), (100, 40, 31), (17, 300, 64), (520, 40, 1000)]
    for m, n, k in cases:
        a, b = normal(rng, m, k), normal(rng, k, n)
        for left in (a, np.asfortranarray(a)):
            for right in (b, np.asfortranarray(b), panels(b)):
                for threads in (1, 3):
                    assert_close(product(left, right, n, threads), a, b, (m, n, k, threads))


@needs_tiles
@pytest.mark.parametrize("packed", [False, True])
def test_threads_do_not_change_bits(packed: bool) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in ((5, 300, 900), (70, 300, 900), (600, 130, 1700)):
        a, b = normal(rng, m, k), np.asfortranarray(normal(rng, k, n))
        right = panels(b) if packed else b
        one = product(a, right, n)
        for threads in (2, 3, 7):
            assert np.array_equal(one, product(a, right, n, threads))


@needs_tiles
@pytest.mark.parametrize("k", [31, 33, 64, 300])
@pytest.mark.parametrize("order", ["C", "F", "panels"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(k: int, order: str, value: float) -> None:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 19, k), normal(rng, k, 21)
    a[3, k - 1], b[k - 1, 7] = narrow(value), narrow(value)
    right = panels(b) if order == "panels" else np.asarray(b, order=order)
    out = product(a, right, 21)
    with np.errstate(invalid="ignore"):
        exact = widen(a) @ widen(b)
    assert np.array_equal(np.isnan(out), np.isnan(exact))
    assert np.array_equal(np.isinf(out), np.isinf(exact))
    assert np.array_equal(out[np.isinf(out)], exact[np.isinf(exact)])


@needs_tiles
def test_subnormal_numbers_are_zero() -> None:
    """Of operands and of sums; the smallest normal ones are kept."""
    tiny, smallest = narrow(2.0**-130), narrow(2.0**-126)
    one = narrow(np.full((16, 64), 1 / 64, np.float32))
    a = np.full((8, 64), tiny, np.uint16)
    assert np.all(product(a, np.ascontiguousarray(one.T), 16) == 0)
    a[:] = smallest
    b = np.full((64, 16), narrow(1.0), np.uint16)
    assert np.all(product(a, b, 16) == 64 * 2.0**-126)
    b[:] = narrow(2.0**-10)
    assert np.all(product(a, b, 16) == 0)


@needs_tiles
def test_sums_do_not_drift() -> None:
    """Equal terms, whose roundings all go the same way in one long chain."""
    for k in (4096, 40000):
        a = narrow(np.full((17, k), 0.1, np.float32))
        b = narrow(np.full((k, 33), 0.37, np.float32))
        assert_close(product(a, np.asfortranarray(b), 33), a, b, k)


def run(program: str) -> list[str]:
    command = [sys.executable, "-c", program]
    environment = {k: v for k, v in os.environ.items() if k != "LANEWISE_ISA"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# XGETBV with ECX = 1 tells which parts of the state are in use: bit 18 are the tiles' contents.
IN_USE = """
import ctypes, mmap, numpy as np
from lanewise import _host
code = bytes.fromhex("b9010000000f01d0c3")  # mov ecx, 1; xgetbv; ret
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
in_use = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
ones = np.full((64, 64), 0x3F80, np.uint16)
out = np.zeros((64, 64), np.float32)
_host.gemm("amx", ones, ones, out, threads=1)
print(int(out[0, 0]), in_use() >> 17 & 3)
"""


@needs_tiles
def test_tiles_are_released() -> None:
    assert run(IN_USE) == ["64", "0"]


# Linux refuses the tiles to a process with a signal stack that could not hold them.
SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(memory), 0, 8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from lanewise import _host
print(_host.targets()["amx"], _host.isa())
"""


@needs_tiles
def test_refused_tiles_leave_the_set_below() -> None:
    assert run(SMALL_STACK) == ["False", "avx512bf16"]
