"""A step of a model taken apart into rows of ops, each beside the limits of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from lanewise.explain.limits import GPUS, Machine, ThisCPU
from lanewise.explain.recorder import Record
from lanewise.explain.run import Question, build, check, count, materialize, measure, needed_bytes
from lanewise.explain.work import Work


@dataclass(frozen=True)
class Row:
    """The calls of one op at one place of the model: of all layers together, or of each.

    ``needs`` is the seconds that the limits of this machine ask for, ``took`` what the calls took,
    None where nothing ran.
    """

    place: str
    op: str
    shape: str
    calls: int
    work: Work
    bound: str  # "compute" or "bytes"
    needs: float
    took: float | None


@dataclass(frozen=True)
class Explanation:
    """Everything about one question to one model."""

    model: str
    question: Question
    parameters: int
    rows: tuple[Row, ...]
    total: Work
    cpu: Machine
    needs: float  # seconds of a step by this machine's limits, op after op
    took: float | None  # seconds of a step as the model really runs, layers fused where they can be
    unmeasured: str  # why nothing ran
    gpus: Mapping[str, float]  # seconds of a step by the published limits of each

    def cycles(self, seconds: float) -> float:
        """Clock cycles of this machine."""
        return seconds * self.cpu.clock

    @property
    def bound(self) -> str:
        """What limits most of the time that this machine needs."""
        bytes_ = sum(row.needs for row in self.rows if row.bound == "bytes")
        return "bytes" if bytes_ > self.needs / 2 else "compute"


def explain(
    name: str,
    values: Mapping[str, Any],
    question: Question,
    *,
    gpus: Sequence[str] = tuple(GPUS),
    rounds: int = 3,
    run: bool = True,
    by_layer: bool = False,
) -> Explanation:
    """Counts a step of the model with the config ``values``, and times it where memory allows.

    Args:
        name: of the model, for the tables.
        values: of its ``config.json``.
        question: what is run.
        gpus: whose published limits the step is divided by, of `GPUS`.
        rounds: of the run, of which the best counts.
        run: whether to run it at all.
        by_layer: a row for each layer's ops, instead of one for those of all.

    Raises:
        ValueError: the config is of no model that lanewise has, or the question has no answer.
    """
    model = build(values, question.dtype)
    check(model, question)
    parameters = sum(p.numel() for p in model.parameters())
    counted = count(model, question)
    total = sum((r.work for r in counted), Work())
    need, free = needed_bytes(model, question), psutil.virtual_memory().available
    resident = total.weights + total.cache
    cpu = ThisCPU()
    sizes = {resident, *(r.work.activations for r in counted if r.work.activations)}
    cpu.sample(sizes)
    took, unmeasured, records = None, "", counted
    if not run:
        unmeasured = "not asked for"
    elif need > free:
        unmeasured = (
            f"a run needs {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
        )
    else:
        model = materialize(model, question)
        records, took = measure(model, question, rounds, between=lambda: cpu.sample(sizes))
    cpu.sample({r.work.activations for r in records if r.work.activations})
    machine = cpu.machine(resident)
    rows = _rows(records, machine, question.dtype, by_layer)
    return Explanation(
        name,
        question,
        parameters,
        rows,
        total,
        machine,
        sum(row.needs for row in rows),
        took,
        unmeasured,
        {gpu: sum(max(GPUS[gpu].bounds(row.work, question.dtype)) for row in rows) for gpu in gpus},
    )


def _rows(
    records: Sequence[Record], cpu: Machine, dtype: torch.dtype, by_layer: bool
) -> tuple[Row, ...]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        place = re.sub(r"^layers\.(\d+)", r"layer \1" if by_layer else "layer", record.module)
        groups.setdefault((place, record.op, record.shape), []).append(record)
    found = []
    for (place, op, shape), calls in groups.items():
        bounds = [cpu.bounds(call.work, dtype) for call in calls]
        computing, moving = (sum(side) for side in zip(*bounds, strict=True))
        times = [call.seconds for call in calls if call.seconds is not None]
        found.append(
            Row(
                place,
                op.removeprefix("lanewise::"),
                shape,
                len(calls),
                sum((call.work for call in calls), Work()),
                "compute" if computing > moving else "bytes",
                sum(max(pair) for pair in bounds),
                sum(times) if times else None,
            )
        )
    return tuple(found)


def conclusion(e: Explanation) -> str:
    """What bounds the model here, and what would make it faster."""
    q = e.question
    per_token = e.total.weights / max(q.new_tokens, 1)
    if e.bound == "bytes":
        largest = "weights" if e.total.weights >= e.total.cache else "keys and values"
        advice = (
            "fewer bytes by quantized weights, or a larger batch, which shares one reading of them"
            if largest == "weights"
            else "a shorter context or a sliding window, or fewer key-value heads"
        )
        text = (
            f"Bound by bytes: a step reads {e.total.bytes / 1e6:.0f} MB, most of it {largest} "
            f"({per_token / 1e6:.0f} MB of weights a token); faster by {advice}; more threads help "
            "only until memory is saturated."
        )
    else:
        text = (
            f"Bound by arithmetic: {e.total.flops / 1e9:.1f} GFLOP a step, "
            f"{e.total.flops / max(q.new_tokens, 1) / 1e6:.0f} MFLOP a token; faster by more "
            "threads, wider vectors or a smaller model; a larger batch gains little."
        )
    if e.took:
        text += f" It runs at {e.needs / e.took:.0%} of this machine's limits."
    return text
