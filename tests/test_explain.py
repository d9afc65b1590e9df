"""What `explain` counts and says, against numbers worked out by hand and torch's own counter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from lanewise.cli import main
from lanewise.explain import analysis
from lanewise.explain.limits import GPUS, Machine
from lanewise.explain.presets import PRESETS
from lanewise.explain.run import PHASES, Question, build, check, count, needed_bytes
from lanewise.explain.work import Work, visible

TINY = {
    "bert": {**PRESETS["minilm"], "num_hidden_layers": 2, "vocab_size": 99},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 99},
    "llama": {
        **PRESETS["llama-3.2-1b"],
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99},
        "max_position_embeddings": 512,
    },
    "gemma3": {
        **PRESETS["gemma-3-270m"],
        **{"hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4, "head_dim": 16},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99},
        **{"sliding_window": 8, "max_position_embeddings": 512},
    },
}


def question(phase: str, batch: int, tokens: int, context: int = 0) -> Question:
    return Question(phase, batch, tokens, context, torch.float32)


def counted(values: dict[str, Any], q: Question) -> list[Any]:
    return count(build(values, q.dtype), q)


def total(records: list[Any]) -> Work:
    return sum((record.work for record in records), Work())


def flops(records: list[Any], *ops: str) -> float:
    return sum(r.work.flops for r in records if r.op.removeprefix("lanewise::") in ops)


@pytest.mark.parametrize("queries", [0, 1, 3, 7])
@pytest.mark.parametrize("keys", [0, 1, 5, 9])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("left", "right"), [(-1, -1), (0, 0), (2, -1), (-1, 3), (3, 1)])
def test_visible_pairs(queries: int, keys: int, causal: bool, left: int, right: int) -> None:
    def attends(i: int, j: int) -> bool:
        apart = j - (i + keys - queries)
        return (
            (apart <= 0 or not causal)
            and (left < 0 or -apart <= left)
            and (right < 0 or causal or apart <= right)
        )

    pairs = sum(attends(i, j) for i in range(queries) for j in range(keys))
    assert visible(queries, keys, causal, left, right) == pairs


def test_gpt2_by_hand() -> None:
    """12 layers of 4 E² for attention's products and 8 E² for the MLP's, and the head."""
    tokens, e, vocab = 64, 768, 50257
    records = counted(PRESETS["gpt2"], question("prefill", 1, tokens))
    products = 12 * 2 * tokens * 12 * e * e + 2 * e * vocab  # of the last token only
    assert flops(records, "linear") == products
    pairs = tokens * (tokens + 1) // 2
    assert flops(records, "paged_attention") == 12 * 4 * pairs * e
    weights = 12 * (12 * e * e + 13 * e) * 4 + e * vocab * 4  # biases: 9 E, norms: 4 E
    rows = 2 * tokens * e * 4  # of both embeddings
    norm = 2 * e * 4
    assert total(records).weights == weights + rows + norm


def test_decode_reads_what_the_window_shows() -> None:
    """Five of six layers of Gemma 3 see 8 tokens here, the sixth all of them."""
    context, heads, size = 40, 2, 16
    q = question("decode", 3, 1, context)
    records = counted(TINY["gemma3"], q)
    token = 2 * heads * size * 4
    read = 3 * token * (6 * 8 + 1 * (context + 1))
    written = 7 * 3 * token
    assert total(records).cache == read + written


def test_products_are_those_that_torch_counts() -> None:
    batch, tokens = 2, 48
    records = counted(PRESETS["minilm"], question("prefill", batch, tokens))
    values = {k: v for k, v in PRESETS["minilm"].items() if k != "model_type"}
    with torch.device("meta"):
        config = BertConfig(**values, attn_implementation="eager")
        theirs = BertModel(config, add_pooling_layer=False).eval()
        ids = torch.empty(batch, tokens, dtype=torch.int64)
        mask = torch.zeros(batch, 1, tokens, tokens)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(ids, attention_mask=mask)
    ours = flops(records, "linear", "attention")
    assert ours == counter.get_total_flops()


def test_a_training_step_is_three_forward_passes_of_products() -> None:
    forward = counted(TINY["gpt2"], question("train", 2, 9))
    products = flops(forward, "linear")
    # Embeddings have no gradient to hand on, but every linear layer's input has.
    assert flops(forward, "linear_backward") == 2 * products
    assert flops(forward, "attention_backward") == 2.5 * flops(forward, "attention")


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("phase", PHASES)
def test_what_runs_is_what_was_counted(kind: str, phase: str) -> None:
    if (kind, phase) == ("bert", "decode"):
        pytest.skip("an encoder has no such phase")
    q = question(phase, 2, 1 if phase == "decode" else 11, 20 if phase == "decode" else 0)
    e = analysis.explain(kind, TINY[kind], q, rounds=1)
    assert e.took is not None
    assert all(row.took is not None for row in e.rows)
    # Running joins the products of queries, keys and values: the same operations, x read once.
    ran = sum((row.work for row in e.rows), Work())
    products = ("linear", "gated_linear", "linear_backward", "gated_linear_backward", "attention")
    products += ("gated_linear_for_backward", "attention_backward", "paged_attention")
    by_op = {r.op.removesuffix("_packed"): 0.0 for r in e.rows}
    for row in e.rows:
        by_op[row.op.removesuffix("_packed")] += row.work.flops
    records = counted(TINY[kind], q)
    for op in products:
        assert by_op.get(op, 0.0) == flops(records, op), op
    assert ran.cache == e.total.cache


def test_the_bound_and_the_cycles_follow_from_the_limits() -> None:
    machine = Machine("m", {torch.float32: 1e9}, 1e8, 2e9, "made up")
    assert machine.bounds(Work(flops=3e9, weights=1e8), torch.float32) == (3.0, 1.0)
    assert machine.bounds(Work(flops=1e9, weights=1e8, cache=2e8), torch.float32) == (1.0, 3.0)
    row = analysis.Row("", "op", "", 1, Work(1e9), "compute", 1.0, 2.0)
    e = analysis.Explanation(
        "m", question("prefill", 1, 4), 1, (row,), Work(1e9), machine, 1.0, 2.0, "", {}
    )
    assert e.cycles(1.5) == 3e9
    assert e.bound == "compute"
    assert "50% of this machine's limits" in analysis.conclusion(e)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_of_about_its_size(name: str) -> None:
    sizes = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "minilm": 22.6}
    sizes |= {"bert-base": 109, "bert-large": 334, "llama-3.2-1b": 1236, "llama-3.2-3b": 3213}
    sizes |= {"llama-3.1-8b": 8030, "llama-3.1-70b": 70554, "mistral-7b": 7248}
    sizes |= {"qwen2.5-0.5b": 494, "qwen3-0.6b": 596, "qwen3-8b": 8191}
    sizes |= {"gemma-3-270m": 268, "gemma-3-1b": 1000, "gemma-3-4b": 3880}
    model = build(PRESETS[name], torch.bfloat16)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert math.isclose(millions, sizes[name], rel_tol=0.01)


@pytest.mark.parametrize(
    "name", ["gpt2", "bert-base", "minilm", "llama-3.2-1b", "gemma-3-270m", "llama-3.1-70b"]
)
@pytest.mark.parametrize("phase", PHASES)
def test_the_command_counts_without_running(
    name: str, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["explain", name, "--phase", phase, "--dry", "--json", "--tokens", "1"])
    if PRESETS[name]["model_type"] == "bert" and phase == "decode":
        assert status == 1
        return
    assert status == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["flops"] == pytest.approx(sum(r["flops"] for r in found["rows"]))
    assert found["total"]["bytes"] == pytest.approx(sum(r["bytes"] for r in found["rows"]))
    assert found["total"]["cycles"] is None
    assert set(found["gpus"]) == set(GPUS)


def test_each_layer_has_rows_of_its_own_where_they_are_asked_for() -> None:
    q = question("prefill", 1, 9)
    joint, apart = (
        analysis.explain("gpt2", TINY["gpt2"], q, run=False, by_layer=by_layer)
        for by_layer in (False, True)
    )
    joint_rows = [r for r in joint.rows if r.place.startswith("layer.")]
    assert {r.calls % 2 for r in joint_rows} == {0}
    for layer in ("layer 0", "layer 1"):
        rows = [r for r in apart.rows if r.place.startswith(layer)]
        assert [(r.op, 2 * r.calls) for r in rows] == [(r.op, r.calls) for r in joint_rows]
        assert 2 * sum(r.work.flops for r in rows) == sum(r.work.flops for r in joint_rows)
    assert apart.total == joint.total


def test_the_cycles_of_gpus_are_given_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "gpt2", "--dry", "--json", "--dtype", "bfloat16", "--gpu", "h100"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [row["gpu_cycles"]["h100"] for row in found["rows"]]
    assert sum(rows) == pytest.approx(found["gpus"]["h100"]["cycles"])
    largest = max(found["rows"], key=lambda row: row["flops"])
    compute = largest["flops"] / 989.4e12 * 1.83e9
    assert largest["gpu_cycles"]["h100"] >= compute > 0


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY["llama"]))
    picture = tmp_path / "llama.png"
    arguments = ["explain", str(config), "--phase", "decode", "--context", "50"]
    arguments += ["--plot", str(picture)]
    assert main([*arguments, "--gpu", "h100"]) == 0
    out = capsys.readouterr().out
    for text in ("tokens/s", "paged_attention", "H100", "not measured", "Bound by"):
        assert text in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nobody"], "lanewise.explain: model must be one of gpt2, "),
        (["minilm", "--phase", "decode"], "lanewise.explain: phase must be prefill or train for"),
        (["gpt2", "--tokens", "1025"], "lanewise.explain: tokens and context must be at most 1024"),
        (["gpt2", "--phase", "decode", "--tokens", "2"], "lanewise.explain: tokens must be 1 in"),
        (["gpt2", "--phase", "train", "--context", "2"], "lanewise.explain: context must be 0 in"),
        (["gpt2", "--context", "-1"], "lanewise.explain: context must not be negative, got -1"),
        (["gpt2", "--gpu", "k80"], "lanewise.explain: gpu must be one of a100, "),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments, "--dry"]) == 1
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "malformed JSON"),
        ('{"model_type": "mamba"}', "model_type must be one of bert, gpt2, "),
        ('{"model_type": "llama"}', "the config lacks"),
        ('{"hidden_size": 4}', "the key model_type is missing"),
    ],
)
def test_a_wrong_config_is_refused(
    tmp_path: Path, text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    assert main(["explain", str(file), "--dry"]) == 1
    assert sentence in capsys.readouterr().err


def test_a_model_that_memory_does_not_hold_is_counted_and_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = question("prefill", 1, 8)
    model = build(TINY["gpt2"], q.dtype)
    weights = sum(p.numel() for p in model.parameters()) * 4
    assert needed_bytes(model, q) > 2 * weights
    monkeypatch.setattr(analysis, "needed_bytes", lambda *_: 2**60)
    e = analysis.explain("gpt2", TINY["gpt2"], q)
    assert e.took is None
    assert e.unmeasured.startswith("a run needs 1073741824.0 GiB of memory, and ")


def test_a_question_beyond_the_model_is_refused() -> None:
    model = build(TINY["gpt2"], torch.float32)
    with pytest.raises(ValueError, match="at most 1024 together, got 1025"):
        check(model, question("decode", 1, 1, 1024))
