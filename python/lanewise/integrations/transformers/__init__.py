"""Attention of transformers' models by `lanewise.attention`.

Importing this module is enough::

    import lanewise.integrations.transformers
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="lanewise")
    model.set_attn_implementation("lanewise")  # or of a model already there
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from lanewise.integrations.transformers.attention import attention_forward
from lanewise.integrations.transformers.mask import attention_mask

__all__ = ["attention_forward", "attention_mask", "register"]

NAME = "lanewise"


def register() -> None:
    """Makes ``attn_implementation="lanewise"`` known to transformers; any number of times.

    The mask function goes under the same name: without one, transformers makes no masks at all,
    and padded batches come out wrong without a word.
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


register()
