"""How much memory a call takes beside its outputs, at most."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from bench.case import Case

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(point: Callable[[], Case], case: Case) -> dict[str, int]:
    """Bytes by side; none where the system does not tell (only Linux does).

    Every side is built and called in a new process, since working memory may be kept for the next
    call, and an allocator keeps what was freed.
    """
    if not CLEAR.exists():
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lanewise"])
    measured = {}
    for side in (*case.ours, *case.peers):
        with context.Pool(1) as pool:
            measured[side] = pool.apply(partial(_first_call, point, side, torch.get_num_threads()))
    return measured


def _first_call(point: Callable[[], Case], name: str, threads: int) -> int:
    """What the process grew by, but for its outputs and for code that was loaded from files."""
    torch.set_num_threads(threads)
    # Starts the threads, and loads what a first gradient loads.
    ones = torch.ones(1 << 20, requires_grad=True)
    torch.autograd.grad(ones + ones, ones, ones)
    case = point()
    side = {**case.ours, **case.peers}[name]
    ctypes.CDLL(None).malloc_trim(0)
    with torch.inference_mode(not case.gradient):
        CLEAR.write_text("5")  # the peak starts anew from what is there
        before, files = _status("VmRSS"), _status("RssFile")
        outputs = side()
        peak, loaded = _status("VmHWM"), _status("RssFile") - files
    return max(peak - before - loaded - _bytes(outputs), 0)


def _bytes(outputs: object) -> int:
    if isinstance(outputs, torch.Tensor):
        return outputs.nbytes
    return sum(_bytes(part) for part in outputs) if isinstance(outputs, Iterable) else 0


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
