"""All benchmarks as one table of ratios.

    python -m tests.benchmarks [--threads 2]

Run on an otherwise idle machine. Each part also runs alone, with options: `python tests/benchmarks/order.py --help`.
"""

from __future__ import annotations

import argparse

import torch

from tests.benchmarks.order import measure_order
from tests.benchmarks.table import describe_machine, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe_machine())
    print_table(measure_order())


if __name__ == "__main__":
    main()
