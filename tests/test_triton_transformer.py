"""What the shared tests do not ask of a decoder layer on GPUs, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from lanewise.kernels import target
from lanewise.kernels.gemm import pack_weight
from lanewise.kernels.norm.launch_forward import normalise
from lanewise.kernels.norm.tiles import WIDEST
from lanewise.kernels.table import watch
from lanewise.kernels.transformer import decoder_layer
from lanewise.kernels.transformer.guard import guarded
from lanewise.kernels.transformer.last import last_of
from lanewise.kernels.transformer.tiles import GUARD, LAST
from numerics import assert_no_worse_than
from samples import sample
from strategies import DTYPES, randn
from test_norm import PEERS


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LANEWISE_CHECK_INDEXES", raising=False)


# --- the last tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_the_last_token_of_every_sequence(
    dtype: torch.dtype, layout: str, index: torch.dtype
) -> None:
    x, starts = randn((9, 3, 20), dtype, 1, layout), torch.tensor([0, 4, 5, 9], dtype=index)
    assert torch.equal(last_of(x, starts), x[[3, 4, 8]])
    assert torch.equal(last_of(x, starts.repeat_interleave(2)[::2]), x[[3, 4, 8]])


def test_a_sequence_without_tokens_of_its_own_is_nan() -> None:
    x = randn((9, 1, 5))
    for starts, right in (
        ([0, 4, 4, 9], [3, None, 8]),
        ([0, 6, 5, 9], [5, None, 8]),
        ([0, 4, 10, 9], [3, None, None]),
        ([-1, 4, 2**62, -(2**62)], [None, None, None]),
    ):
        out = last_of(x, torch.tensor(starts))
        for row, token in zip(out, right, strict=True):
            assert row.isnan().all() if token is None else torch.equal(row, x[token])


@pytest.mark.parametrize("architecture", LAST.rows)
def test_every_tile_of_last_tokens(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    x = randn((7, 2, 1500))
    with watch() as rows:
        assert torch.equal(last_of(x, torch.tensor([0, 3, 7])), x[[2, 6]])
    assert ("last_tokens", architecture, "any") in rows


def test_tokens_further_apart_than_32_bits() -> None:
    apart = 2**30 + 8
    x = torch.empty(2 * apart + 8, dtype=torch.bfloat16).as_strided((3, 1, 8), (apart, 8, 1))
    x.copy_(randn((3, 1, 8), torch.bfloat16))
    assert torch.equal(last_of(x, torch.tensor([0, 3])), x[2:])


# --- norms that a residual stream is added to ----------------------------------------------------


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [33, WIDEST + 1000])
def test_norm_then_add(name: str, dtype: torch.dtype, columns: int) -> None:
    x, after = (
        randn((3, columns), dtype, i, layout) for i, layout in ((1, "sliced"), (2, "contiguous"))
    )
    weight = randn((columns,), dtype, 3)
    centred = name == "layer_norm"
    out, _ = normalise("decoder_layer", x, None, after, weight, None, 1e-5, 0.0, centred)
    expected = getattr(reference, name)(x, weight, eps=1e-5) + after.double()
    assert_no_worse_than(out, expected, PEERS[name](x, weight, eps=1e-5) + after)


# --- packed weights ------------------------------------------------------------------------------

WEIGHTS = ("qkv", "o", "up", "gate", "down")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [WEIGHTS, ("o", "gate"), ("down",)], ids=" ".join)
def test_packed_weights_are_the_plain_ones(dtype: torch.dtype, packed: tuple[str, ...]) -> None:
    def layer(names: tuple[str, ...]) -> torch.Tensor:
        arguments = sample("decoder_layer")
        for name, t in arguments.items():
            if isinstance(t, torch.Tensor) and t.is_floating_point() and name not in ("cos", "sin"):
                arguments[name] = t.to(dtype)
        return decoder_layer(**arguments | {name: pack_weight(arguments[name]) for name in names})

    assert torch.equal(layer(packed), layer(()))


@pytest.mark.parametrize("architecture", GUARD.rows)
@pytest.mark.parametrize("bias", [False, True])
def test_every_tile_of_the_guard(
    monkeypatch: pytest.MonkeyPatch, architecture: str, bias: bool
) -> None:
    """Over more columns than one program's."""
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    x, given = randn((1, 1100)), randn((1100,)) if bias else None
    shapes = ((3, 1100), (1100, 2), (4, 1100), (1100, 4))
    qkv, o, up, down = (pack_weight(randn(shape)) for shape in shapes)
    with watch() as rows:
        out = guarded(x, given, (qkv, o, up, None, down), 2)
        wrong = guarded(x, given, (qkv, o, up, None, down), 3)
    assert torch.equal(out, torch.zeros(1100) if given is None else given)
    assert wrong.isnan().all()
    assert ("guarded_layer_bias", architecture, "any") in rows


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_wrong_header_makes_the_output_nan(name: str, post_norm: bool) -> None:
    arguments = sample("decoder_layer")
    if not post_norm:
        arguments["mlp_post_norm"] = None
    arguments[name] = packed = pack_weight(arguments[name])
    assert decoder_layer(**arguments).isfinite().all()
    packed.view(-1)[16] += 1
    assert decoder_layer(**arguments).isnan().all()


# --- indexes that nobody has checked -------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"context_lens": torch.tensor([7, 2**31 - 1], dtype=torch.int32)}, 1),
        ({"context_lens": torch.tensor([-3, 9], dtype=torch.int32)}, 0),
        ({"block_table": torch.tensor([[3, 1, -1], [0, 99, 4]], dtype=torch.int32)}, 1),
        ({"block_table": torch.tensor([[-5, 1, -1], [0, 2, 4]], dtype=torch.int32)}, 0),
        ({"cu_seqlens_q": torch.tensor([0, 2, 2**62])}, 1),
    ],
    ids=str,
)
def test_a_sequence_with_wrong_indexes_is_nan(
    changed: dict[str, Any], wrong: int, last_only: bool
) -> None:
    right, given = sample("decoder_layer"), sample("decoder_layer")
    expected = decoder_layer(**right, last_only=last_only)
    out = decoder_layer(**{**given, **changed}, last_only=last_only)
    rows = [0, 1] if last_only else [0, 0, 1]
    for row, due, sequence in zip(out, expected, rows, strict=True):
        assert row.isnan().all() if sequence == wrong else torch.equal(row, due)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("slot", [-(2**63), -2, 20, 2**62])
def test_a_slot_outside_the_cache_is_not_written(slot: int) -> None:
    arguments = sample("decoder_layer")
    arguments["slots"] = torch.tensor([5, 6, slot])
    caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    decoder_layer(**arguments)
    for name, before in caches.items():
        places = (arguments[name] != before).flatten(2).any(2).flatten()
        assert places.nonzero().flatten().tolist() == [5, 6]
