"""The ops as plain functions, one file per family."""

from lanewise.ops.attention import attention
from lanewise.ops.rope import rope

__all__ = ["attention", "rope"]
