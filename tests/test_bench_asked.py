"""The cases of `python -m bench` for a model by name or for one shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bench import asked, peers
from bench.__main__ import main
from bench.case import Case
from bench.check import Checker
from bench.options import TOUR, parse


def built(found: dict[str, list[Any]]) -> list[Case]:
    return [point() for group in found.values() for section in group for point in section.points]


@pytest.fixture(autouse=True)
def _peers_at_hand() -> Iterator[None]:
    peers.want(peers.EAGER)  # others take seconds to compile, and have a test of their own
    yield
    peers.want(peers.ALL)


@pytest.mark.parametrize(
    ("family", "shape", "work"),
    [
        ("gemm", "3x16x8", ["linear 3×16→8"]),
        ("attention", "1x4x9x8", ["attention 1×4/4×9×9×8, causal"]),
        ("attention", "2x4/2x1x9x8", ["attention 2×4/2×1×9×8"]),
        ("norm", "3x24", ["layer_norm 3×24", "rms_norm 3×24", "add_rms_norm 3×24"]),
        ("rope", "1x2x3x8", ["rope 1×2×3×8"]),
    ],
)
def test_a_shape(family: str, shape: str, work: list[str]) -> None:
    cases = built(asked.sections([family], [], [shape], ["float32", "float16"]))
    assert [c.task.work for c in cases] == [w for w in work for _ in range(2)]
    assert {c.task.dtype for c in cases} == {torch.float32, torch.float16}
    with torch.inference_mode():
        for case in cases:
            checker = Checker(case)
            for name, side in {**case.ours, **case.peers}.items():
                assert checker.fault(name, side()) is None, (case.task.work, name)


def test_a_model() -> None:
    found = asked.sections(asked.FAMILIES, ["minilm"], [], ["float32"])
    assert list(found) == ["gemm", "attention", "norm"]  # BERT rotates nothing
    works = {c.task.work for c in built(found)}
    assert {"linear 1×384→1536", "linear 512×1536→384", "layer_norm 16×384"} <= works
    assert "attention 1×12/12×512×512×32" in works


def test_a_model_with_windows_and_groups() -> None:
    found = asked.sections(["attention"], ["gemma-3-270m"], [], ["bfloat16"])
    points = found["attention"][0].points
    problems = [str(point.args[0]) for point in (p.args[0] for p in points)]  # type: ignore[attr-defined]
    assert "1×4/1×2048×2048×256, causal, window 512" in problems
    assert "1×4/1×1×4096×256" in problems


def test_without_a_family() -> None:
    """A model is asked of every family; otherwise it is a tour without sweeps."""
    assert list(parse(["--model", "minilm"]).chosen) == ["gemm", "attention", "norm"]
    chosen = parse([]).chosen
    assert tuple(chosen) == TOUR
    assert "sweep" not in {section.name for group in chosen.values() for section in group}
    whole = parse(["attention"]).chosen
    assert "sweep" in {section.name for section in whole["attention"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gemm", "--shape", "3x4"], "shape must be MxKxN for gemm, in numbers above 0, got '3x4'"),
        (["gemm", "--shape", "3x0x4"], "in numbers above 0, got '3x0x4'"),
        (["attention", "--shape", "1x2x3"], "shape must be BxHxSxD, or BxH/HkvxSqxSkxD for"),
        (["norm", "--model", "nobody"], "model must be one of gpt2, "),
        (["bert", "--model", "gpt2"], "family must be one of gemm, attention, norm, rope with"),
        (["gemm", "--shape", "1000000x1000000x9"], "shape 1000000x1000000x9 needs "),
        (["gemm", "--shape", "1x2x3", "--sections", "large"], "make sections of their own"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert sentence in capsys.readouterr().err
