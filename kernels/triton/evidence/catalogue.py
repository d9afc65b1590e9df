"""Every case of every family: each module here that has `cases()` and `PROMISES` is one."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from .case import Case, Promise


@functools.cache
def families() -> dict[str, ModuleType]:
    package = importlib.import_module(__package__)
    modules = {
        found.name: importlib.import_module(f"{__package__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "PROMISES")}


@functools.cache
def cases() -> dict[str, Case]:
    """By name, which no two families may share."""
    found: dict[str, Case] = {}
    for family in families().values():
        for case in family.cases():
            assert case.name not in found, f"two cases are called {case.name}"
            found[case.name] = case
    return found


@functools.cache
def promises() -> dict[str, Promise]:
    """By the name of the kernel."""
    return {
        kernel: promise
        for family in families().values()
        for kernel, promise in family.PROMISES.items()
    }
