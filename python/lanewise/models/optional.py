"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str = "models") -> ModuleType:
    """Imports ``module``, or raises ImportError that says which extra of ours brings it."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"lanewise: {purpose} needs the package {package}: pip install lanewise[{extra}]"
        ) from None
    return importlib.import_module(module)
