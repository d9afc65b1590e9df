"""The op tests once more on every lower instruction set: dispatch is chosen once per process.

`LANEWISE_ISA=avx2 pytest tests/test_gemm.py` does the same by hand, with all examples.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanewise import _host

HERE = Path(__file__).parent
FAMILIES = ("attention", "gemm", "norm", "rope")
LOWER = [
    target
    for target, usable in _host.targets().items()
    if usable and target not in ("wide", _host.isa())
]


@pytest.mark.skipif("LANEWISE_ISA" in os.environ, reason="already runs on a chosen set")
@pytest.mark.parametrize("target", LOWER)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, target: str) -> None:
    file = str(HERE / f"test_{family}.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not interpreted", file],
        env={**os.environ, "LANEWISE_ISA": target, "LANEWISE_TEST_EXAMPLES": "4"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
