"""Whether every peer of `python -m bench` answers the question that it is asked."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import peers
from bench.__main__ import main
from bench.case import Case, Task
from bench.check import Checker
from bench.peers import torch as eager
from bench.peers.question import (
    AddRMSNorm,
    Attention,
    GatedLinear,
    LayerNorm,
    Linear,
    Matmul,
    Question,
    RMSNorm,
    Rope,
)
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ATTENTIONS = {"attention", "causal", "grouped", "window", "decode"}
# What a peer has no op for, of the names below.
MISSING = {
    "torch": set[str](),
    "compile": ATTENTIONS | {"linear", "matmul"},
    "numpy": ATTENTIONS | {"linear gelu", "gated", "add rms norm", "rope"},
    "onnxruntime": {"decode"},
    "openvino": {"grouped", "window", "decode"},
    "jax": set[str](),
}
FLOAT32_ALONE = {"flex", "numpy", "onnxruntime"}


def questions(dtype: torch.dtype) -> dict[str, Question]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def heads(queries: int, keys: int, kv: int) -> tuple[Tensor, Tensor, Tensor]:
        return randn(2, 4, queries, 32), randn(2, kv, keys, 32), randn(2, kv, keys, 32)

    angles = torch.randn(9, 16, generator=generator)
    x, weight, bias = randn(20, 48), randn(64, 48) / 7, randn(64)
    return {
        "linear": Linear(x, weight),
        "linear gelu": Linear(x, weight, bias, "gelu"),
        "gated": GatedLinear(x, weight, randn(64, 48) / 7),
        "matmul": Matmul(randn(3, 20, 30), randn(3, 40, 30).mT),
        "attention": Attention(*heads(50, 50, 4)),
        "causal": Attention(*heads(50, 50, 4), causal=True),
        "grouped": Attention(*heads(50, 50, 2), causal=True),
        "window": Attention(*heads(50, 50, 4), causal=True, window=7),
        "decode": Attention(*heads(1, 50, 2)),
        "layer norm": LayerNorm(randn(30, 64), randn(64), bias),
        "rms norm": RMSNorm(randn(30, 64), randn(64)),
        "add rms norm": AddRMSNorm(randn(30, 64), randn(30, 64), randn(64)),
        "rope": Rope(randn(2, 3, 9, 32), angles.cos(), angles.sin()),
    }


NAMES = tuple(questions(torch.float32))
MISSING["flex"] = {*NAMES} - ATTENTIONS | {"decode"}


def answers(peer: str, dtype: torch.dtype, name: str) -> bool:
    if peer == "jax" and dtype == torch.float16 and name in ATTENTIONS:
        return False
    return name not in MISSING[peer] and (dtype == torch.float32 or peer not in FLOAT32_ALONE)


def exact(question: Question) -> Any:
    """torch's answer in float64."""
    operands = {
        field.name: value.double()
        for field in dataclasses.fields(question)
        if isinstance(value := getattr(question, field.name), Tensor)
    }
    return eager.answer(dataclasses.replace(question, **operands))()


def tensors(output: object) -> list[Tensor]:
    parts = output if isinstance(output, tuple | list) else (output,)
    return [torch.as_tensor(part) for part in parts]


@pytest.fixture(autouse=True)
def _all_wanted() -> Iterator[None]:
    yield
    peers.want(peers.ALL)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("peer", peers.ALL)
def test_a_peer_answers_the_question(peer: str, name: str, dtype: torch.dtype) -> None:
    question = questions(dtype)[name]
    with torch.inference_mode():
        sides, absent = peers.ask(question, [peer])
        assert absent == {}
        assert (peer in sides) == answers(peer, dtype, name)
        for side in sides.values():
            case = Case(Task(name, dtype, 0, 0), {}, sides, lambda: exact(question))
            for _ in range(2):
                output = side()
                assert isinstance(output, tuple) == (name == "add rms norm")
                assert {t.dtype for t in tensors(output)} == {dtype}
                assert Checker(case).fault(peer, output) is None


def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> int:
    settings = ("--seconds", "0.001", "--output", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bench", *arguments, *settings])
    return main()


SHAPE = ("norm", "--shape", "3x24", "--dtypes", "float32")


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a module stands that takes the place of jax."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "jax" or n == "bench.peers.jax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "jax.py"


def test_a_peer_that_is_not_installed_is_named(
    jax: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    jax.write_text("raise ModuleNotFoundError('none', name='jax')")
    assert bench(monkeypatch, tmp_path, *SHAPE, "--peers", "torch", "jax") == 0
    printed = capsys.readouterr()
    assert "JAX does not run here: jax is not installed" in printed.err
    assert "× JAX" in printed.out


def test_a_peer_that_fails_to_import_is_named_and_the_status_says_so(
    jax: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    jax.write_text("raise ImportError('libxla.so: cannot open shared object file')")
    assert bench(monkeypatch, tmp_path, *SHAPE, "--peers", "torch", "jax") == 1
    assert (
        "WRONG: layer_norm 3×24, float32: jax failed: ImportError: libxla.so: cannot open"
        in capsys.readouterr().err
    )


def test_a_peer_that_gives_a_wrong_answer_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr("bench.peers.numpy.answer", lambda question: lambda: question.x.numpy() * 2)
    assert bench(monkeypatch, tmp_path, *SHAPE, "--peers", "numpy") == 1
    printed = capsys.readouterr()
    assert "WRONG: layer_norm 3×24, float32: numpy is off by" in printed.err
    assert "wrong" in printed.out


def test_the_pictures_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bench(monkeypatch, tmp_path, "rope", "--peers", "torch") == 0
    found = {path.name for path in tmp_path.iterdir()}
    assert {
        "roofline.png",
        "rope.png",
        "rope-ratios.png",
        "rope.csv",
        "page.md",
        "run.json",
    } <= found


def test_an_unknown_peer_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        bench(monkeypatch, tmp_path, *SHAPE, "--peers", "matlab")
    assert "invalid choice: 'matlab'" in capsys.readouterr().err
