"""The families of transformers' models that are replaced whole: which class by which."""

from __future__ import annotations

from lanewise.integrations.optimize import attention, layer, linear, mlp, norm
from lanewise.integrations.optimize.swap import Replacement

_LLAMA = {
    "RMSNorm": norm.RMSNorm,
    "MLP": mlp.GatedMLP,
    "Attention": attention.RotaryAttention,
    "DecoderLayer": layer.PreNormLayer,
}
_GEMMA = {
    "RMSNorm": norm.GemmaRMSNorm,
    "MLP": mlp.GatedMLP,
    "Attention": attention.RotaryAttention,
    "DecoderLayer": layer.SandwichLayer,
}
_FAMILIES: dict[tuple[str, str], dict[str, type[Replacement]]] = {
    ("llama", "Llama"): _LLAMA,
    ("mistral", "Mistral"): {**_LLAMA, "Attention": attention.MistralAttention},
    ("qwen2", "Qwen2"): _LLAMA,
    ("qwen3", "Qwen3"): {**_LLAMA, "Attention": attention.NormedRotaryAttention},
    ("gemma2", "Gemma2"): _GEMMA,
    ("gemma3", "Gemma3"): {**_GEMMA, "Attention": attention.NormedRotaryAttention},
    ("gpt2", "GPT2"): {
        "MLP": mlp.GPT2MLP,
        "Attention": attention.GPT2Attention,
        "Block": layer.GPT2Block,
    },
    ("bert", "Bert"): {
        "Intermediate": mlp.BertIntermediate,
        "SelfOutput": mlp.BertOutput,
        "Output": mlp.BertOutput,
        "SelfAttention": attention.BertSelfAttention,
    },
}
REPLACEMENTS: dict[str, type[Replacement]] = {
    f"transformers.models.{module}.modeling_{module}.{prefix}{name}": replacement
    for (module, prefix), classes in _FAMILIES.items()
    for name, replacement in classes.items()
}
REPLACEMENTS["transformers.pytorch_utils.Conv1D"] = linear.Conv1D
