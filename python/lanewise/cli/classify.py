"""``python -m lanewise classify``: the label of each text, or of what stands in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lanewise.models.text_classifier import (
    TextClassifier,
    TokenClassifier,
    entities,
    load_classifier,
)

Row = tuple[str, float, str]  # label, score, text


def run(
    model: str,
    texts: Sequence[str],
    *,
    dtype: torch.dtype | None,
    threads: int | None,
    truncate: bool,
    every: bool,
) -> int:
    """Prints a line for each label: its score and what it is the label of.

    Args:
        texts: "-" stands for the lines of stdin.
        every: prints all labels of a text, or the label of every token, rather than the likeliest
            label, or the entities.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    classifier = load_classifier(Path(model), dtype=dtype, truncate=truncate)
    rows = list(_rows(classifier, list(_lines(texts)), every))
    width = max((len(label) for label, _, _ in rows), default=0)
    for label, score, text in rows:
        print(f"{label:{width}}  {score:6.3f}  {' '.join(text.split())}")
    return 0


def _lines(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        if text == "-":
            yield from sys.stdin.read().splitlines()
        else:
            yield text


def _rows(
    classifier: TextClassifier | TokenClassifier, texts: list[str], every: bool
) -> Iterator[Row]:
    if isinstance(classifier, TokenClassifier):
        for text, spans in zip(texts, classifier.classify(texts), strict=True):
            for span in spans if every else entities(spans):
                yield span.label, span.score, text[span.start : span.end]
        return
    choice = classifier.model.problem_type == "single_label_classification" and not every
    for text, scores in zip(texts, classifier.classify(texts), strict=True):
        ordered = sorted(scores.items(), key=lambda item: -item[1])
        for label, score in ordered[:1] if choice else ordered:
            yield label, score, text
