"""What further threads gain over one, on any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from rich.table import Table

from bench import table
from bench.case import Case, Result, Side
from bench.limits import Limits
from bench.section import Section


def section(points: Sequence[Callable[[], Case]]) -> Section:
    """A section in which each side of the points runs on one thread and on all of them."""
    return Section(
        "threads",
        [partial(_scaled, point) for point in points],
        tables=_tables,
        cells=_cells,
        plot=None,
    )


def _scaled(point: Callable[[], Case]) -> Case:
    case = point()
    return replace(case, ours=_on_both(case.ours), peers=_on_both(case.peers))


def _on_both(sides: Mapping[str, Side]) -> dict[str, Side]:
    threads = torch.get_num_threads()

    def on(count: int, side: Side) -> Side:
        def run() -> object:
            torch.set_num_threads(count)
            try:
                return side()
            finally:
                torch.set_num_threads(threads)

        return run

    return {
        _name(kind, count): on(count, side)
        for kind, side in sides.items()
        for count in dict.fromkeys((1, threads))
    }


def _tables(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    rows = [
        (
            result.label(kind),
            result.task.dtype_name,
            *(table.milliseconds(result, _name(kind, count)) for count in (1, limits.threads)),
            _gain(result, kind, limits.threads),
        )
        for result in results
        for kind in _kinds((*result.ways, *result.peers))
    ]
    rows.append(("multiply-adds in registers", "float32", "", "", f"{limits.scaling():.2f}"))
    columns = ("work", "dtype", "1 thread", f"{limits.threads} threads", "gain")
    yield table.build("threads", columns, rows, texts=2)


def _cells(result: Result, limits: Limits) -> dict[str, str]:
    gain = f"1 to {limits.threads} threads"
    peers = "".join(
        f" · {table.PEER_NAMES[peer]} {_gain(result, peer, limits.threads)}"
        for peer in _kinds(result.peers)
    )
    return {
        f"{result.label(way)}, {gain}": f"{_gain(result, way, limits.threads)}{peers}"
        for way in _kinds(result.ways)
    }


def _gain(result: Result, kind: str, threads: int) -> str:
    one, all_of_them = (result.seconds.get(_name(kind, count)) for count in (1, threads))
    return f"{one / all_of_them:.2f}" if one and all_of_them else table.WRONG


def _name(kind: str, threads: int) -> str:
    return f"{kind}, {_count(threads)}" if kind else _count(threads)


def _count(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _kinds(sides: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(side.rpartition(", ")[0] for side in sides))
