"""The ops as plain functions, one file per family."""

from lanewise.ops.rope import rope

__all__ = ["rope"]
