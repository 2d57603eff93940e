"""Table of ratios: each compares a cost with its limit in one run, so that other load on the machine cancels."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ratio:
    """A measured ratio; `goal` is the value to reach, such as `≤ 6`, or empty without one."""

    quantity: str
    value: float
    goal: str = ""
    unit: str = "×"


def print_table(ratios: Sequence[Ratio]) -> None:
    """Print one line per ratio as a Markdown table."""
    print("| quantity | measured | goal |\n|---|---|---|")
    for ratio in ratios:
        print(f"| {ratio.quantity} | {ratio.value:.2f} {ratio.unit} | {ratio.goal} |")


def describe_machine() -> str:
    """Return the processor, the threads and the version of torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
