"""What a page opens with: the result in words and a few numbers."""

from __future__ import annotations

from pathprune.pruning import Budget
from pathprune.report.entries import Entry, Results, best
from pathprune.report.page import Fact
from pathprune.report.wording import budget_words, interval, listed, millions, percent, points

_STRONG = 0.95  # retention that a budget is worth featuring at
_NAMED = 4  # of the criteria that tie, at most


def featured(results: Results) -> Entry:
    """The variant that a page tells most of: the smallest best of a budget that retains 95 %, else the largest best."""
    winners = [best(results.at(budget=budget)) for budget in results.budgets]
    strong = [entry for entry in winners if entry.retention.value >= _STRONG]
    return min(strong, key=lambda entry: entry.macs) if strong else max(winners, key=lambda entry: entry.macs)


def headline(results: Results) -> list[str]:
    """For every budget: its best variant, what ties with that and what does not."""
    if not results.entries:
        return [f"Nothing is pruned here: the dense model's top-1 is {percent(results.dense.top1, 1)}."]
    return [_sentence(results, budget) for budget in results.budgets]


def _sentence(results: Results, budget: Budget) -> str:
    winner = best(results.at(budget=budget))
    saved = 1 - winner.macs / results.dense.macs
    said = (
        f"{budget_words(budget)} ({percent(saved)} of MACs): `{winner.criterion}` with "
        f"`{winner.compensation}` keeps {percent(winner.retention.value, 1)} {interval(winner.retention.ci)} of the "
        "dense model's top-1"
    )
    if winner.row.timing:
        said += f", {winner.row.timing.speedup:.2f}× faster on {device(results)}"
    return f"{said}.{_rivals(results, winner)}"


def _rivals(results: Results, winner: Entry) -> str:
    """How the other criteria do under the same budget and compensation."""
    if winner.budget.kind == "max-drop":
        return ""
    rivals = results.at(budget=winner.budget, compensation=winner.compensation)
    against = {entry.criterion: results.pair(winner, entry).result for entry in rivals if entry.id != winner.id}
    ties = [name for name, result in against.items() if result.verdict == "tie"]
    behind = sorted((name for name in against if name not in ties), key=lambda name: against[name].difference)
    said = f" {listed(ties, at_most=_NAMED)} {'tie' if len(ties) > 1 else 'ties'} with it." if ties else ""
    if not behind:
        return said
    last = behind[-1]
    lost = points(against[last].difference).lstrip("+")
    if len(behind) == 1:
        return f"{said} `{last}` loses {lost} points against it."
    nearest = points(against[behind[0]].difference).lstrip("+")
    return f"{said} The others lose {nearest} (`{behind[0]}`) to {lost} points (`{last}`) against it."


def facts(results: Results) -> list[Fact]:
    """The dense model's accuracy, and what the featured variant keeps and saves."""
    dense = results.dense
    shown = [Fact(percent(dense.top1, 1), "dense top-1", interval(dense.top1_ci))]
    if not results.entries:
        return shown
    entry = featured(results)
    row, removed = entry.row, f"{percent(entry.row.neurons_removed)} of neurons removed"
    fewer = 1 - row.num_params / dense.num_params
    shown += [
        Fact(percent(entry.retention.value, 1), "top-1 retained", f"{removed}; {interval(entry.retention.ci)}"),
        Fact(f"−{percent(1 - entry.macs / dense.macs)}", "MACs", f"{millions(entry.macs)} an image"),
        Fact(f"−{percent(fewer)}", "parameters", millions(row.num_params)),
    ]
    if row.timing:
        batch = f"{row.timing.latency_ms:.1f} ms for {row.timing.latency_batch_size} images"
        shown.append(Fact(f"{row.timing.speedup:.2f}×", f"faster on {device(results)}", batch))
    return shown


def device(results: Results) -> str:
    """The run's device in words."""
    name = str(results.environment.get("device", "this device"))
    return {"cpu": "this CPU", "mps": "this GPU"}.get(name, name)
