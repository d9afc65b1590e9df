"""What `lanewise.optimize` has done to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """The layers of a model by name: those that compute on lanewise now, and the others.

    ``print`` shows it by class.

    Attributes:
        replaced: name of a module → the name of its class and of what it computes on.
        kept: name of a module that was left as it is → the reason.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced: {len(self.replaced)} modules", *_counted(self.replaced)]
        lines += [f"left as they are: {len(self.kept)} modules", *_counted(self.kept)]
        return "\n".join(lines)


def _counted(entries: dict[str, str]) -> list[str]:
    return [f"  {count:4} × {what}" for what, count in Counter(entries.values()).most_common()]
