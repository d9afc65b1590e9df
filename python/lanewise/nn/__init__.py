"""The thin layer: modules that hold parameters and call the ops.

For inference, and for fine-tuning without dropout: no module here has dropout.
"""

from lanewise.nn.attention import Attention
from lanewise.nn.cache import CacheStep, LayerCache, PagedCache
from lanewise.nn.linear import Linear
from lanewise.nn.mlp import MLP
from lanewise.nn.norm import LayerNorm, RMSNorm
from lanewise.nn.packing import pack, unpack
from lanewise.nn.position import (
    LearnedPositionEmbedding,
    RotaryEmbedding,
    SinusoidalPositionEmbedding,
)
from lanewise.nn.transformer import TransformerLayer

__all__ = [
    "MLP",
    "Attention",
    "CacheStep",
    "LayerCache",
    "LayerNorm",
    "LearnedPositionEmbedding",
    "Linear",
    "PagedCache",
    "RMSNorm",
    "RotaryEmbedding",
    "SinusoidalPositionEmbedding",
    "TransformerLayer",
    "pack",
    "unpack",
]
