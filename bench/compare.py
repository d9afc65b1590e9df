"""Whether lanewise has become slower since an earlier run, as far as the noise lets anybody tell.

A machine's speed moves in phases, so times of two runs say little. What is compared is each side's
time over those of the peers that took turns with it, or over the limit measured right after it
where it has no peers: once per visit. Slower is a case whose every visit is worse than all the
earlier ones, and whose medians differ by more than `MARGIN` and than the visits of either run; the
caller measures it again to be sure.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.case import Result
from bench.record import FORMAT

MARGIN = 0.05
# Of each side. Were both the same, 5 of one would all be worse than 5 of the other once in 252
# times, and 15 of one, after two confirmations, once in 15504: seldom enough for 50 cases.
MIN_VISITS = 5
# Visits of one run that differ by more than this tell nothing about a change of `MARGIN`.
TOO_NOISY = 0.25

Key = tuple[str, str, str, str]  # section, work, dtype, way


@dataclass(frozen=True)
class Verdict:
    """How a way of lanewise does against the earlier run. ``ratio``: the new time over the old
    one; ``noise``: how far apart the visits of the noisier run lie."""

    key: Key
    word: Literal["same", "slower", "faster", "too noisy", "new", "gone", "wrong"]
    ratio: float = math.nan
    noise: float = math.nan
    result: Result | None = None


def load(path: Path) -> Mapping[Key, Any]:
    """The cases of an earlier run, by way of lanewise.

    Raises:
        ValueError: the file is not one that `python -m bench --json` wrote, or its cases were
            visited too seldom.
    """
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        found = {
            (r["section"], r["work"], r["dtype"], way): r
            for r in document["results"]
            for way in r["ways"]
        }
        fewest = min((len(r["visits"]) for r in found.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"bench: {path} is not a run to compare with: {error}") from None
    if fewest < MIN_VISITS:
        raise ValueError(
            f"bench: {path} must hold {MIN_VISITS} visits of every case, got {fewest}: "
            f"make it with --passes {MIN_VISITS}"
        )
    return found


def verdicts(before: Mapping[Key, Any], results: Sequence[Result]) -> list[Verdict]:
    """One per way of lanewise in either run, of the sections that were measured now."""
    now = {(r.section, r.task.work, r.task.dtype_name, way): r for r in results for way in r.ways}
    sections = {r.section for r in results}
    found = [_verdict(key, before.get(key), result) for key, result in now.items()]
    gone = [key for key in before if key not in now and key[0] in sections]
    return [*found, *(Verdict(key, "gone") for key in gone)]


def _verdict(key: Key, before: Any, result: Result) -> Verdict:
    way = key[3]
    if way in result.wrong:
        return Verdict(key, "wrong", result=result)
    if before is None or way in before["wrong"]:
        return Verdict(key, "new", result=result)
    peers = [p for p in result.peers if p in result.seconds and p in before["seconds"]]
    new = list(_ratios(way, peers, ((v.seconds, v.limit_seconds) for v in result.visits)))
    visits = before["visits"]
    old = list(_ratios(way, peers, ((v["seconds"], v["limit_seconds"]) for v in visits)))
    noise = max(max(side) / min(side) - 1 for side in (old, new))
    ratio = statistics.median(new) / statistics.median(old)
    least = 1 + max(MARGIN, noise)
    if min(new) > max(old) and ratio > least:
        return Verdict(key, "slower", ratio, noise, result)
    if max(new) < min(old) and ratio < 1 / least:
        return Verdict(key, "faster", ratio, noise, result)
    return Verdict(key, "too noisy" if noise > TOO_NOISY else "same", ratio, noise, result)


def _ratios(
    way: str, peers: Sequence[str], visits: Iterator[tuple[Mapping[str, float], float]]
) -> Iterator[float]:
    for seconds, limit_seconds in visits:
        if way not in seconds:
            continue
        beside = [seconds[peer] for peer in peers if peer in seconds] or [limit_seconds]
        yield seconds[way] / statistics.geometric_mean(beside)
