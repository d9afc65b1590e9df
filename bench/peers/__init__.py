"""Whom lanewise is measured against: one file per peer, and every file answers the same questions.

A peer's module is named as the peer is on the command line. It holds ``answer(question)``, which
prepares all that a user would prepare once (a graph, weights in the peer's own layout) and returns
a function that computes the answer, in the question's dtype, as often as it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence

from bench.case import Side
from bench.peers.question import Question, Unanswered

ALL = ("torch", "compile", "flex", "numpy", "onnxruntime", "openvino", "jax")
# Those whose answers cost nothing to prepare, for sweeps of hundreds of points.
EAGER = ("torch", "numpy")

_wanted: Collection[str] = ALL


def want(names: Collection[str]) -> None:
    """From now on ask these peers alone."""
    global _wanted
    _wanted = frozenset(names)


def ask(question: Question, names: Sequence[str] = ALL) -> tuple[dict[str, Side], dict[str, str]]:
    """The peers' answers to a question, and why peers that are wanted cannot give any.

    A peer that is there and fails is a side that raises: what is wrong then shows, and the run's
    exit status says so.
    """
    sides: dict[str, Side] = {}
    absent: dict[str, str] = {}
    for name in names:
        if name not in _wanted:
            continue
        try:
            sides[name] = importlib.import_module(f"bench.peers.{name}").answer(question)
        except Unanswered:
            continue
        except ModuleNotFoundError as error:
            absent[name] = f"{error.name} is not installed"
        except Exception as error:  # whatever a foreign package throws
            sides[name] = _failing(error)
    return sides, absent


def _failing(error: Exception) -> Side:
    message = f"{type(error).__name__}: {error}".partition("\n")[0]

    def fail() -> object:
        raise RuntimeError(message)

    return fail
