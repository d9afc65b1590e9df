"""The SIMD layer: its functions within their stated errors, its conversions bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
# What csrc/simd/math.h states, in ulp: with FMA, and without (generic; the compiler does not always
# fuse what it lowers in pieces, so wide as well).
BOUNDS = {"exp": (0.92, 1.19), "exp2": (0.88, 1.08), "tanh": (1.86, 2.05), "erf": (1.85, 2.16)}
# The magnitudes beyond which a function is its first Taylor term or its limit: in between every
# float32 is tried, outside every 61st.
CORE = {
    "exp": (2.0**-26, 90.0),
    "exp2": (2.0**-26, 127.0),
    "tanh": (2.0**-14, 9.2),
    "erf": (2.0**-14, 4.0),
}
FLUSH = {"exp": 2.0**-125.5, "exp2": 2.0**-126.5 * (1 + 1e-6)}
DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@pytest.mark.parametrize("function", BOUNDS)
def test_error_over_every_float32(function: str) -> None:
    low, high = CORE[function]
    flush = FLUSH.get(function, 0.0)
    sweeps = [
        _host.sweep(function, bits(low), bits(high), flush=flush, threads=2),
        _host.sweep(function, 0, bits(low), step=61, flush=flush, threads=2),
    ]
    if function != "exp2":  # whose domain ends there
        sweeps.append(_host.sweep(function, bits(high), step=61, flush=flush, threads=2))
    for sweep in sweeps:
        assert list(sweep) == TARGETS
        for target, (ulp, x, y) in sweep.items():
            fused, plain = BOUNDS[function]
            bound = fused if target in ("avx2", "avx512", "avx512bf16", "neon") else plain
            assert ulp <= bound, f"{target}: {function}({x}) = {y} is {ulp} ulp off"


@pytest.mark.parametrize("target", TARGETS)
def test_special_values(target: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan], dtype=np.float32)
    payload = np.array([0x7F800001, 0xFFC00155, 0x7FFFFFFF], dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, payload])
    nan = [np.nan] * 5
    expected = {
        "exp": [1, 1, np.inf, 0, *nan],
        "exp2": [1, 1, np.nan, 0, *nan],
        "tanh": [0, -0.0, 1, -1, *nan],
        "erf": [0, -0.0, 1, -1, *nan],
    }
    for function, values in expected.items():
        out = np.empty_like(x)
        _host.elementary(target, function, x, out)
        np.testing.assert_array_equal(out, np.array(values, dtype=np.float32))
        known = ~np.isnan(values[:4])
        np.testing.assert_array_equal(
            np.signbit(out[:4][known]), np.signbit(np.array(values[:4])[known])
        )


@pytest.mark.parametrize("target", TARGETS)
def test_exp_flushes_below_its_bound(target: str) -> None:
    x = np.array([-86.98, -87.0, -88.0, -104.0, -1e30], dtype=np.float32)
    out = np.empty_like(x)
    _host.elementary(target, "exp", x, out)
    assert out[0] > 2.0**-126
    assert not out[1:].any()


@pytest.mark.parametrize("target", TARGETS)
def test_exp2_flushes_below_its_bound(target: str) -> None:
    x = np.array([-126.4, -126.6, -127.0, -200.0, -1e30], dtype=np.float32)
    out = np.empty_like(x)
    _host.elementary(target, "exp2", x, out)
    assert out[0] > 2.0**-127
    assert not out[1:].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrowing_every_float32(dtype: str) -> None:
    assert _host.sweep_narrow(dtype, threads=2) == dict.fromkeys(TARGETS, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_widening_every_bit_pattern(target: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(1 << 16, dtype=np.float32)
    _host.elementary(target, "identity", every, out)
    np.testing.assert_array_equal(out.view(np.uint32), every.astype(np.uint32) << 16)
    _host.elementary(target, "identity", every.view(np.float16), out)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(out, every.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_every_tail(target: str, x_dtype: str, out_dtype: str) -> None:
    for count in range(40):
        x = np.zeros(count, dtype=DTYPES[x_dtype])
        _host.elementary(target, "identity", np.arange(count, dtype=np.float32), x)
        out = np.zeros(count + 1, dtype=DTYPES[out_dtype])
        out.view(np.uint8)[:] = 0xA5
        _host.elementary(target, "identity", x, out[:count])
        back = np.empty(count, dtype=np.float32)
        _host.elementary(target, "identity", out[:count], back)
        np.testing.assert_array_equal(back, np.arange(count))
        assert (out[count:].view(np.uint8) == 0xA5).all()


@pytest.mark.parametrize("target", TARGETS)
def test_probes_measure_something(target: str) -> None:
    assert 0.1 < _host.fma_rate(target, 1, 0.01) < 1000
    assert 0.1 < _host.pair_rate(target, 1, 0.01) < 10_000
    assert 0.1 < _host.read_bandwidth(target, 2, 1 << 22, 0.01) < 10_000


def test_bad_arguments() -> None:
    x = np.zeros(4, dtype=np.float32)
    with pytest.raises(
        ValueError, match="function must be identity, exp, exp2, tanh or erf, got 'sin'"
    ):
        _host.elementary("generic", "sin", x, x)
    with pytest.raises(ValueError, match="contiguous and of one size"):
        _host.elementary("generic", "exp", x, x[:3])
    with pytest.raises(ValueError, match="dtype must be bfloat16 or float16, got 'int8'"):
        _host.sweep_narrow("int8")
    with pytest.raises(ValueError, match="threads must be positive"):
        _host.fma_rate("generic", 0)
    with pytest.raises(RuntimeError, match="instruction set 'sse9' is not built; there is generic"):
        _host.elementary("sse9", "exp", x, x)
