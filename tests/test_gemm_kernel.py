"""The torch-free matrix products on every target this machine can run, and the plan behind them."""

from __future__ import annotations

import numpy as np
import pytest

from lanewise import _host

TARGETS = [name for name, usable in _host.targets().items() if usable]
# Around the tile's edges of every target, more rows than the dot path takes, and no depth at all.
SHAPES = [
    (1, 1, 1),
    (2, 600, 900),
    (3, 17, 33),
    (4, 70, 900),
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
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 13, 61])
@pytest.mark.parametrize("order", ["C", "F"])
def test_threads_do_not_change_bits(target: str, rows: int, order: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, 1700), dtype=np.float32)
    b = np.asarray(rng.standard_normal((1700, 130), dtype=np.float32), order=order)
    outs = []
    for threads in (1, 2, 3, 4, 6):
        out = np.empty((rows, 130), dtype=np.float32)
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


TILES = {"tile_rows": 6, "tile_cols": 16, "l1": 32 << 10, "l2": 512 << 10, "l3": 16 << 20}


@pytest.mark.parametrize("right", ["packed", "columns", "rows", "strided"])
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("shape", [(1, 1, 0), (5, 3072, 768), (2048, 2048, 2048), (7, 200_000, 64)])
def test_plan_stays_within_the_caches(
    shape: tuple[int, int, int], threads: int, right: str
) -> None:
    m, n, k = shape
    plan = _host.gemm_plan(m, n, k, right, threads=threads, **TILES)
    assert plan["row_threads"] * plan["col_threads"] == threads
    assert plan["mc"] % 6 == 0
    assert plan["nc"] % 16 == 0
    assert plan["mc"] == 6 or plan["mc"] * plan["kc"] * 4 <= 256 << 10
    assert plan["chain"] <= 384
    if plan["kc"] < k:  # sums wait for the next block of k
        assert plan["mc"] * plan["nc"] * 4 <= 2 << 20


def test_few_rows_are_not_packed() -> None:
    def method(rows: int, right: str) -> str:
        return _host.gemm_plan(rows, 3072, 768, right, threads=8, **TILES)["method"]

    assert method(4, "columns") == "dot"
    assert method(4, "rows") == "axpy"
    assert {method(4, right) for right in ("packed", "strided")} == {"blocked"}
    assert {method(512, right) for right in ("columns", "rows")} == {"blocked"}


def test_what_does_not_stay_in_l2_is_fetched_ahead() -> None:
    def far(cols: int, threads: int) -> bool:
        return _host.gemm_plan(1, cols, 1024, "columns", threads=threads, **TILES)["far"]

    assert not far(100, 1)  # 400 KiB
    assert far(200, 1)
    assert not far(200, 2)


@pytest.mark.parametrize("target", TARGETS)
def test_a_zero_keeps_its_sign_wherever_it_lies(target: str) -> None:
    """Products that underflow to -0 stay -0 in every tile, packed or not, at any edge."""
    width = _host.panel_width(target)
    a = np.full((9, 130), -1e-30, dtype=np.float32)
    b = np.full((130, 2 * width + 5), 1e-30, dtype=np.float32)
    panels = np.empty((3, 130, width), dtype=np.float32)
    _host.pack_panels(target, b, panels)
    for rows in range(1, 10):
        for threads in (1, 2):
            outs = [np.empty((rows, b.shape[1]), dtype=np.float32) for _ in range(2)]
            for right, out in zip((b, panels), outs, strict=True):
                _host.gemm(target, a[:rows], right, out, threads=threads)
            for out in outs:
                assert np.all(np.signbit(out) == np.signbit(out[0, 0]))


@pytest.mark.parametrize("right", ["packed", "columns", "rows", "strided"])
@pytest.mark.parametrize("shape", [(3, 70, 900), (7, 70, 900), (61, 3072, 5000)])
def test_the_order_of_sums_is_the_same_for_any_thread_count(
    shape: tuple[int, int, int], right: str
) -> None:
    plans = [_host.gemm_plan(*shape, right, threads=n, **TILES) for n in (1, 2, 3, 8, 96)]
    assert len({(plan["method"], plan["kc"], plan["chain"]) for plan in plans}) == 1
