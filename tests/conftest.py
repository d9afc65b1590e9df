"""Settings shared by every test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "lanewise",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("LANEWISE_TEST_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lanewise")

# The kernels of these files run in Triton's interpreter, which is chosen when triton is imported:
# each file is one test that runs it in a process of its own.
INTERPRETED = {"test_triton_attention.py", "test_triton_gemm.py"}


class InterpretedFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield InterpretedRun.from_parent(self, name="under TRITON_INTERPRET=1")


class InterpretedRun(pytest.Item):
    def runtest(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", str(self.path)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    if module_path.name in INTERPRETED and os.environ.get("TRITON_INTERPRET") != "1":
        return InterpretedFile.from_parent(parent, path=module_path)
    return None
