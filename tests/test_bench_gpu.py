"""The GPU bench on a machine without a GPU: its questions at sizes that an interpreter can do."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from bench import gpu
from bench.case import Case, Side
from bench.gpu_cases import TINY, Maker, cases, product, rope

CASES = len(list(cases(TINY, "cpu", torch.float32)))


def timed(side: Side) -> float:
    side()
    return 1e-3


@pytest.mark.parametrize("name", gpu.TYPES)
@pytest.mark.parametrize("index", range(CASES))
def test_every_side_answers_the_question(name: str, index: int) -> None:
    build = list(cases(TINY, "cpu", gpu.TYPES[name]))[index]
    measured = gpu.measure(build(), timed)
    assert measured.wrong == {}
    assert len(measured.seconds) == 2


def test_a_wrong_side_is_named_and_not_timed() -> None:
    case = product(TINY, Maker("cpu", torch.float32))
    zeros = case.reference() * 0  # type: ignore[operator]
    spoilt = Case(case.task, {"": lambda: zeros}, case.peers, case.reference)
    measured = gpu.measure(spoilt, timed)
    assert set(measured.seconds) == {"torch"}
    assert "is off by" in measured.wrong["lanewise"]


def test_what_the_budget_left_out_is_counted() -> None:
    found, _, left = gpu.run(TINY, "cpu", ["f32"], timed, 0.0)
    assert (len(found), left) == (0, CASES)


def test_the_report_has_a_line_for_every_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = gpu.GPULimits(TINY, "cpu", timed)
    maker = Maker("cpu", torch.float32)
    found = [gpu.measure(rope(TINY, maker), timed)]
    gpu.report(found, limits, "a GPU", tmp_path / "gpu.csv")
    assert "1.00× torch" in capsys.readouterr().out
    with (tmp_path / "gpu.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["side"] for line in lines] == ["lanewise", "torch"]
    assert all(float(line["limit_seconds"]) > 0 for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert capsys.readouterr().err.startswith(
        "bench.gpu: --device must be a GPU that torch can use"
    )
