"""What torch needs beside kernels: fakes, autograd, compile, export and autocast of every op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import assert_same_bits
from samples import DIFFERENTIABLE, PUBLIC, Arguments, call, sample
from strategies import DTYPES, randn
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.export import Dim

import lanewise

Outputs = tuple[Tensor, ...]


def function(op: str) -> Callable[..., Any]:
    return getattr(lanewise, op)


def outputs(result: Any) -> Outputs:
    if result is None:  # an op that writes its arguments
        return ()
    return (result,) if isinstance(result, Tensor) else tuple(result)


def with_gradients(arguments: Arguments, *constants: str) -> Arguments:
    """Leaves that require a gradient, wherever the op has one."""
    return {
        name: value.detach().clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in constants
        else value
        for name, value in arguments.items()
    }


CONSTANTS = ("alibi_slopes", "cos", "sin")


def backward(op: str, out: Outputs) -> None:
    total = sum((o.double().clamp(-10, 10).sin().sum() for o in out), torch.zeros(()))
    assert isinstance(total, Tensor)
    total.backward()


# --- opcheck -------------------------------------------------------------------------------------


def variants(op: str) -> list[Arguments]:
    """The sample, the sample without its optional tensors, and other options."""
    arguments = sample(op)
    schema = getattr(torch.ops.lanewise, op).default._schema
    optional = [a.name for a in schema.arguments if str(a.type) == "Optional[Tensor]"]
    calls = [arguments, {k: v for k, v in arguments.items() if k not in optional}]
    if "attention" in op:
        options = {"causal": True, "window_left": 3, "softcap": 4.0, "scale": 0.2}
        calls += [{**arguments, **options}, {**arguments, "bias": arguments["bias"] > 0}]
    if "linear" in op:
        calls.append({**arguments, "activation": "gelu"})
    if op == "rope":
        calls.append({**arguments, "interleaved": True})
    calls.append({k: empty(op, k, v) for k, v in arguments.items()})
    return calls


def empty(op: str, name: str, value: Any) -> Any:
    """The activations of the call without rows; weights and options as they are."""
    if op in ("attention_varlen", "paged_attention", "paged_cache_write", "decoder_layer"):
        return no_sequences(name, value)
    activations = ("q", "k", "v", "x", "a", "b", "residual") if name != "bias" else ()
    if op == "attention" and name == "bias":
        return value[:0]
    return value[:0] if name in activations and isinstance(value, Tensor) else value


def no_sequences(name: str, value: Any) -> Any:
    """An argument of an op over packed or paged sequences, for a batch of none."""
    if name.startswith("cu_seqlens"):
        return value[:1]
    tokens = ("q", "k", "v", "x", "slots", "block_table", "context_lens", "bias", "cos", "sin")
    return value[:0] if name in tokens else value


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("op", PUBLIC)
def test_opcheck(op: str, gradients: bool) -> None:
    overload = getattr(torch.ops.lanewise, op).default
    for arguments in variants(op):
        if gradients and op not in DIFFERENTIABLE:
            continue
        made = with_gradients(arguments, *CONSTANTS) if gradients else arguments
        names = [a.name for a in overload._schema.arguments if not a.kwarg_only]
        positional = tuple(made.get(name) for name in names)
        keywords = {k: v for k, v in made.items() if k not in names}
        torch.library.opcheck(overload, positional, keywords)


def all_ops() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted({n.split("::")[1].split(".")[0] for n in names if n.startswith("lanewise::")})


def test_every_op_is_public_or_a_gradient() -> None:
    assert [op for op in all_ops() if not op.endswith("_backward")] == sorted(PUBLIC)


@pytest.mark.parametrize("op", all_ops())
def test_every_op_has_a_kernel_and_a_fake(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "CPU")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lanewise::{op}", "Meta")


@pytest.mark.parametrize("op", PUBLIC)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fake_tells_shape_dtype_and_strides(op: str, dtype: torch.dtype) -> None:
    for arguments in variants(op):
        cast = {
            name: value.to(dtype)
            if isinstance(value, Tensor) and value.dtype == torch.float32 and name not in CONSTANTS
            else value
            for name, value in arguments.items()
        }
        if "packed" in op:
            cast.update(
                {k: v for k, v in sample(op, dtype).items() if k in ("weight", "gate", "up")}
            )
        real = call(op, cast)
        meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in cast.items()}
        if "pack" in op:  # the shape is written in the buffer: only a CPU can read it
            continue
        for a, b in zip(real, call(op, meta), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", PUBLIC)
def test_compile(op: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function(op), fullgraph=True, backend="aot_eager")
    for arguments in variants(op):
        for a, b in zip(outputs(compiled(**arguments)), call(op, arguments), strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_compile_the_gradient(op: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function(op), fullgraph=True, backend="aot_eager")
    ours, eager = (with_gradients(sample(op), *CONSTANTS) for _ in range(2))
    backward(op, outputs(compiled(**ours)))
    backward(op, outputs(function(op)(**eager)))
    for name, value in eager.items():
        if isinstance(value, Tensor) and value.requires_grad:
            assert_same_bits(ours[name].grad, value.grad)


def test_compile_with_inductor() -> None:
    """One block of a transformer in one graph, gradients included."""
    torch._dynamo.reset()
    x, qkv, up, down = randn((2, 9, 16)), randn((48, 16)), randn((32, 16)), randn((16, 32))
    norm = randn((16,))

    def block(x: Tensor) -> Tensor:
        q, k, v = (
            lanewise.linear(lanewise.rms_norm(x, norm), qkv).unflatten(-1, (3, 4, 4)).unbind(2)
        )
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        heads, _ = lanewise.attention(q, k, v, causal=True)
        y, total = lanewise.add_rms_norm(heads.transpose(1, 2).flatten(2), x, norm)
        return lanewise.linear(lanewise.linear(y, up, activation="gelu"), down, residual=total)

    compiled = torch.compile(block, fullgraph=True)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, eager = compiled(a), block(b)
    torch.testing.assert_close(out, eager)
    out.square().mean().backward()
    eager.square().mean().backward()
    torch.testing.assert_close(a.grad, b.grad)


def sized(op: str, batch: int, length: int) -> Arguments:
    """The sample with other sizes, where a model's sizes change: batch and sequence."""
    hidden = 8
    if op == "attention":
        q, k = randn((batch, 6, length, hidden)), randn((batch, 2, length, hidden), seed=1)
        return {"q": q, "k": k, "v": k + 1}
    if op in ("attention_varlen", "paged_attention"):
        cu_seqlens = torch.arange(batch + 1) * (length // batch)
        cu_seqlens[-1] = length
        q = randn((length, 6, hidden))
        options = {"q": q, "cu_seqlens_q": cu_seqlens, "max_seqlen_q": 64}
        if op == "attention_varlen":
            k = randn((length, 2, hidden), seed=1)
            return {**options, "k": k, "v": k, "cu_seqlens_k": cu_seqlens, "max_seqlen_k": 64}
        cache = randn((17, 3, 2, hidden), seed=1)
        table = torch.arange(batch * 17, dtype=torch.int32).view(batch, 17) % 17
        context = cu_seqlens.diff().int() + 1
        return {
            **options,
            "k_cache": cache,
            "v_cache": cache,
            "block_table": table,
            "context_lens": context,
        }
    if op == "decoder_layer":
        starts = torch.arange(batch + 1) * (length // batch)
        starts[-1] = length
        return {
            **sample(op),
            "x": randn((length, 16)),
            "k_cache": randn((17, 3, 1, 6)),
            "v_cache": randn((17, 3, 1, 3)),
            "cu_seqlens_q": starts,
            "block_table": torch.arange(batch * 17, dtype=torch.int32).view(batch, 17) % 17,
            "context_lens": starts.diff().int() + 1,
            "slots": torch.arange(length),
            "max_seqlen_q": 64,
            "cos": randn((length, 2)).cos(),
            "sin": randn((length, 2)).sin(),
        }
    if op == "paged_cache_write":
        k, cache = randn((length, 2, hidden)), randn((17, 3, 2, hidden), seed=1)
        return {
            "k": k,
            "v": k,
            "k_cache": cache,
            "v_cache": cache.clone(),
            "slots": torch.arange(length),
        }
    if op == "matmul":
        return {"a": randn((batch, length, hidden)), "b": randn((batch, hidden, 5))}
    if op == "rope":
        return {
            "x": randn((batch, 3, length, hidden)),
            "cos": randn((length, 3)).cos(),
            "sin": randn((length, 3)).sin(),
        }
    arguments = sample(op)
    for name, value in arguments.items():
        if name in ("x", "residual"):
            arguments[name] = randn((batch, length, value.shape[-1]), seed=len(name))
    return arguments


SIZED = [op for op in PUBLIC if op != "pack_weight"]


@pytest.mark.parametrize("op", SIZED)
def test_compile_once_for_every_size(op: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function(op), fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for batch, length in [(4, 11), (7, 13), (9, 33)]:  # no size of another meaning among them
        arguments = sized(op, batch, length)
        for a, b in zip(outputs(compiled(**arguments)), call(op, arguments), strict=True):
            assert_same_bits(a, b)
        compilations.append(counter.frame_count)
    assert compilations[1:] == compilations[:-1]


# --- torch.export --------------------------------------------------------------------------------


class Wrapper(torch.nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, arguments: Arguments) -> Any:
        return function(self.op)(**arguments)


@pytest.mark.parametrize("op", SIZED)
def test_export_with_dynamic_sizes(op: str) -> None:
    batch, length = Dim("batch"), Dim("length")
    arguments = sized(op, 4, 11)
    dims = {4: batch, 5: batch + 1, 11: length}
    dynamic = {
        name: {dim: dims[value.shape[dim]] for dim in sequence_dims(op, name, value)}
        if isinstance(value, Tensor)
        else None
        for name, value in arguments.items()
    }
    exported = torch.export.export(Wrapper(op), (arguments,), dynamic_shapes=(dynamic,))
    assert any(f"lanewise.{op}" in str(node.target) for node in exported.graph.nodes)
    other = sized(op, 2, 21)
    for a, b in zip(outputs(exported.module()(other)), call(op, other), strict=True):
        assert_same_bits(a, b)


def sequence_dims(op: str, name: str, value: Tensor) -> tuple[int, ...]:
    """Which dimensions of an argument are the batch and the sequence in `sized`."""
    if op in ("attention_varlen", "paged_attention", "paged_cache_write"):
        return () if "cache" in name else (0,)
    if op == "decoder_layer":
        tokens = ("x", "cu_seqlens_q", "block_table", "context_lens", "slots", "cos", "sin")
        return (0,) if name in tokens else ()
    if op == "attention" or (op == "rope" and name == "x"):
        return (0, 2)
    if op == "rope":
        return (0,)
    if op == "matmul":
        return (0, 1) if name == "a" else (0,)
    return (0, 1) if name in ("x", "residual") else ()


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", ["attention", "attention_varlen", "matmul", "linear", "gated_linear"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_activations(op: str, dtype: torch.dtype) -> None:
    arguments = sample(op)
    arguments.pop("residual", None)
    with torch.autocast("cpu", dtype):
        out = call(op, arguments)
    assert out[0].dtype == dtype
    cast = {
        k: v.to(dtype) if "attention" not in op or k in ("q", "k", "v") else v
        for k, v in arguments.items()
    }
    for a, b in zip(out, call(op, cast), strict=True):
        assert_same_bits(a, b)


def test_autocast_keeps_masks_slopes_and_statistics() -> None:
    """A float32 bias of 1e-3 steps would not survive bfloat16, nor would the lse."""
    arguments = sample("attention")
    arguments["bias"] = torch.linspace(100.0, 100.03, 35).view(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        _, lse = call("attention", arguments)
    cast = {k: v.bfloat16() if k in "qkv" else v for k, v in arguments.items()}
    assert lse.dtype == torch.float32
    assert_same_bits(lse, call("attention", cast)[1])
    rounded = {**cast, "bias": arguments["bias"].bfloat16()}
    assert not torch.equal(lse, call("attention", rounded)[1])


def test_autocast_keeps_bool_masks() -> None:
    arguments = sample("attention")
    arguments["bias"] = arguments["bias"] > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert call("attention", arguments)[0].dtype == torch.bfloat16


def test_autocast_keeps_a_residual_stream() -> None:
    arguments = sample("linear")
    with torch.autocast("cpu", torch.bfloat16):
        (out,) = call("linear", arguments)
    kept = {k: v if k == "residual" else v.bfloat16() for k, v in arguments.items()}
    assert out.dtype == torch.float32
    assert_same_bits(out, call("linear", kept)[0])


def test_autocast_does_not_hide_float64() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="got float64"):
        call("matmul", {"a": x, "b": x})


@pytest.mark.parametrize("op", ["add_rms_norm", "add_layer_norm"])
def test_autocast_adds_a_narrow_branch_to_a_wide_stream(op: str) -> None:
    arguments = sample(op)
    arguments["x"] = arguments["x"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(op, arguments)
    for a, b in zip(out, call(op, {**arguments, "x": arguments["x"].float()}), strict=True):
        assert_same_bits(a, b)


def test_autocast_keeps_the_angles() -> None:
    arguments = sample("rope")
    arguments["x"] = arguments["x"].bfloat16()
    plain = call("rope", arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(call("rope", arguments)[0], plain[0])


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_autocast_gives_gradients_in_the_inputs_dtype(op: str) -> None:
    arguments = with_gradients(sample(op), *CONSTANTS)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(op, arguments)
    backward(op, out)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.requires_grad:
            assert value.grad is not None, name
            assert value.grad.dtype == torch.float32
            assert value.grad.shape == value.shape


# --- ops without a gradient ----------------------------------------------------------------------


@pytest.mark.parametrize("op", ["linear_packed", "gated_linear_packed", "paged_attention"])
def test_an_op_without_a_gradient_refuses_to_run_backward(op: str) -> None:
    arguments = sample(op)
    arguments["q" if "attention" in op else "x"].requires_grad_()
    out = call(op, arguments)[0]
    with pytest.raises(RuntimeError, match=rf"lanewise.{op}\b|lanewise::{op}\b"):
        out.sum().backward()


@pytest.mark.parametrize("op", [op for op in DIFFERENTIABLE if op != "matmul"])
def test_a_second_derivative_is_refused(op: str) -> None:
    """Torch's own fallback would warn and go on with wrong numbers."""
    arguments = with_gradients(sample(op), *CONSTANTS)
    leaf = next(iter(arguments.values()))
    out = call(op, arguments)[0].square().sum()
    (grad,) = torch.autograd.grad(out, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"lanewise\.\w+_backward .*gradient"):
        grad.sum().backward()


# --- forward mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("op", [op for op in PUBLIC if op != "pack_weight"])
def test_a_tangent_is_refused(op: str, gradients: bool) -> None:
    """Whichever argument has it, and whether or not there is a gradient too."""
    arguments = sample(op)
    for name, value in arguments.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            continue
        message = rf"lanewise\.{op}: has no derivative in forward mode and {name} has a tangent"

        def with_argument(t: Tensor, name: str = name) -> Outputs:
            return call(op, {**arguments, name: t})

        tangent = torch.ones_like(value)
        with torch.set_grad_enabled(gradients), pytest.raises(NotImplementedError, match=message):
            torch.func.jvp(with_argument, (value,), (tangent,))
        with torch.set_grad_enabled(gradients), forward_ad.dual_level():
            dual = forward_ad.make_dual(value, tangent)
            with pytest.raises(NotImplementedError, match=message):
                with_argument(dual)


@pytest.mark.parametrize("op", PUBLIC)
def test_constants_are_served_in_forward_mode(op: str) -> None:
    expected = call(op, sample(op))
    with forward_ad.dual_level():
        for a, b in zip(call(op, sample(op)), expected, strict=True):
            assert_same_bits(a, b)


def test_slopes_are_constants_and_say_so() -> None:
    arguments = sample("attention")
    arguments["alibi_slopes"].requires_grad_()
    out = call("attention", {**arguments, "q": arguments["q"].requires_grad_()})[0]
    out.sum().backward()
    assert arguments["q"].grad is not None
    assert arguments["alibi_slopes"].grad is None


@pytest.mark.parametrize("op", PUBLIC)
def test_inference_mode_and_no_grad(op: str) -> None:
    arguments = sample(op)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            for a, b in zip(call(op, arguments), call(op, arguments), strict=True):
                assert not a.requires_grad
                assert_same_bits(a, b)


@pytest.mark.parametrize("op", PUBLIC)
def test_the_public_function_is_the_op_and_documented(op: str) -> None:
    assert function(op).__doc__
    for a, b in zip(outputs(function(op)(**sample(op))), call(op, sample(op)), strict=True):
        assert_same_bits(a, b)
