"""Results as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from bench.case import Result
from bench.limits import Limits
from bench.table import PEER_NAMES

# Okabe and Ito's colours, which colour-blind readers tell apart; shapes and dashes say it again.
COLOURS = {
    "": "#0072B2",
    "packed": "#D55E00",
    "torch": "#000000",
    "compile": "#000000",
    "flex": "#D55E00",
    "numpy": "#009E73",
    "onnxruntime": "#CC79A7",
    "openvino": "#56B4E9",
    "jax": "#E69F00",
    "one by one": "#CC79A7",
    "contiguous": "#E69F00",
}
MARKERS = {
    "": "o",
    "packed": "D",
    "torch": "|",
    "compile": "2",
    "flex": "+",
    "numpy": "x",
    "onnxruntime": "1",
    "openvino": "3",
    "jax": "4",
    "one by one": "+",
    "contiguous": "s",
}
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
PEER_COLOURS = (*CURVES, "#56B4E9", "#000000")
OTHER = "#999999"
WAY_NAMES = {"": "lanewise", "packed": "lanewise, packed", **PEER_NAMES}

mpl.rcParams.update(
    {
        "figure.dpi": 130,
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

SHARE = "share of the limit (multiply-adds, or bytes)"


def draw(kind: str, results: Sequence[Result], limits: Limits, title: str, path: Path) -> None:
    """Draws results as a section asks for and writes them to a file."""
    figure = PLOTS[kind](results, limits)
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    figure.savefig(path)


def _shares(results: Sequence[Result], limits: Limits) -> Figure:
    """For each work a line with its sides' shares of the limit, a panel for each dtype."""
    works = list(dict.fromkeys(r.task.work for r in results))
    figure, panels = _panels(results, 1.4 + 0.24 * len(works), 4.2)
    for dtype, panel in panels.items():
        for result in (r for r in results if r.task.dtype_name == dtype):
            for side in result.seconds:
                panel.plot(
                    _share(result, side, limits),
                    works.index(result.task.work),
                    MARKERS[side],
                    color=COLOURS[side],
                    markersize=10 if side == "torch" else 6,
                    markeredgewidth=2 if side in PEER_NAMES else 1,
                    label=WAY_NAMES[side],
                )
        panel.axvline(1, color=OTHER, linewidth=1)
        panel.set_xlim(left=0)
        panel.set_xlabel(SHARE.replace(" (", "\n("))  # long names of works leave panels narrow
        panel.xaxis.set_major_formatter(PercentFormatter(1))
    first = next(iter(panels.values()))
    first.set_yticks(range(len(works)), works)
    first.invert_yaxis()
    _legend(figure, panels)
    return figure


def _rows(results: Sequence[Result], limits: Limits) -> Figure:
    """Share of the limit over the number of rows."""
    figure, panels = _panels(results, 4.2, 4.6)
    for dtype, panel in panels.items():
        points = [r for r in results if r.task.dtype_name == dtype]
        for side in ("", "packed", "torch"):
            there = [r for r in points if side in r.seconds]
            panel.plot(
                [r.task.rows for r in there],
                [_share(r, side, limits) for r in there],
                "--" if side == "torch" else "-",
                color=COLOURS[side],
                linewidth=1.3,
                label=WAY_NAMES[side],
            )
        _over(panel, "rows of x")
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    _shares_from_zero(panels)
    _legend(figure, panels)
    return figure


def _curves(results: Sequence[Result], limits: Limits) -> Figure:
    """Share of the limit over the length of the sequence: a colour for each series."""
    figure, panels = _panels(results, 4.2, 4.6)
    for dtype, panel in panels.items():
        points = [r for r in results if r.task.dtype_name == dtype]
        names = list(dict.fromkeys(r.task.series for r in points))
        for name, colour in zip(names, CURVES, strict=False):
            for side in ("", "torch"):
                there = [r for r in points if r.task.series == name and side in r.seconds]
                panel.plot(
                    [r.task.rows for r in there],
                    [_share(r, side, limits) for r in there],
                    "--" if side == "torch" else "-",
                    marker=MARKERS[side],
                    color=colour,
                    markersize=4,
                    linewidth=1.3,
                    label=f"{WAY_NAMES[side]}, {name}",
                )
        _over(panel, "tokens of the sequence")
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    _shares_from_zero(panels)
    _legend(figure, panels, columns=len(names))
    return figure


def _ratios(results: Sequence[Result], limits: Limits) -> Figure:
    """The ratio to torch over the number of rows: each layer faintly, their mean boldly."""
    # Each dtype on its own scale: torch's 16-bit products differ by tens from CPU to CPU.
    figure, panels = _panels(results, 4.2, 4.6, share_y=False)
    for dtype, panel in panels.items():
        points = [r for r in results if r.task.dtype_name == dtype]
        rows = list(dict.fromkeys(r.task.rows for r in points))
        for way in ("", "packed"):
            ratios = {
                (r.task.rows, r.task.series): ratio
                for r in points
                if (ratio := r.ratio(way, "torch")) is not None
            }
            for series in dict.fromkeys(r.task.series for r in points):
                there = [count for count in rows if (count, series) in ratios]
                values = [ratios[count, series] for count in there]
                panel.plot(there, values, color=COLOURS[way], alpha=0.25, linewidth=0.8)
            means = {
                count: statistics.geometric_mean(
                    [ratio for (at, _), ratio in ratios.items() if at == count]
                )
                for count in dict.fromkeys(at for at, _ in ratios)
            }
            panel.plot(
                list(means),
                list(means.values()),
                marker=MARKERS[way],
                color=COLOURS[way],
                markersize=4,
                linewidth=2,
                label=WAY_NAMES[way],
            )
        panel.axhline(1, color=COLOURS["torch"], linestyle="--", linewidth=1.3, label="torch")
        _over(panel, "rows of x")
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    next(iter(panels.values())).set_ylabel("× torch (layers thin, their geometric mean bold)")
    _legend(figure, panels)
    return figure


def _bars(results: Sequence[Result], limits: Limits) -> Figure:
    """For each work and way, how many times as fast as each peer."""
    bars = [
        (f"{result.label(way)}, {result.task.dtype_name}", PEER_NAMES[peer], ratio)
        for result in results
        for way in result.ways
        for peer in result.peers
        if (ratio := result.ratio(way, peer)) is not None
    ]
    colours = dict(zip(dict.fromkeys(peer for _, peer, _ in bars), PEER_COLOURS, strict=False))
    figure = Figure(figsize=(9, 1.2 + 0.22 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (_, peer, ratio) in enumerate(bars):
        bar = axes.barh(place, ratio, color=colours[peer], label=peer)
        axes.bar_label(bar, fmt="%.2f", padding=2)
    firsts = {label: place for place, (label, _, _) in reversed(list(enumerate(bars)))}
    axes.set_yticks(list(firsts.values()), list(firsts))
    axes.invert_yaxis()
    axes.axvline(1, color=OTHER, linewidth=1)
    axes.set_xlabel("times as fast as")
    axes.grid(axis="y", visible=False)
    _legend(figure, {"": axes}, columns=4)
    return figure


def _roofline(results: Sequence[Result], limits: Limits) -> Figure:
    """Operations per second over operations per byte: the roofs, our best way, and each peer."""
    figure, panels = _panels(results, 4.6, 4.8)
    intensities = [r.task.flops / r.task.bytes for r in results]
    left, right = 0.7 * min(intensities), 1.5 * max(intensities)
    for dtype, panel in panels.items():
        for level, bandwidth in limits.levels.items():
            peak = limits.flops(getattr(torch, dtype))
            xs = [left, min(max(peak / bandwidth, left), right), right]
            ys = [min(peak, x * bandwidth) / 1e9 for x in xs]
            panel.plot(xs, ys, color=OTHER, linewidth=1, zorder=1)
            panel.annotate(level, (left, ys[0]), fontsize=7, color=OTHER, va="bottom")
        for result in (r for r in results if r.task.dtype_name == dtype):
            x = result.task.flops / result.task.bytes
            ways = [way for way in result.ways if way in result.seconds]
            best = [min(ways, key=result.seconds.__getitem__)] if ways else []
            sides = [*best, *(peer for peer in result.peers if peer in result.seconds)]
            speeds = [result.task.flops / result.seconds[side] / 1e9 for side in sides]
            if speeds:
                panel.plot([x, x], [min(speeds), max(speeds)], color=OTHER, linewidth=0.4, zorder=1)
            for side, speed in zip(sides, speeds, strict=True):
                style = "" if side in best else side
                panel.plot(
                    x,
                    speed,
                    MARKERS[style],
                    color=COLOURS[style],
                    markersize=4 if side in best else 6,
                    label=WAY_NAMES[style],
                )
        panel.set(xscale="log", yscale="log", xlabel="operations per byte")
    next(iter(panels.values())).set_ylabel("GFLOP/s")
    _legend(figure, panels)
    return figure


PLOTS: dict[str, Callable[[Sequence[Result], Limits], Figure]] = {
    "shares": _shares,
    "rows": _rows,
    "curves": _curves,
    "ratios": _ratios,
    "bars": _bars,
    "roofline": _roofline,
}


def _panels(
    results: Sequence[Result], height: float, width: float, share_y: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    dtypes = list(dict.fromkeys(r.task.dtype_name for r in results))
    figure = Figure(figsize=(width * len(dtypes), height), layout="constrained")
    axes = figure.subplots(1, len(dtypes), sharey=share_y, squeeze=False)[0]
    panels = dict(zip(dtypes, axes, strict=True))
    for dtype, panel in panels.items():
        panel.set_title(dtype)
    return figure, panels


def _over(panel: Axes, label: str) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_xlabel(label)


def _shares_from_zero(panels: dict[str, Axes]) -> None:
    first = next(iter(panels.values()))
    first.set_ylim(bottom=0)  # of all panels, and only now: it ends the scaling to the data
    first.set_ylabel(SHARE)


def _share(result: Result, side: str, limits: Limits) -> float:
    return limits.binding(result.task)[1] / result.seconds[side]


def _legend(figure: Figure, panels: dict[str, Axes], columns: int = 0) -> None:
    """One legend under all panels, away from the data."""
    handles: dict[str, Artist] = {}
    for panel in panels.values():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns or len(handles),
    )
