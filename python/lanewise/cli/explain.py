"""``python -m lanewise explain``: where the operations, bytes and cycles of a model go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lanewise.explain.analysis import Explanation, Row, conclusion, explain
from lanewise.explain.limits import GPUS
from lanewise.explain.presets import PRESETS
from lanewise.explain.run import Question
from lanewise.models.config import read_config

_WIDTH = 170
_NOISE = 0.25  # of the multiply-add rate: more than a quiet machine moves


def run(
    model: str,
    *,
    phase: str,
    tokens: int | None,
    batch: int,
    context: int | None,
    dtype: torch.dtype,
    gpus: Sequence[str],
    as_json: bool,
    plot: str | None,
    dry: bool,
    by_layer: bool,
) -> int:
    """Prints the table of a model, or its JSON; draws its roofline where asked to."""
    question = Question(
        phase,
        batch,
        1 if phase == "decode" else tokens or 512,
        (512 if context is None else context) if phase == "decode" else context or 0,
        dtype,
    )
    for gpu in gpus:
        if gpu not in GPUS:
            raise ValueError(f"lanewise.explain: gpu must be one of {', '.join(GPUS)}, got {gpu!r}")
    if context is not None and context < 0:
        raise ValueError(f"lanewise.explain: context must not be negative, got {context}")
    if phase == "decode" and tokens not in (None, 1):
        raise ValueError(f"lanewise.explain: tokens must be 1 in decode, got {tokens}")
    if phase == "train" and context:
        raise ValueError(f"lanewise.explain: context must be 0 in {phase}, got {context}")
    found = explain(model, config_of(model), question, gpus=gpus, run=not dry, by_layer=by_layer)
    if as_json:
        print(json.dumps(document(found), indent=1))
    else:
        _print(found)
    if plot:
        from lanewise.explain.plot import draw

        draw(found, Path(plot))
    return 0


def config_of(model: str) -> dict[str, Any]:
    """The config of a named model, of a directory or GGUF file, or in a ``config.json``.

    Raises:
        ValueError: it is none of these.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = Path(model)
    if not path.exists():
        raise ValueError(
            f"lanewise.explain: model must be one of {', '.join(PRESETS)}, or a config.json, "
            f"got {model!r}"
        )
    if path.suffix == ".json":
        if path.name != "config.json":
            raise ValueError(f"lanewise.explain: the file must be a config.json, got {model!r}")
        path = path.parent
    return read_config(path)


def document(e: Explanation) -> dict[str, Any]:
    """Everything of an explanation as JSON: ``rows`` per op, and ``total``."""
    question = {**asdict(e.question), "dtype": str(e.question.dtype).removeprefix("torch.")}
    return {
        "model": e.model,
        "question": question,
        "parameters": e.parameters,
        "machine": {
            "name": e.cpu.name,
            "flops": e.cpu.flops[e.question.dtype],
            "bandwidth": e.cpu.bandwidth,
            "clock": e.cpu.clock,
            "noise": e.cpu.noise,
        },
        "rows": [_row(e, row) for row in e.rows],
        "total": {
            "flops": e.total.flops,
            "bytes": e.total.bytes,
            "weight_bytes": e.total.weights,
            "activation_bytes": e.total.activations,
            "cache_bytes": e.total.cache,
            "needed_cycles": e.cycles(e.needs),
            "cycles": None if e.took is None else e.cycles(e.took),
            "cycles_per_token": None
            if e.took is None
            else e.cycles(e.took) / e.question.new_tokens,
            "bound": e.bound,
        },
        "unmeasured": e.unmeasured or None,
        "gpus": {
            name: {
                "seconds": seconds,
                "cycles": seconds * GPUS[name].clock,
                "name": GPUS[name].name,
                "calculated_from": GPUS[name].source,
            }
            for name, seconds in e.gpus.items()
        },
        "conclusion": conclusion(e),
    }


def _row(e: Explanation, row: Row) -> dict[str, Any]:
    return {
        "place": row.place,
        "op": row.op,
        "shape": row.shape,
        "calls": row.calls,
        "flops": row.work.flops,
        "bytes": row.work.bytes,
        "weight_bytes": row.work.weights,
        "activation_bytes": row.work.activations,
        "cache_bytes": row.work.cache,
        "intensity": row.work.intensity,
        "bound": row.bound,
        "needed_cycles": e.cycles(row.needs),
        "cycles": None if row.took is None else e.cycles(row.took),
        "gpu_cycles": {
            name: GPUS[name].cycles(row.work, e.question.dtype) for name in e.gpus
        },  # calculated
    }


def _print(e: Explanation) -> None:
    q = e.question
    dtype = str(q.dtype).removeprefix("torch.")
    console = Console()
    if not console.is_terminal:  # a file has room for every column
        console.width = _WIDTH
    title = (
        f"{e.model}, {e.parameters / 1e6:.0f} M parameters, {dtype}: {q.phase} of "
        f"{q.batch} × {q.tokens} tokens after {q.context}"
    )
    table = Table(title=title, title_justify="left")
    for name in ("where", "op", "shape"):
        table.add_column(name, overflow="fold")
    for name in ("calls", "MFLOP", "weights", "activations", "KV", "FLOP/B", "bound"):
        table.add_column(name, justify="right")
    for name in ("needs", "took", "share"):
        table.add_column(name, justify="right")
    shown, rest = _shown(e)
    for row in shown:
        table.add_row(row.place or "model", row.op, row.shape, str(row.calls), *_cells(e, row))
    if rest:
        table.add_row(f"{len(rest)} more", "", "", str(sum(r.calls for r in rest)), *_sum(e, rest))
    table.add_section()
    table.add_row("all ops", "", "", "", *_sum(e, e.rows))
    console.print(table)
    console.print(
        f"{e.cpu.name}: {e.cpu.flops[q.dtype] / 1e9:.0f} GFLOP/s, "
        f"{e.cpu.bandwidth / 1e9:.0f} GB/s, {e.cpu.clock / 1e9:.2f} GHz, measured now; needs and "
        "took are millions of clock cycles",
        highlight=False,
    )
    if e.cpu.noise > _NOISE:
        console.print(
            f"noisy: the multiply-adds fell to {1 - e.cpu.noise:.0%} of their best during the run, "
            "as they do where other processes work",
            highlight=False,
        )
    if e.took is None:
        console.print(f"not run: {e.unmeasured}", highlight=False)
    else:
        console.print(
            f"the whole step, layers fused: {e.took * 1e3:.2f} ms, "
            f"{e.cycles(e.took) / q.new_tokens / 1e6:.2f} M cycles and "
            f"{q.new_tokens / e.took:.1f} tokens/s",
            highlight=False,
        )
    if e.gpus:
        gpus = Table(title="Calculated from published peaks, not measured", title_justify="left")
        for name in ("GPU", "a step", "M cycles", "tokens/s", "source"):
            gpus.add_column(name, justify="left" if name in ("GPU", "source") else "right")
        for key, seconds in e.gpus.items():
            gpu = GPUS[key]
            gpus.add_row(
                gpu.name,
                f"{seconds * 1e3:.3f} ms",
                f"{seconds * gpu.clock / 1e6:.3f}",
                f"{q.new_tokens / seconds:.0f}",
                gpu.source,
            )
        console.print(gpus)
    console.print(conclusion(e), highlight=False)


def _shown(e: Explanation) -> tuple[list[Row], list[Row]]:
    """Rows that need or took at least a thousandth of the whole, in the order of the model; and the
    others."""
    whole = max(e.needs, sum(row.took or 0.0 for row in e.rows))
    shown = [r for r in e.rows if max(r.needs, r.took or 0.0) >= 0.001 * whole]
    return shown, [r for r in e.rows if r not in shown]


def _cells(e: Explanation, row: Row) -> tuple[str, ...]:
    took = row.took
    return (
        f"{row.work.flops / 1e6:.1f}",
        _bytes(row.work.weights),
        _bytes(row.work.activations),
        _bytes(row.work.cache),
        f"{row.work.intensity:.1f}",
        row.bound,
        f"{e.cycles(row.needs) / 1e6:.2f}",
        "" if took is None else f"{e.cycles(took) / 1e6:.2f}",
        "" if not took else f"{row.needs / took:.0%}",
    )


def _sum(e: Explanation, rows: Sequence[Row]) -> tuple[str, ...]:
    work = sum((row.work for row in rows), type(e.total)())
    took = None if any(r.took is None for r in rows) else sum(r.took or 0.0 for r in rows)
    needs = sum(row.needs for row in rows)
    return _cells(e, Row("", "", "", 0, work, "", needs, took))


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B" if count else ""
