"""Results as tables for the terminal and for a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from bench.case import Result
from bench.limits import Limits

PEER_NAMES = {
    "torch": "torch",
    "compile": "torch.compile",
    "flex": "FlexAttention",
    "numpy": "NumPy",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "one by one": "torch one by one",
    "contiguous": "contiguous",
    "transformers": "transformers",
    "transformers eager": "transformers eager",
    "transformers float32": "transformers float32",
    "transformers bfloat16": "transformers bfloat16",
    "llama.cpp": "llama.cpp Q4_K_M",
    "ctranslate2": "CTranslate2",
    "onnxruntime": "ONNX Runtime",
}
WRONG, ABSENT = "wrong", "does not run here"
NOISY = "noisy"  # other processes disturbed it each time that it was measured


def build(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> Table:
    """A table whose first columns are texts and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        text = index < texts
        table.add_column(column, justify="left" if text else "right", no_wrap=text)
    for row in rows:
        table.add_row(*row)
    return table


def comparison(results: Sequence[Result], limits: Limits) -> Iterator[Table]:
    """Each way of lanewise beside its limit and its peers."""
    peers = list(dict.fromkeys(peer for r in results for peer in (*r.peers, *r.absent)))
    columns = ["work", "dtype", "lanewise", "of the limit"]
    columns += [f"× {PEER_NAMES[peer]}" for peer in peers]
    rows = [
        (
            result.label(way),
            result.task.dtype_name,
            milliseconds(result, way),
            share(result, way, limits),
            *(ratio(result, way, peer) for peer in peers),
        )
        for result in results
        for way in result.ways
    ]
    yield build(results[0].section, columns, rows, texts=2)


def cells(result: Result, limits: Limits) -> dict[str, str]:
    """By label, in one cell: the share of the limit, the ratio to torch, and to the fastest other
    peer."""
    timed = [peer for peer in result.peers if peer in result.seconds]
    others = sorted((peer for peer in timed if peer != "torch"), key=result.seconds.__getitem__)
    named = [*(["torch"] if "torch" in timed else []), *others[:1]]
    return {
        result.label(way): " · ".join(
            (
                share(result, way, limits),
                *(f"{ratio(result, way, peer)}× {PEER_NAMES[peer]}" for peer in named),
            )
        )
        for way in result.ways
    }


def markdown(cells: Iterable[tuple[Result, dict[str, str]]]) -> str:
    """A page's table: a line per label, a column per dtype."""
    lines: dict[str, dict[str, str]] = defaultdict(dict)
    for result, texts in cells:
        for label, text in texts.items():
            lines[label][result.task.dtype_name] = text
    dtypes = list(dict.fromkeys(dtype for line in lines.values() for dtype in line))
    rows = [("work", *dtypes), ("---", *("---:" for _ in dtypes))]
    rows += [(label, *(line.get(dtype, "") for dtype in dtypes)) for label, line in lines.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def milliseconds(result: Result, side: str) -> str:
    """The time of a side."""
    if side not in result.seconds:
        return WRONG
    return f"{result.seconds[side] * 1e3:.3g} ms" if result.quiet else NOISY


def share(result: Result, side: str, limits: Limits) -> str:
    """How much of the binding limit a side reaches, and which that is."""
    percent = percentage(result, side, limits)
    return percent if percent in (WRONG, NOISY) else f"{percent} {limits.binding(result.task)[0]}"


def percentage(result: Result, side: str, limits: Limits) -> str:
    """How much of the binding limit a side reaches."""
    if side not in result.seconds:
        return WRONG
    if not result.quiet:
        return NOISY
    return f"{limits.binding(result.task)[1] / result.seconds[side]:.0%}"


def ratio(result: Result, way: str, peer: str) -> str:
    """How many times as fast as a peer; nothing where there is no such peer."""
    if peer in result.absent:
        return ABSENT
    if peer not in result.peers:
        return ""
    value = result.ratio(way, peer)
    if value is None:
        return WRONG
    return f"{value:.2f}" if result.quiet else NOISY
