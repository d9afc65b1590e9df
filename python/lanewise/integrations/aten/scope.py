"""Switching the routing on and off."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lanewise.integrations.aten import attention, gemm, norm
from lanewise.integrations.aten.override import Override, Overrides
from lanewise.integrations.aten.report import Report

OVERRIDES: dict[str, tuple[Override, ...]] = {
    **gemm.OVERRIDES,
    **attention.OVERRIDES,
    **norm.OVERRIDES,
}
# The names that `only` takes.
ROUTED = tuple(OVERRIDES)


class _Scope:
    """One demand for routing: enable()'s, or a block's."""

    def __init__(self, ops: frozenset[str]) -> None:
        self.ops = ops
        self.report = Report()


# Under the lock: the demands in force, the innermost last, enable()'s first; and what serves it.
_lock = threading.Lock()
_scopes: list[_Scope] = []
_enabled: _Scope | None = None
_overrides = Overrides()


def enable() -> Report:
    """Routes torch's CPU ops to lanewise in this process, until :func:`disable`.

    Idempotent. Best called before other threads compute: torch's table of kernels has no lock for
    readers, so what is in it is not taken out again while there are any.

    Returns:
        The :class:`Report` of all calls since the first `enable`.
    """
    global _enabled
    with _lock:
        if _enabled is None:
            _enabled = _Scope(frozenset(ROUTED))
            _scopes.insert(0, _enabled)
            _follow_innermost()
        return _enabled.report


def disable() -> None:
    """Undoes :func:`enable`: torch's kernels are again those that were there. Idempotent.

    A :func:`use` block that is under way stays in force until it ends. While other threads live, or
    another library has a kernel over lanewise's, the latter stay in torch's table and pass calls
    on, until routing ends once more without such.
    """
    global _enabled
    with _lock:
        if _enabled is not None:
            _leave(_enabled)
            _enabled = None


@contextmanager
def use(only: Iterable[str] | None = None) -> Iterator[Report]:
    """Routes torch's CPU ops to lanewise within a block, in all threads.

    Blocks nest: the innermost says which ops are routed.

    Args:
        only: the ops to route, of ``"mm"``, ``"addmm"``, ``"bmm"``, ``"baddbmm"`` (to which
            F.linear and torch.matmul come down), ``"scaled_dot_product_attention"``,
            ``"layer_norm"`` and ``"rms_norm"``; all if None.

    Returns:
        The block's :class:`Report`: how many calls of each op were served, and why others were not.

    Raises:
        TypeError: if ``only`` is a string.
        ValueError: if ``only`` names an op that is not routed.
    """
    scope = _Scope(_chosen(only))
    with _lock:
        _scopes.append(scope)
        _follow_innermost()
    try:
        yield scope.report
    finally:
        with _lock:
            _leave(scope)


def _chosen(only: Iterable[str] | None) -> frozenset[str]:
    if only is None:
        return frozenset(ROUTED)
    if isinstance(only, str):
        raise TypeError(f"lanewise.use: only must be a list of op names, got the string '{only}'")
    chosen = frozenset(only)
    for name in chosen:
        if name not in ROUTED:
            raise ValueError(
                f"lanewise.use: only must name ops among {', '.join(ROUTED)}, got {name!r}"
            )
    return chosen


def _leave(scope: _Scope) -> None:
    at = _scopes.index(scope)
    if at > 0:
        _scopes[at - 1].report.calls.update(scope.report.calls)
    del _scopes[at]
    _follow_innermost()


def _follow_innermost() -> None:
    """Overrides what the innermost demand asks for, and counts into its report."""
    if not _scopes:
        _overrides.replace(())
        return
    innermost = _scopes[-1]
    _overrides.report = innermost.report
    _overrides.replace(tuple(o for op in ROUTED if op in innermost.ops for o in OVERRIDES[op]))
