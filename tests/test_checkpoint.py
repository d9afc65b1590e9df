"""Weights and configs in safetensors files and directories; GGUF files have test_gguf.py."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_same_bits
from torch import nn

from lanewise.models.checkpoint import load_weights, open_checkpoint
from lanewise.models.config import read_config

save_file = pytest.importorskip("safetensors.torch").save_file

WEIGHTS = {
    "a": torch.arange(12.0).view(3, 4) / 7,
    "b.weight": torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "empty": torch.zeros(0, 3),
    "one": torch.tensor(2.5, dtype=torch.float16),
    "numbers": torch.arange(6),
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The weights in two shards, and their index."""
    first = dict(list(WEIGHTS.items())[:2])
    rest = dict(list(WEIGHTS.items())[2:])
    weight_map = {}
    for file, part in (("one.safetensors", first), ("two.safetensors", rest)):
        save_file(part, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(tmp_path, weight_map)
    return tmp_path


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_index(directory: Path, **files: str) -> None:
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    write_index(directory, {**weight_map, **files})


def assert_all_there(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names()) == WEIGHTS.keys()
        for name, tensor in WEIGHTS.items():
            assert name in checkpoint
            assert checkpoint.shape(name) == tensor.shape
            assert_same_bits(checkpoint.read(name), tensor)


# --- weights -------------------------------------------------------------------------------------


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_all_there(tmp_path)
    assert_all_there(tmp_path / "model.safetensors")


def test_shards(sharded: Path) -> None:
    assert_all_there(sharded)


def test_shards_may_be_links(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As in the cache of Hugging Face's hub."""
    blob = tmp_path_factory.mktemp("blobs") / "0123"
    (sharded / "one.safetensors").rename(blob)
    (sharded / "one.safetensors").symlink_to(blob)
    assert_all_there(sharded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rounding(dtype: torch.dtype, sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        for name in ("a", "b.weight", "empty", "one"):
            assert_same_bits(checkpoint.read(name, dtype), WEIGHTS[name].to(dtype))
        with pytest.raises(
            ValueError, match=r"numbers must be of a floating dtype, got torch.int64"
        ):
            checkpoint.read("numbers", dtype)


def test_tensors_outlive_the_checkpoint(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        found = checkpoint.read("a")
    for file in sharded.iterdir():
        file.unlink()
    assert_same_bits(found, WEIGHTS["a"])
    found.mul_(2)  # a mapping of one's own: no file changes


def test_an_unknown_name(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert "c" not in checkpoint
        for ask in (checkpoint.read, checkpoint.shape):
            with pytest.raises(ValueError, match=r"there is no tensor 'c'"):
                ask("c")


def resident() -> int:
    """The memory of this process, pages of files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_nothing_stays_resident(tmp_path: Path) -> None:
    """A tensor's pages go with it, though the checkpoint is still open."""
    size = 1 << 24
    save_file({f"{i}": torch.ones(size // 4) for i in range(8)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert float(checkpoint.read("0").sum()) == size // 4
        before, highest = resident(), 0
        for name in checkpoint.names():
            tensor = checkpoint.read(name)
            assert float(tensor.sum()) == size // 4
            highest = max(highest, resident())
            del tensor
        assert highest - before < 2 * size
        assert resident() - before < size


# --- directories that do not fit -----------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["../one.safetensors", "/one.safetensors", "x/../one.safetensors", "one.bin", "", 3,
             "a\\one.safetensors", "one\0.safetensors", None, ["one.safetensors"]],
)  # fmt: skip
def test_shards_lie_in_the_directory(file: Any, sharded: Path) -> None:
    change_index(sharded, a=file)
    with pytest.raises(ValueError, match=r"index.json: a shard must be a .safetensors file beside"):
        open_checkpoint(sharded)


def test_the_index_and_the_shards_agree(sharded: Path) -> None:
    change_index(sharded, a="two.safetensors")
    with pytest.raises(ValueError, match=r"the tensor 'a' is not in two.safetensors"):
        open_checkpoint(sharded)
    change_index(sharded, a="one.safetensors", c="two.safetensors")
    with pytest.raises(ValueError, match=r"the tensor 'c' is not in two.safetensors"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file(WEIGHTS, sharded / "two.safetensors")
    with pytest.raises(
        ValueError, match=r"two.safetensors: the tensor 'a' is in .*one.safetensors"
    ):
        open_checkpoint(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match="weight_map must be an object"):
        open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors in"):
        open_checkpoint(tmp_path)
    for name in ("none", "none.safetensors", "none.gguf"):
        with pytest.raises(FileNotFoundError, match=name):
            open_checkpoint(tmp_path / name)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"path must name a GGUF file itself, such as .*a\.gguf"):
        open_checkpoint(tmp_path)


class Exploit:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("pickled code was run",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Exploit()))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            ValueError, match=r"not read, since (they|pickled weights) could run any code"
        ):
            open_checkpoint(path)


# --- headers -------------------------------------------------------------------------------------


def entry(dtype: str = "F32", shape: Iterable = (4, 4), offsets: Iterable = (0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path: Path, header: Any, data: bytes = bytes(64), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


TWICE = b'{"a":%s,"a":%s}' % (json.dumps(entry()).encode(), json.dumps(entry("I32")).encode())


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (b"", {"data": b""}, "invalid JSON"),
        ({"a": entry()}, {"length": 2**63}, "header too large"),
        ({"a": entry()}, {"length": 2**64 - 1}, "header too large"),
        ({"a": entry()}, {"length": 1000}, "invalid header length"),
        ({"a": entry(shape=(4, 8), offsets=(0, 128))}, {}, "not fully covered"),
        ({"a": entry()}, {"data": bytes(60)}, "not fully covered"),
        ({"a": entry()}, {"data": bytes(68)}, "not fully covered"),
        ({"a": entry(), "b": entry()}, {}, "invalid offset for tensor"),
        ({"a": entry(shape=(4,), offsets=(48, 64))}, {}, "invalid offset"),
        ({"a": entry(shape=(4, 3))}, {}, "invalid"),
        ({"a": entry(shape=(-4, -4))}, {}, "integer `-4`"),
        ({"a": entry(shape=(4.0, 4))}, {}, "expected usize"),
        ({"a": entry(offsets=(-64, 0))}, {}, "integer `-64`"),
        ({"a": entry(offsets=(64, 0))}, {}, "invalid"),
        ({"a": entry(shape=(2**62, 2**62))}, {}, "overflow"),
        ({"a": entry(shape=(2**32, 2**32, 16))}, {}, "overflow"),
        ({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}, {"data": b""}, "overflow"),
        ({"a": entry("F31")}, {}, "unknown variant `F31`"),
        ({"a": {"dtype": "F32"}}, {}, "missing field"),
        ({"a": 1}, {}, "invalid type"),
        ([1], {}, "invalid type"),
        ({"__metadata__": {"x": 1}, "a": entry()}, {}, "expected a string"),
        (b'{"a\xff":%s}' % json.dumps(entry()).encode(), {}, "invalid UTF-8"),
        (b"[" * 100_000, {}, "invalid"),
        (TWICE, {}, "the key 'a' is there twice"),
    ],
)
def test_hostile_headers(header: Any, options: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "hostile.safetensors", header, **options)
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\1", bytes(8)])
def test_files_without_a_header(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("F8_E4M3", (8, 8), "a cannot be torch.float8_e4m3fn: its scales are not read"),
        ("BOOL", (64,), "a must be of a floating dtype, got torch.bool"),
        ("C64", (8,), "a must be of a floating dtype, got torch.complex64"),
    ],
)
def test_other_dtypes_are_not_rounded(
    kind: str, shape: tuple, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry(kind, shape)})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("a").shape == shape
        with pytest.raises(ValueError, match=message):
            checkpoint.read("a", torch.float32)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_float8_weights_are_refused(dtype: torch.dtype | None, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"weight": entry("F8_E4M3", (8, 8))})
    model = torch.nn.Linear(8, 8, bias=False)
    before = model.weight
    with open_checkpoint(path) as checkpoint, pytest.raises(ValueError, match="weight cannot be"):
        load_weights(model, checkpoint, lambda name: name, dtype)
    assert model.weight is before


def test_packed_numbers_are_refused(tmp_path: Path) -> None:
    """Two in a byte: torch has them with half the shape."""
    path = write(tmp_path / "a.safetensors", {"a": entry("F4", (8, 16))})
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(ValueError, match=r"shape \(8, 16\) that"),
    ):
        checkpoint.read("a")


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        with open(tmp_path / "model.safetensors", "r+b") as raw:
            raw.truncate(400)
        with pytest.raises(ValueError, match=r"model\.safetensors: "):
            checkpoint.read("a")


@given(st.data())
def test_mutations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """A byte changed or the end cut off: tensors, or a ValueError, and nothing else."""
    folder = tmp_path_factory.getbasetemp()
    if not (source := folder / "source.safetensors").exists():
        save_file(WEIGHTS, source)
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, content.rindex(b"}") + 8))
        content[place] = data.draw(st.one_of(st.sampled_from(b'0129,:"[]{}'), st.integers(0, 255)))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = folder / "mutated.safetensors"
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            total = sum(checkpoint.read(name).nbytes for name in checkpoint.names())
    except ValueError as caught:
        error = str(caught)
    else:
        error = str(path)
        assert total <= len(content)
    assert str(path) in error


# --- load_weights --------------------------------------------------------------------------------


def test_load_weights(tmp_path: Path) -> None:
    weights = {"x.weight": torch.ones(3, 2), "x.bias": torch.zeros(3)}
    save_file({**weights, "left.out": torch.zeros(1)}, tmp_path / "model.safetensors")

    def rename(name: str) -> str | None:
        return None if name == "left.out" else name.removeprefix("x.")

    with open_checkpoint(tmp_path) as checkpoint:
        layer = nn.Linear(2, 3)
        load_weights(layer, checkpoint, rename, torch.bfloat16)
        assert_same_bits(layer.weight.data, torch.ones(3, 2).bfloat16())
        for model, new, message in (
            (nn.Linear(2, 3), "y.{}", "the checkpoint lacks bias"),
            (nn.Linear(2, 3, bias=False), "{}", "the checkpoint has an unknown tensor bias"),
            (nn.Linear(2, 4), "{}", r"bias must have the shape \(4,\), got \(3,\)"),
            (nn.Linear(2, 3), "weight", "the checkpoint's .* and .* are both weight"),
        ):
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            with pytest.raises(ValueError, match=f"Linear: {message}"):
                load_weights(
                    model, checkpoint, lambda n, new=new: rename(n) and new.format(rename(n))
                )
            for name, tensor in model.state_dict().items():
                assert_same_bits(tensor, before[name])


# --- configs -------------------------------------------------------------------------------------


def test_a_config(tmp_path: Path) -> None:
    values = {"model_type": "gpt2", "n_embd": 8, "n_inner": None, "anything": [1.5, "x"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == values
    assert read_config(tmp_path / "model.safetensors") == values  # the one beside it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "malformed JSON"),
        ('{"a": ', "malformed JSON"),
        ("[" * 200_000, "malformed JSON: maximum recursion depth"),
        ('{"n": ' + "9" * 5000 + "}", "malformed JSON: Exceeds the limit"),
        ('{"a": 1, "a": 2}', "malformed JSON: the key 'a' is there twice"),
        (b'{"\xff": 1}', "malformed JSON: 'utf-8' codec"),
        ("[1]", "the config must be an object, got list"),
        ("{}", "the key model_type is missing"),
        ('{"model_type": "llama", "hidden_size": -8}', "hidden_size must be an integer from 1 to"),
        ('{"model_type": "llama", "hidden_size": 8.0}', "hidden_size must be .*, got 8.0"),
        ('{"model_type": "llama", "hidden_size": true}', "hidden_size must be .*, got True"),
        ('{"model_type": "llama", "hidden_size": null}', "hidden_size must be .*, got None"),
        (
            '{"model_type": "llama", "num_hidden_layers": 20000}',
            "num_hidden_layers must be .* to 10000, got 20",
        ),
    ],
    ids=range(13),
)
def test_configs_that_are_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read_config(tmp_path)


def test_required_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert read_config(tmp_path, required=()) == {"hidden_size": 8}
    with pytest.raises(ValueError, match=r"config\.json: the key vocab_size is missing"):
        read_config(tmp_path, required=("hidden_size", "vocab_size"))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_config(tmp_path / "none")


def test_a_json_file_too_long(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(300_000_000)  # sparse
    with pytest.raises(ValueError, match="must have at most 256000000 bytes"):
        read_config(tmp_path)
