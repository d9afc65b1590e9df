"""What only packed weights on GPUs have, a layout and its guard, in Triton's interpreter."""

from __future__ import annotations

import struct

import pytest
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from lanewise.kernels import target
from lanewise.kernels.gemm import (
    gated_linear,
    gated_linear_packed,
    linear,
    linear_packed,
    pack_weight,
)
from lanewise.kernels.gemm.packed_header import pitch, rows_of
from lanewise.kernels.gemm.packed_tiles import GUARD, PACK
from strategies import DTYPES, randn
from torch import Tensor


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LANEWISE_CHECK_INDEXES", raising=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 20), (70, 130), (5, 0)])
@pytest.mark.parametrize("architecture", PACK.rows)
def test_a_header_and_aligned_rows(
    architecture: str, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "of", lambda _: target.ARCHITECTURES[architecture])
    weight = randn(shape, dtype)
    for layout in (weight, weight.mT.contiguous().mT):
        packed = pack_weight(layout)
        magic, version, number, *sizes = struct.unpack("<8sIIqq", bytes(packed.view(-1)[:32]))
        assert (magic, version, DTYPES[number], tuple(sizes)) == (b"lanewise", 2, dtype, shape)
        rows = rows_of(packed, shape[1], dtype)
        assert torch.equal(rows, weight)
        if rows.numel():
            assert rows.stride(0) * dtype.itemsize % 16 == rows.data_ptr() % 16 == 0
        assert not packed.view(-1)[64 + shape[0] * pitch(shape[1], dtype.itemsize) :].any()


def test_rows_further_apart_than_32_bits() -> None:
    apart = 2**30 + 8
    wide = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided((3, 16), (apart, 1))
    wide.copy_(randn((3, 16), torch.bfloat16))
    assert torch.equal(pack_weight(wide), pack_weight(wide.clone()))


@pytest.mark.parametrize("architecture", GUARD.rows)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_plain_weight(
    dtype: torch.dtype, architecture: str, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "of", lambda _: target.ARCHITECTURES[architecture])
    x, weight, bias = (randn(s, dtype, i) for i, s in enumerate([(3, 40), (530, 40), (530,)]))
    packed = pack_weight(weight)
    for b in (None, bias):
        assert torch.equal(linear_packed(x, packed, b), linear(x, weight, b))
        expected = gated_linear(x, weight, weight, bias, b)
        assert torch.equal(gated_linear_packed(x, packed, packed, bias, b), expected)


def other_header(kind: str) -> Tensor:
    """A buffer of the size of a float16 weight [9, 20] that is none."""
    packed = pack_weight(randn((9, 20), torch.float16))
    if kind == "dtype":
        return pack_weight(randn((9, 20), torch.bfloat16))
    if kind == "depth":
        return pack_weight(randn((9, 19), torch.float16))
    if kind == "target":
        packed.view(-1)[40:43] = torch.tensor(list(b"sve"), dtype=torch.uint8)
    if kind == "zeros":
        packed.zero_()
    return packed


SENTENCES = {
    "dtype": "holds bfloat16 weights, x is float16",
    "depth": "has 19 input features, which is not x's 20",
    "target": "was packed for instruction set 'sve', this is a GPU, 'gpu': pack the weight again",
    "zeros": "was not made by pack_weight: its header does not begin with 'lanewise'",
}


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_another_header_of_the_same_size_gives_nan(
    kind: str, activation: str, unchecked: None
) -> None:
    x, good = randn((4, 20), torch.float16), pack_weight(randn((9, 20), torch.float16))
    bad, bias = other_header(kind), randn((9,), torch.float16)
    for b in (None, bias):
        assert linear_packed(x, bad, b, activation=activation).isnan().all()
        for gate, up in ((good, bad), (bad, good)):
            assert gated_linear_packed(x, gate, up, b, b, activation).isnan().all()


@pytest.mark.parametrize("kind", SENTENCES)
def test_another_header_of_the_same_size_is_named(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANEWISE_CHECK_INDEXES", "1")
    with pytest.raises(RuntimeError) as caught:
        linear_packed(randn((4, 20), torch.float16), other_header(kind))
    assert str(caught.value) == f"lanewise.linear_packed: weight {SENTENCES[kind]}"


def test_another_size_is_named_without_a_look_at_the_header(unchecked: None) -> None:
    packed = pack_weight(randn((9, 20)))
    with pytest.raises(RuntimeError) as caught:
        linear_packed(randn((4, 30)), packed)
    assert str(caught.value) == (
        "lanewise.linear_packed: weight is truncated, damaged or of another shape, dtype or "
        "device: its rows have 88 bytes, 30 input features in float32 mean 136"
    )


def test_a_buffer_between_alignments_is_refused(unchecked: None) -> None:
    packed = pack_weight(randn((9, 20)))
    moved = torch.empty(packed.numel() + 8, dtype=torch.uint8)[8:].view(packed.shape)
    moved.copy_(packed)
    with pytest.raises(RuntimeError, match="weight must be the contiguous 2-dimensional buffer"):
        linear_packed(randn((4, 20)), moved)
