"""Routing torch's ops: switching it on and off, its report, and everybody else who is there too."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_same_bits
from routing import always
from strategies import randn
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lanewise
from lanewise.integrations.aten import ROUTED, attention, gemm, norm, override, worth
from lanewise.integrations.aten.reason import SERVED, TORCH_IS_FASTER
from lanewise.integrations.aten.scope import OVERRIDES

aten = torch.ops.aten


def kernels() -> list[str]:
    """torch's tables of kernels for the ops that are routed."""
    overrides = [o for group in OVERRIDES.values() for o in group]
    return [torch._C._dispatch_dump_table(o.overload.name()) for o in overrides]


PLAIN = kernels()


@pytest.fixture(autouse=True)
def _what_pays_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU that was measured, whichever runs this."""
    for family in (gemm, attention, norm):
        monkeypatch.setattr(family, "ISA", "avx2")
    least = {dtype: min(fewest) for dtype, fewest in worth._FEWEST["avx2"].items()}
    monkeypatch.setattr(worth, "LEAST_PRODUCT", least)


@pytest.fixture(autouse=True)
def _other_threads_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that compilers leave behind: torch's kernels may be put back."""
    monkeypatch.setattr(override, "_alone", lambda: True)


@pytest.fixture(autouse=True)
def _torch_is_itself_again(_other_threads_are_idle: None) -> Iterator[None]:
    yield
    lanewise.disable()
    assert kernels() == PLAIN


def a_large_product() -> Tensor:
    return torch.mm(torch.ones(256, 512), torch.ones(512, 256))


# --- on and off ----------------------------------------------------------------------------------


def test_enable_and_disable_are_idempotent() -> None:
    report = lanewise.enable()
    assert kernels() != PLAIN
    assert lanewise.enable() is report
    a_large_product()
    assert report.routed == {"mm": 1}
    lanewise.disable()
    lanewise.disable()
    a_large_product()
    assert report.routed == {"mm": 1}


def test_a_block_ends_as_it_began_even_by_an_error() -> None:
    def fail() -> None:
        with lanewise.use():
            assert kernels() != PLAIN
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert kernels() == PLAIN


def test_the_innermost_block_says_what_is_routed() -> None:
    with lanewise.use() as outer:
        with lanewise.use(only=["bmm"]) as inner:
            a_large_product()
        assert not inner.routed
        assert not inner.fell_through
        a_large_product()
        with lanewise.use(only=["mm"]) as inner:
            a_large_product()
        assert inner.routed == {"mm": 1}
    assert outer.routed == {"mm": 2}


def test_only_overrides_what_it_names() -> None:
    with lanewise.use(only=iter(["addmm"])):
        for op, overrides in OVERRIDES.items():
            for o in overrides:
                table = torch._C._dispatch_dump_table(o.overload.name())
                assert ("aten/override.py" in table) == (op == "addmm"), op


def test_blocks_may_end_in_any_order() -> None:
    first, second = lanewise.use(only=["mm"]), lanewise.use(only=["bmm"])
    first.__enter__()
    report = second.__enter__()
    first.__exit__(None, None, None)
    a_large_product()
    assert not report.routed
    second.__exit__(None, None, None)
    assert kernels() == PLAIN


def test_disable_leaves_a_block_in_force() -> None:
    lanewise.enable()
    with lanewise.use() as report:
        lanewise.disable()
        a_large_product()
        assert report.routed == {"mm": 1}


def test_names_that_are_not_routed() -> None:
    with pytest.raises(ValueError, match=r"lanewise\.use: only must name ops among mm, .*'linear'"):
        lanewise.use(only=["mm", "linear"]).__enter__()
    with pytest.raises(TypeError, match=r"lanewise\.use: only must be a list .* string 'mm'"):
        lanewise.use(only="mm").__enter__()
    assert kernels() == PLAIN


# --- the report ----------------------------------------------------------------------------------


def test_report() -> None:
    with lanewise.use() as report:
        assert str(report) == "no call of a routed op"
        a_large_product()
        a_large_product()
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        torch.mm(torch.ones(2, 2).double(), torch.ones(2, 2).double())
        F.rms_norm(torch.ones(4, 64), (64,))
    assert report.routed == {"mm": 2, "rms_norm": 1}
    assert report.fell_through == {
        "mm": {
            "dtypes are not float32, bfloat16 or float16 alike": 1,
            "too small to repay a detour of microseconds": 1,
        }
    }
    assert str(report).splitlines() == [
        "mm        2  lanewise",
        "mm        1  torch: dtypes are not float32, bfloat16 or float16 alike",
        "mm        1  torch: too small to repay a detour of microseconds",
        "rms_norm  1  lanewise",
    ]
    assert "routed {'mm': 2" in repr(report)


REASONS: dict[str, Any] = {
    "beta is not": lambda: torch.addmm(*(torch.ones(8, 8),) * 3, beta=0.5),
    "or alpha is not": lambda: torch.baddbmm(*(torch.ones(2, 8, 8),) * 3, alpha=2),
    "summand is not": lambda: torch.addmm(torch.ones(8, 1), *(torch.ones(8, 8),) * 2),
    "no elements": lambda: torch.mm(torch.ones(8, 0), torch.ones(0, 8)),
    "normalizes several": lambda: F.rms_norm(torch.ones(4, 8, 8), (8, 8)),
    "last dimension": lambda: F.rms_norm(torch.ones(8, 4).t(), (8,)),
    "a subclass": lambda: torch.func.grad(lambda x: F.rms_norm(x, (8,)).sum())(torch.ones(4, 8)),
    "scale is not finite": lambda: F.scaled_dot_product_attention(
        *(torch.ones(1, 2, 8, 8),) * 3, scale=float("inf")
    ),
    "head size": lambda: F.scaled_dot_product_attention(*(torch.ones(1, 1, 4, 600),) * 3),
}


@pytest.mark.parametrize("reason", REASONS)
def test_reasons(reason: str) -> None:
    with always() as report:
        REASONS[reason]()
    (reasons,) = report.fell_through.values()
    assert reason in next(iter(reasons))


# --- everybody else who is there too -------------------------------------------------------------


def program(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """All that is routed."""
    h = F.rms_norm(F.layer_norm(F.linear(x, weight), (32,), scale), (32,), scale)
    q = h.unflatten(-1, (4, 8)).transpose(-2, -3)
    h = F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(-2, -3).flatten(-2)
    return torch.matmul(h, weight) + torch.einsum("bij,bkj->bik", h, x) @ x


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return randn((2, 5, 32), dtype, 1), randn((32, 32), dtype, 2), randn((32,), dtype, 3)


def close(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert a.dtype == b.dtype
    scale = b.detach().abs().max()
    assert (a.double() - b.double()).abs().max() <= 30 * torch.finfo(dtype).eps * scale


def test_a_program() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = program(*arguments(dtype))
        with always() as report:
            routed = program(*arguments(dtype))
        close(routed, plain, dtype)
        assert set(report.routed) == set(ROUTED) - {"addmm", "baddbmm"}


def test_inference_mode_and_no_grad() -> None:
    plain = program(*arguments())
    for mode, ops in (
        (torch.no_grad, set(ROUTED)),
        (torch.inference_mode, set(ROUTED) - {"layer_norm", "rms_norm"}),
    ):
        with always() as report, mode():
            routed = program(*arguments())
        close(routed, plain)
        assert set(report.routed) == ops - {"addmm", "baddbmm"}


@pytest.mark.parametrize("backward", [False, True])
def test_compile(backward: bool) -> None:
    torch._dynamo.reset()
    inputs = [t.requires_grad_(backward) for t in arguments()]

    def run(f: Any) -> list[Tensor]:
        out = f(*inputs)
        return [out, *torch.autograd.grad(out.sum(), inputs)] if backward else [out]

    plain = run(program)
    with always() as report:
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        for a, b in zip(run(compiled), plain, strict=True):
            close(a, b)
    assert report.routed["scaled_dot_product_attention"]
    for a, b in zip(run(compiled), plain, strict=True):  # and after
        close(a, b)


def test_inductor_finds_the_strides_it_was_promised() -> None:
    torch._dynamo.reset()

    def attention(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 8)).transpose(-2, -3)
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    x = arguments()[0].requires_grad_()
    grad = randn((2, 4, 5, 8), torch.float32, 4)
    (plain,) = torch.autograd.grad(attention(x), x, grad)
    with always() as report:
        (routed,) = torch.autograd.grad(torch.compile(attention, fullgraph=True)(x), x, grad)
    assert report.routed["scaled_dot_product_attention backward"] == 1
    close(routed, plain)


class Program(torch.nn.Module):
    forward = staticmethod(program)


GRAPHS: dict[str, Any] = {
    "export": lambda: torch.export.export(Program(), arguments()).graph,
    "inference": lambda: torch.export.export(Program(), arguments()).run_decompositions().graph,
    "real": lambda: make_fx(program)(*arguments()).graph,
    "symbolic": lambda: make_fx(program, tracing_mode="symbolic")(*arguments()).graph,
    "jit": lambda: torch.jit.trace(program, arguments()).graph,
}


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracers_see_torchs_ops(kind: str) -> None:
    def names() -> list[str]:
        graph = GRAPHS[kind]()
        if kind == "jit":
            return [node.kind() for node in graph.nodes()]
        return [str(node.target) for node in graph.nodes]

    plain = names()
    with always():
        assert names() == plain


def test_dispatch_modes_see_torchs_ops() -> None:
    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def seen() -> list[str]:
        inputs = [t.requires_grad_() for t in arguments()]
        with Names() as names:
            torch.autograd.grad(program(*inputs).sum(), inputs)
        return names.seen

    plain = seen()
    with always():
        assert seen() == plain


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms() -> None:
    x, weight, scale = arguments()

    def loss(x: Tensor) -> Tensor:
        return program(x, weight, scale).square().sum()

    def results() -> list[Tensor]:
        batch = torch.stack([x, 2 * x, -x])
        return [
            torch.func.grad(loss)(x),
            torch.func.vmap(loss)(batch),
            torch.func.vmap(torch.func.grad(loss))(batch),
            torch.func.vmap(lambda w: program(x, w, scale))(torch.stack([weight, -weight])),
            torch.func.functionalize(loss)(x),
            *torch.func.vjp(loss, x)[1](torch.ones(())),
        ]

    plain = results()
    with always():
        for a, b in zip(results(), plain, strict=True):
            close(a, b)


def test_forward_mode() -> None:
    x, weight, scale = arguments()

    tangent = randn((2, 5, 32), torch.float32, 4)

    def product_and_norms(x: Tensor) -> Tensor:  # attention has no forward mode in torch
        return F.rms_norm(F.layer_norm(F.linear(x, weight), (32,), scale), (32,), scale)

    def results() -> list[Tensor]:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            levels = torch.autograd.forward_ad.unpack_dual(product_and_norms(dual))
        return [*levels, *torch.func.jvp(product_and_norms, (x,), (tangent,))]

    plain = results()
    with always():
        for a, b in zip(results(), plain, strict=True):
            close(a, b)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_autocast() -> None:
    inputs = [t.requires_grad_() for t in arguments()]

    def results() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = program(*inputs)
            inside = torch.autograd.grad(out.float().square().sum(), inputs, retain_graph=True)
        q = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):  # the kernel itself is not on autocast's lists
            kernel = aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0]
        return [out, *inside, *torch.autograd.grad(out.float().square().sum(), inputs), kernel]

    plain = results()
    with always() as report:
        for a, b in zip(results(), plain, strict=True):
            close(a, b, torch.bfloat16)
    assert report.routed["mm"]


def test_function_modes_do_not_see_what_we_call() -> None:
    class Names(torch.overrides.TorchFunctionMode):
        seen: list[str]

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def seen() -> list[str]:
        inputs = [t.requires_grad_() for t in arguments()]
        names = Names()
        names.seen = []
        with names:
            torch.autograd.grad(program(*inputs).sum(), inputs)
        return names.seen

    plain = seen()
    with always():
        assert seen() == plain


def test_subclasses() -> None:
    class Plain(Tensor):
        pass

    class Wrapper(Tensor):
        @staticmethod
        def __new__(cls, inner):  # type: ignore[no-untyped-def]
            return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner: Tensor) -> None:
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            args = [a.inner if isinstance(a, Wrapper) else a for a in args]
            return Wrapper(func(*args, **(kwargs or {})))

    x, weight, scale = arguments()
    plain = F.rms_norm(F.linear(x, weight), (32,), scale)
    with always():
        routed = F.rms_norm(F.linear(x.as_subclass(Plain), weight), (32,), scale)
        assert type(routed) is Plain
        close(routed.as_subclass(Tensor), plain)
        routed = F.rms_norm(F.linear(Wrapper(x), weight), (32,), scale)
        assert type(routed) is Wrapper
        close(routed.inner, plain)


def test_meta_tensors() -> None:
    with always():
        out = program(*(t.to("meta") for t in arguments()))
    assert out.shape == (2, 5, 32)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_operands() -> None:
    dense = randn((32, 32), torch.float32, 1).relu()
    sparse, rows = dense.to_sparse(), dense.to_sparse_csr()

    def results() -> list[Tensor]:
        return [sparse @ dense, rows @ dense, torch.addmm(dense, sparse, dense)]

    plain = results()
    with always() as report:
        for a, b in zip(results(), plain, strict=True):
            assert_same_bits(a, b)
    assert not report.routed


def test_views_that_negate_or_conjugate() -> None:
    c = torch.randn(16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    negative = c.conj().imag
    assert negative.is_neg()

    def results() -> list[Tensor]:
        return [
            torch.mm(negative, negative),
            torch.mm(c.conj(), c.t()),
            F.rms_norm(negative.contiguous(), (16,)),
        ]

    plain = results()
    with always():
        for a, b in zip(results(), plain, strict=True):
            error = (a - b).abs().max()
            assert error <= 1e-5


def test_out_and_in_place_variants() -> None:
    a, b = randn((16, 16), torch.float32, 1), randn((16, 16), torch.float32, 2)

    def results() -> list[Tensor]:
        return [
            torch.mm(a, b, out=torch.empty(0)),
            torch.addmm(a, a, b, out=torch.empty(16, 16)),
            a.clone().addmm_(a, b, beta=0.5),
            torch.bmm(a[None], b[None], out=torch.empty(1, 16, 16)),
        ]

    plain = results()
    with always():
        for x, y in zip(results(), plain, strict=True):
            assert_same_bits(x, y)


def test_deterministic_mode() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with always():
            assert_same_bits(program(*arguments()), program(*arguments()))
    finally:
        torch.use_deterministic_algorithms(False)


def test_checkpoints_and_hooks() -> None:
    inputs = [t.requires_grad_() for t in arguments()]

    def results() -> list[Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            out = checkpoint(program, *inputs, use_reentrant=False)
        return [out, *torch.autograd.grad(out.sum(), inputs)]

    plain = results()
    with always():
        for a, b in zip(results(), plain, strict=True):
            close(a, b)


def test_a_module_trains() -> None:
    def trained() -> Tensor:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        x = randn((4, 9, 32), torch.float32, 5)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            return layer(x)

    plain = trained()
    with always() as report:
        close(trained(), plain)
    assert set(report.routed) >= {"addmm", "mm", "layer_norm", "scaled_dot_product_attention"}


def scaled_twice(norm: str, x: Tensor, scale: Tensor) -> Tensor:
    """One weight for two norms, the second of which normalizes what the first gave."""
    if norm == "rms_norm":
        return F.rms_norm(F.rms_norm(x, (32,), scale).sin(), (32,), scale)
    return F.layer_norm(F.layer_norm(x, (32,), scale, scale).sin(), (32,), scale)


def scaled_by_its_input(norm: str, x: Tensor, scale: Tensor) -> Tensor:
    weight = x.sum((0, 1)) * scale
    if norm == "rms_norm":
        return F.rms_norm(x, (32,), weight)
    return F.layer_norm(x, (32,), weight, weight)


def scaled_by_itself(norm: str, x: Tensor, scale: Tensor) -> Tensor:
    weight = x[0, 0] * scale
    if norm == "rms_norm":
        return F.rms_norm(weight, (32,), weight)
    return F.layer_norm(weight, (32,), weight, weight)


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(
    "call", [scaled_twice, scaled_by_its_input, scaled_by_itself], ids=lambda c: c.__name__
)
def test_second_derivatives_where_operands_depend_on_each_other(
    call: Callable[..., Tensor], norm: str
) -> None:
    x, _, scale = (t.requires_grad_() for t in arguments())

    def results() -> tuple[Tensor, ...]:
        first = torch.autograd.grad(
            call(norm, x, scale).square().sum(), (x, scale), create_graph=True
        )
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, scale))

    plain = results()
    with always() as report:
        for a, b in zip(results(), plain, strict=True):
            close(a, b)
    assert report.routed[norm]


def test_threads_share_the_routing() -> None:
    inputs = arguments()
    plain = program(*inputs)
    results: list[Tensor] = []
    with always() as report:
        threads = [
            threading.Thread(target=lambda: results.extend(program(*inputs) for _ in range(20)))
            for _ in range(4)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(results) == 80
    for result in results:
        close(result, plain)
    assert report.routed["rms_norm"] <= 80


def test_switching_while_other_threads_compute() -> None:
    code = """
        import threading, torch, lanewise

        def compute():
            x = torch.ones(4, 16, 16)
            while not done.is_set():
                torch.mm(x[0], x[1]); torch.bmm(x, x); torch.rms_norm(x, (16,))
                torch.nn.functional.layer_norm(x, (16,))

        torch.set_num_threads(1)
        done = threading.Event()
        threads = [threading.Thread(target=compute) for _ in range(4)]
        for thread in threads:
            thread.start()
        for only in [None, ["mm"], ["bmm", "rms_norm"]] * 200:
            with lanewise.use(only):
                done.wait(0.001)
        done.set()
        for thread in threads:
            thread.join()
        with lanewise.use():
            pass
        assert "lanewise" not in torch._C._dispatch_dump_table("aten::mm")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_kernels_that_stay_pass_calls_on(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = a_large_product()
    with monkeypatch.context() as patch:
        patch.setattr(override, "_alone", lambda: False)
        with lanewise.use() as report:
            pass
        assert kernels() != PLAIN
        assert torch.equal(a_large_product(), expected)
        assert not report.calls
        with lanewise.use() as report:
            a_large_product()
        assert report.routed == {"mm": 1}
    with lanewise.use(only=["bmm"]):
        pass
    assert kernels() == PLAIN


@contextmanager
def another_library() -> Iterator[list[str]]:
    """One that stands in for mm too, and calls the kernel that was there; the calls it saw."""
    seen: list[str] = []
    below = torch.library.get_kernel(aten.mm.default, "CPU").call_boxed

    def mm(keyset: torch._C.DispatchKeySet, a: Tensor, b: Tensor) -> Tensor:
        seen.append("mm")
        return below(keyset, a, b)

    library = torch.library.Library("aten", "IMPL")
    library.impl(aten.mm.default, mm, "CPU", with_keyset=True)
    try:
        yield seen
    finally:
        library._destroy()


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_another_librarys_kernels() -> None:
    with another_library() as seen:  # under lanewise's, which serve the call
        with lanewise.use() as report:
            a_large_product()
            torch.mm(torch.ones(2, 2), torch.ones(2, 2))  # or leave it to the other
        assert report.routed == {"mm": 1}
        assert len(seen) == 1
        a_large_product()
        assert len(seen) == 2
    with lanewise.use() as report:
        library = another_library()
        seen = library.__enter__()
        a_large_product()  # over lanewise's, which it calls
        assert report.routed == {"mm": 1}
    a_large_product()
    assert len(seen) == 2
    assert report.routed == {"mm": 1}
    library.__exit__(None, None, None)
    with lanewise.use(only=["bmm"]):
        pass
    assert kernels() == PLAIN


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_a_library_that_is_unloaded_under_lanewise() -> None:
    small = torch.ones(2, 2)
    with another_library():
        lanewise.enable()
    with pytest.raises(
        RuntimeError, match=r"kernel of aten::mm .* was unloaded: call lanewise\.dis"
    ):
        torch.mm(small, small)
    lanewise.disable()
    torch.mm(small, small)


@pytest.mark.parametrize("served", [True, False])
def test_a_call_does_not_hold_up_other_threads(served: bool) -> None:
    """Large products give the interpreter lock away, by either way."""
    x = torch.ones(2048, 2048)
    done = threading.Event()

    def multiply() -> None:
        torch.mm(x, x)
        done.set()

    with (
        mock.patch.object(worth, "product", return_value=SERVED if served else TORCH_IS_FASTER),
        lanewise.use() as report,
    ):
        thread = threading.Thread(target=multiply)
        thread.start()
        turns = 0
        while not done.wait(0.0005):
            turns += 1
        thread.join()
    assert bool(report.routed) == served
    assert turns > 3
