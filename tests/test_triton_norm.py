"""What test_norm.py does not ask of the GPU's norms: every tile, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_same_bits
from strategies import DTYPES
from test_norm import NORMS, check, example, outputs

import lanewise
from lanewise.kernels import target
from lanewise.kernels.norm.tiles import LONG_ROW, ROWS, WIDEST
from lanewise.kernels.table import Table, watch

LONG = WIDEST + 1000  # the last block of a long row is part of one


def every_row(*tables: Table) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("table", "architecture", "problem"),
        [(t.name, a, row) for t in tables for a, rows in t.rows.items() for row in rows],
    )


def columns_of(problem: str) -> int:
    """As many as make a class, less some; the narrowest class takes less than half of its tile."""
    return LONG if problem == "long" else 50 if problem == "128" else int(problem) - 9


@every_row(ROWS, LONG_ROW)
@pytest.mark.parametrize("name", ["add_rms_norm", "add_layer_norm"])
def test_every_tile_of_the_forward_tables(
    monkeypatch: pytest.MonkeyPatch, name: str, table: str, architecture: str, problem: str
) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    with watch() as rows:
        check(name, [*example(name, (17, columns_of(problem)), torch.bfloat16, "contiguous")])
    assert (table, architecture, problem) in rows


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(name: str, dtype: torch.dtype) -> None:
    check(name, [*example(name, (3, 2, LONG), dtype, "sliced")])


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
