"""What the machine could do at best, measured in the same run as the ops."""

from __future__ import annotations

from bench.case import Case
from lanewise import _host

# Long enough to reach full clock, short enough to be repeated beside every case.
PROBE_SECONDS = 0.05
# Less would measure the opening of a parallel region.
SMALLEST, LARGEST = 2 << 20, 256 << 20


class Limits:
    """The best rate of fused multiply-adds and of reading that any sample of this run has seen.

    The multiply-adds are float32, which is what every dtype is computed in. Reading is measured
    over as many bytes as the case touches, rounded up to a power of two: what fits a cache is
    held against that cache.
    """

    def __init__(self, threads: int) -> None:
        self._target = _host.isa()
        self._threads = threads
        self.flops = 0.0  # per second
        self.bandwidth: dict[int, float] = {}  # bytes per second, by bytes read

    def sample(self, case: Case) -> None:
        """Measures both limits once more; called right after a case, to meet the same machine."""
        gigaflops = _host.fma_rate(self._target, self._threads, PROBE_SECONDS)
        self.flops = max(self.flops, gigaflops * 1e9)
        size = _probe_size(case.bytes)
        gigabytes = _host.read_bandwidth(self._target, self._threads, size, PROBE_SECONDS)
        self.bandwidth[size] = max(self.bandwidth.get(size, 0.0), gigabytes * 1e9)

    def binding(self, case: Case) -> tuple[str, float]:
        """Which limit binds a case, and the seconds that it asks for."""
        computing = case.flops / self.flops
        moving = case.bytes / self.bandwidth[_probe_size(case.bytes)]
        return ("compute", computing) if computing > moving else ("bytes", moving)


def _probe_size(size: float) -> int:
    return min(max(1 << (int(size) - 1).bit_length(), SMALLEST), LARGEST)
