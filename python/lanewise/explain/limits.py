"""What a machine can do at best: this CPU by measurement, GPUs by what their makers publish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from lanewise import _host
from lanewise.explain.work import Work

PROBE_SECONDS = 0.05
# A parallel region opens in a few microseconds: over less than this it would be what is measured.
SMALLEST = 2 << 20


@dataclass(frozen=True)
class Machine:
    """A machine's limits, per second. ``bandwidth`` is that of weights and cached keys and values,
    ``caches`` that of activations by the size of what is read; without it both are the same."""

    name: str
    flops: Mapping[torch.dtype, float]
    bandwidth: float
    clock: float
    source: str
    caches: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0  # how far below the best multiply-add rate the least one lay

    def bounds(self, work: Work, dtype: torch.dtype) -> tuple[float, float]:
        """Seconds that computing and that moving asks for at least."""
        streamed = work.weights + work.cache
        just_written = self.caches.get(_rounded(work.activations), self.bandwidth)
        moving = streamed / self.bandwidth + work.activations / just_written
        return work.flops / self.flops[dtype], moving

    def cycles(self, work: Work, dtype: torch.dtype) -> float:
        """Clock cycles that the limit which binds asks for."""
        return max(self.bounds(work, dtype)) * self.clock


class ThisCPU:
    """The CPU at hand with the threads that torch has: the best of a few samples of each limit.

    Weights and the cache of keys and values come from memory, or from the last-level cache where
    all of them fit it; activations were just written, and come from the cache that holds them.
    """

    def __init__(self) -> None:
        self._threads, self._isa = torch.get_num_threads(), _host.isa()
        self._rates: list[float] = []
        self._pair_rate = 0.0  # of bfloat16
        self._clock = 0.0
        self._bandwidths: dict[int, float] = {}

    def sample(self, sizes: Iterable[float]) -> None:
        """Measures every limit once more, reading over arrays of about these ``sizes``."""
        self._rates.append(1e9 * _host.fma_rate(self._isa, self._threads, PROBE_SECONDS))
        pairs = _host.pair_rate(self._isa, self._threads, PROBE_SECONDS)
        self._pair_rate = max(self._pair_rate, 1e9 * pairs)
        self._clock = max(self._clock, 1e9 * _host.clock_rate(PROBE_SECONDS))
        for size in {_rounded(size) for size in sizes}:
            gigabytes = _host.read_bandwidth(self._isa, self._threads, size, PROBE_SECONDS)
            self._bandwidths[size] = max(self._bandwidths.get(size, 0.0), 1e9 * gigabytes)

    def machine(self, resident: float) -> Machine:
        """What the samples say. ``resident``: the bytes of weights and cache that a step reads."""
        best = max(self._rates)
        return Machine(
            name=f"this CPU, {self._isa}, {self._threads} threads",
            flops={
                torch.float32: best,
                torch.bfloat16: max(best, self._pair_rate),
                torch.float16: best,
            },
            bandwidth=self._bandwidths[_rounded(resident)],
            clock=self._clock,
            source="measured",
            caches=self._bandwidths,
            noise=1 - min(self._rates) / best,
        )


def _rounded(size: float) -> int:
    """To a power of two that a probe can tell something about."""
    largest = max(256 << 20, 1 << (2 * _host.cache_sizes()["l3"]).bit_length())
    return min(max(1 << (int(size) - 1).bit_length(), SMALLEST), largest)


def _gpu(
    name: str, sixteen: float, single: float, bandwidth: float, clock: float, source: str
) -> Machine:
    """Dense TFLOP/s of 16-bit products and of float32, TB/s and GHz."""
    flops = {torch.bfloat16: sixteen, torch.float16: sixteen, torch.float32: single}
    return Machine(
        name,
        {dtype: rate * 1e12 for dtype, rate in flops.items()},
        bandwidth * 1e12,
        clock * 1e9,
        source,
    )


# Dense, without sparsity, at boost clock.
GPUS = {
    "a100": _gpu("A100 80GB SXM", 312, 19.5, 2.039, 1.41, "NVIDIA A100 datasheet, 2021"),
    "h100": _gpu("H100 SXM", 989.4, 66.9, 3.35, 1.83, "NVIDIA H100 datasheet, 2023"),
    "h200": _gpu("H200 SXM", 989.4, 66.9, 4.8, 1.83, "NVIDIA H200 datasheet, 2024"),
    "b200": _gpu("B200 SXM", 2250, 75, 7.7, 1.85, "NVIDIA DGX B200 datasheet, 2024"),
    "l4": _gpu("L4", 121, 30.3, 0.3, 2.04, "NVIDIA L4 datasheet, 2023"),
    "rtx4090": _gpu("GeForce RTX 4090", 165.2, 82.6, 1.008, 2.52, "NVIDIA Ada whitepaper, 2022"),
    "mi300x": _gpu("Instinct MI300X", 1307.4, 163.4, 5.3, 2.1, "AMD MI300X data sheet, 2023"),
}
