"""Norms on GPUs: the functions here bear the names of the ops that they launch."""

from .launch_backward import layer_norm_backward, rms_norm_backward
from .launch_forward import add_layer_norm, add_rms_norm, layer_norm, rms_norm

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]
