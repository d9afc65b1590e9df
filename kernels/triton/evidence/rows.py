"""The rows of the evidence: every kernel that a case launches, on every GPU that we name."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import triton

from . import catalogue
from .compile import GPUS, Launch, launches
from .machine_code import Facts, read


@dataclass(frozen=True)
class Row:
    """One kernel as one case launches it on one target.

    `element` is the type of its first tensor, `tile` the extents, warps and stages of the kernel;
    `key` stands for all that decides its facts. Not `divisible`: no row of an operand starts on 16
    bytes, and the compiler was told of no pointer and no stride that it is a multiple of 16.
    """

    kernel: str
    case: str
    target: str
    element: str
    tile: str
    key: str
    divisible: bool = True

    @property
    def config(self) -> str:
        return self.case if self.divisible else f"{self.case}, nothing divisible"

    @property
    def aligned(self) -> bool:
        return self.divisible and catalogue.cases()[self.case].aligned

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.target} {self.config}"


@functools.cache
def of_target(target: str) -> tuple[Row, ...]:
    """All rows of a target: what several cases launch alike is one row, the first one's.

    Without divisibility each kernel also has a row from the first case that launches it, and from
    every case that then takes another tile; but for those that take tensor descriptors, which exist
    of aligned memory only.
    """
    found: dict[tuple[str, str], Row] = {}
    anywhere: dict[tuple[str, str], Row] = {}
    shown: set[str] = set()
    for case in catalogue.cases().values():
        tiles = set()
        for launch in launches(target, case):
            tiles.add((launch.kernel, launch.tile()))
            found.setdefault((launch.kernel, launch.key()), _row(launch, case.name, target))
        for launch in launches(target, case, divisible=False):
            if launch.kernel in shown and (launch.kernel, launch.tile()) in tiles:
                continue
            shown.add(launch.kernel)
            row = _row(launch, case.name, target, divisible=False)
            anywhere.setdefault((launch.kernel, row.key), row)
    for key, row in anywhere.items():
        found.setdefault(key, row)
    return tuple(found.values())


def _row(launch: Launch, case: str, target: str, divisible: bool = True) -> Row:
    element, tile, key = launch.element(), launch.tile(), launch.key()
    return Row(launch.kernel, case, target, element, tile, key, divisible)


def all_rows(
    targets: Collection[str] = tuple(GPUS), names: Collection[str] | None = None
) -> list[Row]:
    """Those of the named kernels, all by default; a kernel's are together."""
    rows = [row for target in targets for row in of_target(target)]
    rows.sort(key=lambda row: (row.kernel, not row.divisible))
    return [row for row in rows if names is None or row.kernel in names]


def kernels() -> list[str]:
    """The names of all kernels."""
    return sorted({row.kernel for row in all_rows()})


def launch_of(row: Row) -> Launch:
    case = catalogue.cases()[row.case]
    return next(x for x in launches(row.target, case, row.divisible) if x.key() == row.key)


def compile_row(row: Row, fresh: bool = False) -> Facts:
    """Compiles a row and reads its machine code; `fresh`: whatever Triton's own cache has."""
    with triton.knobs.compilation.scope():
        if fresh:
            triton.knobs.compilation.always_compile = True
        return read(launch_of(row).compile())


def compile_all(
    rows: Collection[Row], fresh: bool = False, processes: int | None = None
) -> Iterator[tuple[Row, Facts]]:
    """Compiles rows in parallel processes, and yields each as it is done.

    Raises RuntimeError, naming the row, if one does not compile.
    """
    if not rows:
        return
    with workers(min(processes or os.cpu_count() or 1, len(rows))) as pool:
        started = {pool.submit(compile_row, row, fresh): row for row in rows}
        try:
            for done in as_completed(started):
                row = started[done]
                try:
                    facts = done.result()
                except Exception as error:  # of any of the compilers
                    raise RuntimeError(f"lanewise: {row.name} does not compile: {error}") from error
                yield row, facts
        finally:
            pool.shutdown(cancel_futures=True)


def workers(processes: int) -> ProcessPoolExecutor:
    """A pool for `compile_row`, which is serial: processes of their own, safe to start anywhere."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
