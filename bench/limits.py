"""What the machine could do at best, measured in the same run as the ops."""

from __future__ import annotations

import statistics
from functools import cached_property

import torch

from bench.case import Task
from lanewise import _host

# Long enough to reach full clock, short enough to be repeated beside every case.
PROBE_SECONDS = 0.01
# Less would measure the opening of a parallel region; more than this comes from memory anyway.
SMALLEST = 2 << 20
LARGEST = max(256 << 20, 1 << (2 * _host.cache_sizes()["l3"]).bit_length())


class Limits:
    """The best rate of fused multiply-adds and of reading that any sample of this run has seen.

    The multiply-adds are float32, which is what every dtype is computed in, or for bfloat16 the
    machine's own products of it where those are faster. Reading is measured over as many bytes as
    the task touches, rounded up to a power of two: what fits a cache is held against that cache.
    """

    def __init__(self, threads: int) -> None:
        self.target = _host.isa()
        self.threads = threads
        self.bandwidth: dict[int, float] = {}  # bytes per second, by bytes read
        self._rates: list[float] = []
        self._pair_rates: list[float] = []  # of bfloat16

    @property
    def sampled(self) -> bool:
        """Whether anything was measured at all."""
        return bool(self._rates)

    def flops(self, dtype: torch.dtype) -> float:
        """Multiplications and additions of a dtype per second."""
        pairs = self._pair_rates if dtype == torch.bfloat16 else []
        return max([*self._rates, *pairs])

    def sample(self, task: Task) -> float:
        """Measures both limits once more; called right after a case, to meet the same machine.

        Returns:
            The seconds that the task asks for by this sample.
        """
        rate = 1e9 * _host.fma_rate(self.target, self.threads, PROBE_SECONDS)
        self._rates.append(rate)
        if task.dtype == torch.bfloat16:
            pairs = 1e9 * _host.pair_rate(self.target, self.threads, PROBE_SECONDS)
            self._pair_rates.append(pairs)
            rate = max(rate, pairs)
        size = _probe_size(task.bytes)
        reading = 1e9 * _host.read_bandwidth(self.target, self.threads, size, PROBE_SECONDS)
        self.bandwidth[size] = max(self.bandwidth.get(size, 0.0), reading)
        return max(task.flops / rate, task.bytes / reading)

    def add(self, other: Limits) -> None:
        """Takes over another's samples."""
        self._rates += other._rates
        self._pair_rates += other._pair_rates
        for size, reading in other.bandwidth.items():
            self.bandwidth[size] = max(self.bandwidth.get(size, 0.0), reading)

    def binding(self, task: Task) -> tuple[str, float]:
        """Which limit binds a task, and the seconds that it asks for."""
        computing = task.flops / self.flops(task.dtype)
        moving = task.bytes / self.bandwidth[_probe_size(task.bytes)]
        return ("compute", computing) if computing > moving else ("bytes", moving)

    def scaling(self) -> float:
        """How many times as fast as one thread all of them multiply: what a kernel can gain."""
        rates = {self.threads: 0.0, 1: 0.0}
        for _ in range(5):
            for threads in rates:
                rate = _host.fma_rate(self.target, threads, PROBE_SECONDS)
                rates[threads] = max(rates[threads], rate)
        return rates[self.threads] / rates[1]

    @cached_property
    def levels(self) -> dict[str, float]:
        """Bytes per second out of each level of memory, by half of what it holds."""
        caches = _host.cache_sizes()
        own = {level: self.threads * caches[level] // 2 for level in ("l1", "l2")}
        sizes = {**own, "l3": caches["l3"] // 2, "memory": LARGEST}
        return {
            level: 1e9 * _host.read_bandwidth(self.target, self.threads, size, PROBE_SECONDS)
            for level, size in sizes.items()
            if size
        }

    def facts(self) -> list[tuple[str, str]]:
        """The limits, and how much the machine moved under the run."""
        best, middle, least = (
            f"{rate / 1e9:.0f}"
            for rate in (max(self._rates), statistics.median(self._rates), min(self._rates))
        )
        reading = ", ".join(
            f"{rate / 1e9:.0f} GB/s over {size / 2**20:g} MiB"
            for size, rate in sorted(self.bandwidth.items())
        )
        return [
            (
                "multiply-adds",
                f"{best} GFLOP/s, the best of {len(self._rates)} samples "
                f"(median {middle}, least {least})",
            ),
            *(
                [("bfloat16 products", f"{max(self._pair_rates) / 1e9:.0f} GFLOP/s")]
                if self._pair_rates
                else []
            ),
            ("reading", reading),
            (
                "levels",
                ", ".join(f"{name} {rate / 1e9:.0f} GB/s" for name, rate in self.levels.items()),
            ),
        ]


def _probe_size(size: float) -> int:
    return min(max(1 << (int(size) - 1).bit_length(), SMALLEST), LARGEST)
