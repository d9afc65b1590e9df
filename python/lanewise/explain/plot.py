"""The roofline of a model, and its cycles op by op, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lanewise.explain.analysis import Explanation
from lanewise.models.optional import require

COMPUTE, BYTES = "#4477aa", "#cc6677"  # Paul Tol's bright scheme: apart for the colour-blind too
MOST_BARS = 16


def draw(e: Explanation, file: Path) -> None:
    """Writes the picture in the format that the file's ending names."""
    require("matplotlib", "drawing", "lanewise[bench]")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    roof, bars = figure.subplots(1, 2)
    _roofline(e, roof)
    _bars(e, bars)
    q = e.question
    figure.suptitle(f"{e.model}: {q.phase} of {q.batch} × {q.tokens} tokens after {q.context}")
    figure.savefig(file, dpi=150)


def _roofline(e: Explanation, axes: Any) -> None:
    """Each op's operations per byte and per second under the two limits."""
    rate, bandwidth = e.cpu.flops[e.question.dtype], e.cpu.bandwidth
    rows = [row for row in e.rows if row.work.flops and (row.took or row.needs)]
    low = min([row.work.intensity for row in rows] + [0.1])
    high = max([row.work.intensity for row in rows] + [rate / bandwidth]) * 4
    xs = [low / 2, rate / bandwidth, high]
    axes.plot(xs, [min(rate, x * bandwidth) / 1e9 for x in xs], color="black")
    for row in rows:
        seconds = row.took or row.needs
        axes.scatter(
            row.work.intensity,
            row.work.flops / seconds / 1e9,
            color=COMPUTE if row.bound == "compute" else BYTES,
            s=20 + 400 * seconds / max(e.took or e.needs, 1e-12),
            alpha=0.7,
        )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s", title=e.cpu.name)


def _bars(e: Explanation, axes: Any) -> None:
    """The cycles that each op needs and took."""
    rows = sorted(e.rows, key=lambda row: max(row.needs, row.took or 0.0))[-MOST_BARS:]
    names = [f"{row.place or 'model'} {row.op}" for row in rows]
    if e.took is not None:
        took = [e.cycles(row.took or 0.0) / 1e6 for row in rows]
        axes.barh(names, took, color="#dddddd", label="took")
    needs = [e.cycles(row.needs) / 1e6 for row in rows]
    colors = [COMPUTE if row.bound == "compute" else BYTES for row in rows]
    axes.barh(names, needs, height=0.4, color=colors, label="needs")
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="million clock cycles", title="needs: blue compute, red bytes; grey: took")
