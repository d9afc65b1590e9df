"""What CUDA tensors meet, tried without a GPU by dispatching CPU tensors under the CUDA key."""

from __future__ import annotations

import importlib
import inspect
import operator
import subprocess
import sys
from typing import Any

import pytest
import torch
from samples import PUBLIC, call, sample
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lanewise.ops._triton import KERNELS, backends

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def on_cuda(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(torch.ops.lanewise, op).default.redispatch(CUDA, *args, **kwargs)


def test_importing_lanewise_imports_no_triton() -> None:
    code = "import sys, lanewise; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_op_has_a_gpu_kernel() -> None:
    assert set(KERNELS) == set(backends())
    for op in KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "CUDA"), op
        launcher = getattr(importlib.import_module(f"lanewise.kernels.{KERNELS[op]}"), op)
        names = [a.name for a in getattr(torch.ops.lanewise, op).default._schema.arguments]
        assert list(inspect.signature(launcher).parameters) == names, op


def test_without_triton_the_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "triton" or "lanewise.kernels" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"^lanewise\.linear: Triton runs this op on a GPU "):
        on_cuda("linear", torch.zeros(2, 3), torch.zeros(4, 3))


# The size of a packed weight is the kernel's own affair, which no trace can know.
@pytest.mark.parametrize("op", [op for op in PUBLIC if op != "pack_weight"])
def test_the_compiler_sees_one_opaque_op_with_outputs_on_the_gpu(op: str) -> None:
    """What torch.compile traces, over tensors that only claim to be on a GPU."""
    real = sample(op)
    with FakeTensorMode():
        arguments = {
            name: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="cuda")
            if isinstance(v, torch.Tensor)
            else v
            for name, v in real.items()
        }
        outputs = call(op, arguments)
        assert [t.device.type for t in outputs] == ["cuda"] * len(outputs)
        graph = make_fx(lambda tensors: call(op, {**arguments, **tensors}))(
            {n: t for n, t in arguments.items() if isinstance(t, torch.Tensor)}
        )
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    ours = getattr(torch.ops.lanewise, op).default
    assert [f for f in called if f is not operator.getitem] == [ours]


def test_kernels_can_be_imported_without_a_driver() -> None:
    """And every launch that is shipped can be prepared: nothing asks for a GPU before it runs."""
    code = """
import importlib, pkgutil, triton, lanewise.kernels as kernels
class NoDriver:
    def __getattr__(self, name):
        raise AssertionError(f"the driver was asked for {name}")
triton.runtime.driver._active = NoDriver()
for module in pkgutil.walk_packages(kernels.__path__, "lanewise.kernels."):
    importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
