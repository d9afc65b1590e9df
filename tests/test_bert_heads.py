"""BERT's heads against transformers' own, on small random weights that it saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lanewise.models.bert import Bert, BertConfig
from lanewise.models.bert_heads import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    read_labels,
)
from lanewise.nn import pack

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
tokenizers = pytest.importorskip("tokenizers")

from lanewise.models.text_classifier import (  # noqa: E402 (it needs tokenizers)
    Span,
    TextClassifier,
    TokenClassifier,
    entities,
    load_classifier,
)

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), ".", ","]
WORDS += ["the", "cat", "sleeps", "mary", "##ly", "paris", "in", "##s"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = [
    "The cat sleeps.",
    "Paris",
    "Mary sleeps in Paris, the cat warily in Rome; étude 你好",
    "",
    "in the paris of cats",
]
NER = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}


def save(path: Path, kind: str, **values: Any) -> Any:
    """A model of transformers at ``path`` with its tokenizer; returns it in eval mode."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=40,
        initializer_range=0.3,
        **values,
    )
    model = getattr(transformers, kind)(config).eval()
    for module in model.modules():  # fresh norms and biases are ones and zeros: nothing to confuse
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.3)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = tokenizers.BertWordPieceTokenizer(str(path / "vocab.txt"), lowercase=True)
    tokenizer.save(str(path / "tokenizer.json"))
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention_mask and token_type_ids of a padded batch."""
    generator = torch.Generator().manual_seed(1)
    # Without [PAD], whose embedding transformers does not train.
    ids = torch.randint(1, len(VOCABULARY), (64, 11), generator=generator)
    mask = (torch.arange(11) < 1 + torch.arange(64)[:, None] % 11).long()
    return ids, mask, torch.randint(2, ids.shape, generator=generator)


def assert_as_accurate(out: Tensor, theirs: nn.Module, *inputs: Tensor | None) -> None:
    """At most twice the root mean square error of transformers, against its float64."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    arguments = dict(zip(names, inputs, strict=False))
    with torch.inference_mode():
        peer = theirs(**arguments).logits
        exact = theirs.double()(**arguments).logits
        theirs.float()
    if inputs[1] is not None and out.ndim == 3 and out.shape[1] == inputs[1].shape[1]:
        out, peer, exact = (t[inputs[1].bool()] for t in (out, peer, exact))
    assert out.shape == exact.shape
    error, allowed = (float((t.double() - exact).square().mean().sqrt()) for t in (out, peer))
    assert 0 < error <= 2 * allowed, f"error {error:.3g}, transformers' {allowed:.3g}"


HEADS = [
    (BertForSequenceClassification, {"num_labels": 3}),
    (BertForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
    (BertForTokenClassification, {"id2label": NER}),
    (BertForMaskedLM, {}),
    (BertForMaskedLM, {"hidden_act": "gelu_new"}),
]


@pytest.mark.parametrize(("head", "values"), HEADS)
@pytest.mark.parametrize("packed", [False, True])
def test_logits_are_those_of_transformers(
    tmp_path: Path, head: Any, values: dict[str, Any], packed: bool
) -> None:
    theirs = save(tmp_path, head.__name__, **values)
    ours = head.from_pretrained(tmp_path)
    assert not ours.training
    ours = pack(ours) if packed else ours
    ids, mask, types = batch()
    with torch.inference_mode():
        assert_as_accurate(ours(ids, mask, types), theirs, ids, mask, types)
        assert_as_accurate(ours(ids), theirs, ids, None)


@pytest.mark.parametrize(("head", "values"), HEADS)
def test_gradients_are_those_of_transformers(
    tmp_path: Path, head: Any, values: dict[str, Any]
) -> None:
    theirs = save(tmp_path, head.__name__, **values).double()
    ours = head.from_pretrained(tmp_path).train()
    ids, mask, _ = batch()
    theirs(input_ids=ids, attention_mask=mask).logits.square().mean().backward()
    ours(ids, mask).square().mean().backward()
    expected = {}
    for name, parameter in theirs.named_parameters():
        if (new := head._rename(name)) is not None:
            expected[new] = parameter.grad
    whole = sum(grad.norm() for grad in expected.values())
    for name, parameter in ours.named_parameters():
        exact = expected.pop(name)
        # The bias of keys has none: what there is of it is rounding.
        assert (parameter.grad - exact).norm() < 1e-4 * exact.norm() + 1e-6 * whole, name
    assert not expected


@pytest.mark.parametrize(("head", "values"), HEADS)
def test_other_dtypes(tmp_path: Path, head: Any, values: dict[str, Any]) -> None:
    theirs = save(tmp_path, head.__name__, **values)
    ours = head.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    ids, mask, types = batch()
    with torch.inference_mode():
        out = ours(ids, mask, types).float()
        exact = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert (out - exact).norm() < 0.05 * exact.norm()


def test_an_encoder_leaves_every_head_out(tmp_path: Path) -> None:
    for head, values in HEADS:
        path = tmp_path / f"{head.__name__}{len(values)}"
        theirs = save(path, head.__name__, **values)
        ids, mask, types = batch()
        with torch.inference_mode():
            expected = theirs.bert(ids, mask, types).last_hidden_state
            found = Bert.from_pretrained(path)(ids, mask, types)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


def test_names_of_older_checkpoints(tmp_path: Path) -> None:
    """TensorFlow's names of the norms, the copies of the tied weights, and a second head."""
    theirs = save(tmp_path, "BertForMaskedLM")
    file = tmp_path / "model.safetensors"
    weights = safetensors.load_file(file)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    weights["cls.predictions.decoder.weight"] = (
        theirs.bert.embeddings.word_embeddings.weight.clone()
    )
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    weights["cls.seq_relationship.weight"] = torch.zeros(2, 48)
    weights["bert.pooler.dense.weight"] = torch.zeros(48, 48)
    weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    safetensors.save_file(weights, file)
    ids, mask, types = batch()
    with torch.inference_mode():
        out = BertForMaskedLM.from_pretrained(tmp_path)(ids, mask, types)
    assert_as_accurate(out, theirs, ids, mask, types)


# --- texts ---------------------------------------------------------------------------------------


def pipeline(task: str, path: Path, **options: Any) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )
    kind = "Sequence" if task == "text-classification" else "Token"
    model = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained(path)
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize(
    "values",
    [
        {"id2label": {0: "bad", 1: "good"}},
        {"num_labels": 2},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 3, "problem_type": "regression"},
    ],
    ids=str,
)
def test_scores_are_those_of_transformers(
    tmp_path: Path, values: dict[str, Any], batch_size: int
) -> None:
    save(tmp_path, "BertForSequenceClassification", **values)
    classifier = load_classifier(tmp_path)
    assert isinstance(classifier, TextClassifier)
    found = classifier.classify(TEXTS, batch_size=batch_size)
    expected = pipeline("text-classification", tmp_path, top_k=None)(TEXTS)
    assert list(found[0]) == list(classifier.model.labels)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(
            {entry["label"]: entry["score"] for entry in theirs}, rel=1e-4, abs=1e-5
        )
    assert len({round(next(iter(scores.values())), 4) for scores in found}) == len(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_labels_are_those_of_transformers(tmp_path: Path, batch_size: int) -> None:
    save(tmp_path, "BertForTokenClassification", id2label=NER)
    classifier = load_classifier(tmp_path)
    assert isinstance(classifier, TokenClassifier)
    found = classifier.classify(TEXTS, batch_size=batch_size)
    tokens = pipeline("token-classification", tmp_path, ignore_labels=[])
    groups = pipeline("token-classification", tmp_path, aggregation_strategy="simple")
    merged = 0
    for text, spans in zip(TEXTS, found, strict=True):
        for ours, name, theirs in (
            (spans, "entity", tokens(text)),
            (entities(spans), "entity_group", groups(text)),
        ):
            expected = [(e["start"], e["end"], e[name]) for e in theirs]
            assert [(span.start, span.end, span.label) for span in ours] == expected
            scores = [float(e["score"]) for e in theirs]
            assert [span.score for span in ours] == pytest.approx(scores, rel=1e-4)
        merged += len(spans) - len(entities(spans))
    assert merged > 5


def test_entities() -> None:
    labels = ["B-PER", "I-PER", "O", "I-PER", "B-PER", "B-LOC", "I-PER", "MISC", "MISC"]
    spans = [Span(2 * i, 2 * i + 1, label, i / 10) for i, label in enumerate(labels)]
    found = [(span.start, span.end, span.label, round(span.score, 9)) for span in entities(spans)]
    assert found == [
        (0, 3, "PER", 0.05),
        (6, 7, "PER", 0.3),
        (8, 9, "PER", 0.4),
        (10, 11, "LOC", 0.5),
        (12, 13, "PER", 0.6),
        (14, 17, "MISC", 0.75),
    ]
    assert entities([]) == []


def test_long_texts_are_refused_or_cut(tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification")
    long = "the cat sleeps " * 20
    with pytest.raises(ValueError, match="TextClassifier: text 1 must have at most 40 tokens, got"):
        load_classifier(tmp_path).classify(["the", long])
    cut = load_classifier(tmp_path, truncate=True).classify([long, "the cat sleeps " * 12 + "the"])
    # [CLS], 38 tokens, [SEP]: what is left of the long text is not all of the other one.
    assert cut[0] == pytest.approx(
        load_classifier(tmp_path).classify(["the cat sleeps " * 12 + "the cat"])[0], rel=1e-5
    )
    assert cut[0] != pytest.approx(cut[1], rel=1e-5)


def test_no_texts(tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification")
    assert load_classifier(tmp_path).classify([]) == []


# --- bad input -----------------------------------------------------------------------------------


def tamper(path: Path, **values: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"architectures": ["BertModel"]},
            "architectures must be BertForSequenceClassification or BertForTokenClassification, "
            "got ['BertModel']",
        ),
        ({"architectures": None}, "architectures must be BertForSequenceClassification or"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name the classes 0, 1, 2 and so on"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label must have different names"),
        ({"id2label": {"0": "a", "1": 3}}, "id2label must name the classes 0, 1, 2 and so on"),
        ({"id2label": []}, "id2label must name the classes 0, 1, 2 and so on"),
        ({"id2label": 7}, "id2label must name the classes 0, 1, 2 and so on"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            "classifier.bias must have the shape (3,), got (2,)",
        ),
        ({"problem_type": "ranking"}, "problem_type must be one of single_label_classification"),
        (
            {"problem_type": "single_label_classification", "id2label": {"0": "a"}},
            "labels must be at least 2 for single_label_classification, got 1",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    save(tmp_path, "BertForSequenceClassification", id2label={0: "bad", 1: "good"})
    tamper(tmp_path, **values)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_classifier(tmp_path)


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", 1 << 40, True])
def test_a_number_of_labels_that_is_none(count: Any) -> None:
    with pytest.raises(ValueError, match="num_labels must be an integer from 1 to 1048576, got"):
        read_labels({"num_labels": count})


def test_labels_that_the_config_does_not_name() -> None:
    assert read_labels({}) == ("LABEL_0", "LABEL_1")
    assert read_labels({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_untied_word_embeddings_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "BertForMaskedLM", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings must be True, got False"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_a_head_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    save(tmp_path, "BertForTokenClassification", id2label=NER)
    with pytest.raises(ValueError, match=r"the checkpoint lacks pooler\.bias"):
        BertForSequenceClassification.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification")
    small = BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
        ["a", "b"],
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="the tokenizer must have at most the 9 tokens of the mod"):
        TextClassifier(small, tokenizer)


def test_a_batch_size_below_one(tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification")
    with pytest.raises(ValueError, match="TextClassifier: batch_size must be at least 1, got 0"):
        load_classifier(tmp_path).classify(["the"], batch_size=0)
