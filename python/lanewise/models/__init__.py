"""Whole models made of `lanewise.nn`."""

from lanewise.models.auto import load
from lanewise.models.bert import Bert, BertConfig
from lanewise.models.decoder import Decoder
from lanewise.models.gemma3 import Gemma3, Gemma3Config
from lanewise.models.gpt2 import Gpt2, Gpt2Config
from lanewise.models.llama import Llama, LlamaConfig
from lanewise.models.sentence_encoder import SentenceEncoder

__all__ = [
    "Bert",
    "BertConfig",
    "Decoder",
    "Gemma3",
    "Gemma3Config",
    "Gpt2",
    "Gpt2Config",
    "Llama",
    "LlamaConfig",
    "SentenceEncoder",
    "load",
]
