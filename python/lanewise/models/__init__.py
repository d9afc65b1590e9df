"""Whole models made of `lanewise.nn`."""

from lanewise.models.bert import Bert, BertConfig
from lanewise.models.sentence_encoder import SentenceEncoder

__all__ = ["Bert", "BertConfig", "SentenceEncoder"]
