"""The mask function: no mask where flags say the same, and flags beside the mask where they can."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

_PATTERN = "_lanewise_pattern"


@dataclass(frozen=True)
class Pattern:
    """What a mask says, in the terms of `lanewise.attention`, which then skips what is masked.

    It rides on the mask as an attribute, so that a slice, a copy or a cast of the mask has none
    and is taken at its word.

    Attributes:
        keys: how many keys there are up to the last query's; behind them is a static cache's room.
        causal, window_left, window_right: as in `lanewise.attention` over these keys.
        padding: bool ``[B, 1, 1, keys]``, True for a token; None where all are.
        version: the mask's when it was compared. Whoever wrote to it since, made it another mask.
    """

    keys: int
    causal: bool
    window_left: int
    window_right: int
    padding: Tensor | None
    version: int


def pattern_of(mask: Tensor, q_length: int, kv_length: int) -> Pattern | None:
    """The pattern that a mask over these lengths was found to be; None if it must be read."""
    # Inside a graph the attribute would be a constant, and it changes with every decoded token.
    if torch.compiler.is_compiling():
        return None
    pattern = getattr(mask, _PATTERN, None)
    if pattern is None or pattern.version != mask._version:
        return None
    return pattern if mask.shape[-2:] == (q_length, kv_length) else None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask interface; the arguments are those of its ``sdpa_mask``.

    Returns:
        None where a mask has nothing to say beyond order: the attention is bidirectional without
        padding, or causal with the last query at the last key, and no window cuts. Otherwise
        ``sdpa_mask``'s mask, bool ``[B, 1, Sq, Sk]``, True attends; where comparing shows that it
        is order, window and padding and no more, with that `Pattern` on it.

    Raises:
        ValueError: if the config's model knows no attention but its own.
    """
    if config is not None:
        _require_backend(config.__class__)
    # A static cache counts in a tensor, which inside a graph has no value.
    if isinstance(q_offset, Tensor) and not is_tracing(q_offset):
        q_offset = int(q_offset)
    if (
        allow_is_causal_skip
        and not _has_padding(attention_mask, kv_length, kv_offset)
        and not isinstance(q_offset, Tensor)
        and q_offset + q_length == kv_offset + kv_length
        and (local_size is None or kv_length < local_size)
    ):
        return None

    mask = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        # Its None for a causal mask means that the first query is at the first key, ours the last
        # at the last: the one is as good for an empty static cache, the other for any chunk.
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=bool(allow_is_bidirectional_skip),
        **kwargs,
    )
    if mask is None or isinstance(q_offset, Tensor) or is_tracing(mask):
        return mask
    if mask.is_inference():  # which does not count its versions
        with torch.inference_mode(False):
            mask = mask.clone()
    # Only the bidirectional kinds pass that argument. A wrong guess would fail the comparison.
    causal = allow_is_bidirectional_skip is None
    pattern = _compare(mask, q_offset, kv_offset, attention_mask, causal, local_size)
    if pattern is not None:
        setattr(mask, _PATTERN, pattern)
    return mask


def _has_padding(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> bool:
    if attention_mask is None:
        return False
    if is_tracing(attention_mask):
        return True
    return not bool(_padding(attention_mask, kv_length, kv_offset).all())


def _padding(attention_mask: Tensor, kv_length: int, kv_offset: int) -> Tensor:
    padded = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    return padded[:, kv_offset : kv_offset + kv_length]


def _compare(
    mask: Tensor,
    q_offset: int,
    kv_offset: int,
    attention_mask: Tensor | None,
    causal: bool,
    local_size: int | None,
) -> Pattern | None:
    """The pattern that gives exactly this mask, if it is the expected one.

    Overlays, packed sequences and chunks come as functions that cannot be told apart: what the
    mask says is compared, not how it was made.
    """
    q_length, kv_length = mask.shape[-2:]
    end = q_offset + q_length - kv_offset
    keys = end if causal else kv_length
    if not 0 < keys <= kv_length or (keys != end and local_size is not None):
        return None

    # transformers' windows: the last local_size keys, or up to local_size away on either side.
    window_left = window_right = -1
    if local_size is not None:
        window_left, window_right = (local_size - 1, -1) if causal else (local_size, local_size)

    query = (torch.arange(q_length, device=mask.device) + (q_offset - kv_offset))[:, None]
    key = torch.arange(kv_length, device=mask.device)
    expected = key <= query if causal else torch.ones_like(mask[0, 0])
    if window_left >= 0:
        expected = expected & (key >= query - window_left)
    if window_right >= 0:
        expected = expected & (key <= query + window_right)
    padding = None
    if attention_mask is not None:
        padding = _padding(attention_mask, kv_length, kv_offset)[:, None, None]
        expected = expected & padding
    if not bool((mask == expected).all()):
        return None

    if padding is not None:
        padding = padding[..., :keys]
        padding = None if bool(padding.all()) else padding.clone()
    return Pattern(keys, causal, window_left, window_right, padding, mask._version)


@torch.compiler.assume_constant_result
def _require_backend(config_class: type) -> None:
    """Refuses a config whose model is made for "eager" alone.

    transformers lets any registered name through, but the layers of such a model need not ask the
    AttentionInterface, and then add the boolean mask to their scores, nor say truly if they are
    causal, and then are not where the mask is None.
    """
    if not _supports_backends(config_class):
        raise ValueError(
            'attn_implementation="lanewise": the model must support other attention than "eager", '
            f"which that of {config_class.__name__} does not"
        )


@functools.cache
def _supports_backends(config_class: type) -> bool:
    name = config_class.__module__.replace(".configuration_", ".modeling_")
    if name not in sys.modules:
        return True
    models = [
        value
        for value in vars(sys.modules[name]).values()
        if isinstance(value, type)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == name
    ]
    flags = ("_supports_sdpa", "_supports_flash_attn", "_supports_attention_backend")
    return not models or any(getattr(model, flag, False) for model in models for flag in flags)
