"""Which launches take the tiles of rows that start anywhere: the compiler's rule, not bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lanewise.kernels import attention, gemm, target
from lanewise.kernels.alignment import aligned
from lanewise.kernels.table import watch


def made(
    *shape: int, stride: int = 0, first: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Rows `stride` apart, none by default but what they hold, of which the first is at `first`."""
    *outer, inner = shape
    rows = torch.empty(*outer, max(stride, inner + first), dtype=dtype, device="meta")
    return rows[..., first : first + inner]


def rows_of(
    launch: Callable[..., object], *tensors: Tensor, architecture: str = "sm_80"
) -> list[str]:
    """The classes of problem of what is launched."""
    with target.record(target.ARCHITECTURES[architecture], lambda *_: None), watch() as used:
        launch(*tensors)
    return [problem for _, _, problem in used]


@pytest.mark.parametrize(
    ("first", "numbers", "due"),
    [(0, (64, 0, 4096), True), (8, (64,), True), (1, (64,), False), (0, (72,), False)],
)
def test_addresses_and_numbers_are_multiples_of_16(
    first: int, numbers: tuple[int, ...], due: bool
) -> None:
    assert aligned((made(4, 64, stride=80, first=first),), *numbers) == due


@pytest.mark.parametrize(
    ("k", "due"),
    [
        (made(1, 2, 300, 64), "bare 16 64"),
        (made(1, 2, 300, 64, stride=80, first=8), "bare 16 64"),
        (made(1, 2, 300, 64, stride=80, first=1), "unaligned 16 64"),
        (made(1, 2, 300, 64, stride=72), "unaligned 16 64"),
    ],
)
def test_any_operand_of_attention_decides(k: Tensor, due: str) -> None:
    q, v = made(1, 2, 300, 64), made(1, 2, 300, 64)
    assert rows_of(attention.attention, q, k, v) == [due]
    assert rows_of(attention.attention, q, v, k) == [due]


@pytest.mark.parametrize(("queries", "due"), [(300, "unaligned 32 64"), (1, "unaligned few 32 64")])
def test_an_odd_head_size_is_not_aligned(queries: int, due: str) -> None:
    q, k, v = (made(1, 2, n, 33, stride=48, dtype=torch.float32) for n in (queries, 90, 90))
    assert rows_of(attention.attention, q, k, v) == [due]
    assert rows_of(attention.attention, q, k, v, architecture="gfx942") != [due]


def test_gradients_of_attention() -> None:
    q, k, v, out = (made(1, 2, 300, 64) for _ in range(4))
    lse = torch.empty(1, 2, 300, device="meta")
    wide = made(1, 2, 300, 64, stride=65)

    def backward(*tensors: Tensor) -> object:
        return attention.attention_backward(out, None, *tensors, None, None, None, out, lse)

    assert rows_of(backward, q, k, v) == ["64", "bare 16 64", "bare 16 64"]
    assert rows_of(backward, q, k, wide) == ["64", "unaligned 16", "unaligned 16"]


@pytest.mark.parametrize(
    ("depth", "stride", "due"),
    [
        (1024, 1024, "large 16"),
        (1024, 1032, "unaligned large 16"),
        (1001, 1024, "unaligned large 16"),
    ],
)
def test_products(depth: int, stride: int, due: str) -> None:
    x, weight = (made(8192, depth, stride=stride) for _ in range(2))
    assert rows_of(gemm.linear, x, weight) == [due]
    assert rows_of(gemm.gated_linear, x, weight, weight) == [due]


def test_contiguous_columns_need_no_depth() -> None:
    a, b = made(1001, 8192).mT, made(1001, 8192)
    assert rows_of(gemm.matmul, a, b) == ["large 16"]
    assert rows_of(gemm.matmul, a, made(1001, 8192, stride=8193)) == ["unaligned large 16"]
    assert rows_of(gemm.matmul, a, made(2002, 16384)[::2, ::2]) == ["unaligned large 16"]


def test_tiles_that_leave_registers_serve_both() -> None:
    x, weight = made(1, 1001), made(4096, 1001)
    assert rows_of(gemm.linear, x, weight) == ["few 16"]
