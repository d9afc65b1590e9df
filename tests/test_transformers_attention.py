"""attn_implementation="lanewise" beside transformers' own "eager", on small random models."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_no_worse_than
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    StaticCache,
)
from transformers.masking_utils import (  # noqa: E402
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

import lanewise.integrations.transformers as door  # noqa: E402
from lanewise.integrations.transformers.mask import pattern_of  # noqa: E402

VOCABULARY = 99
LENGTH = 20
WINDOW = 7  # shorter than the prompts: windows cut

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that attention is not near uniform
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
HYBRID = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.3,
            "eos_token_id": None,
            "bos_token_id": None,
        },
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**GROUPED, **HYBRID, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, **HYBRID}),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**GROUPED, **HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", SIZES),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": None,
        },
    ),
}
GENERATING = [name for name in FAMILIES if name != "bert"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)


def build(family: str, implementation: str, **changes: Any) -> nn.Module:
    config_name, model_name, options = FAMILIES[family]
    config = getattr(transformers, config_name)(
        **{**options, **changes}, attn_implementation=implementation
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(config).eval()
    assert model.config._attn_implementation == implementation
    return model


@functools.cache
def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """The same weights with "eager" and with "lanewise"."""
    return build(family, "eager"), build(family, "lanewise")


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def padding(side: str, length: int = LENGTH) -> Tensor | None:
    """One sequence of a batch of two is six tokens shorter."""
    if side == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.long)
    if side == "left":
        mask[0, :6] = 0
    else:
        mask[1, -6:] = 0
    return mask


def logits(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Those of real tokens."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
        inputs["decoder_attention_mask"] = mask
    out = model(**inputs, use_cache=False).logits
    return out if mask is None else out[mask.bool()]


def relative(out: Tensor, ref: Tensor) -> float:
    return float((out - ref).abs().max().detach() / ref.abs().max().detach())


# --- whole models --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_eager(family: str, side: str) -> None:
    eager, ours = pair(family)
    with torch.inference_mode():
        ref, out = (logits(model, tokens(), padding(side)) for model in (eager, ours))
    assert relative(out, ref) <= 1e-4


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", GENERATING)
def test_greedy_tokens_are_those_of_eager(family: str, cache: str, side: str) -> None:
    """Static caches of the hybrid families hold full and sliding layers, which wrap."""
    generated = [
        model.generate(
            tokens(),
            attention_mask=padding(side),
            cache_implementation=cache,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )
        for model in pair(family)
    ]
    assert torch.equal(*generated)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3", "gpt_oss"])
def test_chunks_of_a_prompt(family: str, side: str, static: bool) -> None:
    """The queries of a chunk are neither at the first keys nor alone."""
    eager, ours = pair(family)
    mask = padding(side)
    with torch.no_grad():
        ref = logits(eager, tokens(), mask)
        # Without the config, every layer keeps all keys and the window is in the mask alone.
        cache = StaticCache(ours.config, max_cache_len=32) if static else DynamicCache()
        parts = []
        for start, end in ((0, 3), (3, 12), (12, 13), (13, LENGTH)):
            part = ours(
                tokens()[:, start:end],
                attention_mask=None if mask is None else mask[:, :end],
                position_ids=torch.arange(start, end)[None],
                cache=cache,
            ).logits
            parts.append(part)
    out = torch.cat(parts, dim=1)
    if mask is not None:
        out = out[mask.bool()]
    assert relative(out, ref) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_eager(family: str) -> None:
    """Of every parameter, T5's position biases and gpt-oss's sinks among them."""
    gradients = []
    for model in pair(family):
        model.zero_grad()
        logits(model, tokens(), padding("left")).square().mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    ref, out = gradients
    assert ref.keys() == out.keys()
    for name in ref:
        # Some are zero but for rounding: a key's bias moves all scores of a query alike.
        scale = max(ref[name].abs().max(), 1e-4 * max(g.abs().max() for g in ref.values()))
        assert (out[name] - ref[name]).abs().max() <= 1e-3 * scale, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = build("gemma3", "lanewise").train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        logits(model, tokens(), padding("left")).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "gpt_oss", "t5"])
def test_dropout_drops_what_eager_drops(family: str, side: str) -> None:
    name = {"gpt2": "attn_pdrop", "t5": "dropout_rate"}.get(family, "attention_dropout")
    losses = []
    for implementation in ("eager", "lanewise"):
        model = build(family, implementation, **{name: 0.4}).train()
        torch.manual_seed(5)
        losses.append(logits(model, tokens(), padding(side)))
        losses[-1].square().mean().backward()
    assert relative(losses[1], losses[0]) <= 1e-4
    with torch.no_grad():
        assert relative(logits(model.eval(), tokens(), padding(side)), losses[0]) > 1e-2


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "bert", "t5"])
def test_bfloat16_errs_no_more_than_twice_sdpa(family: str, side: str) -> None:
    # Not by "eager", whose float64 mask overflows where a query may attend nothing.
    exact = build(family, "sdpa").bfloat16().double()
    outputs = []
    for implementation in ("lanewise", "sdpa"):
        model = build(family, implementation).bfloat16()
        with torch.inference_mode():
            outputs.append(logits(model, tokens(), padding(side)))
    with torch.inference_mode():
        assert_no_worse_than(outputs[0], logits(exact, tokens(), padding(side)), outputs[1])


def test_autocast() -> None:
    eager, ours = pair("llama")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ref, out = (logits(model, tokens(), None) for model in (eager, ours))
    assert relative(out.float(), ref.float()) <= 0.05


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_are_those_of_eager(family: str, side: str) -> None:
    """Of every kind: an encoder's, a decoder's and those between them."""
    ids, mask = tokens(), padding(side)
    inputs = {"input_ids": ids, "attention_mask": mask, "output_attentions": True}
    if family == "t5":
        inputs |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask}
    with torch.no_grad():
        ref, out = (model(**inputs) for model in pair(family))
    kinds = [name for name in ref if name.endswith("attentions")]
    assert any(len(ref[kind]) == 2 for kind in kinds)
    for kind in kinds:
        for ours, theirs in zip(out[kind], ref[kind], strict=True):
            assert ours.shape == theirs.shape
            if mask is not None:  # what padding attends has no meaning
                ours, theirs = (t.transpose(1, 2)[mask.bool()] for t in (ours, theirs))
            assert relative(ours, theirs) <= 1e-4


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "bert", "t5"])
def test_float64_is_torchs(family: str, side: str) -> None:
    """Beside float32: of a row of padding, some eager functions make NaN in float64."""
    with torch.no_grad():
        ref = logits(pair(family)[1], tokens(), padding(side))
        out = logits(build(family, "lanewise").double(), tokens(), padding(side))
    assert out.dtype is torch.float64
    assert relative(out, ref) <= 1e-4


def test_a_query_that_may_attend_nothing_is_never_nan() -> None:
    """With weights dropped or returned, as without: other queries may attend its keys later."""
    q = torch.randn(2, 4, 5, 8, requires_grad=True)
    nothing = torch.zeros(5, 5).index_fill(0, torch.tensor([1]), -torch.inf)
    for options in ({"dropout": 0.1}, {"output_attentions": True}, {}):
        out, _ = door.attention_forward(SimpleNamespace(), q, q, q, nothing, **options)
        (gradient,) = torch.autograd.grad(out.sum(), q)
        assert out.isfinite().all()
        assert gradient.isfinite().all()


def test_a_decoder_made_bidirectional() -> None:
    with torch.no_grad():
        ref, out = (
            logits(build("llama", name, is_causal=False), tokens(), padding("right"))
            for name in ("eager", "lanewise")
        )
        assert relative(out, ref) <= 1e-4
        assert relative(logits(pair("llama")[1], tokens(), padding("right")), ref) > 1e-2


# --- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "side"), [("llama", "none"), ("gemma3", "left")])
def test_compile_in_one_graph(family: str, side: str) -> None:
    eager, ours = pair(family)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (LENGTH, LENGTH + 5):
        mask = padding(side, length)
        with torch.no_grad():
            out = compiled(tokens(2, length), attention_mask=mask, use_cache=False).logits
            ref = logits(eager, tokens(2, length), mask)
        assert relative(out if mask is None else out[mask.bool()], ref) <= 1e-4


def test_compiled_decoding_with_a_static_cache() -> None:
    """The masks come from outside of the graph: what rides on them must not be baked in."""
    eager, ours = pair("gemma3")
    with torch.no_grad():
        ids = eager.generate(tokens(), max_new_tokens=4, do_sample=False, pad_token_id=0)
        torch._dynamo.reset()
        step = torch.compile(ours, fullgraph=True, backend="aot_eager")
        cache = StaticCache(ours.config, max_cache_len=32)
        out = ours(ids[:, :LENGTH], cache=cache).logits[:, -1:]
        for position in range(LENGTH, ids.shape[1]):
            assert torch.equal(out[:, -1].argmax(-1), ids[:, position])
            out = step(ids[:, position : position + 1], cache=cache).logits


@pytest.mark.parametrize("side", ["none", "left"])
def test_export_with_a_dynamic_length(side: str) -> None:
    eager, ours = pair("llama")
    length = {1: torch.export.Dim.DYNAMIC}
    inputs: dict[str, Any] = {"input_ids": tokens(), "use_cache": False}
    shapes: dict[str, Any] = {"input_ids": length, "use_cache": None}
    if side != "none":
        inputs["attention_mask"], shapes["attention_mask"] = padding(side), length
    with torch.no_grad():
        exported = torch.export.export(ours, (), inputs, dynamic_shapes=shapes, strict=False)
        inputs["input_ids"] = tokens(2, 31)
        mask = padding(side, 31)
        if mask is not None:
            inputs["attention_mask"] = mask
        out = exported.module()(**inputs).logits
        assert (
            relative(out if mask is None else out[mask.bool()], logits(eager, tokens(2, 31), mask))
            <= 1e-4
        )
    assert any("lanewise.attention" in str(node.target) for node in exported.graph.nodes)


# --- masks and the attention under them ----------------------------------------------------------


def made(
    kind: str,
    name: str,
    past: int,
    queries: int,
    mask: Tensor | None,
    room: int | None = None,
    **extra: Any,
) -> Any:
    """The mask that transformers makes for an implementation, and the keys that a cache holds."""
    config = transformers.LlamaConfig(**GROUPED, attn_implementation=name)
    cache, keys = None, past + queries
    if room is not None:
        cache, keys = StaticCache(config, max_cache_len=room), room
    elif past:
        cache = DynamicCache()
    if past:
        cache.update(torch.zeros(2, 2, past, 8), torch.zeros(2, 2, past, 8), 0)
    config.sliding_window = config.attention_chunk_size = WINDOW
    makers = {
        "causal": create_causal_mask,
        "sliding": create_sliding_window_causal_mask,
        "chunked": create_chunked_causal_mask,
        "bidirectional": create_bidirectional_mask,
        "bidirectional sliding": create_bidirectional_sliding_window_mask,
    }
    return makers[kind](
        config,
        inputs_embeds=torch.zeros(2, queries, 32),
        attention_mask=mask,
        cache=cache,
        **extra,
    ), keys


def prefix(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key < 4


BLOCKS = torch.tensor([[-1] * 5 + [0] * 6 + [-1] * (LENGTH - 11)] * 2)
PACKED = torch.cat((torch.arange(8), torch.arange(LENGTH - 8)))[None].expand(2, -1)

# kind, tokens before, queries, padding, more, and how the mask comes: None, flags or mask
SCENES = [
    ("causal", 0, LENGTH, "none", {}, "none"),
    ("causal", 8, 12, "none", {}, "none"),
    ("causal", 19, 1, "none", {}, "none"),
    ("causal", 0, LENGTH, "left", {}, "flags"),
    ("causal", 0, LENGTH, "right", {}, "flags"),
    ("causal", 8, 12, "left", {}, "flags"),
    ("causal", 19, 1, "left", {}, "flags"),
    ("causal", 0, LENGTH, "none", {"room": 32}, "flags"),
    ("causal", 8, 12, "left", {"room": 32}, "flags"),
    ("causal", 19, 1, "none", {"room": 32}, "flags"),
    ("causal", 0, LENGTH, "none", {"allow_is_causal_skip": False}, "flags"),
    ("causal", 0, LENGTH, "none", {"or_mask_function": prefix}, "mask"),
    ("causal", 0, LENGTH, "left", {"or_mask_function": prefix}, "mask"),
    ("causal", 0, LENGTH, "none", {"and_mask_function": prefix}, "mask"),
    ("causal", 0, LENGTH, "none", {"block_sequence_ids": BLOCKS}, "mask"),
    ("causal", 0, LENGTH, "none", {"position_ids": PACKED}, "mask"),
    ("sliding", 0, LENGTH, "none", {}, "flags"),
    ("sliding", 0, WINDOW, "none", {}, "flags"),
    ("sliding", 0, WINDOW - 1, "none", {}, "none"),
    ("sliding", 8, 12, "none", {}, "flags"),
    ("sliding", 19, 1, "none", {}, "flags"),
    ("sliding", 8, 12, "left", {}, "flags"),
    ("sliding", 8, 9, "none", {"room": 32}, "flags"),
    ("sliding", 0, LENGTH, "none", {"position_ids": PACKED}, "mask"),
    ("sliding", 0, LENGTH, "none", {"block_sequence_ids": BLOCKS}, "mask"),
    ("chunked", 0, LENGTH, "none", {}, "mask"),
    ("chunked", 0, WINDOW - 1, "none", {}, "none"),
    ("chunked", 8, 12, "left", {}, "mask"),
    ("bidirectional", 0, LENGTH, "none", {}, "none"),
    ("bidirectional", 0, LENGTH, "left", {}, "flags"),
    ("bidirectional", 0, LENGTH, "none", {"or_mask_function": prefix}, "flags"),
    ("bidirectional", 0, LENGTH, "none", {"and_mask_function": prefix}, "mask"),
    ("bidirectional sliding", 0, LENGTH, "none", {}, "flags"),
    ("bidirectional sliding", 0, LENGTH, "right", {}, "flags"),
]


@pytest.mark.parametrize(("kind", "past", "queries", "side", "extra", "form"), SCENES)
@pytest.mark.parametrize("inference", [False, True])
def test_what_the_mask_says_is_what_is_attended(
    kind: str, past: int, queries: int, side: str, extra: dict, form: str, inference: bool
) -> None:
    """Against torch with transformers' additive mask, which is never left out."""
    two_d = padding(side, past + queries)
    with torch.inference_mode(inference):
        dense, keys = made(kind, "eager", past, queries, two_d, **extra)
        mask, _ = made(kind, "lanewise", past, queries, two_d, **extra)
        if form == "none":
            assert mask is None
        else:
            assert (pattern_of(mask, queries, keys) is not None) == (form == "flags")

        torch.manual_seed(2)
        q = torch.randn(2, 4, queries, 8)
        k, v = torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
        layer = SimpleNamespace(is_causal="bidirectional" not in kind)
        window = WINDOW if "sliding" in kind else None
        out, weights = door.attention_forward(layer, q, k, v, mask, sliding_window=window)
        ref = F.scaled_dot_product_attention(
            q.double(),
            k.double().repeat_interleave(2, 1),
            v.double().repeat_interleave(2, 1),
            dense.double() if dense is not None else None,
        ).transpose(1, 2)
    assert weights is None
    assert out.is_contiguous()
    real = torch.ones(2, queries, dtype=torch.bool) if two_d is None else two_d[:, -queries:] > 0
    torch.testing.assert_close(out[real].double(), ref[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_was_changed_is_read(inference: bool) -> None:
    with torch.inference_mode(inference):
        mask, _ = made("sliding", "lanewise", 0, LENGTH, padding("right"))
        assert pattern_of(mask, LENGTH, LENGTH) is not None
        assert pattern_of(mask, LENGTH, LENGTH + 1) is None
        assert pattern_of(mask.clone(), LENGTH, LENGTH) is None
        assert pattern_of(mask[:, :, -1:], 1, LENGTH) is None
        mask[..., :2] = True
        assert pattern_of(mask, LENGTH, LENGTH) is None


def test_padding_changed_after_the_mask_was_made_is_not_seen() -> None:
    two_d = padding("left").bool()
    mask, _ = made("causal", "lanewise", 0, LENGTH, two_d)
    two_d[:] = True
    pattern = pattern_of(mask, LENGTH, LENGTH)
    assert pattern is not None
    assert not pattern.padding[0, 0, 0, :6].any()


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("past", [0, 8])
def test_every_keyword_at_once(past: int, side: str) -> None:
    torch.manual_seed(0)
    queries = LENGTH - past
    q = torch.randn(2, 4, queries, 8)
    k, v = torch.randn(2, 2, LENGTH, 8), torch.randn(2, 2, LENGTH, 8)
    sinks, bias = torch.randn(4), torch.randn(1, 4, queries, LENGTH)
    dense, _ = made("causal", "eager", past, queries, padding(side))
    mask, _ = made("causal", "lanewise", past, queries, padding(side))
    options = {"scaling": 0.3, "softcap": 1.5, "s_aux": sinks, "position_bias": bias}
    out, _ = door.attention_forward(SimpleNamespace(), q, k, v, mask, **options)

    scores = 0.3 * q @ k.repeat_interleave(2, 1).mT
    scores = 1.5 * torch.tanh(scores / 1.5) + bias + dense
    column = sinks[None, :, None, None].expand(2, 4, queries, 1)
    weights = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
    ref = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    real = torch.ones(2, queries) if side == "none" else padding(side)[:, past:]
    torch.testing.assert_close(out[real > 0], ref[real > 0], rtol=1e-5, atol=1e-5)


def test_sequences_packed_by_their_bounds() -> None:
    eager, ours = pair("llama")
    ids, bounds = tokens(1), torch.tensor([0, 8, LENGTH], dtype=torch.int32)
    lengths = {"max_length_q": 12, "max_length_k": 12}
    with torch.no_grad():
        out = ours(ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, **lengths).logits
        positions = torch.arange(LENGTH)
        ref = [
            eager(ids[:, s:e], position_ids=positions[None, s:e]).logits
            for s, e in ((0, 8), (8, LENGTH))
        ]
        restarting = ours(ids, position_ids=PACKED[:1], use_cache=False).logits
    assert relative(out, torch.cat(ref, 1)) <= 1e-4
    assert relative(restarting, torch.cat(ref, 1)) <= 1e-4  # rotary positions are relative


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_without_a_mask(causal: bool) -> None:
    """The last query at the last key; a key counts up to a distance below the window."""
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, LENGTH, 8)
    distance = torch.arange(LENGTH) - torch.arange(LENGTH - 6, LENGTH)[:, None]
    mask = (distance > -WINDOW) & (distance < (1 if causal else WINDOW))
    for options in ({"is_causal": causal}, {"is_causal": causal, "dropout": 1e-9}):
        layer = SimpleNamespace(is_causal=not causal)  # the argument goes first
        out, _ = door.attention_forward(layer, q, k, k, None, sliding_window=WINDOW, **options)
        ref = F.scaled_dot_product_attention(q, k, k, mask).transpose(1, 2)
        torch.testing.assert_close(out, ref, rtol=1e-5, atol=1e-5)


def test_keys_of_any_stride() -> None:
    q, k, v = torch.randn(3, 2, 4, 8, 5).transpose(-1, -2)
    out, _ = door.attention_forward(SimpleNamespace(is_causal=False), q, k, v, None)
    ref = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(out, ref, rtol=1e-5, atol=1e-5)


# --- registration and errors ---------------------------------------------------------------------


def test_registering_again_changes_nothing() -> None:
    door.register()
    door.register()
    assert AttentionInterface()["lanewise"] is door.attention_forward
    assert AttentionMaskInterface()["lanewise"] is door.attention_mask


def test_set_attn_implementation() -> None:
    model = build("llama", "eager")
    with torch.no_grad():
        ref = logits(model, tokens(), None)
        model.set_attn_implementation("lanewise")
        out = logits(model, tokens(), None)
    assert relative(out, ref) <= 1e-4
    assert not torch.equal(out, ref)  # other kernels round otherwise


def test_a_missing_mask_function_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, ours = pair("llama")
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "lanewise")
    with torch.no_grad():
        ref, out = (logits(model, tokens(), padding("left")) for model in (eager, ours))
    assert relative(out, ref) > 1e-2


def test_a_model_with_attention_of_its_own_is_refused() -> None:
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4, attn_implementation="lanewise"
    )
    with pytest.raises(ValueError, match='other attention than "eager", which that of BloomConfig'):
        transformers.BloomForCausalLM(config)(tokens())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"indices": torch.zeros(1)}, "indices must be None"),
        ({"block_indices": torch.zeros(1)}, "block_indices must be None"),
        ({"sinks": torch.zeros(1)}, "sinks must be None"),
        ({"cu_seq_lens_q": torch.tensor([0, 5])}, "must be a batch of 1, got 2"),
        ({"cu_seq_lens_q": torch.tensor([0, 5]), "dropout": 0.1}, "without dropout"),
    ],
)
def test_what_cannot_be_served_is_an_error(keywords: dict, message: str) -> None:
    q = torch.randn(2, 4, 5, 8)
    with pytest.raises(ValueError, match=message):
        door.attention_forward(SimpleNamespace(), q, q, q, None, **keywords)


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ((torch.int32,) * 3, "q must be"),
        ((torch.float32, torch.float32, torch.bfloat16), "v must have q's dtype"),
    ],
)
def test_dtypes_are_those_of_the_op(dtypes: tuple, message: str) -> None:
    q, k, v = (torch.randn(2, 4, 5, 8).to(dtype) for dtype in dtypes)
    with pytest.raises(RuntimeError, match=f"lanewise.attention: {message}"):
        door.attention_forward(SimpleNamespace(), q, k, v, None)
