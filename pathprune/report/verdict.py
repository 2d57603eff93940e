"""Opening of a run's page: the conclusions in sentences, and key numbers."""

from __future__ import annotations

from pathprune.pruning import Budget
from pathprune.report.entries import Entry, Results, find_best
from pathprune.report.page import Fact
from pathprune.report.wording import (
    describe_budget,
    format_interval,
    format_millions,
    format_percent,
    format_points,
    join_words,
)

_HIGH_RETENTION = 0.95
_MAX_TIES = 4  # criteria that a sentence lists by name


def choose_featured(results: Results) -> Entry:
    """Choose the variant that a page describes in detail.

    Of the best variants of all budgets: the smallest that retains 95 % of the dense top-1, or the largest if none does.
    """
    winners = [find_best(results.select(budget=budget)) for budget in results.budgets]
    accurate = [entry for entry in winners if entry.retention.value >= _HIGH_RETENTION]
    return min(accurate, key=lambda entry: entry.macs) if accurate else max(winners, key=lambda entry: entry.macs)


def compose_headline(results: Results) -> list[str]:
    """Compose a paragraph per budget: its best variant, the criteria that tie with it, and the others."""
    if not results.entries:
        return [f"This run prunes no model. The dense model's top-1 is {format_percent(results.dense.top1, 1)}."]
    return [_compose_paragraph(results, budget) for budget in results.budgets]


def describe_saving(results: Results, entry: Entry) -> str:
    """Describe a variant's budget and the MACs that it saves: `50 % of MLP neurons removed (31 % fewer MACs)`."""
    saving = 1 - entry.macs / results.dense.macs
    return f"{describe_budget(entry.budget)} ({format_percent(saving)} fewer MACs)"


def _compose_paragraph(results: Results, budget: Budget) -> str:
    winner = find_best(results.select(budget=budget))
    rank = "smallest" if budget.kind == "max-drop" else "best"
    speed = ""
    if winner.row.timing:
        speed = f" and is {winner.row.timing.speedup:.2f}× faster on {describe_device(results)}"
    sentences = [
        f"{describe_saving(results, winner)}: the {rank} model uses criterion `{winner.criterion}` and compensation "
        f"`{winner.compensation}`.",
        f"It keeps {format_percent(winner.retention.value, 1)} {format_interval(winner.retention.ci)} of the dense "
        f"model's top-1{speed}.",
        *_compose_rivals(results, winner),
    ]
    return " ".join(sentences)


def _compose_rivals(results: Results, winner: Entry) -> list[str]:
    """Compose sentences about the other criteria under the winner's budget and compensation."""
    if winner.budget.kind == "max-drop":
        return []
    rivals = results.select(budget=winner.budget, compensation=winner.compensation)
    comparisons = {entry.criterion: results.compare(winner, entry).result for entry in rivals if entry.id != winner.id}
    ties = [name for name, comparison in comparisons.items() if comparison.verdict == "tie"]
    behind = sorted((name for name in comparisons if name not in ties), key=lambda name: comparisons[name].difference)
    gaps = {name: format_points(comparisons[name].difference).lstrip("+") for name in behind}
    sentences = []
    if ties:
        sentences.append(f"{join_words(ties, at_most=_MAX_TIES)} {'tie' if len(ties) > 1 else 'ties'} with it.")
    if len(behind) == 1:
        sentences.append(f"`{behind[0]}` is {gaps[behind[0]]} points worse.")
    elif behind:
        nearest, last = behind[0], behind[-1]
        others = "The other criteria" if ties else "All other criteria"
        sentences.append(f"{others} are {gaps[nearest]} (`{nearest}`) to {gaps[last]} points (`{last}`) worse.")
    return sentences


def compose_facts(results: Results) -> list[Fact]:
    """Compose the key numbers: top-1 of the dense model, and accuracy, size and speed of the featured variant."""
    dense = results.dense
    dense_fact = Fact(format_percent(dense.top1, 1), "dense top-1", format_interval(dense.top1_ci))
    if not results.entries:
        return [dense_fact]
    entry = choose_featured(results)
    row = entry.row
    variant = f"{entry.criterion} with {entry.compensation}, {format_percent(row.neurons_removed)} of neurons removed"
    fewer_macs, fewer_params = 1 - entry.macs / dense.macs, 1 - row.num_params / dense.num_params
    facts = [
        dense_fact,
        Fact(
            format_percent(entry.retention.value, 1),
            "top-1 retained",
            f"{format_interval(entry.retention.ci)} {variant}",
        ),
        Fact(f"−{format_percent(fewer_macs)}", "MACs", f"{format_millions(entry.macs)} per image"),
        Fact(f"−{format_percent(fewer_params)}", "parameters", format_millions(row.num_params)),
    ]
    if row.timing:
        batch = f"{row.timing.latency_ms:.1f} ms per batch of {row.timing.latency_batch_size}"
        facts.append(Fact(f"{row.timing.speedup:.2f}×", f"faster on {describe_device(results)}", batch))
    return facts


def describe_device(results: Results) -> str:
    """Return the name of the run's device, or `this CPU` or `this GPU`."""
    name = str(results.environment.get("device", "this device"))
    return {"cpu": "this CPU", "mps": "this GPU"}.get(name, name)
