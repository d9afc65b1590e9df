"""The peer's end of the pipe."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(peer: Any) -> None:
    """Answers one line with another until the pipe closes: calls a method, tells what it returned.

    What the peer itself prints must not be taken for an answer, so it goes to the other stream.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(peer, request["method"])(**request["arguments"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
