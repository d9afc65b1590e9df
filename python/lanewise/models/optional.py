"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(package: str, purpose: str) -> ModuleType:
    """Imports ``package``, or raises ImportError with one sentence that says how to get it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"lanewise: {purpose} needs the package {package}: pip install lanewise[demo]"
        ) from None
