"""A hash of source that a comment, a docstring or a moved line leaves alone."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime.jit import JITCallable

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@functools.cache
def source_hash(function: JITCallable) -> str:
    """Of a Triton function, of every function that it calls and of every constant that it reads."""
    parts: list[str] = []
    seen: list[JITCallable] = []

    def visit(current: JITCallable) -> None:
        if current in seen:
            return
        seen.append(current)
        parts.extend(_words(current.src))
        parts.append(str(getattr(current, "noinline", False)))
        for name, value in _references(current):
            if isinstance(value, JITCallable):
                visit(value)
            elif isinstance(value, tl.constexpr | tl.dtype | int | float | str | tuple):
                parts.append(f"{name} = {value}")

    visit(function)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def module_hash(module: ModuleType) -> str:
    """Of a Python module's source, in the same sense."""
    return hashlib.sha256("\n".join(_words(inspect.getsource(module))).encode()).hexdigest()


def _words(source: str) -> Iterator[str]:
    """The tokens of `source`; blocks are told by their columns, and docstrings left out."""
    before = tokenize.NEWLINE
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        starts = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        is_docstring = token.type == tokenize.STRING and starts and after.type == tokenize.NEWLINE
        if token.type not in SILENT and not is_docstring:
            yield f"{token.start[1]} {token.string}" if starts else token.string
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type


def _references(function: JITCallable) -> Iterator[tuple[str, Any]]:
    """The globals that `function` names, alone or through a module (`scores.tile`)."""
    for node in ast.walk(function.parse()):
        if isinstance(node, ast.Name):
            yield node.id, function.__globals__.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = function.__globals__.get(node.value.id)
            if isinstance(module, ModuleType) and not module.__name__.startswith("triton"):
                yield node.attr, getattr(module, node.attr, None)
