"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, source: str = "lanewise[models]") -> ModuleType:
    """Imports ``module``, or raises ImportError with one sentence that says how to get it: by
    installing ``source``."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"lanewise: {purpose} needs the package {package}: pip install {source}"
        ) from None
    return importlib.import_module(module)
