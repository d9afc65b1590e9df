"""Rotary embedding on GPUs: the functions here bear the names of the ops that they launch."""

from .rotate import rope, rope_backward

__all__ = ["rope", "rope_backward"]
