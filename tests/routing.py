"""What the tests of routed torch ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from numerics import assert_no_worse_than, assert_same_bits
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import lanewise
from lanewise.integrations.aten import Report, worth
from lanewise.integrations.aten.reason import SERVED, TOO_SMALL


@contextmanager
def always() -> Iterator[Report]:
    """Routes whatever lanewise can serve, however small."""
    with (
        mock.patch.multiple(
            worth,
            LEAST_PRODUCT={},
            LEAST_ATTENTION={},
            LEAST_LAYER_NORM=0,
            product=lambda *_: SERVED,
            product_with_summand=lambda *_: SERVED,
            attention=lambda *_: SERVED,
            # Of one column or two gradients vanish, and any rounding is infinitely far from 0.
            rms_norm=lambda isa, cols: SERVED if cols > 2 else TOO_SMALL,
            layer_norm=lambda isa, dtype, rows, cols, gradient: SERVED if cols > 2 else TOO_SMALL,
        ),
        lanewise.use() as report,
    ):
        yield report


def to(arguments: Any, dtype: torch.dtype) -> Any:
    """The arguments with their floating tensors in a dtype, as leaves where they were."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        converted = value.detach()
        if value.is_floating_point():
            converted = converted.to(dtype)
        return converted.requires_grad_(value.requires_grad)

    return tree_map(convert, arguments)


def leaves(arguments: Any) -> list[Tensor]:
    found = tree_flatten(arguments)[0]
    return [t for t in found if isinstance(t, Tensor) and t.requires_grad]


def run(call: Callable[..., Any], arguments: Any, *, twice: bool = False) -> list[Tensor | None]:
    """The floating outputs, the gradients of their sum of squares and, if `twice`, theirs."""
    args, kwargs = arguments
    outputs = [t for t in tree_flatten(call(*args, **kwargs))[0] if isinstance(t, Tensor)]
    results: list[Tensor | None] = list(outputs)
    inputs = leaves(arguments)
    differentiable = [t for t in outputs if t.requires_grad]
    if not (inputs and differentiable):
        return results
    loss = sum(t.abs().square().sum() for t in differentiable)
    grads = torch.autograd.grad(loss, inputs, create_graph=twice, allow_unused=True)
    results += grads
    if twice:
        loss = sum(g.abs().square().sum() for g in grads if g is not None and g.requires_grad)
        if isinstance(loss, Tensor):
            results += torch.autograd.grad(loss, inputs, allow_unused=True)
    return results


def check(
    call: Callable[..., Any], arguments: Any, *, routed: Callable[[], Any] = always, **options: Any
) -> Report:
    """Routed, a call is no less accurate than unrouted, and equal where nothing is served.

    It may also err as much as the exact result would move if each input were off by a unit in its
    last place: on tiny, ill-conditioned samples torch's own error is a matter of luck.
    """
    plain = run(call, arguments, **options)
    with routed() as report:
        ours = run(call, arguments, **options)
    if not report.routed:
        for our, torchs in zip(ours, plain, strict=True):
            assert (our is None) == (torchs is None)
            if our is not None and torchs is not None:
                assert_same_bits(our.detach(), torchs.detach())
        return report
    exact = run(call, to(arguments, torch.float64), **options)
    try:
        compare(ours, plain, [[ref] for ref in exact])
    except AssertionError:
        moved = (
            run(call, nudge(to(arguments, torch.float64), seed, dtype_of(arguments)), **options)
            for seed in range(3)
        )
        compare(ours, plain, [list(results) for results in zip(exact, *moved, strict=True)])
    return report


def compare(
    ours: list[Tensor | None], plain: list[Tensor | None], exact: list[list[Tensor | None]]
) -> None:
    """`exact`: the reference of each result, and what it is when the inputs move."""
    for our, torchs, (ref, *moved) in zip(ours, plain, exact, strict=True):
        assert (our is None) == (torchs is None)
        if our is None or torchs is None or ref is None:
            continue
        assert our.dtype == torchs.dtype
        assert our.shape == torchs.shape
        assert our.stride() == torchs.stride()
        if torchs.isfinite().all():  # float16 overflows in samples made for any dtype
            assert_no_worse_than(our, ref, torchs, *(t for t in moved if t is not None))
        else:
            assert torch.equal(our.isfinite(), torchs.isfinite())


def dtype_of(arguments: Any) -> torch.dtype:
    return next(
        t.dtype
        for t in tree_flatten(arguments)[0]
        if isinstance(t, Tensor) and t.is_floating_point()
    )


def nudge(arguments: Any, seed: int, dtype: torch.dtype) -> Any:
    """The arguments with each element an eps of a dtype up or down."""
    generator = torch.Generator().manual_seed(seed)

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        up = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        moved = value.detach() * (1 + up * torch.finfo(dtype).eps)
        return moved.requires_grad_(value.requires_grad)

    return tree_map(move, arguments)
