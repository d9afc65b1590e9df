"""Labels for texts, and for the tokens of texts: a BERT with a head and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lanewise.models.batches import batches
from lanewise.models.bert_heads import BertForSequenceClassification, BertForTokenClassification
from lanewise.models.config import read_config
from lanewise.models.tokenizer import load_tokenizer


class _Classifier:
    """What both classifiers share: from texts to the logits of the model."""

    _model_class: Any

    def __init__(self, model: Any, tokenizer: Any, *, truncate: bool = False) -> None:
        config = model.bert.config
        if (size := tokenizer.get_vocab_size()) > config.vocab_size:
            raise ValueError(
                f"{type(self).__name__}: the tokenizer must have at most the {config.vocab_size} "
                f"tokens of the model, got {size}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        if truncate:
            self.tokenizer.enable_truncation(config.max_position_embeddings)
        else:
            self.tokenizer.no_truncation()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        truncate: bool = False,
    ) -> Self:
        """Reads a model directory of Hugging Face, tokenizer.json included; eval mode.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: the config describes a variant that is not built here, or the weights do not
                fit it.
            ImportError: the package tokenizers or safetensors is missing.
        """
        model = cls._model_class.from_pretrained(path, device=device, dtype=dtype)
        return cls(model, load_tokenizer(path), truncate=truncate)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        """The encodings of the texts, none longer than the model's positions."""
        encodings = self.tokenizer.encode_batch(list(texts))
        limit = self.model.bert.config.max_position_embeddings
        for index, encoding in enumerate(encodings):
            if len(encoding) > limit:
                raise ValueError(
                    f"{type(self).__name__}: text {index} must have at most {limit} tokens, "
                    f"got {len(encoding)}"
                )
            if len(encoding) == 0:
                raise ValueError(f"{type(self).__name__}: text {index} must have a token, got none")
        return encodings

    def _logits(self, encodings: list[Any], batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Yields (index of the text, its part of the logits on the CPU), shortest texts first."""
        if batch_size < 1:
            raise ValueError(
                f"{type(self).__name__}: batch_size must be at least 1, got {batch_size}"
            )
        device = next(self.model.parameters()).device
        for indices, ids, mask in batches([encoding.ids for encoding in encodings], batch_size):
            logits = self.model(ids.to(device), None if mask is None else mask.to(device)).cpu()
            yield from zip(indices, logits, strict=True)


class TextClassifier(_Classifier):
    """A `BertForSequenceClassification` and its tokenizer.

    Args:
        model: the encoder with its head.
        tokenizer: a ``tokenizers.Tokenizer``; its padding and truncation are replaced.
        truncate: whether texts of more tokens than the model has positions are cut, rather than
            refused.

    Raises:
        ValueError: the tokenizer has more tokens than the model.
    """

    model: BertForSequenceClassification
    _model_class = BertForSequenceClassification

    @torch.inference_mode()
    def classify(self, texts: Sequence[str], *, batch_size: int = 32) -> list[dict[str, float]]:
        """The score of every label for each text: probabilities, or the numbers of a regression.

        Raises:
            ValueError: a text has more tokens than the model has positions, and none is to be cut.
        """
        found: list[dict[str, float]] = [{} for _ in texts]
        for index, logits in self._logits(self._encode(texts), batch_size):
            scores = self.model.scores(logits).tolist()
            found[index] = dict(zip(self.model.labels, scores, strict=True))
        return found


@dataclass(frozen=True)
class Span:
    """A part of a text, ``text[start:end]``, its likeliest label, and the probability of that."""

    start: int
    end: int
    label: str
    score: float


class TokenClassifier(_Classifier):
    """A `BertForTokenClassification` and its tokenizer.

    Args:
        model: the encoder with its head.
        tokenizer: a ``tokenizers.Tokenizer``; its padding and truncation are replaced.
        truncate: whether texts of more tokens than the model has positions are cut, rather than
            refused.

    Raises:
        ValueError: the tokenizer has more tokens than the model.
    """

    model: BertForTokenClassification
    _model_class = BertForTokenClassification

    @torch.inference_mode()
    def classify(self, texts: Sequence[str], *, batch_size: int = 32) -> list[list[Span]]:
        """The label of every token of each text, special tokens left out.

        Raises:
            ValueError: a text has more tokens than the model has positions, and none is to be cut.
        """
        found: list[list[Span]] = [[] for _ in texts]
        encodings = self._encode(texts)
        for index, logits in self._logits(encodings, batch_size):
            scores, labels = logits.float().softmax(-1).max(-1)
            encoding = encodings[index]
            found[index] = [
                Span(start, end, self.model.labels[label], score)
                for (start, end), special, label, score in zip(
                    encoding.offsets,
                    encoding.special_tokens_mask,
                    labels.tolist(),
                    scores.tolist(),
                    strict=False,  # the logits go on over the padding
                )
                if not special
            ]
        return found


def load_classifier(
    path: str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | None = None,
    truncate: bool = False,
) -> TextClassifier | TokenClassifier:
    """The classifier that the config at ``path`` names under ``architectures``.

    Arguments and errors are those of ``from_pretrained``.
    """
    classes: dict[str, type[TextClassifier] | type[TokenClassifier]] = {
        "BertForSequenceClassification": TextClassifier,
        "BertForTokenClassification": TokenClassifier,
    }
    named = read_config(path, required=()).get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in classes:
        known = " or ".join(classes)
        raise ValueError(f"load_classifier: architectures must be {known}, got {named!r}")
    return classes[named[0]].from_pretrained(path, device=device, dtype=dtype, truncate=truncate)


def entities(spans: Sequence[Span], outside: str = "O") -> list[Span]:
    """Joins the tokens of each entity, for labels such as ``B-PER``, ``I-PER`` and ``O``.

    A token goes on with the entity of the token before it if their labels are the same after the
    prefix, and its own prefix is not ``B-``. Tokens labelled ``outside`` belong to none. The score
    of an entity is the mean of its tokens'. Transformers calls this the simple strategy.
    """
    joined: list[list[Span]] = []
    before: Span | None = None
    for span in spans:
        if span.label == outside:
            before = None
            continue
        goes_on = before is not None and _kind(before.label) == _kind(span.label)
        if goes_on and not span.label.startswith("B-"):
            joined[-1].append(span)
        else:
            joined.append([span])
        before = span
    return [
        Span(
            tokens[0].start,
            tokens[-1].end,
            _kind(tokens[0].label),
            sum(token.score for token in tokens) / len(tokens),
        )
        for tokens in joined
    ]


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
