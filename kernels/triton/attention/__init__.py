"""Attention on GPUs: the functions here bear the names of the ops that they launch."""

from .forward import attention

__all__ = ["attention"]
