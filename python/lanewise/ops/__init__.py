"""The ops as plain functions, one file per family."""

from lanewise.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from lanewise.ops.rope import rope

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm", "rope"]
