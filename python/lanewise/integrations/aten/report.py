"""What was routed and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lanewise.integrations.aten.reason import SERVED


class Report:
    """Counts of calls by op, filled while it is the innermost one in force; then also its outer's.

    Attributes:
        routed: calls that lanewise served, by op.
        fell_through: calls that went on to torch, by op and reason.
    """

    def __init__(self) -> None:
        # By op and reason in one table, so that a call pays for one increment.
        self.calls: Counter[tuple[str, str]] = Counter()

    @property
    def routed(self) -> Mapping[str, int]:
        return {op: calls for (op, reason), calls in self._sorted() if reason == SERVED}

    @property
    def fell_through(self) -> Mapping[str, Mapping[str, int]]:
        reasons: dict[str, dict[str, int]] = {}
        for (op, reason), calls in self._sorted():
            if reason != SERVED:
                reasons.setdefault(op, {})[reason] = calls
        return reasons

    def _sorted(self) -> list[tuple[tuple[str, str], int]]:
        return sorted(self.calls.items())

    def __str__(self) -> str:
        if not self.calls:
            return "no call of a routed op"
        rows = [
            (op, f"{calls:d}", "lanewise" if reason == SERVED else f"torch: {reason}")
            for (op, reason), calls in self._sorted()
        ]
        name, number = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{op:{name}}  {calls:>{number}}  {where}" for op, calls, where in rows)

    def __repr__(self) -> str:
        return f"<lanewise report: routed {self.routed}, fell through {self.fell_through}>"
