"""What only the GPU kernels of attention's gradients are asked: every tile of their tables, sums
that programs share, strides beyond 32 bits and indexes that nobody checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import triton_interpreter  # noqa: F401  mends bfloat16 before a kernel is defined
from attention_calls import Call, check_gradients
from lanewise.kernels import target
from lanewise.kernels.attention import attention_varlen_backward
from lanewise.kernels.attention.tiles_backward import BIAS, KEYS, QUERIES
from numerics import assert_same_bits
from strategies import AttentionShape, randn
from torch import Tensor

import lanewise

# NumPy warns where a GPU silently makes the same infinity or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def inputs(
    shape: AttentionShape, dtype: torch.dtype, seed: int = 1, **more: Tensor | None
) -> dict[str, Any]:
    return {
        "q": randn(shape.q, dtype, seed),
        "k": randn(shape.k, dtype, seed + 1),
        "v": randn(shape.v, dtype, seed + 2),
        **more,
    }


def tiles(architecture: str, problem: str) -> tuple[Any, ...]:
    kind, bits, *_ = problem.split()
    bias = problem if kind == "unaligned" else bits
    names = ((KEYS, problem), (QUERIES, problem), (BIAS, bias))
    limits = target.ARCHITECTURES[architecture]
    return tuple(table.shipped(limits, row) for table, row in names)


def every_tile() -> list[tuple[str, str]]:
    """One architecture for each distinct set of tiles of a problem."""
    distinct = {
        (tiles(architecture, problem), problem): (architecture, problem)
        for architecture, rows in KEYS.rows.items()
        for problem in rows
    }
    return sorted(distinct.values())


@pytest.mark.parametrize(("architecture", "problem"), every_tile())
def test_every_tile_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, architecture: str, problem: str
) -> None:
    monkeypatch.setattr(target, "of", lambda device: target.ARCHITECTURES[architecture])
    kind, bits, *size = problem.split()
    dim = int(size[0]) if size else 77  # of a row that does not say
    dtype = {"16": torch.bfloat16, "32": torch.float32}[bits]
    keys, queries, _ = tiles(architecture, problem)
    # Past the tiles of both kernels, in queries and in keys.
    shape = AttentionShape(
        1, 1, 1, max(keys.m, queries.m) + 5, max(keys.n, queries.n) + 7, dim, dim
    )
    bias = None if kind == "bare" else randn(shape.scores[2:], dtype, 4)
    check_gradients(Call(inputs(shape, dtype, bias=bias), {"causal": True}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 320), (384, 33)])
def test_head_sizes_that_leave_programs_without_columns(
    dtype: torch.dtype, head_dim: int, value_dim: int
) -> None:
    shape = AttentionShape(1, 2, 1, 17, 19, head_dim, value_dim)
    check_gradients(*(Call(inputs(shape, dtype, seed)) for seed in (1, 11, 21, 31)))


@pytest.mark.parametrize("size", [(1,), (2, 1, 1), (40, 1), (50,), (2, 1, 1, 1), (40, 50)], ids=str)
def test_programs_that_share_a_bias_agree_with_one(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...]
) -> None:
    shape = AttentionShape(2, 2, 1, 40, 50, 16, 16)
    call = Call(inputs(shape, torch.float32, bias=randn(size, seed=4)))
    check_gradients(call)  # with programs enough for every item
    small = dataclasses.replace(target.ARCHITECTURES["sm_90"], units=1)
    monkeypatch.setattr(target, "of", lambda device: small)
    check_gradients(call)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_rows_further_apart_than_32_bits(name: str) -> None:
    apart = 2**30 + 8
    tensors = {n: randn((1, 1, 3, 16), torch.bfloat16, i) for i, n in enumerate("qkv")}
    near = gradients_of(tensors)
    far = torch.empty(2 * apart + 16, dtype=torch.bfloat16).as_strided(
        (1, 1, 3, 16), (0, 0, apart, 1)
    )
    tensors[name] = far.copy_(tensors[name])
    for a, b in zip(gradients_of(tensors), near, strict=True):
        assert_same_bits(a, b)


def gradients_of(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    out, lse = lanewise.attention(**tensors)
    return torch.ops.lanewise.attention_backward(
        torch.ones_like(out), None, *tensors.values(), None, None, None, out, lse
    )[:3]


@pytest.mark.parametrize(
    ("name", "starts", "wrong"),
    [
        ("cu_seqlens_q", [0, 5, 3, 12], [1]),
        ("cu_seqlens_q", [0, 4, 8, 400], [2]),
        ("cu_seqlens_k", [-3, 5, 9, 14], [0]),
        ("cu_seqlens_k", [0, 2**31 - 1, 9, 14], [0, 1]),
        ("cu_seqlens_q", [0, 4, 4, 12], [2]),  # longer than its bound
        ("cu_seqlens_k", [0, 5, 9, 13], [2]),  # a token too few
    ],
    ids=str,
)
def test_a_sequence_whose_indexes_are_wrong_has_gradients_of_nan(
    monkeypatch: pytest.MonkeyPatch, name: str, starts: list[int], wrong: list[int]
) -> None:
    monkeypatch.setenv("LANEWISE_CHECK_INDEXES", "0")
    right = {
        "cu_seqlens_q": torch.tensor([0, 4, 8, 12]),
        "cu_seqlens_k": torch.tensor([0, 5, 9, 14]),
    }
    q, k, v = (randn((n, 2, 8), seed=i) for i, n in enumerate((12, 14, 14)))
    bias = randn((3, 1, 5, 5), seed=5)

    def run(indexes: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return attention_varlen_backward(
            grad, None, q, k, v, *indexes.values(), bias, None, None, out, lse,
            max_seqlen_q=5, max_seqlen_k=5, needs_bias=True,
        )  # fmt: skip

    out, grad = (randn((12, 2, 8), seed=i) for i in (6, 7))
    lse = randn((2, 12), seed=8) + 5
    clean = run(right)
    broken = run({**right, name: torch.tensor(starts)})
    grad_q, grad_k, grad_v, grad_bias, _ = broken
    for i in range(3):
        queries = slice(*right["cu_seqlens_q"][i : i + 2].tolist())
        if i not in wrong:
            for got, want in ((grad_q[queries], clean[0][queries]), (grad_bias[i], clean[3][i])):
                if name == "cu_seqlens_k" or starts[i : i + 2] == [queries.start, queries.stop]:
                    assert_same_bits(got.contiguous(), want.contiguous())
        else:
            assert grad_bias[i].isnan().all()
            if name == "cu_seqlens_k":
                assert grad_q[queries].isnan().all()
    assert all(g.isfinite().any() == (len(wrong) < 3) for g in (grad_q, grad_k, grad_v))


def test_a_loose_bound_of_the_lengths_changes_nothing() -> None:
    q, k, v = (randn((n, 2, 8), seed=i).requires_grad_() for i, n in enumerate((12, 14, 14)))
    starts = torch.tensor([0, 4, 12]), torch.tensor([0, 9, 14])

    def grads(*bounds: int) -> tuple[Tensor, ...]:
        out, lse = lanewise.attention_varlen(q, k, v, *starts, *bounds, causal=True)
        return torch.autograd.grad((out.sum() + lse.sum()), (q, k, v))

    for a, b in zip(grads(8, 9), grads(2**40, 2**62), strict=True):
        assert_same_bits(a, b)
