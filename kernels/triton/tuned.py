"""Tiles that `python -m lanewise tune` measured on a GPU, kept in a file of the user's.

A file belongs to one model of GPU and to the versions that it was measured with:
`$XDG_CACHE_HOME/lanewise/tiles/<GPU>.json`, or what the variable LANEWISE_TILES names.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lanewise
import triton

from .table import TABLES, Table
from .target import Architecture

Tiles = Mapping[tuple[str, str], Any]  # by table and class of problem


def path(gpu: str) -> Path:
    """Where the tiles of a GPU of this name are kept."""
    named = os.environ.get("LANEWISE_TILES")
    if named:
        return Path(named)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lanewise" / "tiles" / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"


def tables() -> dict[str, Table[Any]]:
    """Every table of every family."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{__package__}.{module.name}")
    return TABLES


def _versions(gpu: str, architecture: Architecture) -> dict[str, str]:
    return {
        "gpu": gpu,
        "architecture": architecture.name,
        "lanewise": lanewise.__version__,
        "triton": triton.__version__,
    }


def save(file: Path, gpu: str, architecture: Architecture, tiles: Tiles) -> None:
    """Writes `tiles` in the place of what the file held; a reader never sees half of it."""
    rows: dict[str, dict[str, Any]] = {}
    for (table, problem), tile in sorted(tiles.items()):
        rows.setdefault(table, {})[problem] = dataclasses.asdict(tile)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    document = {**_versions(gpu, architecture), "tiles": rows}
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(file)


def load(gpu: str, architecture: Architecture) -> Tiles:
    """The tiles kept for this GPU; none, and a warning, where they are of something else."""
    file = path(gpu)
    try:
        document = json.loads(file.read_text())
        measured = {name: document[name] for name in _versions(gpu, architecture)}
        rows = document["tiles"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        return _unused(file, f"it cannot be read ({type(error).__name__}: {error})")
    for name, version in _versions(gpu, architecture).items():
        if measured[name] != version:
            return _unused(file, f"it was measured with {name} {measured[name]}, this is {version}")
    known = tables()
    try:
        return {
            (table, problem): type(known[table].shipped(architecture, problem))(**fields)
            for table, problems in rows.items()
            for problem, fields in problems.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        return _unused(file, f"it names what is not there ({type(error).__name__}: {error})")


def _unused(file: Path, reason: str) -> Tiles:
    warnings.warn(
        f"lanewise: the tiles in {file} are not used: {reason}; run python -m lanewise tune",
        stacklevel=2,
    )
    return {}
