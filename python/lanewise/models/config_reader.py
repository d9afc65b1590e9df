"""Reading the values of a ``config.json`` one by one, with a clear error for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Hugging Face's names of the functions that the ops call otherwise.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


class ConfigReader:
    """The values of one configuration, on behalf of the model called ``model``."""

    def __init__(self, model: str, values: Mapping[str, Any]) -> None:
        self.model = model
        self.values = values

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{self.model}: the config lacks {name}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.model}: {name} must be a whole number above 0, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
            raise ValueError(f"{self.model}: {name} must be a finite number, got {value!r}")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """A finite number above 0."""
        value = self.number(name, default)
        if value <= 0:
            raise ValueError(f"{self.model}: {name} must be above 0, got {value!r}")
        return value

    def sliding(self, layers: int) -> tuple[bool, ...] | None:
        """Which layers attend a sliding window by ``layer_types``, None without them."""
        types = self.values.get("layer_types")
        if types is None:
            return None
        known = ("sliding_attention", "full_attention")
        if (
            not isinstance(types, list)
            or len(types) != layers
            or not all(t in known for t in types)
        ):
            raise ValueError(
                f"{self.model}: layer_types must name {' or '.join(known)} for each of {layers} "
                f"layers, got {types!r}"
            )
        return tuple(kind == known[0] for kind in types)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.model}: {name} must be true or false, got {value!r}")
        return value

    def activation(self, name: str, default: str) -> str:
        """The ops' name of an activation."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"{self.model}: {name} must be one of {known}, got {value!r}")
        return ACTIVATIONS[value]

    def tokens(self, name: str) -> tuple[int, ...]:
        """One token number, several, or none."""
        value = self.values.get(name)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and token >= 0 for token in found):
            raise ValueError(f"{self.model}: {name} must be token numbers, got {value!r}")
        return tuple(found)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a variant that the model does not compute; absence is the first one allowed."""
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ValueError(f"{self.model}: {name} must be {choices}, got {value!r}")
