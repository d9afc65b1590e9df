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

# Triton's interpreter is chosen when triton is imported, so what runs in it runs in processes of
# its own: these files ask the GPU kernels alone,
INTERPRETED = {"test_triton_attention.py", "test_triton_gemm.py", "test_triton_tune.py"}
# and these ask both back ends the same questions, here and once more there, of fewer examples. The
# marker `cpu` names tests of what only the CPU promises, such as numbers of threads.
SHARED: set[str] = set()
INTERPRETED_EXAMPLES = "8"

interpreting = os.environ.get("TRITON_INTERPRET") == "1"
if interpreting:
    import triton_interpreter

    triton_interpreter.replace_cpu_kernels()


class InterpretedFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield InterpretedRun.from_parent(self, name="under TRITON_INTERPRET=1")


class InterpretedRun(pytest.Item):
    def runtest(self) -> None:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-m",
            "not cpu",
            str(self.path),
        ]
        fewer = {"LANEWISE_TEST_EXAMPLES": INTERPRETED_EXAMPLES} if self.path.name in SHARED else {}
        environment = {**os.environ, "TRITON_INTERPRET": "1", **fewer}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(done.stdout + done.stderr, pytrace=False)


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
