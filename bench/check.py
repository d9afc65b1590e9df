"""Whether a side computes what it is timed for."""

from __future__ import annotations

import torch

from bench.case import Case

# Of the largest element. Tests judge the numerics; a bench has to notice a wrong op, and float16
# sums of 8192 products of some peers are far from exact.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Checker:
    """Compares the outputs of a case's sides with its references, each computed once."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._expected: dict[object, list[torch.Tensor]] = {}

    def fault(self, name: str, output: object) -> str | None:
        """What is wrong with the output of a side, or nothing."""
        reference = self._case.references.get(name, self._case.reference)
        if reference not in self._expected:
            self._expected[reference] = _tensors(reference())
        found = _tensors(self._case.compared(output))
        tolerance = TOLERANCES[self._case.task.dtype]
        for actual, expected in zip(found, self._expected[reference], strict=True):
            if actual.shape != expected.shape:
                return f"has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
            if not expected.is_floating_point():
                if not torch.equal(actual, expected):
                    return f"gives {actual.tolist()}, not {expected.tolist()}"
                continue
            error = float((actual.to(expected.dtype) - expected).abs().amax())
            largest = float(expected.abs().amax())
            if not error <= tolerance * largest:  # NaN is wrong too
                return f"is off by {error:.2g} where the largest element is {largest:.2g}"
        return None


def _tensors(output: object) -> list[torch.Tensor]:
    parts = output if isinstance(output, tuple | list) else (output,)
    return [torch.as_tensor(part) for part in parts]
