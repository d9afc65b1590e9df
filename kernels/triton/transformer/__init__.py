"""Whole layers on GPUs: the functions here bear the names of the ops that they launch."""

from .layer import decoder_layer

__all__ = ["decoder_layer"]
