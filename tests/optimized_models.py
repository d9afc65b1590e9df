"""Tiny models of every family that `lanewise.optimize` replaces whole, with random weights."""

import copy
import importlib

import torch

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 44,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
_QWEN2 = {name: value for name, value in _SIZES.items() if name != "head_dim"}
_BERT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "num_labels": 3,
}
_GEMMA = {**_SIZES, "sliding_window": 7, "query_pre_attn_scalar": 16}
# family: (config, model, arguments of the config)
_FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_SIZES, "attention_bias": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_SIZES, "sliding_window": 7}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _QWEN2),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_SIZES, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**_GPT2, "vocab_size": 97, "eos_token_id": None}),
    "bert": ("BertConfig", "BertForSequenceClassification", _BERT),
}
FAMILIES = tuple(_FAMILIES)
DECODERS = tuple(family for family in FAMILIES if family != "bert")


def make(family, seed=0, **changes):
    """A model in eval mode, without dropout unless ``changes`` of its config bring it."""
    transformers = importlib.import_module("transformers")
    config_name, model_name, arguments = _FAMILIES[family]
    dropout = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    dropout |= dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), 0.0)
    config = getattr(transformers, config_name)(**{**dropout, **arguments, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are not what they began as
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def eager_twin(model):
    """A copy that computes with transformers' own reference attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def prompts(batch=2, length=11):
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def left_padding(ids, padded=3):
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    return mask


def relative(a, b):
    """The largest difference, relative to the largest value of ``b``."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
