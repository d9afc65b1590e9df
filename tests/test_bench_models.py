"""What the benches of whole models compute themselves; their numbers are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import neighbours
from bench.case import Case, Result, Sample, Task
from bench.check import Checker
from bench.limits import Limits
from bench.models import bars, generation, onnx_bert, optimize, overhead
from bench.models.bars import Bar
from bench.models.decoders import Lanewise, Transformers
from bench.models.shape import Shape
from bench.remote import client
from bench.timing import measure
from torch import nn

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


def _gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def _gemma() -> Any:
    config = transformers.Gemma3TextConfig(
        **SIZES,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


@pytest.fixture(params=[_gpt2, _llama, _gemma], ids=["gpt2", "llama", "gemma"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model = request.param().eval()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def _layer_weights(model: nn.Module) -> int:
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    return sum(p.numel() for p in layers.parameters() if p.dim() == 2)


def test_shape_counts_weights_and_attended_keys(saved: tuple[Path, Any]) -> None:
    path, model = saved
    shape = Shape.of(path)
    assert shape.matrices == _layer_weights(model)
    assert shape.head == model.lm_head.weight.numel()

    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * 3
    past, new = 20, 4
    at, key = torch.arange(past, past + new)[:, None], torch.arange(past + new)
    pairs = [
        int(((key <= at) & ((key > at - 8) | (kind == "full_attention"))).sum()) for kind in kinds
    ]
    step_by_step = shape.task("", torch.bfloat16, past, new, new)
    heads = 48 if model.config.model_type == "gpt2" else 64  # numbers of a query
    assert step_by_step.flops == 2 * new * (shape.matrices + shape.head) + 4 * heads * sum(pairs)
    keys = 48 if model.config.model_type == "gpt2" else 32
    read = 2 * keys * sum(pairs)
    assert step_by_step.bytes == 2 * (new * (shape.matrices + shape.head) + read)


@pytest.mark.parametrize("side", [Lanewise, Transformers])
def test_decoders_give_the_greedy_tokens(side: Any, saved: tuple[Path, Any]) -> None:
    path, model = saved
    prompt = torch.randint(97, (11,))
    ids = model.generate(prompt[None], max_new_tokens=6, min_new_tokens=6, do_sample=False)
    following = ids[0, 11:]
    with torch.inference_mode():
        expected = model(ids[:, :-1]).logits[0, -1]
        decoder = side(path, torch.float32)
        token, logits = decoder.prefill(prompt)
        assert torch.equal(token, following[:1])
        torch.testing.assert_close(logits, model(prompt[None]).logits[0, -1])
        for _ in range(2):  # the second one starts from the prompt again
            sample = decoder.decode(prompt, following[:-1])
            assert torch.equal(sample.output[0], following[1:])
            torch.testing.assert_close(sample.output[1], expected)
            assert sample.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [generation.prefill, generation.decode])
def test_cases_find_the_sides_right(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 600})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    prompt = torch.randint(97, (generation.PROMPT,))
    model = generation.Model("tiny", lambda: tmp_path, lambda: prompt)

    def absent() -> Any:
        raise client.Absent("reason")

    case = kind(
        model,
        dtype,
        {"": partial(Lanewise, tmp_path, dtype)},
        {"transformers": partial(Transformers, tmp_path, dtype), "llama.cpp": absent},
    )
    found = measure("s", case, 0.01)
    assert not found.wrong
    assert found.seconds.keys() == {"", "transformers"}
    assert found.absent == {"llama.cpp": "reason"}
    wrong = torch.ones(97)
    broken = replace(case, ours={"": lambda: (torch.zeros(1, dtype=torch.int64), wrong)})
    assert measure("s", broken, 0.01).wrong.keys() == {""}


def test_onnx_graph_is_the_model() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "LayerNorm" in name:  # else all zeros and ones
            nn.init.normal_(parameter)
    ids = torch.randint(97, (3, 17))
    found = onnx_bert.session(model, 1)(ids)
    with torch.inference_mode():
        torch.testing.assert_close(found, model(ids).last_hidden_state, atol=1e-4, rtol=1e-4)


def _result(work: str, dtype: torch.dtype = torch.float32, **seconds: float) -> Result:
    seconds = {name.replace("ours", "").replace("_", " ").strip(): s for name, s in seconds.items()}
    ways = tuple(n for n in seconds if n in ("", optimize.OPTIMIZED, overhead.BETWEEN))
    peers = tuple(n for n in seconds if n not in ways)
    return Result("s", Task(work, dtype, 1.0, 1.0), ways, peers, seconds, {})


LIMITS = Limits(1)


def test_bars_compare_with_the_best_peer_that_is_there() -> None:
    results = [_result("a", ours=1.0, torch=3.0, numpy=2.0), _result("b", ours=1.0)]
    assert bars.over("a", "float32", ("torch", "numpy", "flex"))(results, LIMITS) == 2.0
    assert bars.over("a", "bfloat16", ("torch",))(results, LIMITS) is None
    assert bars.over("b", "float32", ("torch",))(results, LIMITS) is None

    def verdict(bound: float, most: bool) -> str:
        found = bars.over("a", "float32", ("numpy",))
        return Bar("x", bound, found, most).cells(results, LIMITS)[-1]

    assert [verdict(2, False), verdict(2.1, False)] == ["yes", "no"]
    assert [verdict(2, True), verdict(1.9, True)] == ["yes", "no"]
    nothing = Bar("x", 1, bars.over("c", "float32", ("torch",)))
    assert nothing.cells(results, LIMITS) == ("x", "≥ 1", "", "not measured")


def test_shares_of_gain_and_of_time() -> None:
    name = optimize.LLAMA_MODEL.name
    results = [
        _result(f"{name} prefill", ours=1.0, optimized=2.0, transformers=4.0),
        _result(f"{name} decode", ours=1.0, optimized=0.5, transformers=9.0),
    ]
    assert optimize.share(optimize.LLAMA_MODEL)(results, LIMITS) == pytest.approx(1.0)
    assert optimize.share(generation.Model("other", Path, torch.Tensor))(results, LIMITS) is None
    steps = [_result("Gemma 3 270M decode", torch.bfloat16, ours=4.0, between_ops=1.0)]
    assert overhead.share("bfloat16")(steps, LIMITS) == 0.25
    assert overhead.share("float32")(steps, LIMITS) is None


def test_a_side_may_keep_the_time_itself() -> None:
    def told() -> Sample:
        return Sample(torch.ones(2), 123.0)

    case = Case(
        Task("t", torch.float32, 1.0, 1.0),
        ours={"": told},
        peers={"torch": partial(torch.ones, 2)},
        reference=partial(torch.ones, 2),
    )
    found = measure("s", case, 0.01)
    assert not found.wrong
    assert found.seconds[""] == 123.0
    assert found.seconds["torch"] < 1.0


def test_tokens_must_be_equal() -> None:
    case = Case(
        Task("t", torch.float32, 1.0, 1.0),
        ours={},
        peers={},
        reference=lambda: (torch.tensor([70000, 3]),),
    )
    checker = Checker(case)
    assert checker.fault("", (torch.tensor([70000, 3]),)) is None
    assert checker.fault("", (torch.tensor([70001, 3]),)) == "gives [70001, 3], not [70000, 3]"


SERVED = """
from bench.remote.serve import serve

class Peer:
    def double(self, number):
        print("chatter")
        return 2 * number

serve(Peer())
"""


def test_a_peer_answers_each_line_whatever_it_prints() -> None:
    calls = [{"number": 21}, {"number": None}, {"number": 4}]
    lines = [json.dumps({"method": "double", "arguments": arguments}) for arguments in calls]
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        cwd=client.ROOT,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert (first, third) == ({"result": 42}, {"result": 8})
    assert second["error"].startswith("TypeError: ")
    assert done.stderr.splitlines() == ["chatter"] * 3


def test_missing_environments_and_peers_are_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client, "ENVIRONMENT", tmp_path)
    with pytest.raises(client.Absent, match="make bench-peers"):
        client.Remote("llama_cpp")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (bin_folder / "python").chmod(0o755)
    with pytest.raises(client.Absent, match=r"ended with status|No module named"):
        client.Remote("llama_cpp")


BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(); input()"


@pytest.mark.skipif(not neighbours.STAT.exists(), reason="only Linux tells")
def test_peers_in_processes_of_their_own_are_no_neighbours() -> None:
    before = neighbours._children()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert neighbours._children() - before >= 0.25
        child.communicate(b"\n")
