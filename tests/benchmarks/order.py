"""Benchmark of the greedy removal order: its time relative to the inverse that it starts from.

    python tests/benchmarks/order.py [--widths 768 1536 3072] [--turns 3] [--threads 2] [--device cuda]

Order and inverse are timed in turns, in float64, for down-projections of a quarter as many outputs as neurons.
"""

# D outputs, W neurons

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pathprune.scoring.surgeon import find_removal_order

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.table import Ratio, describe_machine, print_table

WIDTHS = (768, 1536, 3072)
_PENALTY = 1e-3
_GOALS = {3072: "≤ 6"}


def measure_order(widths: Sequence[int] = WIDTHS, *, turns: int = 3, device: str = "cpu") -> list[Ratio]:
    """Return the time of the order over the time of the inverse for each width, as the median of the turns."""
    return [
        Ratio(
            f"greedy removal order / inverse, {width:,} neurons",
            statistics.median(_measure_turn(width, torch.device(device)) for _ in range(turns)),
            _GOALS.get(width, ""),
        )
        for width in widths
    ]


def _measure_turn(width: int, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    weight_DW = torch.randn(width // 4, width, generator=generator, dtype=torch.float64).to(device)
    rows = torch.randn(2 * width, width, generator=generator, dtype=torch.float64).to(device)
    covariance_WW = rows.T @ rows / len(rows)
    penalised_WW = covariance_WW + _PENALTY * torch.eye(width, dtype=torch.float64, device=device)

    def measure_seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    measure_seconds(lambda: torch.linalg.inv(penalised_WW))  # prepares what is used first
    order = measure_seconds(lambda: find_removal_order(weight_DW, covariance_WW, penalty=_PENALTY))
    return order / measure_seconds(lambda: torch.linalg.inv(penalised_WW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--turns", type=int, default=3, help="measurements of each width")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine())
    print_table(measure_order(options.widths, turns=options.turns, device=options.device))


if __name__ == "__main__":
    main()
