"""Tuning, with a timer that makes up times, in Triton's interpreter; and the file of its tiles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from lanewise.kernels import gemm, target, tune, tuned
from lanewise.kernels.evidence.case import Case
from lanewise.kernels.gemm.tiles import TILED

from lanewise.cli import main
from lanewise.cli import tune as command

SM_90 = target.ARCHITECTURES["sm_90"]
ROW = ("tiled_product", "sm_90", "few 32")
FIRST = TILED.shipped(SM_90, "few 32")


def launch(device: str) -> torch.Tensor:
    return gemm.linear(torch.randn(3, 40, device=device), torch.randn(50, 40, device=device))


CASE = Case("linear few f32 40", launch)


@dataclass
class FakeTimer:
    """Tells the seconds that `seconds` gives the tile of the launch, and remembers the tiles."""

    seconds: Callable[[Any], float]
    tiles: list[Any] = dataclasses.field(default_factory=list)

    def trial(self) -> tune.Trial:
        timer = self

        class Watched(tune.Trial):
            def seconds(self, tile: Any, _: tune.Timer) -> float | None:
                def time(run: Callable[[], object]) -> float:
                    timer.tiles.append(tile)
                    return timer.seconds(tile)

                return super().seconds(tile, time)

        return Watched(CASE, ROW, SM_90, "cpu")

    def search(self) -> tune.Found:
        return tune.search(TILED, self.trial(), "few 32", lambda run: 0.0, FIRST)


def test_the_neighbours_of_a_tile_differ_in_one_number() -> None:
    found = list(tune.neighbours(FIRST))
    assert len(found) == len(set(found)) >= 7
    for tile in found:
        names = [f.name for f in dataclasses.fields(tile)]
        assert sum(getattr(tile, n) != getattr(FIRST, n) for n in names) == 1


def test_the_search_walks_to_the_fastest() -> None:
    """Twice as fast with half the columns, and once more with half the stages."""
    goal = dataclasses.replace(FIRST, n=FIRST.n // 2, stages=FIRST.stages - 1)

    def seconds(tile: Any) -> float:
        return 1.0 + abs(tile.n - goal.n) + abs(tile.stages - goal.stages) + abs(tile.m - goal.m)

    found = FakeTimer(seconds).search()
    assert found.tile == goal
    assert found.seconds == 1.0
    assert found.shipped_seconds == seconds(FIRST)


def test_a_gain_within_the_noise_keeps_the_shipped_tile() -> None:
    found = FakeTimer(lambda tile: 1.0 if tile == FIRST else 0.99).search()
    assert found.tile == FIRST


def test_a_gain_that_does_not_come_back_keeps_the_shipped_tile() -> None:
    calls = iter(range(10**6))
    found = FakeTimer(lambda tile: 1.0 / (1 + min(next(calls), 3)) if tile == FIRST else 0.5)
    assert found.search().tile == FIRST


def test_a_tile_that_computes_something_else_is_passed_over() -> None:
    timer = FakeTimer(lambda tile: float(tile.n))
    trial = timer.trial()
    narrow = dataclasses.replace(FIRST, n=FIRST.n // 2)
    assert trial.seconds(FIRST, lambda run: 0.0) is not None
    assert trial.seconds(narrow, lambda run: 0.0) is not None

    assert trial._expected is not None
    trial._expected[0][2, 7] += 1.0
    assert trial.seconds(narrow, lambda run: 0.0) is None


def test_a_tile_that_does_not_compile_is_passed_over() -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("no tile of this size")

    case = Case("refused", refuse)
    assert tune.Trial(case, ROW, SM_90, "cpu").seconds(FIRST, lambda run: 1.0) is None


def test_rows_finds_a_case_for_every_row_that_is_used() -> None:
    assert tune.rows([CASE], SM_90) == {ROW: CASE}
    assert tune.rows([dataclasses.replace(CASE, aligned=False)], SM_90) == {}


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("LANEWISE_TILES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tuned.path("Tesla T1000 (40 GB)")


def test_tiles_are_kept_and_used(file: Path) -> None:
    gpu, tile = "Tesla T1000 (40 GB)", dataclasses.replace(FIRST, n=128)
    assert file.name == "Tesla-T1000-40-GB.json"
    assert tuned.load(gpu, SM_90) == {}
    tuned.save(file, gpu, SM_90, {("tiled_product", "few 32"): tile})
    kept = tuned.load(gpu, SM_90)
    assert kept == {("tiled_product", "few 32"): tile}
    assert TILED.choose(dataclasses.replace(SM_90, tuned=kept), "few 32") == tile
    assert TILED.choose(SM_90, "few 32") == FIRST
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_the_variable_names_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANEWISE_TILES", str(tmp_path / "mine.json"))
    assert tuned.path("any") == tmp_path / "mine.json"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"triton": "0.1"}, "it was measured with triton 0.1, this is"),
        ({"gpu": "another"}, "it was measured with gpu another, this is a GPU"),
        ({"tiles": {"no_kernel": {"few 32": {}}}}, "it names what is not there"),
        ({"tiles": {"tiled_product": {"no problem": {}}}}, "it names what is not there"),
        ({"tiles": {"tiled_product": {"few 32": {"height": 3}}}}, "it names what is not there"),
        ({"tiles": []}, "it names what is not there"),
        (None, "it cannot be read"),
    ],
)
def test_a_file_of_something_else_is_not_used_and_says_so(
    file: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any] | None, reason: str
) -> None:
    monkeypatch.setenv("LANEWISE_TILES", str(file))
    tuned.save(file, "a GPU", SM_90, {("tiled_product", "few 32"): FIRST})
    document = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps({**document, **change}))
    with pytest.warns(UserWarning, match=reason):
        assert tuned.load("a GPU", SM_90) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
@pytest.mark.parametrize("device", ["cuda:0", "cpu", "nonsense"])
def test_the_command_without_a_gpu_says_so(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--device", device]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lanewise.tune: device must be a GPU")
    assert f"got '{device}'" in error


def test_the_command_keeps_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_gpu", lambda device: ("a GPU", SM_90))
    monkeypatch.setattr(command.catalogue, "cases", lambda: {CASE.name: CASE})
    times = iter([9.0, *(5.0 for _ in range(100))])
    assert command.run("cpu", ["tiled_product"], str(file), lambda run: next(times)) == 0
    assert "tiled_product" in capsys.readouterr().out
    assert json.loads(file.read_text())["tiles"] == {}  # the shipped tile took 5 s at the end too

    def seconds(run: Callable[[], object]) -> float:
        tile = run.__closure__[0].cell_contents[0].__closure__  # type: ignore[index]
        options = next(c.cell_contents for c in tile if isinstance(c.cell_contents, dict))
        return float(options["BLOCK_N"])

    assert command.run("cpu", None, str(file), seconds) == 0
    kept = json.loads(file.read_text())["tiles"]["tiled_product"]["few 32"]
    assert kept["n"] < FIRST.n


def test_the_command_names_a_table_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_gpu", lambda device: ("a GPU", SM_90))
    with pytest.raises(ValueError, match=r"^lanewise\.tune: table must be one of .*, got 'lines'$"):
        command.run("cpu", ["lines"], None)
