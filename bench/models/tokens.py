"""Tables of how many tokens a second each side reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from bench import table
from bench.case import Result
from bench.limits import Limits
from bench.models import bars
from bench.models.bars import Bar


def tables(
    wanted: Sequence[Bar],
) -> Callable[[Sequence[Result], Limits], Iterator[Table]]:
    """Rates of all sides with ratios to the peers, then the bars."""

    def build(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
        peers = list(dict.fromkeys(peer for r in results for peer in (*r.peers, *r.absent)))
        columns = ["work", "dtype", "tokens/s", "of the limit"]
        columns += [f"× {table.PEER_NAMES[peer]} (tokens/s)" for peer in peers]
        rows = [
            (
                result.label(way),
                result.task.dtype_name,
                rate(result, way),
                table.share(result, way, limits),
                *(_peer(result, way, peer) for peer in peers),
            )
            for result in results
            for way in result.ways
        ]
        yield table.build(results[0].section, columns, rows, texts=2)
        yield bars.build(wanted, results, limits)

    return build


def rate(result: Result, side: str) -> str:
    """Tokens per second."""
    if side not in result.seconds:
        return table.WRONG
    return f"{result.task.rows / result.seconds[side]:.3g}"


def _peer(result: Result, way: str, peer: str) -> str:
    ratio = table.ratio(result, way, peer)
    return f"{ratio} ({rate(result, peer)})" if peer in result.seconds else ratio
