"""The torch-free matrix products on every target this machine can run, and the plan behind them."""

from __future__ import annotations

import numpy as np
import pytest

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
# Around the tile's edges of every target, more rows than the dot path takes, and no depth at all.
SHAPES = [
    (1, 1, 1),
    (3, 17, 33),
    (13, 31, 5),
    (17, 33, 64),
    (29, 65, 70),
    (40, 9, 0),
    (90, 70, 900),
]


def close(out: np.ndarray, a: np.ndarray, b: np.ndarray, add: np.ndarray | float = 0.0) -> None:
    exact = a.astype(np.float64) @ b.astype(np.float64) + add
    size = np.abs(a).astype(np.float64) @ np.abs(b) + np.abs(add)
    bound = 4 * np.sqrt(max(a.shape[1], 1)) * 2.0**-24 * size + 2.0**-23 * np.abs(exact)
    assert np.all(np.abs(out - exact) <= bound + 1e-30)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_products_of_every_layout(target: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m * n + k)
    a = rng.standard_normal((m, k), dtype=np.float32)
    b = rng.standard_normal((k, n), dtype=np.float32)
    bias = rng.standard_normal(n, dtype=np.float32)
    residual = rng.standard_normal((m, n), dtype=np.float32)
    width = _host.panel_width(target)
    panels = np.full((-(-n // width), k, width), np.nan, dtype=np.float32)
    _host.pack_panels(target, b, panels)
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b), panels):
            for threads in (1, 2):
                out = np.full((m, n), np.nan, dtype=np.float32)
                _host.gemm(target, left, right, out, threads=threads)
                close(out, a, b)
                _host.gemm(target, left, right, out, bias=bias, residual=residual, threads=threads)
                close(out, a, b, bias + residual.astype(np.float64))


@pytest.mark.parametrize("target", TARGETS)
def test_threads_do_not_change_bits(target: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((61, 1700), dtype=np.float32)
    b = rng.standard_normal((1700, 130), dtype=np.float32)
    outs = []
    for threads in (1, 2, 3, 4, 6):
        out = np.empty((61, 130), dtype=np.float32)
        _host.gemm(target, a, b, out, threads=threads)
        outs.append(out)
    for other in outs[1:]:
        np.testing.assert_array_equal(outs[0], other)


@pytest.mark.parametrize("target", TARGETS)
def test_column_sum(target: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((37, 53), dtype=np.float32)
    out = np.empty(53, dtype=np.float32)
    _host.column_sum(target, a, out, threads=2)
    exact = a.astype(np.float64).sum(0)
    assert np.all(np.abs(out - exact) <= 37 * 2.0**-24 * np.abs(a).sum(0))


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("shape", [(1, 1, 0), (5, 3072, 768), (2048, 2048, 2048), (7, 200_000, 64)])
def test_plan_stays_within_the_caches(shape: tuple[int, int, int], threads: int) -> None:
    m, n, k = shape
    plan = _host.gemm_plan(
        m,
        n,
        k,
        False,
        False,
        tile_rows=6,
        tile_cols=16,
        l1=32 << 10,
        l2=512 << 10,
        l3=16 << 20,
        threads=threads,
    )
    assert plan["row_threads"] * plan["col_threads"] == threads
    assert plan["mc"] % 6 == 0
    assert plan["nc"] % 16 == 0
    assert plan["mc"] == 6 or plan["mc"] * plan["kc"] * 4 <= 256 << 10
    assert -(-max(k, 1) // plan["kc"]) == -(-max(k, 1) // 384)
    assert not plan["dot"]


def test_few_rows_of_contiguous_lines_are_dot_products() -> None:
    facts = {"tile_rows": 6, "tile_cols": 16, "l1": 1 << 15, "l2": 1 << 19, "l3": 1 << 24}
    plan = _host.gemm_plan(4, 3072, 768, False, True, threads=8, **facts)
    assert plan["dot"]
    assert plan["col_threads"] == 8
