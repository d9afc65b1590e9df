"""Test files that run in Triton's interpreter, in processes of their own.

The interpreter is chosen when triton is imported, so that no process can hold both. The runs start
together with the session, beside the other tests, and come last among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

# These files ask the GPU kernels alone,
INTERPRETED = {
    "test_triton_attention.py",
    "test_triton_attention_backward.py",
    "test_triton_gated.py",
    "test_triton_gemm.py",
    "test_triton_gemm_backward.py",
    "test_triton_norm.py",
    "test_triton_packed.py",
    "test_triton_rope.py",
    "test_triton_transformer.py",
    "test_triton_tune.py",
}
# and these ask both back ends the same questions, here and once more there, of fewer examples. The
# marker `cpu` names tests of what only the CPU promises, such as numbers of threads.
SHARED: set[str] = {
    "test_attention.py",
    "test_attention_options.py",
    "test_attention_paged.py",
    "test_attention_varlen.py",
    "test_bench_gpu.py",
    "test_errors.py",
    "test_gemm.py",
    "test_norm.py",
    "test_rope.py",
    "test_transformer.py",
}
EXAMPLES = "4"

interpreting = os.environ.get("TRITON_INTERPRET") == "1"


class Runs:
    """One run after another on a thread of its own: the other tests keep the other cores."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._futures: dict[Path, Future[str]] = {}
        self._running: subprocess.Popen | None = None
        self._over = False

    def start(self, path: Path) -> None:
        self._futures[path] = self._pool.submit(self._run, path)

    def result(self, path: Path) -> str:
        """What a run printed if it failed, else nothing."""
        return self._futures[path].result()

    def stop(self) -> None:
        self._over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._running:
            self._running.terminate()

    def _run(self, path: Path) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-m", "not cpu", str(path)]
        fewer = {"LANEWISE_TEST_EXAMPLES": EXAMPLES} if path.name in SHARED else {}
        environment = {**os.environ, "TRITON_INTERPRET": "1", **fewer}
        if self._over:
            return "not run"
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as self._running:
            printed, _ = self._running.communicate()
            return printed if self._running.returncode else ""


RUNS = pytest.StashKey[Runs]()


class InterpretedFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        run = InterpretedRun.from_parent(self, name="under TRITON_INTERPRET=1")
        run.add_marker("interpreted")
        yield run


class InterpretedRun(pytest.Item):
    def runtest(self) -> None:
        printed = self.session.stash[RUNS].result(self.path)
        if printed:
            pytest.fail(printed, pytrace=False)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name in SHARED and not interpreting:
        return InterpretedFile.from_parent(parent, path=file_path)
    return None


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    if module_path.name in INTERPRETED and not interpreting:
        return InterpretedFile.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: isinstance(item, InterpretedRun))


def pytest_collection_finish(session: pytest.Session) -> None:
    session.stash[RUNS] = runs = Runs()
    if not session.config.option.collectonly:
        for item in session.items:
            if isinstance(item, InterpretedRun):
                runs.start(item.path)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RUNS in session.stash:
        session.stash[RUNS].stop()
