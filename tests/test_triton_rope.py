"""What test_rope.py does not ask of the GPU's rotation: every tile, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from lanewise.kernels import target
from lanewise.kernels.rope.tiles import ROTATE
from numerics import assert_same_bits
from strategies import randn
from test_rope import angles, check

import lanewise


@pytest.mark.parametrize(
    ("architecture", "problem"), [(a, row) for a, rows in ROTATE.rows.items() for row in rows]
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_tile_of_the_table(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str, interleaved: bool
) -> None:
    """Rows and pairs of more than two tiles, and a rest."""
    pairs, bits = map(int, problem.split())
    dtype = {16: torch.bfloat16, 32: torch.float32}[bits]
    tile = ROTATE.rows[architecture][problem]
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    monkeypatch.setattr("lanewise.kernels.rope.tiles.choose", lambda *_: tile)
    x = randn((2, 3, 7, 4 * pairs + 9), dtype)
    cos, sin = angles((2, 7, 2 * pairs + 3))
    check(lanewise.rope(x, cos, sin, interleaved=interleaved), x, cos, sin, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
def test_positions_further_apart_than_32_bits(interleaved: bool) -> None:
    apart = 2**30 + 8
    x = torch.empty(2 * apart + 8, dtype=torch.bfloat16).as_strided((1, 1, 3, 8), (0, 0, apart, 1))
    x.copy_(randn((1, 1, 3, 8), torch.bfloat16))
    cos, sin = angles((3, 3))
    out = lanewise.rope(x, cos, sin, interleaved=interleaved)
    assert_same_bits(out, lanewise.rope(x.clone(), cos, sin, interleaved=interleaved))


def test_rows_counted_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were 2³¹ of them."""
    launch = target.launch
    monkeypatch.setattr(
        target, "launch", lambda *args, **options: launch(*args, **{**options, "WIDE": True})
    )
    x, (cos, sin) = randn((2, 3, 9, 20)), angles((9, 8))
    check(lanewise.rope(x, cos, sin), x, cos, sin, False)
