"""The decoder models beside transformers' own: logits, caches, gradients, and files that do not
fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lanewise.models import Decoder, Gemma3, Gpt2, Llama, load

transformers = pytest.importorskip("transformers")

V, S = 101, 33
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    "head_dim": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 40,
}
GPT2 = {
    **{"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": V},
    **{"bos_token_id": 1, "eos_token_id": 2},
}


def theirs(kind: str) -> Any:
    """A model of transformers with random weights, eval mode."""
    t = transformers
    made = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
        "llama with biases": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
        ),
        "llama 3.2": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3)
        ),
        "linear rope": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            )
        ),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, sliding_window=8)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, head_dim=32)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SIZES, **GEMMA)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
    }[kind]
    torch.manual_seed(0)
    model = made()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


KINDS = (
    "llama",
    "llama with biases",
    "llama 3.2",
    "linear rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "gpt2",
)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of transformers and the directory it is saved in."""
    path = tmp_path_factory.mktemp("model")
    model = theirs(request.param)
    model.save_pretrained(path)
    return model, path


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(V, (batch, S), generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Within a part of the largest expected value."""
    error = float((found.detach().double() - expected.detach().double()).abs().max())
    assert error <= relative * float(expected.detach().abs().max())


def test_logits(pair: Any) -> None:
    model, path = pair
    ours = load(path, pack=False)
    assert not ours.training
    with torch.no_grad():
        assert_close(ours(tokens()), model(tokens()).logits)


def test_padding_on_either_side(pair: Any) -> None:
    model, path = pair
    ours, ids = load(path, pack=False), tokens()
    with torch.no_grad():
        whole = [ours(ids[:1, :20]), ours(ids[1:])]
        for left in (False, True):
            mask = torch.ones(2, S, dtype=torch.long)
            mask[0, slice(None, S - 20) if left else slice(20, None)] = 0
            padded = ids.clone()
            padded[0, mask[0] == 1] = ids[0, :20]
            found = ours(padded, mask)
            assert_close(found[0][mask[0] == 1], whole[0][0])
            assert_close(found[1], whole[1][0])
            places = (mask.cumsum(-1) - 1).clamp(min=0)
            expected = model(padded, attention_mask=mask, position_ids=places).logits
            assert_close(found[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("packed", [False, True])
def test_a_ragged_batch_through_the_cache(pair: Any, packed: bool) -> None:
    model, path = pair
    ours, ids = load(path, pack=packed), tokens()
    with torch.inference_mode():
        expected = model(ids).logits
        cache = ours.new_cache(2, S)
        at = [0, 0]
        for counts in ([20, 5], [1, 1], [1, 0], [11, 26], [0, 1]):
            new = torch.cat(
                [ids[b, a : a + c] for b, (a, c) in enumerate(zip(at, counts, strict=True))]
            )
            logits = ours.extend(new, counts, cache)
            at = [a + c for a, c in zip(at, counts, strict=True)]
            assert logits.shape == (2, V)
            for b in range(2):
                if counts[b]:
                    assert_close(logits[b], expected[b, at[b] - 1])
                else:
                    assert logits[b].isnan().all()
        assert at == cache.lengths == [S, S]


def test_a_kept_sequence_goes_on(pair: Any) -> None:
    _, path = pair
    ours, ids = load(path), tokens(3)
    with torch.inference_mode():
        cache = ours.new_cache(3, S)
        ours.extend(ids[:, :10].flatten(), [10] * 3, cache)
        cache.keep([2, 0])
        found = ours.extend(torch.cat([ids[2, 10:], ids[0, 10:12]]), [S - 10, 2], cache)
        alone = ours.new_cache(1, S)
        assert_close(found[0], ours.extend(ids[2], [S], alone)[0])


def test_gradients(pair: Any) -> None:
    """Of every tensor of the checkpoint, beside transformers'."""
    model, path = pair
    ours, ids = load(path, pack=False), tokens()
    for m, logits in ((model, model(ids).logits), (ours, ours(ids))):
        m.zero_grad()
        logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).mean().backward()
    their_grads = {name: p.grad for name, p in model.named_parameters()}
    prefix = "transformer." if isinstance(ours, Gpt2) else "model."
    seen = set()
    for name, parameter in ours.named_parameters():
        source = ours.source(name)  # type: ignore[operator]
        full = (prefix if source.prefixed else "") + source.name
        grad = their_grads[full]
        seen.add(full)
        assert parameter.grad is not None
        # Of the whole tensor: the gradient of a key's bias is zero, and its rounding anything.
        error = (parameter.grad - (source.form(grad) if source.form else grad)).abs().max()
        assert error <= 1e-4 * grad.abs().max()
    assert seen == set(their_grads)
    model.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_as_exact_as_transformers(pair: Any, dtype: torch.dtype) -> None:
    model, path = pair
    narrow = type(model).from_pretrained(path, dtype=dtype).eval()
    exact = type(model).from_pretrained(path, dtype=dtype).double().eval()
    ours = load(path, dtype=dtype)
    with torch.inference_mode():
        ids = tokens()
        expected = exact(ids).logits[:, -1]
        their_error = (narrow(ids).logits[:, -1].double() - expected).abs().max()
        found = ours.extend(ids.flatten(), [S, S], ours.new_cache(2, S))
    ulp = torch.finfo(dtype).eps * expected.abs().max()
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= 2 * their_error + ulp


# --- what does not fit ---------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    theirs("llama").save_pretrained(tmp_path)
    return tmp_path


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type must be one of gpt2, .*, got 'mamba'"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"num_hidden_layers": 2}, "unknown tensor model.layers.2"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"intermediate_size": 97}, r"shape \[97, 64\], got \[96, 64\]"),
        ({"vocab_size": 102}, r"model.embed_tokens.weight .* \[102, 64\], got \[101, 64\]"),
        ({"hidden_act": "swish9"}, "hidden_act must be one of .*, got 'swish9'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a finite number, got 'small'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_type must be one of default, linear, llama3, got 'yarn'",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs factor"),
        ({"rope_parameters": {"rope_theta": 0.0}}, "rope_theta must be above 0, got 0.0"),
        (
            {"rope_parameters": {"rope_theta": [1]}},
            r"rope_theta must be a finite number, got \[1\]",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
        ({"model_type": ["llama"]}, r"model_type must be one of gpt2, .*, got \['llama'\]"),
        ({"model_type": "mistral", "layer_types": ["full"] * 3}, "layer_types must name"),
    ],
)
def test_a_config_that_is_refused(saved: Path, changes: Any, message: str) -> None:
    edit_config(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_another_kind_of_model_is_refused(saved: Path) -> None:
    for kind in (Gpt2, Gemma3):
        with pytest.raises(ValueError, match=f"{kind.__name__}: model_type must be .*'llama'"):
            kind.from_pretrained(saved)


def test_a_missing_and_an_unknown_tensor(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = saved / "model.safetensors"
    tensors = load_file(file)
    kept = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"Llama: the checkpoint lacks model.layers.1.mlp.up_pr"):
        load(saved)
    save_file({**tensors, "model.layers.1.mlp.up_proj.weight": kept, "extra": kept.clone()}, file)
    with pytest.raises(ValueError, match="Llama: the checkpoint has an unknown tensor extra"):
        load(saved)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: m.extend(torch.tensor([5, V]), [1, 1], c), f"from 0 to {V - 1}, got {V}"),
        (lambda m, c: m.extend(torch.tensor([-1, 3]), [1, 1], c), f"from 0 to {V - 1}, got -1"),
        (lambda m, c: m.extend(torch.tensor([1, 3]), [1, 2], c), r"shape \[3\], .* got \[2\]"),
        (lambda m, c: m.extend(torch.ones(12).long(), [1, 11], c), "at most 10 tokens"),
        (lambda m, c: m.new_cache(1, 129), "at most 128 tokens, got 129"),
        (lambda m, c: m.extend(torch.ones(2), [1, 1], c), "tokens must be int64 or int32, got"),
        (lambda m, c: m(torch.full((1, 3), V)), f"from 0 to {V - 1}, got {V}"),
        (lambda m, c: m(torch.ones(1, 129).long()), "at most 128 tokens in a row, got 129"),
    ],
)
def test_a_call_that_is_refused(
    saved: Path, call: Callable[[Decoder, Any], Any], message: str
) -> None:
    model = load(saved)
    cache = model.new_cache(2, 10)
    with pytest.raises(ValueError, match=message):
        call(model, cache)
    assert cache.lengths == [0, 0]


def test_a_packed_model_refuses_as_a_whole(saved: Path) -> None:
    model = load(saved)
    assert isinstance(model, Llama)
    for change in (model.train, model.half, lambda: model.load_state_dict({})):
        with pytest.raises(RuntimeError, match="were released"):
            change()
    assert model.embedding.weight.dtype == torch.float32
    assert not model.training


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "meta", torch.device("meta")])
def test_only_models_on_the_cpu_are_packed(saved: Path, device: Any) -> None:
    model = load(saved, device=device)
    weight = model.layers[0].mlp.up_proj.packed_weight
    assert (weight is None) == (device is not None and torch.device(device).type != "cpu")


def test_without_packing_a_model_can_change(saved: Path) -> None:
    model = load(saved, pack=False)
    model.train()
    model.to(torch.bfloat16)
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert model.layers[0].attention.rotary.cos.dtype == torch.float32  # type: ignore[union-attr]
