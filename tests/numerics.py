"""The error bounds of the contract, as assertions. There is no flat tolerance anywhere.

Errors are measured in float64 against `reference`; NaN must meet NaN and an infinity the same
infinity, except that a finite reference may overflow to infinity where its rounding does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps

# The largest |derivative| of each activation: how much it can amplify the error of its input.
LIPSCHITZ = {
    "none": 1.0,
    "relu": 1.0,
    "gelu": 1.13,
    "gelu_tanh": 1.13,
    "silu": 1.10,
    "tanh": 1.0,
}
# Float32 roundings inside an activation, in units of eps(float32) · |z|: it approaches z or 0 by
# way of a factor in [0, 1] whose error is a few ulp of one. "none" and "relu" are exact.
ACTIVATION_ULPS = {"none": 0, "relu": 0, "gelu": 4, "gelu_tanh": 4, "silu": 4, "tanh": 4}


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype` at |x|, subnormals included; x is float64."""
    info = torch.finfo(dtype)
    magnitude = x.abs().clamp(min=info.smallest_normal, max=info.max)
    return torch.exp2(torch.floor(torch.log2(magnitude))) * info.eps


def assert_within(out: Tensor, ref: Tensor, bound: Tensor) -> None:
    """|out - ref| <= bound + half an ulp of out's dtype, element by element, NaN and inf aware."""
    assert out.shape == ref.shape, f"shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    dtype, out = out.dtype, out.detach().double()
    ref = ref.detach()
    nan_differs = out.isnan() != ref.isnan()
    assert not nan_differs.any(), f"NaN in one of out, ref only: {_first(nan_differs, out, ref)}"

    finite = ref.isfinite()
    bound = torch.where(finite, bound.detach(), 0.0)
    bound = bound + 0.5 * ulp(torch.where(finite, ref.abs(), 0.0) + bound, dtype)
    overflows = out.isinf() & finite & (ref.abs() + bound >= torch.finfo(dtype).max)
    overflows &= out.sign() == ref.sign()
    equal = (out == ref) | ref.isnan() | overflows
    wrong = ~equal & ~((out - ref).abs() <= bound)
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} outside the bound: "
        f"{_first(wrong, out, ref)}, bound {float(bound[wrong][0]):.3g}"
    )


def assert_matmul_close(
    out: Tensor, ref: Tensor, a_abs_b_abs: Tensor, k: int, *, c: float = 1.0
) -> None:
    """|out - ref| <= c·√K·eps(float32)·(|a|·|b|) + one rounding of the output dtype."""
    assert_within(out, ref, matmul_error(a_abs_b_abs, k, c=c))


def matmul_error(a_abs_b_abs: Tensor, k: int, *, c: float = 1.0) -> Tensor:
    """What a float32-accumulated product over K terms may err, before the output is rounded."""
    return c * max(k, 1) ** 0.5 * EPS32 * a_abs_b_abs


def activation_error(z: Tensor, z_error: Tensor, activation: str) -> Tensor:
    """The error of activation(z), computed in float32 from a z that errs by z_error."""
    own = ACTIVATION_ULPS[activation] * EPS32 * z.abs()
    if activation == "tanh":
        own = own.clamp(max=ACTIVATION_ULPS[activation] * EPS32)
    return LIPSCHITZ[activation] * z_error + own


def assert_no_worse_than(out: Tensor, ref: Tensor, *peers: Tensor) -> None:
    """max |out - ref| <= 2 · max |peer - ref| + one ulp of out's dtype at the largest |ref|.

    `peers` are torch's own results at out's dtype (several where torch has several ways, or orders
    of summation), `ref` the float64 truth. Where the reference is not finite, out must agree with
    it exactly, whatever the peers do.
    """
    assert out.shape == ref.shape, f"shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    dtype = out.dtype
    out, ref = out.detach().double(), ref.detach()
    finite = ref.isfinite()
    same = (out == ref) | (out.isnan() & ref.isnan())
    astray = ~finite & ~same
    assert not astray.any(), f"not the reference's NaN or infinity: {_first(astray, out, ref)}"
    if not finite.any():
        return
    # A float64 value above the dtype's range rounds to infinity: that is the right answer there.
    settled = ~finite | (out == ref.to(dtype).double())
    zero = torch.zeros_like(ref)
    error = torch.where(settled, zero, (out - ref).abs())
    peer_error = max(_max_error(peer.detach().double(), ref) for peer in peers)
    bound = 2 * peer_error + float(ulp(torch.where(finite, ref, zero).abs().max(), dtype))
    wrong = ~(error <= bound)
    assert not wrong.any(), (
        f"max error {float(error.nan_to_num(torch.inf).max()):.3g}, peers' {peer_error:.3g},"
        f" bound {bound:.3g}: {_first(wrong, out, ref)}"
    )


def _max_error(out: Tensor, ref: Tensor) -> float:
    """The largest error where both are finite."""
    error = (out - ref).abs()
    return float(torch.where(error.isfinite(), error, 0.0).max())


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Equal to the last bit, the sign of zero and the payload of NaN included."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def assert_threads_agree(call: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
    """The same bits come back on one, two and three threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result = call()
            results.append((result,) if isinstance(result, Tensor) else tuple(result))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a.detach(), b.detach())


def _first(wrong: Tensor, out: Tensor, ref: Tensor) -> str:
    index = tuple(int(i) for i in wrong.nonzero()[0])
    return f"at {index} out {float(out[index])!r}, ref {float(ref[index])!r}"
