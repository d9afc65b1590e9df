"""What a call of a transformers' model is to return besides its output.

Asked once for hidden states or attentions, a model of transformers keeps the hooks that note them;
they do so in calls that ask again. transformers itself is not imported here.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

MODULE = "transformers.utils.output_capturing"


def captured(output: str) -> bool:
    """Whether this call is to return its ``output`` by such hooks."""
    return output in (collected() or ())


def collected() -> dict[str, Any] | None:
    """What the hooks fill in this call, by the name of each output; nothing outside of one."""
    if MODULE not in sys.modules:
        return None
    collector = sys.modules[MODULE]._active_collector
    # A compiler cannot read a context variable.
    return collector.global_var if torch.compiler.is_compiling() else collector.get()
