"""BERT with a head: labels for a text, labels for its tokens, and tokens for its gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lanewise import ops
from lanewise.models.bert import ACTIVATIONS, Bert, BertConfig, make_norm, rename
from lanewise.models.checkpoint import load_weights, open_checkpoint
from lanewise.models.config import read_config
from lanewise.nn import Linear

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


class _BertWithHead(nn.Module):
    """What the heads share: the encoder ``bert``, and how a checkpoint is read."""

    bert: Bert

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Reads the model of that name at ``path``, as `Bert.from_pretrained` does; eval mode.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: the config describes a variant that is not built here, or the weights do not
                fit it.
            ImportError: the package safetensors is missing.
        """
        values = read_config(path, required=())
        with torch.device("meta"):
            model = cls._from_config(values)
        with open_checkpoint(path) as checkpoint:
            load_weights(model, checkpoint, cls._rename, dtype)
        return model.to(device).eval()

    @classmethod
    def _from_config(cls, values: dict[str, Any]) -> Self:
        """A model for the values of a ``config.json``."""
        raise NotImplementedError

    @classmethod
    def _rename(cls, name: str) -> str | None:
        """Our name for a parameter of Hugging Face's model, None for what we leave out."""
        encoders = rename(name)
        return None if encoders is None else f"bert.{encoders}"


class BertForSequenceClassification(_BertWithHead):
    """One row of logits for a text: from the state of its first token, through the pooler.

    Args:
        config: the encoder's.
        labels: the names of the classes, or of the numbers in a regression.
        problem_type: what the logits mean: ``single_label_classification`` (softmax),
            ``multi_label_classification`` (sigmoid of each) or ``regression`` (themselves).
    """

    def __init__(
        self,
        config: BertConfig,
        labels: Sequence[str],
        problem_type: str = "single_label_classification",
    ) -> None:
        super().__init__()
        if problem_type not in PROBLEM_TYPES:
            known = ", ".join(PROBLEM_TYPES)
            raise ValueError(
                f"BertForSequenceClassification: problem_type must be one of {known}, "
                f"got {problem_type!r}"
            )
        if problem_type == "single_label_classification" and len(labels) < 2:
            raise ValueError(
                f"BertForSequenceClassification: labels must be at least 2 for {problem_type}, "
                f"got {len(labels)}"
            )
        self.labels = tuple(labels)
        self.problem_type = problem_type
        self.bert = Bert(config)
        self.pooler = Linear(config.hidden_size, config.hidden_size, activation="tanh")
        self.classifier = Linear(config.hidden_size, len(self.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S] → logits [B, labels]; the arguments are those of `Bert.forward`."""
        states = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classifier(self.pooler(states[:, 0]))

    def scores(self, logits: Tensor) -> Tensor:
        """Logits → probabilities, float32; the values themselves for a regression."""
        logits = logits.float()
        if self.problem_type == "regression":
            return logits
        if self.problem_type == "multi_label_classification":
            return logits.sigmoid()
        return logits.softmax(-1)

    @classmethod
    def _from_config(cls, values: dict[str, Any]) -> Self:
        labels = read_labels(values)
        # One class alone cannot be a choice: its logit is taken as that of a yes.
        default = "single_label_classification" if len(labels) > 1 else "multi_label_classification"
        return cls(BertConfig.from_dict(values), labels, values.get("problem_type") or default)

    @classmethod
    def _rename(cls, name: str) -> str | None:
        if name.startswith("bert.pooler.dense."):
            return name.replace("bert.pooler.dense", "pooler")
        return name if name.startswith("classifier.") else super()._rename(name)


class BertForTokenClassification(_BertWithHead):
    """One row of logits for every token, as for named entities.

    Args:
        config: the encoder's.
        labels: the names of the classes.
    """

    def __init__(self, config: BertConfig, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.bert = Bert(config)
        self.classifier = Linear(config.hidden_size, len(self.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S] → logits [B, S, labels]; the arguments are those of `Bert.forward`."""
        return self.classifier(self.bert(input_ids, attention_mask, token_type_ids))

    @classmethod
    def _from_config(cls, values: dict[str, Any]) -> Self:
        return cls(BertConfig.from_dict(values), read_labels(values))

    @classmethod
    def _rename(cls, name: str) -> str | None:
        return name if name.startswith("classifier.") else super()._rename(name)


class BertForMaskedLM(_BertWithHead):
    """Logits over the vocabulary for every token, the masked ones above all.

    Its last matrix is that of the word embeddings.

    Args:
        config: the encoder's.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.bert = Bert(config)
        self.transform = Linear(size, size, activation=ACTIVATIONS[config.hidden_act])
        self.norm = make_norm(config)(size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S] → logits [B, S, V]; the arguments are those of `Bert.forward`."""
        states = self.bert(input_ids, attention_mask, token_type_ids)
        hidden = self.norm(self.transform(states))
        return ops.linear(hidden, self.bert.embeddings.word_embeddings.weight, self.bias)

    @classmethod
    def _from_config(cls, values: dict[str, Any]) -> Self:
        if not values.get("tie_word_embeddings", True):
            raise ValueError("BertForMaskedLM: tie_word_embeddings must be True, got False")
        return cls(BertConfig.from_dict(values))

    @classmethod
    def _rename(cls, name: str) -> str | None:
        if name.startswith("cls.predictions."):
            return _PREDICTIONS.get(name.removeprefix("cls.predictions."))
        return super()._rename(name)


# The rest (decoder.weight, decoder.bias) are copies of the word embeddings and of the bias.
_PREDICTIONS = {
    "bias": "bias",
    "transform.dense.weight": "transform.weight",
    "transform.dense.bias": "transform.bias",
    "transform.LayerNorm.weight": "norm.weight",
    "transform.LayerNorm.bias": "norm.bias",
    "transform.LayerNorm.gamma": "norm.weight",
    "transform.LayerNorm.beta": "norm.bias",
}


def read_labels(values: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a ``config.json``, in their order.

    Raises:
        ValueError: ``id2label`` does not give the classes 0, 1, 2 and so on a name each.
    """
    named = values.get("id2label")
    if named is None:
        count = values.get("num_labels", 2)  # as transformers, which leaves these names out
        if type(count) is not int or not 1 <= count <= _MAX_LABELS:
            raise ValueError(
                f"read_labels: num_labels must be an integer from 1 to {_MAX_LABELS}, got {count!r}"
            )
        return tuple(f"LABEL_{number}" for number in range(count))
    try:
        labels = tuple(named[str(number)] for number in range(len(named)))
    except (TypeError, KeyError):
        labels = ()
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"read_labels: id2label must name the classes 0, 1, 2 and so on, got {named!r}"
        )
    if len(set(labels)) < len(labels):
        raise ValueError(f"read_labels: id2label must have different names, got {named!r}")
    return labels


_MAX_LABELS = 1 << 20
