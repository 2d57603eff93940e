"""What the terminal shows: the comparison, its verdicts in words, and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pathprune.evaluation import Evaluation, compare
from pathprune.pruning import PrunePlan

Row = Mapping[str, Any]


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line per variant; accuracies with their 95 % intervals."""
    table = Table(title=f"{rows[0]['num_images']:,} evaluation images; intervals are 95 %", header_style="bold")
    for heading in ("removed", "criterion", "compensation"):
        table.add_column(heading)
    for heading in ("top-1 %", "retention %", "params M", "MACs M", "latency ms", "faster"):
        table.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        if index and row["budget"] != rows[index - 1]["budget"]:
            table.add_section()
        table.add_row(
            f"{row['neurons_removed']:.0%}" if row["criterion"] else "–",
            _criterion(row),
            row["compensation"] or "–",
            _with_interval(row["top1"], row["top1_ci"]),
            _with_interval(row["retention"], row["retention_ci"]) if row["criterion"] else "100.0",
            f"{row['num_params'] / 1e6:.2f}",
            f"{row['macs'] / 1e6:,.0f}",
            "–" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}",
            "–" if row["latency_ms"] is None else f"{row['speedup']:.2f}×",
        )
    return table


def verdicts(rows: Sequence[Row], evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Per budget: how the path-guided variant does against each other criterion under the same compensation."""
    lines = []
    guided = [row for row in rows if row["criterion"] == "path"]
    for row in guided:
        others = [
            other
            for other in rows
            if other["criterion"] not in (None, "path")
            and (other["budget"], other["compensation"]) == (row["budget"], row["compensation"])
        ]
        if not others:
            continue
        said = []
        for other in others:
            result = compare(evaluations[row["variant_id"]], evaluations[other["variant_id"]])
            low, high = (100 * bound for bound in result.ci)
            said.append(
                f"{result.verdict} {'with' if result.verdict == 'tie' else 'than'} {_criterion(other)} "
                f"({100 * result.difference:+.1f} points [{low:+.1f}, {high:+.1f}])"
            )
        head = f"At {row['budget']:.0%} removed, compensation {row['compensation']}, {_criterion(row)} is:"
        lines.append("\n  ".join([head, *said]))
    return lines


def plan_table(title: str, plan: PrunePlan) -> Table:
    """What a plan would remove, block by block."""
    table = Table(title=f"{title}: {plan.neurons_removed:.1%} of all MLP neurons", header_style="bold")
    for heading in ("site", "block", "width", "kept", "removed"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for row in plan.table():
        removed = 1 - row.kept / row.width
        table.add_row(row.site, str(row.block), str(row.width), str(row.kept), f"{removed:.0%}")
    return table


def _criterion(row: Row) -> str:
    if row["criterion"] is None:
        return "dense"
    options = ", ".join(f"{key}={value}" for key, value in (row.get("criterion_options") or {}).items())
    return f"{row['criterion']} ({options})" if options else str(row["criterion"])


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
