"""What test_norm.py does not ask of the GPU's norms: every tile, in Triton's interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lanewise.kernels import target
from lanewise.kernels.norm import layer_norm_backward, tiles
from lanewise.kernels.norm.tiles import (
    BACKWARD_LONG_ROW,
    BACKWARD_ROWS,
    LONG_ROW,
    PARTIAL_SUMS,
    ROWS,
    SUM_PARTIALS,
)
from lanewise.kernels.table import TABLES, Table, watch
from numerics import assert_same_bits
from strategies import DTYPES, randn
from test_norm import NORMS, check, check_gradients, example, outputs

import lanewise

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

LONG = 4096 + 900  # two blocks, of which the last is part of one


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of LONG elements are long ones: those that are take the interpreter minutes."""
    for name in ("WIDEST", "WIDEST_BACKWARD"):
        monkeypatch.setattr(tiles, name, LONG // 2)


def every_row(*tables: Table) -> pytest.MarkDecorator:
    """Of each tile that several architectures share, the first one's."""
    first = {
        (table.name, problem, tile): (table.name, architecture, problem)
        for table in tables
        for architecture, rows in reversed(table.rows.items())
        for problem, tile in rows.items()
    }
    return pytest.mark.parametrize(("table", "architecture", "problem"), first.values())


def columns_of(problem: str) -> int:
    """As many as make a class, less some; the narrowest class takes less than half of its tile."""
    return LONG if problem == "long" else 50 if problem == "128" else int(problem) - 9


@every_row(ROWS, LONG_ROW)
@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_every_tile_of_the_forward_tables(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    table: str,
    architecture: str,
    problem: str,
) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    if problem == "long":
        request.getfixturevalue("long")
    tile = TABLES[table].rows[architecture][problem]
    with watch() as rows:
        check(
            name,
            [*example(name, (tile.rows + 1, columns_of(problem)), torch.bfloat16, "contiguous")],
        )
    assert (table, architecture, problem) in rows


@every_row(BACKWARD_ROWS, BACKWARD_LONG_ROW, PARTIAL_SUMS, SUM_PARTIALS)
@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_every_tile_of_the_backward_tables(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    table: str,
    architecture: str,
    problem: str,
) -> None:
    """On one unit, so that a program has several blocks of rows."""
    one_unit = dataclasses.replace(target.ARCHITECTURES[architecture], units=1)
    monkeypatch.setattr(target, "of", lambda device: one_unit)
    columns = columns_of("128" if problem == "all" else problem)
    if problem == "long":
        request.getfixturevalue("long")
    tile = TABLES[table].rows[architecture][problem]
    count = tile.rows + 1 if problem == "long" else 2 * tile.resident * tile.rows + 1
    with watch() as rows:
        check_gradients(name, example(name, (count, columns), torch.bfloat16, "contiguous"))
    assert (table, architecture, problem) in rows


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_long_rows(name: str, dtype: torch.dtype) -> None:
    inputs = example(name, (3, 2, LONG), dtype, "sliced")
    check_gradients(name, inputs)
    check_gradients(name, inputs[: 2 if name.startswith("add_") else 1])


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("columns", [8, LONG])
def test_rows_past_the_end_add_nothing_without_eps(columns: int) -> None:
    """Their variance is zero, and its inverse root infinite."""
    inputs = example("layer_norm", (3, columns), torch.float32, "contiguous")
    check_gradients("layer_norm", inputs, eps=0.0)


def test_gradients_do_not_depend_on_the_run() -> None:
    grad, x = randn((70, 40), seed=1), randn((70, 40), seed=2)
    runs = [layer_norm_backward(grad, None, x, None, x[0], 1e-5) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert_same_bits(a, b)


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(name: str, dtype: torch.dtype) -> None:
    check(name, [*example(name, (3, 2, LONG), dtype, "sliced")])


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm"])
def test_the_blocks_of_a_long_row_may_differ(name: str) -> None:
    """Their means lie far apart, and far from zero."""
    inputs = example(name, (2, LONG), torch.float32, "contiguous")
    inputs[0] = inputs[0] + torch.linspace(-30, 900, LONG).round()
    check(name, [*inputs])


@pytest.mark.parametrize("name", NORMS)
def test_rows_further_apart_than_32_bits(name: str) -> None:
    apart = 2**30 + 8
    inputs = example(name, (3, 8), torch.bfloat16, "contiguous")
    dense = [*inputs]
    x = torch.empty(2 * apart + 8, dtype=torch.bfloat16).as_strided((3, 8), (apart, 1))
    inputs[0] = x.copy_(dense[0])
    ours, expected = (outputs(getattr(lanewise, name)(*given)) for given in (inputs, dense))
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)
