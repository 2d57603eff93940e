"""What the terminal shows: the comparison, its verdicts in words, and plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pathprune.export import ExportedFile
from pathprune.pruning import PrunePlan
from pathprune.pruning.budget import UNITS
from pathprune.report.entries import Entry, Results, criterion_name, terms
from pathprune.report.rows import ForwardPasses, VariantRow
from pathprune.report.wording import budget_words


def comparison_table(rows: Sequence[VariantRow]) -> Table:
    """One line per variant, a section per budget; accuracies with their 95 % intervals."""
    title = f"{rows[0].num_images:,} evaluation images, 95 % intervals; latency of {_batch(rows)} on this device"
    table = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("removed", "criterion", "compensation"):
        table.add_column(heading, no_wrap=True)
    for heading in ("top-1 %", "retention %", "params", "MACs", "latency", "faster"):
        table.add_column(heading, justify="right", no_wrap=True)
    budget = None
    for row in rows:
        if row.budget != budget:
            table.add_section()
        table.add_row(
            "" if row.budget == budget and not _is_drop(row) else _removed(row),
            criterion_name(row),
            terms(row),
            _with_interval(row.top1, row.top1_ci),
            _with_interval(row.retention, row.retention_ci) if not row.is_dense else "100.0",
            f"{row.num_params / 1e6:.2f} M",
            f"{row.macs / 1e6:,.0f} M",
            "" if row.timing is None else f"{row.timing.latency_ms:.1f} ms",
            "" if row.timing is None else f"{row.timing.speedup:.2f}×",
        )
        budget = row.budget
    return table


def _removed(row: VariantRow) -> str:
    """The share of neurons, and what is reached of a budget in other terms."""
    if row.is_dense:
        return ""
    removed = f"{row.neurons_removed:.0%}"
    if row.budget_kind in ("neurons", "max-drop"):
        return removed
    return f"{removed} ({row.budget_reached:.0%} of {UNITS[row.budget_kind]})"


def _is_drop(row: VariantRow) -> bool:
    """Whether models of one budget differ in size."""
    return row.budget_kind == "max-drop"


def _batch(rows: Sequence[VariantRow]) -> str:
    size = rows[0].latency_batch_size
    return "a batch" if size is None else f"a batch of {size}"


def retention_tables(results: Results) -> list[Table]:
    """A table for each budget: retention of every criterion (rows) under every compensation (columns)."""
    tables = []
    for budget in results.budgets:
        entries = results.at(budget=budget)
        title = f"{budget_words(budget)}: top-1 retained, %, with 95 % intervals; bold: best, and what ties with it"
        table = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("criterion", no_wrap=True)
        for compensation in results.compensations:
            table.add_column(compensation, justify="right", no_wrap=True)
        for criterion in results.criteria:
            own = {entry.compensation: entry for entry in entries if entry.criterion == criterion}
            cells = (_retained(results, own[name]) if name in own else "" for name in results.compensations)
            table.add_row(criterion, *cells)
        tables.append(table)
    return tables


def _retained(results: Results, entry: Entry) -> str:
    text = _with_interval(entry.retention.value, entry.retention.ci)
    return f"[bold]{escape(text)}[/]" if results.leads(entry) else escape(text)


def verdicts(results: Results) -> list[str]:
    """How `path` does against each other criterion at the same budget and compensation, one line for each of these."""
    lines = []
    for entry in results.entries:
        # models of different sizes are not compared by accuracy
        if entry.row.criterion != "path" or entry.budget.kind == "max-drop":
            continue
        said = []
        for other in results.at(budget=entry.budget, compensation=entry.compensation):
            if other.row.criterion == "path":
                continue
            result = results.pair(entry, other).result
            low, high = (100 * bound for bound in result.ci)
            word = "ties with" if result.verdict == "tie" else f"{result.verdict} than"
            said.append(f"{word} {other.criterion} ({100 * result.difference:+.1f} [{low:+.1f}, {high:+.1f}])")
        if said:
            terms = f"{entry.budget}, compensation {entry.compensation}"
            lines.append(f"{terms}: {entry.criterion} {', '.join(said)}")
    return lines


def export_table(files: Sequence[ExportedFile], *, num_images: int, batch_size: int) -> Table:
    """One line per exported file: what it answers, weighs and takes; how much faster with the quartiles."""
    title = f"compared with the model on {num_images:,} images; latency of a batch of {batch_size} on the CPU"
    table = Table(title=title, header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("file", "same class %", "logits differ by", "size", "dense", "latency", "dense", "faster"):
        table.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=True)
    for each in files:
        dense = each.dense_num_bytes is not None
        table.add_row(
            each.file,
            f"{100 * each.agreement:.1f}",
            f"{each.max_logit_difference:.1g}",
            f"{each.num_bytes / 1e6:.2f} MB",
            f"{(each.dense_num_bytes or 0) / 1e6:.2f} MB" if dense else "",
            f"{each.latency_ms:.2f} ms",
            f"{each.dense_latency_ms:.2f} ms" if dense else "",
            _spread(each.speedup, each.speedup_spread) if each.speedup and each.speedup_spread else "",
        )
    return table


def work_table(rows: Sequence[VariantRow]) -> Table:
    """What pruning took, a line for every criterion and compensation, at the budget that took most."""
    table = Table(
        title="What pruning took, in forward passes of one image by the dense model",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    steps = tuple(ForwardPasses.model_fields)
    for heading in ("criterion", "compensation"):
        table.add_column(heading, no_wrap=True)
    for heading in (*steps, "in all"):
        table.add_column(heading, justify="right", no_wrap=True)
    most: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.forward_passes:
            passes = row.forward_passes.model_dump()
            work = [math.nan if passes[step] is None else passes[step] for step in steps]
            name = criterion_name(row), row.compensation or ""
            most[name] = max(most.get(name, work), work, key=sum)
    for (criterion, compensation), work in most.items():
        table.add_row(criterion, compensation, *(_passes(number) for number in [*work, sum(work)]))
    return table


def _passes(number: float) -> str:
    return "not counted" if math.isnan(number) else f"{number:,.0f}" if number >= 0.5 else ""


def _spread(ratio: float, quartiles: tuple[float, float]) -> str:
    return f"{ratio:.2f}× [{quartiles[0]:.2f}, {quartiles[1]:.2f}]"


def plan_table(title: str, plan: PrunePlan) -> Table:
    """What a plan would remove, block by block."""
    table = Table(title=f"{title}: {plan.neurons_removed:.1%} of all MLP neurons", header_style="bold")
    for heading in ("site", "block", "width", "kept", "removed"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for row in plan.table():
        removed = 1 - row.kept / row.width
        table.add_row(row.site, str(row.block), str(row.width), str(row.kept), f"{removed:.0%}")
    return table


def mining_cost_table(seconds: Mapping[str, Mapping[int, float]]) -> Table:
    """How long mining takes, by workload and number of devices."""
    table = Table(title="Time to mine on devices like this one", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("images")
    for devices in next(iter(seconds.values())):
        table.add_column(f"{devices} device{'s' if devices > 1 else ''}", justify="right")
    for workload, by_devices in seconds.items():
        table.add_row(workload, *map(_duration, by_devices.values()))
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
