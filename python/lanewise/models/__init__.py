"""Whole models made of `lanewise.nn`."""

from lanewise.models.auto import load
from lanewise.models.bert import Bert, BertConfig
from lanewise.models.bert_heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from lanewise.models.decoder import Decoder
from lanewise.models.gemma3 import Gemma3, Gemma3Config
from lanewise.models.gpt2 import Gpt2, Gpt2Config
from lanewise.models.llama import Llama, LlamaConfig
from lanewise.models.sampling import Sampling
from lanewise.models.sentence_encoder import SentenceEncoder
from lanewise.models.text import TextGenerator
from lanewise.models.text_classifier import TextClassifier, TokenClassifier, load_classifier

__all__ = [
    "Bert",
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "Decoder",
    "Gemma3",
    "Gemma3Config",
    "Gpt2",
    "Gpt2Config",
    "Llama",
    "LlamaConfig",
    "Sampling",
    "SentenceEncoder",
    "TextClassifier",
    "TextGenerator",
    "TokenClassifier",
    "load",
    "load_classifier",
]
