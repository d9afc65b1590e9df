"""Attention on GPUs: the functions here bear the names of the ops that they launch."""

from .backward import attention_backward, attention_varlen_backward
from .cache import paged_cache_write
from .padded import attention
from .paged import paged_attention
from .varlen import attention_varlen

__all__ = [
    "attention",
    "attention_backward",
    "attention_varlen",
    "attention_varlen_backward",
    "paged_attention",
    "paged_cache_write",
]
