"""Our end of the pipe."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# `make bench-peers` makes it; the variable points to another one.
ENVIRONMENT = Path(os.environ.get("LANEWISE_BENCH_PEERS", ROOT / "build" / "peers"))


class Absent(RuntimeError):
    """A peer cannot run here; the message says why."""


class Remote:
    """A peer in its own process, which waits without working while it is not asked.

    Args:
        module: of `bench.remote`; it ends by serving the peer.

    Raises:
        Absent: there is no such environment, or the peer is not in it.
    """

    def __init__(self, module: str) -> None:
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            raise Absent("`make bench-peers` installs it")
        self._process = subprocess.Popen(
            [python, "-m", f"bench.remote.{module}"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.call("start")
        except RuntimeError as error:
            raise Absent(str(error)) from None

    def call(self, method: str, **arguments: object) -> Any:
        """What the peer's method returned; RuntimeError where it failed, or the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            request = json.dumps({"method": method, "arguments": arguments})
            print(request, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"its process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@cache
def remote(module: str) -> Remote:
    """The one process of a peer; it ends with ours, whose end of the pipe then closes."""
    return Remote(module)
