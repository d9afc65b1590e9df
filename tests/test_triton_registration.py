"""What CUDA tensors meet, tried without a GPU by dispatching CPU tensors under the CUDA key."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import lanewise  # noqa: F401  registers the ops
from lanewise.ops._triton import KERNELS, backends

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def on_cuda(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.lanewise, op).default.redispatch(CUDA, *args, **kwargs)


def test_importing_lanewise_imports_no_triton() -> None:
    code = "import sys, lanewise; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_op_answers_cuda_tensors() -> None:
    assert set(KERNELS) <= set(backends())
    for op in backends():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "CUDA"), op


def test_backends_names_the_gpu_where_there_is_a_kernel() -> None:
    assert {op for op, devices in backends().items() if "gpu" in devices} == set(KERNELS)


def test_an_op_without_a_gpu_kernel_says_so() -> None:
    x, angles = torch.zeros(1, 2, 3, 4), torch.zeros(3, 2)
    sentence = "lanewise.rope: no GPU kernel yet; x is on cpu, move it to the CPU"
    with pytest.raises(RuntimeError, match=f"^{sentence}$"):
        on_cuda("rope", x, angles, angles)


def test_without_triton_the_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "triton" or "lanewise.kernels" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"^lanewise\.linear: Triton runs this op on a GPU "):
        on_cuda("linear", torch.zeros(2, 3), torch.zeros(4, 3))
