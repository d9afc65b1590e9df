"""GGUF files: the header, dequantization, and what llama.cpp's converter changes, undone."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_same_bits

from lanewise.models.checkpoint import open_checkpoint
from lanewise.models.config import read_config
from lanewise.models.gguf import GgufFile

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

import gguf_samples as samples  # noqa: E402 (it needs gguf)

KINDS = ("llama", "qwen2", "qwen3", "gemma3_text")
F32 = 0


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return samples.tiny(request.param)


# --- models --------------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_conversion(model: Any, tmp_path: Path) -> None:
    path = samples.write_model(model, tmp_path / "model.gguf")
    state = model.state_dict()
    with open_checkpoint(path) as checkpoint:
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        assert set(checkpoint.names()) == state.keys() - tied
        for name in checkpoint.names():
            assert name in checkpoint
            assert checkpoint.shape(name) == state[name].shape
            # (w + 1) - 1 has lost what lies below an ulp of 1.
            lost = 2**-23 if model.config.model_type == "gemma3_text" and "norm" in name else 0
            torch.testing.assert_close(checkpoint.read(name), state[name], rtol=0, atol=lost)
            rounded = checkpoint.read(name, torch.bfloat16)
            assert_same_bits(rounded, checkpoint.read(name).bfloat16())


def test_transformers_model_of_our_config_and_weights(model: Any, tmp_path: Path) -> None:
    path = samples.write_model(model, tmp_path / "model.gguf")
    config = read_config(path)
    again = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    ).eval()
    with open_checkpoint(path) as checkpoint:
        weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    again.load_state_dict(weights)
    ids = torch.randint(3, 67, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_transformers_reads_the_same(kind: str, tmp_path: Path) -> None:
    """Its own reader, so that the converter in our tests is not the only witness.

    (Of a qwen3 file it ignores the width of the heads.)
    """
    model = samples.tiny(kind)
    tokens = [f"t{i}" for i in range(67)]
    path = samples.write_model(model, tmp_path / "model.gguf", **{"tokenizer.ggml.tokens": tokens})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    state = theirs.state_dict()
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            assert_same_bits(checkpoint.read(name), state[name])
    ours = transformers.AutoConfig.for_model(**read_config(path))
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "vocab_size",
                "rope_parameters", "layer_types", "sliding_window", "tie_word_embeddings",
                "max_position_embeddings", "intermediate_size", "bos_token_id"):  # fmt: skip
        assert getattr(ours, key, None) == getattr(theirs.config, key, None), key


def test_llama_biases_are_restored_too(tmp_path: Path) -> None:
    model = samples.tiny("llama", attention_bias=True, mlp_bias=True)
    path = samples.write_model(model, tmp_path / "model.gguf")
    config = read_config(path)
    assert config["attention_bias"]
    assert config["mlp_bias"]
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            assert_same_bits(checkpoint.read(name), model.state_dict()[name])


def llama3_factors(factor: float, head_dim: int, theta: float) -> np.ndarray:
    """As convert_hf_to_gguf.py has it, one frequency at a time."""
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_is_recognised(factor: float, tmp_path: Path) -> None:
    metadata = {**minimal("llama", head_dim=128), "llama.rope.freq_base": 500000.0}
    tensors = {"token_embd.weight": np.zeros((8, 256), np.float32)}
    rope = llama3_factors(factor, 128, 500000.0)
    path = samples.write(tmp_path / "a.gguf", "llama", metadata, **tensors,
                         **{"rope_freqs.weight": rope})  # fmt: skip
    assert read_config(path)["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names() == ["model.embed_tokens.weight"]
    rope[40] *= 1.01
    path = samples.write(tmp_path / "b.gguf", "llama", metadata, **tensors,
                         **{"rope_freqs.weight": rope})  # fmt: skip
    with pytest.raises(ValueError, match=r"b\.gguf: the factors in rope_freqs.weight do not"):
        read_config(path)


def minimal(arch: str, head_dim: int = 16) -> dict[str, Any]:
    return {
        f"{arch}.block_count": 1,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": 2 * head_dim,
        f"{arch}.feed_forward_length": 32,
        f"{arch}.attention.head_count": 2,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"/block_count": None}, r"llama\.block_count must be an integer from 1 to 167772"),
        ({"/block_count": 2**31}, "block_count must be an integer from 1 to 16777216, got 21474"),
        ({"/block_count": 20_000}, "num_hidden_layers must be an integer from 1 to 10000, got 2"),
        ({"/embedding_length": -4}, "embedding_length must be an integer from 1 to 16777216, got"),
        ({"/attention.head_count_kv": [2, 1]}, "head_count_kv must be an integer"),
        ({"/attention.layer_norm_rms_epsilon": "x"}, "epsilon must be a positive number, got 'x'"),
        ({"/attention.layer_norm_rms_epsilon": float("nan")}, "epsilon must be a positive number"),
        ({"/expert_count": 8}, r"llama\.expert_count must be 0, got 8"),
        ({"/attention.sliding_window": 7}, r"llama\.attention\.sliding_window must be 0, got 7"),
        ({"/attention.value_length": 8}, "attention.value_length must be the keys' 16, got 8"),
        ({"/rope.dimension_count": 8}, "rope.dimension_count must be the heads' 16, got 8"),
        ({"/rope.scaling.type": "yarn"}, "rope.scaling.type must be none or linear, got 'yarn'"),
        ({"/rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor is not served"),
        ({"/vocab_size": 4}, r"vocab_size must be the 67 rows of token_embd.weight, got 4"),
        ({"split.count": 2}, "the file must be a whole model, not a part of a split one"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id must be a token number, got 'x'"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(metadata: dict, message: str, tmp_path: Path) -> None:
    path = samples.write_model(samples.tiny("llama"), tmp_path / "model.gguf", **metadata)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = samples.write(tmp_path / "model.gguf", "mamba", {}, a=np.zeros(4, np.float32))
    for read in (read_config, open_checkpoint):
        with pytest.raises(
            ValueError, match="must be one of gemma3, llama, qwen2, qwen3, got 'mam"
        ):
            read(path)


def test_linear_scaling_and_several_ends(tmp_path: Path) -> None:
    model = samples.tiny("gemma3_text")
    more = {"/rope.scaling.type": "linear", "/rope.scaling.factor": 8.0,
            "tokenizer.ggml.eot_token_id": 9, "/final_logit_softcapping": 30.0}  # fmt: skip
    config = read_config(samples.write_model(model, tmp_path / "model.gguf", **more))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["eos_token_id"] == [2, 9]
    assert config["final_logit_softcapping"] == 30.0
    layers = transformers.AutoConfig.for_model(**config)
    assert layers.rope_parameters["full_attention"]["factor"] == 8.0
    assert layers.rope_parameters["sliding_attention"]["rope_type"] == "default"


def test_a_tensor_without_a_place_keeps_its_name(tmp_path: Path) -> None:
    names = (
        "blk.0.attn_sinks.weight",
        "token_embd.weight",
        "blk.01.attn_q.weight",
        "output_norm.x",
    )
    tensors = {name: np.zeros((4, 4), np.float32) for name in names}
    path = samples.write(tmp_path / "model.gguf", "llama", minimal("llama"), **tensors)
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names()) == {*names} - {names[1]} | {"model.embed_tokens.weight"}
    tensors["model.embed_tokens.weight"] = tensors[names[0]]
    path = samples.write(tmp_path / "model.gguf", "llama", minimal("llama"), **tensors)
    with pytest.raises(
        ValueError, match=r"'token_embd.weight' and 'model.embed_tokens.weight' are t"
    ):
        open_checkpoint(path)


def test_projections_of_an_odd_height(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_q.weight": np.zeros((6, 4), np.float32)}
    path = samples.write(tmp_path / "model.gguf", "llama", minimal("llama"), **tensors)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(ValueError, match="even number of rows"),
    ):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight")


# --- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
@pytest.mark.parametrize("shape", [(256,), (3, 512), (2, 3, 256), (1100, 256)])
def test_dequantization_is_the_library_s(kind: str, shape: tuple, tmp_path: Path) -> None:
    """Over several chunks too (the last shape), and from random bytes."""
    kind = gguf.GGMLQuantizationType[kind]
    raw = np.random.default_rng(0).integers(
        0, 256, gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.uint8
    )
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("pad", np.zeros(3, np.float32))
    writer.add_tensor("a", raw, raw_dtype=kind)
    path = samples.written(writer)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(raw, kind)).view(shape)
    with GgufFile(path) as file:
        assert file.tensors["a"].shape == shape
        assert_same_bits(file.read("a"), expected)
        assert_same_bits(file.read("a", torch.bfloat16), expected.bfloat16())


def test_integers_are_not_weights(tmp_path: Path) -> None:
    path = samples.write(tmp_path / "a.gguf", "llama", {}, a=np.zeros(4, np.int32))
    with (
        GgufFile(path) as file,
        pytest.raises(ValueError, match="a is of the type I32, which is not"),
    ):
        file.read("a")


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = samples.write(tmp_path / "a.gguf", "llama", {}, a=np.zeros(4096, np.float32))
    with GgufFile(path) as file:
        with open(path, "r+b") as raw:
            raw.truncate(path.stat().st_size - 4096)
        with pytest.raises(ValueError, match=r"a\.gguf: the file ends inside a"):
            file.read("a")


def test_memory_is_one_tensor_s(tmp_path: Path) -> None:
    """Peak memory while a large tensor is read, in a process of its own."""
    rows = 1 << 17
    path = samples.write(
        tmp_path / "a.gguf", "llama", minimal("llama"),
        **{"token_embd.weight": np.zeros((rows, 256), np.float16)},
    )  # fmt: skip
    script = (
        "import resource, sys, torch\n"
        "from lanewise.models.checkpoint import open_checkpoint\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "checkpoint = open_checkpoint(sys.argv[1])\n"
        "import gguf.quants\n"
        "before = peak()\n"
        "tensor = checkpoint.read('model.embed_tokens.weight')\n"
        "print((peak() - before) / tensor.nbytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert float(done.stdout) < 1.3, done.stderr


# --- headers -------------------------------------------------------------------------------------


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor(name: bytes = b"a", shape: tuple = (8,), kind: int = F32, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    *parts: bytes, tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


DATA = bytes(96)  # pads any header and holds the tensor above


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short for a GGUF header"),
        (b"GGUF" + bytes(19), "too short for a GGUF header"),
        (header(magic=b"GGML"), "does not start with the magic bytes GGUF"),
        (header(version=1), "version must be 2 or 3 \\(little-endian\\), got 1"),
        (header(version=3 << 24), "version must be 2 or 3 \\(little-endian\\), got 50331648"),
        (header(keys=2**63), "the header is cut off"),
        (header(tensors=2**64 - 1), "the header is cut off"),
        (header(struct.pack("<Q", 2**64 - 1), keys=1), "the header is cut off"),
        (header(string(b"k"), struct.pack("<I", 13), keys=1), "a value of the unknown type 13"),
        (header(string(b"\xff"), keys=1), "is not UTF-8"),
        (header(*(string(b"k") + struct.pack("<IB", 0, 1),) * 2, keys=2), "metadata has 'k' twice"),
        (header(string(b"k") + struct.pack("<IB", 7, 2), keys=1), "neither 0 nor 1"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 4, 2**62), keys=1), "the header is cut off"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 8, 2**62), keys=1), "the header is cut off"),
        (header(string(b"k") + struct.pack("<IIQ", 9, 9, 1), keys=1), "an array of the type 9"),
        (
            header(string(b"general.alignment") + struct.pack("<II", 4, 24), keys=1),
            "general.alignment must be a power of two, got 24",
        ),
        (
            header(string(b"general.alignment") + struct.pack("<II", 4, 0), keys=1),
            "general.alignment must be a power of two, got 0",
        ),
        (
            header(string(b"general.alignment") + struct.pack("<IB", 7, 1), keys=1),
            "general.alignment must be a power of two, got True",
        ),
        (header(tensor(shape=()), DATA, tensors=1), "must have 1 to 4 dimensions, got 0"),
        (header(tensor(shape=(1,) * 5), DATA, tensors=1), "must have 1 to 4 dimensions, got 5"),
        (header(tensor(shape=(0,)), DATA, tensors=1), "must have positive extents"),
        (header(tensor(shape=(33,), kind=8), DATA, tensors=1), "the last a multiple of 32, got"),
        (header(tensor(kind=99), DATA, tensors=1), "has the unknown type 99"),
        (header(tensor(shape=(2**63, 2**63)), DATA, tensors=1), "lies beyond the end of the file"),
        (header(tensor(shape=(2**32, 2**32)), DATA, tensors=1), "lies beyond the end of the file"),
        (header(tensor(offset=2**64 - 32), DATA, tensors=1), "lies beyond the end of the file"),
        (header(tensor(offset=64), DATA, tensors=1), "lies beyond the end of the file"),
        (header(tensor(offset=4), DATA, tensors=1), "is not aligned, or overlaps another one"),
        (header(tensor(), tensor(b"b"), DATA, tensors=2), "is not aligned, or overlaps another"),
        (header(tensor(), tensor(), DATA, tensors=2), "the tensor 'a' is there twice"),
        (header(tensor(b"\xc0"), DATA, tensors=1), "is not UTF-8"),
    ],
)  # fmt: skip
def test_hostile_headers(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"hostile\.gguf: .*{message}"):
        GgufFile(path)


def test_the_headers_above_would_be_read_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    key = string(b"k") + struct.pack("<IIQ2f", 9, 6, 2, 1.5, -2.0)
    path.write_bytes(header(key, tensor(), tensor(b"b", offset=32), DATA, tensors=2, keys=1))
    with GgufFile(path) as file:
        assert file.metadata["k"].tolist() == [1.5, -2.0]
        assert file.read("b").tolist() == [0.0] * 8


def test_a_long_header_is_refused(tmp_path: Path) -> None:
    """Sparse: a string that reaches over the limit, in a file that is long enough."""
    path = tmp_path / "long.gguf"
    with open(path, "wb") as file:
        file.write(header(struct.pack("<Q", 150_000_000), keys=1))
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="longer than 100000000 bytes"):
        GgufFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        open_checkpoint(tmp_path / "none.gguf")


def everything(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        found = {name: checkpoint.read(name) for name in checkpoint.names()}
    return {**read_config(path), **found}


@given(st.data())
def test_mutations_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """A byte or number changed or the end cut off: values, or a ValueError, and nothing else."""
    folder = tmp_path_factory.getbasetemp()
    if not (source := folder / "mutated_source.gguf").exists():
        more = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5, 0.25]}
        model = samples.tiny("llama", num_hidden_layers=1)
        samples.write_model(model, source, {"q.weight": "Q8_0"}, **more)
    content = bytearray(source.read_bytes())
    end = content.rindex(b"output_norm.weight") + 64  # of the header
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, end))
        size = data.draw(st.sampled_from((1, 4, 8)))
        value = data.draw(st.one_of(st.sampled_from((0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1))),
                                    st.integers(0, 2 ** (8 * size) - 1)))  # fmt: skip
        content[place : place + size] = value.to_bytes(size, "little")
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = folder / "mutated.gguf"
    path.write_bytes(content)
    try:
        values = everything(path)
    except ValueError as caught:
        error = str(caught)
    else:
        error = str(path)
        assert sum(v.numel() for v in values.values() if isinstance(v, torch.Tensor)) < 1e6
    assert str(path) in error


# --- the packaged model --------------------------------------------------------------------------


def test_gemma3_as_packaged() -> None:
    """Every tensor of a real file, beside the library's dequantization at places that transformers'
    own reader finds. (AutoModelForCausalLM gives the same bits, in half a minute.)"""
    path = samples.packaged_gemma3()
    reader = pytest.importorskip("transformers.integrations.gguf.reader")
    blob = np.memmap(path, np.uint8, mode="r")
    _, count, position = reader._read_metadata(blob, str(path))
    table, position = reader._read_tensor_table(blob, count, position)
    start = -(-position // 32) * 32
    with open_checkpoint(path) as checkpoint:
        names = set(checkpoint.names())
        assert len(names) == len(table) == 236
        for stored, shape, kind, offset in table:
            name = hugging_face_name(stored)
            names.remove(name)
            assert checkpoint.shape(name) == shape
            if stored == "token_embd.weight":
                continue  # it takes the library seconds; other Q8_0 tensors are compared
            kind = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = int(np.prod(shape)) // block * block_bytes
            raw = blob[start + offset : start + offset + size].reshape(shape[0], -1)
            values = gguf.quants.dequantize(np.ascontiguousarray(raw), kind).reshape(shape)
            values = values - 1 if "norm" in stored else values
            assert_same_bits(checkpoint.read(name), torch.from_numpy(values))
    assert not names
    config = read_config(path)
    assert config["layer_types"].count("full_attention") == 3
    expected = {"hidden_size": 640, "num_hidden_layers": 18, "head_dim": 256, "vocab_size": 262144,
                "sliding_window": 512, "query_pre_attn_scalar": 256, "rope_theta": 1e6,
                "rope_local_base_freq": 1e4, "num_key_value_heads": 1, "tie_word_embeddings": True,
                "model_type": "gemma3_text", "eos_token_id": [1], "bos_token_id": 2}  # fmt: skip
    assert {key: config[key] for key in expected} == expected


def hugging_face_name(stored: str) -> str:
    """Written out for Gemma 3, apart from our table."""
    layer = {
        **{
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
        },
        **{"attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm"},
        **{"attn_k_norm": "self_attn.k_norm", "attn_norm": "input_layernorm"},
        **{"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
        **{"post_attention_norm": "post_attention_layernorm"},
        **{"ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    }
    if stored.startswith("blk."):
        _, number, module, _ = stored.split(".")
        return f"model.layers.{number}.{layer[module]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[stored]
