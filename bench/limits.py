"""The machine's limits, per instruction set: what every other bench is a share of."""

from __future__ import annotations

import argparse

from lanewise import _host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    args = parser.parse_args()
    print(f"{'target':<10}{'threads':>8}{'GFLOP/s':>10}{'GB/s':>8}")
    for target, usable in _host.targets().items():
        if not usable:
            continue
        for threads in args.threads:
            rate = _host.fma_rate(target, threads, args.seconds)
            bandwidth = _host.read_bandwidth(target, threads, seconds=args.seconds)
            print(f"{target:<10}{threads:>8}{rate:>10.0f}{bandwidth:>8.1f}")


if __name__ == "__main__":
    main()
