"""torch's own operator tests, its samples and its errors, with routing on.

Each sample runs as torch runs it, then routed: whatever its size, and where that is faster.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from routing import always, check, run
from torch.testing._internal.common_methods_invocations import op_db

import lanewise

NAMES = (
    *("mm", "addmm", "bmm", "baddbmm", "matmul", "einsum"),
    *("nn.functional.linear", "nn.functional.scaled_dot_product_attention"),
    *("nn.functional.layer_norm", "native_layer_norm", "nn.functional.rms_norm"),
    "nn.functional.multi_head_attention_forward",
)
OPS = [op for op in op_db if op.name in NAMES and not op.variant_test_name]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OTHERS = (torch.float64, torch.complex64, torch.int64, torch.bool)

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.full_name.replace(".", "_"))


def samples(op: Any, dtype: torch.dtype, requires_grad: bool) -> list[Any]:
    torch.manual_seed(0)
    found = op.sample_inputs("cpu", dtype, requires_grad=requires_grad)
    return [([s.input, *s.args], s.kwargs) for s in found]


def seeded(op: Callable[..., Any]) -> Callable[..., Any]:
    """Dropout drops the same elements every time."""

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(1)
        return op(*args, **kwargs)

    return call


@every_op
@pytest.mark.parametrize("dtype", [*DTYPES, *OTHERS], ids=str)
def test_samples(op: Any, dtype: torch.dtype) -> None:
    """Routed whatever their size."""
    if dtype not in op.supported_dtypes("cpu"):
        pytest.skip("torch has no such kernel")
    differentiable = dtype in op.supported_backward_dtypes("cpu")
    for arguments in samples(op, dtype, differentiable):
        report = check(seeded(op.op), arguments)
        assert not report.routed or dtype in DTYPES


@every_op
def test_samples_where_it_pays(op: Any) -> None:
    for arguments in samples(op, torch.bfloat16, True):
        check(seeded(op.op), arguments, routed=lanewise.use)


@every_op
def test_gradients_of_gradients(op: Any) -> None:
    if not op.supports_gradgrad or op.name == "native_layer_norm":
        pytest.skip("torch has none, or not of the statistics")
    for arguments in samples(op, torch.float32, True):
        try:
            run(seeded(op.op), arguments, twice=True)
        except RuntimeError as torchs:  # some of attention's have none
            with always(), pytest.raises(RuntimeError, match=f"^{re.escape(str(torchs))}$"):
                run(seeded(op.op), arguments, twice=True)
        else:
            check(seeded(op.op), arguments, twice=True)


@every_op
def test_errors(op: Any) -> None:
    """The same exception with the same text."""
    if op.error_inputs_func is None:
        pytest.skip("torch has no samples of errors")
    for error in op.error_inputs("cpu"):
        s = error.sample_input
        args = [s.input, *s.args]
        with pytest.raises(error.error_type) as plain:
            op.op(*args, **s.kwargs)
        with always(), pytest.raises(error.error_type) as routed:
            op.op(*args, **s.kwargs)
        assert type(routed.value) is type(plain.value)
        assert str(routed.value) == str(plain.value)
