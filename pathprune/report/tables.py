"""Tables and sentences for the terminal: comparisons, costs, plans and exported files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from pathprune.export import ExportedFile
from pathprune.pruning import PrunePlan
from pathprune.pruning.budget import UNITS
from pathprune.report.entries import Entry, Results, describe_compensation, describe_criterion
from pathprune.report.rows import ForwardPasses, VariantRow
from pathprune.report.terminal import new_terminal_table
from pathprune.report.wording import describe_budget


def build_comparison_table(rows: Sequence[VariantRow]) -> Table:
    """Build a table of one line per variant, grouped by budget; accuracies have their 95 % intervals."""
    timing = rows[0].timing
    batch = f"; latency of a batch of {timing.latency_batch_size} on this device" if timing else ""
    table = new_terminal_table(f"{rows[0].num_images:,} evaluation images, 95 % intervals{batch}")
    for heading in ("removed", "criterion", "compensation"):
        table.add_column(heading, no_wrap=True)
    for heading in ("top-1 %", "retention %", "params", "MACs", "latency", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    budget = None
    for row in rows:
        if row.budget != budget:
            table.add_section()
        is_repeated = row.budget == budget and row.budget_kind != "max-drop"  # models of one drop differ in size
        table.add_row(
            "" if is_repeated else _format_removed(row),
            describe_criterion(row),
            describe_compensation(row),
            _format_estimate(row.top1, row.top1_ci),
            "100.0" if row.is_dense else _format_estimate(row.retention, row.retention_ci),
            f"{row.num_params / 1e6:.2f} M",
            f"{row.macs / 1e6:,.0f} M",
            f"{row.timing.latency_ms:.1f} ms" if row.timing else "",
            f"{row.timing.speedup:.2f}×" if row.timing else "",
        )
        budget = row.budget
    return table


def build_retention_tables(results: Results) -> list[Table]:
    """Build a table per budget: retention of every criterion (rows) with every compensation (columns).

    Brackets are 95 % intervals.
    """
    tables = []
    for budget in results.budgets:
        entries = results.select(budget=budget)
        table = new_terminal_table(f"{describe_budget(budget)}: top-1 retained, in %; bold: best and ties")
        table.add_column("criterion", no_wrap=True)
        for compensation in results.compensations:
            table.add_column(compensation, justify="right", no_wrap=True)
        for criterion in results.criteria:
            by_compensation = {entry.compensation: entry for entry in entries if entry.criterion == criterion}
            cells = (
                _format_retention(results, by_compensation[name]) if name in by_compensation else ""
                for name in results.compensations
            )
            table.add_row(criterion, *cells)
        tables.append(table)
    return tables


def compose_path_verdicts(results: Results) -> list[str]:
    """Compose a line per budget and compensation that compares `path` with each other criterion."""
    lines = []
    for entry in results.entries:
        # the models of a max-drop budget differ in size, not in accuracy
        if entry.row.criterion != "path" or entry.budget.kind == "max-drop":
            continue
        verdicts = []
        for other in results.select(budget=entry.budget, compensation=entry.compensation):
            if other.row.criterion == "path":
                continue
            result = results.compare(entry, other).result
            low, high = (100 * bound for bound in result.ci)
            relation = "ties with" if result.verdict == "tie" else f"is {result.verdict} than"
            verdicts.append(f"{relation} {other.criterion} ({100 * result.difference:+.1f} [{low:+.1f}, {high:+.1f}])")
        if verdicts:
            setting = f"{entry.budget} removed, compensation {entry.compensation}"
            lines.append(f"{setting}: {entry.criterion} {', '.join(verdicts)}")
    return lines


def build_work_table(rows: Sequence[VariantRow]) -> Table:
    """Build a table of the cost of pruning: one line per criterion and compensation, for the costliest budget."""
    table = new_terminal_table("Cost of pruning, in forward passes of one image through the dense model")
    steps = tuple(ForwardPasses.model_fields)
    for heading in ("criterion", "compensation"):
        table.add_column(heading, no_wrap=True)
    for heading in (*steps, "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    most: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.forward_passes:
            passes = row.forward_passes.model_dump()
            work = [math.nan if passes[step] is None else passes[step] for step in steps]
            name = describe_criterion(row), row.compensation or ""
            most[name] = max(most.get(name, work), work, key=sum)
    for (criterion, compensation), work in most.items():
        table.add_row(criterion, compensation, *(_format_passes(number) for number in [*work, sum(work)]))
    return table


def build_plan_table(title: str, plan: PrunePlan) -> Table:
    """Build a table of the neurons that a plan keeps and removes in each block."""
    table = new_terminal_table(f"{title}: {plan.neurons_removed:.1%} of all MLP neurons removed")
    for heading in ("site", "block", "width", "kept", "removed"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for row in plan.table():
        removed = 1 - row.kept / row.width
        table.add_row(row.site, str(row.block), str(row.width), str(row.kept), f"{removed:.0%}")
    return table


def build_mining_cost_table(seconds: Mapping[str, Mapping[int, float]]) -> Table:
    """Build a table of the estimated mining time, by workload and number of devices."""
    table = new_terminal_table("Estimated mining time on devices like this one")
    table.add_column("images")
    for devices in next(iter(seconds.values())):
        table.add_column(f"{devices} device{'s' if devices > 1 else ''}", justify="right")
    for workload, by_devices in seconds.items():
        table.add_row(workload, *map(_format_duration, by_devices.values()))
    return table


def build_export_table(files: Sequence[ExportedFile], *, num_images: int, batch_size: int) -> Table:
    """Build a table of one line per exported file: agreement, size, and latency beside the dense model's."""
    table = new_terminal_table(
        f"Exported files compared with the model on {num_images:,} images; CPU latency of a batch of {batch_size}"
    )
    for heading in (
        "file",
        "same class %",
        "logits differ by",
        "size",
        "dense size",
        "latency",
        "dense latency",
        "speed-up",
    ):
        table.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=True)
    for file in files:
        table.add_row(
            file.file,
            f"{100 * file.agreement:.1f}",
            f"{file.max_logit_difference:.1g}",
            f"{file.num_bytes / 1e6:.2f} MB",
            "" if file.dense_num_bytes is None else f"{file.dense_num_bytes / 1e6:.2f} MB",
            f"{file.latency_ms:.2f} ms",
            "" if file.dense_latency_ms is None else f"{file.dense_latency_ms:.2f} ms",
            _format_spread(file.speedup, file.speedup_spread) if file.speedup and file.speedup_spread else "",
        )
    return table


def _format_removed(row: VariantRow) -> str:
    """Format the share of neurons removed and, for a budget of another kind, the share that was reached."""
    if row.is_dense:
        return ""
    removed = f"{row.neurons_removed:.0%}"
    if row.budget_kind in ("neurons", "max-drop"):
        return removed
    return f"{removed} ({row.budget_reached:.0%} of {UNITS[row.budget_kind]})"


def _format_retention(results: Results, entry: Entry) -> str:
    text = escape(_format_estimate(entry.retention.value, entry.retention.ci))
    return f"[bold]{text}[/]" if results.leads(entry) else text


def _format_estimate(value: float, ci: Sequence[float]) -> str:
    return f"{100 * value:.1f} [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"


def _format_passes(number: float) -> str:
    return "not counted" if math.isnan(number) else f"{number:,.0f}" if number >= 0.5 else ""


def _format_spread(ratio: float, quartiles: Sequence[float]) -> str:
    return f"{ratio:.2f}× [{quartiles[0]:.2f}, {quartiles[1]:.2f}]"


def _format_duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
