"""Whether a run is slower than an earlier one, over made-up times; and the file of a run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import compare, record, table
from bench.__main__ import judge, main
from bench.case import Case, Result, Sample, Task, Visit
from bench.limits import Limits
from bench.run import Run
from bench.section import Section
from bench.visit import apart

TASK = Task("linear 3×4×5", torch.float32, 1e9, 1e6)


def result(visits: Sequence[Visit], wrong: dict[str, str] | None = None) -> Result:
    best = {side: min(v.seconds[side] for v in visits) for side in visits[0].seconds}
    peers = tuple(side for side in best if side)
    samples = {side: tuple(v.seconds[side] for v in visits) for side in best}
    return Result("s", TASK, ("",), peers, best, wrong or {}, samples=samples, visits=tuple(visits))


def visits(factor: float, phases: Sequence[float], peer: bool, seed: int = 0) -> list[Visit]:
    """Our side takes `factor` seconds, a peer and the limit one, all in a machine's phases."""
    noise = random.Random(seed)
    found = []
    for phase in phases:
        ours, other, limit = (phase * noise.uniform(1.0, 1.02) for _ in range(3))
        seconds = {"": factor * ours, **({"torch": other} if peer else {})}
        found.append(Visit(seconds, limit))
    return found


def before(old: Result, tmp_path: Path) -> Any:
    limits = Limits(1)
    limits.sample(TASK)
    path = tmp_path / "old.json"
    record.save_json([old], limits, [("CPU", "none")], path)
    return compare.load(path)


@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize(
    ("factor", "word"), [(1.0, "same"), (1.1, "slower"), (1.03, "same"), (0.9, "faster")]
)
def test_a_change_is_told_from_the_phases_of_the_machine(
    tmp_path: Path, peer: bool, factor: float, word: str
) -> None:
    old = before(result(visits(1.0, [1.0, 2.0, 1.5, 1.1, 1.0], peer)), tmp_path)
    (verdict,) = compare.verdicts(old, [result(visits(factor, [2.0, 1.9, 2.2, 1.0, 1.2], peer, 1))])
    assert verdict.word == word
    assert verdict.ratio == pytest.approx(factor, rel=0.03)


def test_noise_is_said_to_be_noise(tmp_path: Path) -> None:
    old = before(result(visits(1.0, [1.0] * 5, True)), tmp_path)
    shaken = [Visit({"": ours, "torch": 1.0}, 1.0) for ours in (1.0, 1.5, 1.1)]
    (verdict,) = compare.verdicts(old, [result(shaken)])
    assert verdict.word == "too noisy"
    assert verdict.noise == pytest.approx(0.5)


def test_what_is_new_gone_or_wrong_is_said(tmp_path: Path) -> None:
    old = before(result(visits(1.0, [1.0] * 5, True)), tmp_path)
    assert [v.word for v in compare.verdicts({}, [result(visits(1.0, [1.0] * 5, True))])] == ["new"]
    broken = result(visits(1.0, [1.0] * 5, True), {"": "is off"})
    assert [v.word for v in compare.verdicts(old, [broken])] == ["wrong"]
    other = Result("s", Task("else", torch.float32, 1.0, 1.0), (), (), {}, {})
    assert [v.word for v in compare.verdicts(old, [other])] == ["gone"]
    assert compare.verdicts(old, []) == []  # its section was not measured


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not a run to compare with: "),
        ('{"format": 0}', "its format is 0, not 1"),
        ('{"format": 1}', "is not a run to compare with: 'results'"),
        ('{"format": 1, "results": []}', "must hold 5 visits of every case, got 0"),
        (None, "is not a run to compare with: "),
    ],
)
def test_a_file_that_is_no_run_is_refused(
    tmp_path: Path, content: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["bench", "rope", "--compare", str(path)])
    with pytest.raises(SystemExit):
        main()
    assert sentence in capsys.readouterr().err


def made_up(pace: dict[str, float]) -> Section:
    """A section whose only case tells that it took as long as `pace` says, and some noise."""
    x, noise = torch.ones(()), random.Random(0)

    def side(name: str) -> Any:
        return lambda: Sample(x, pace[name] * noise.uniform(1.0, 1.03))

    case = Case(TASK, {"": side("")}, {"torch": side("torch")}, lambda: x)
    return Section("s", [lambda: case], seconds=0.1)


def test_a_planted_slow_down_is_found_and_the_same_code_is_not(tmp_path: Path) -> None:
    pace = {"": 0.01, "torch": 0.01}
    section, limits = made_up(pace), Limits(1)
    first = Run([section], limits, None, passes=5)
    path = tmp_path / "run.json"
    record.save_json(first.results(section), limits, [], path)
    old = compare.load(path)
    assert len(json.loads(path.read_text())["results"][0]["visits"]) >= 5
    assert not judge(Run([section], limits, None, passes=5), old)
    pace[""] *= 1.1
    assert judge(Run([section], limits, None, passes=5), old)


def told() -> list[Section]:
    """A section whose works tell which process measures them."""
    x = torch.ones(())
    case = Case(replace(TASK, work=str(os.getpid())), {"": lambda: x}, {}, lambda: x)
    return [Section("s", [lambda: case, lambda: case], seconds=0.01)]


def test_each_pass_has_a_process_of_its_own() -> None:
    visitors, processes = apart(told, 1), []
    for _ in range(2):
        with visitors() as visit:
            for index in range(2):
                result, limits = visit((0, index), None)
                assert len(result.visits) == 1
                assert not result.wrong
                assert limits.sampled
                processes.append(int(result.task.work))
    assert processes[0] == processes[1] != processes[2] == processes[3]
    assert os.getpid() not in processes


def test_a_run_knows_the_limits_that_its_visitors_saw() -> None:
    limits = Limits(1)
    run = Run(sections := told(), limits, None, passes=2, visitors=apart(told, 1))
    assert all(len(result.visits) >= 2 for result in run.results(sections[0]))
    assert limits.flops(TASK.dtype) > 0
    assert limits.binding(TASK)[1] > 0


def test_ctrl_c_keeps_what_was_measured() -> None:
    section, limits = made_up({"": 0.001, "torch": 0.001}), Limits(1)

    def interrupt() -> Case:
        raise KeyboardInterrupt

    both = Section("s", [*section.points, interrupt], seconds=0.01)
    run = Run([both], limits, None)
    assert run.interrupted
    assert [r.task for r in run.results(both)] == [TASK]


def test_the_middle_and_the_spread_of_the_turns() -> None:
    r = Result("s", TASK, ("",), (), {"": 1.0}, {}, samples={"": (4.0, 1.0, 2.0, 3.0, 5.0)})
    assert r.median("") == 3.0
    assert r.spread("") == pytest.approx(2 / 3)


def test_a_disturbed_measurement_yields_to_a_quiet_one_and_else_shows_no_figure() -> None:
    loud = replace(result(visits(0.5, [1.0], True)), quiet=False)
    calm = result(visits(1.0, [1.0], True))
    for both in (loud.best_of(calm), calm.best_of(loud)):
        assert both.quiet
        assert both.seconds == calm.seconds
        assert len(both.visits) == 2
    limits = Limits(1)
    limits.sample(TASK)
    for cell in (table.milliseconds(loud, ""), table.share(loud, "", limits)):
        assert cell == "noisy"
    assert table.ratio(loud, "", "torch") == "noisy"
    assert table.ratio(calm, "", "torch") != "noisy"
