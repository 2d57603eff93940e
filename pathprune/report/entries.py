"""Results of a run as its page needs them, with all seeds of a pruned variant in one entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pathprune.evaluation import Evaluation, Pair, Retention, compare_all, mean_retention
from pathprune.mining import ClassStats, PathSet
from pathprune.pruning import Budget, PrunePlan
from pathprune.report.rows import VariantRow


@dataclass(frozen=True)
class Entry:
    """One pruned variant: rows and evaluations of its seeds. Numbers are means over the seeds."""

    rows: Sequence[VariantRow]
    evaluations: Sequence[Evaluation]
    retention: Retention

    @property
    def row(self) -> VariantRow:
        """Row of the first seed, for fields that are equal in all seeds."""
        return self.rows[0]

    @property
    def id(self) -> str:
        return self.row.variant_id

    @property
    def criterion(self) -> str:
        """Name of the criterion, with options that differ from their defaults."""
        return describe_criterion(self.row)

    @property
    def compensation(self) -> str:
        """Name of the compensation, and whether recovery followed."""
        return describe_compensation(self.row)

    @property
    def budget(self) -> Budget:
        return Budget(self.row.budget_kind, self.row.budget)

    @property
    def top1(self) -> float:
        return _mean(row.top1 for row in self.rows)

    @property
    def top5(self) -> float:
        return _mean(row.top5 for row in self.rows)

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the labels, in nats."""
        return _mean(row.nll for row in self.rows)

    @property
    def agreement(self) -> float:
        """Share of images for which the variant and the dense model predict the same class."""
        return _mean(row.agreement for row in self.rows if row.agreement is not None)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per image."""
        return _mean(row.macs for row in self.rows)


@dataclass(frozen=True)
class CriterionCost:
    """Cost of scoring every neuron by one criterion; shared steps count in full for each criterion that needs them.

    A field is None if the step is not needed, or if its cost was not recorded.
    """

    criterion: str
    mining_seconds: float | None
    statistics_seconds: float | None
    scoring_seconds: float | None
    forward_passes: float | None

    @property
    def seconds(self) -> float:
        return (self.scoring_seconds or 0) + (self.mining_seconds or 0) + (self.statistics_seconds or 0)


@dataclass(frozen=True)
class SplitInfo:
    """Split and number of the images for one purpose, such as `mine`."""

    use: str
    split: str
    num_images: int


@dataclass(frozen=True)
class Results:
    """Results of a run as plain values: all data of its page.

    `rows` are of all seeds, the dense model's first. `evaluations` has one evaluation per seed for every variant.
    `plans` and `mined` are of the first seed. `recipe` is YAML.
    """

    name: str
    rows: Sequence[VariantRow]
    evaluations: Mapping[str, Sequence[Evaluation]]
    plans: Mapping[str, PrunePlan]
    mined: Mapping[str, tuple[ClassStats, PathSet]]
    class_names: Sequence[str]
    costs: Sequence[CriterionCost]
    model: str
    data: str
    recipe: str
    environment: Mapping[str, Any]
    splits: Sequence[SplitInfo]

    @property
    def dense(self) -> VariantRow:
        return self.rows[0]

    @property
    def dense_evaluation(self) -> Evaluation:
        return self.evaluations["dense"][0]

    @cached_property
    def entries(self) -> list[Entry]:
        """Every pruned variant, in recipe order."""
        rows_by_id: dict[str, list[VariantRow]] = {}
        for row in self.rows:
            if not row.is_dense:
                rows_by_id.setdefault(row.variant_id, []).append(row)
        return [
            Entry(rows, self.evaluations[id], mean_retention(self.evaluations[id], self.dense_evaluation))
            for id, rows in rows_by_id.items()
        ]

    @property
    def budgets(self) -> list[Budget]:
        return list(dict.fromkeys(entry.budget for entry in self.entries))

    @property
    def compensations(self) -> list[str]:
        return list(dict.fromkeys(entry.compensation for entry in self.entries))

    @property
    def criteria(self) -> list[str]:
        return list(dict.fromkeys(entry.criterion for entry in self.entries))

    @property
    def num_seeds(self) -> int:
        return len(self.evaluations["dense"])

    def select(self, *, budget: Budget, compensation: str | None = None) -> list[Entry]:
        """Return the entries of a budget, and only those of a compensation if one is given."""
        return [
            entry for entry in self.entries if entry.budget == budget and compensation in (None, entry.compensation)
        ]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every pair of criteria with equal budget and compensation, corrected for the number of these pairs.

        A `max-drop` budget has no pairs: its models differ in size, not in accuracy.
        """
        return [
            pair
            for budget in self.budgets
            if budget.kind != "max-drop"
            for compensation in self.compensations
            for pair in compare_all(
                {entry.id: entry.evaluations for entry in self.select(budget=budget, compensation=compensation)}
            )
        ]

    def leads(self, entry: Entry) -> bool:
        """Return whether an entry is the best of its budget and compensation, or ties with the best."""
        leader = find_best(self.select(budget=entry.budget, compensation=entry.compensation))
        if entry.id == leader.id or entry.budget.kind == "max-drop":
            return entry.id == leader.id
        return self.compare(leader, entry).result.verdict == "tie"

    def compare(self, a: Entry, b: Entry) -> Pair:
        """Return the comparison of `a` with `b`; raise `KeyError` if their budgets or compensations differ."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (a.id, b.id):
                return pair
            if (pair.a, pair.b) == (b.id, a.id):
                return pair.swap()
        raise KeyError(f"{a.id} and {b.id} differ in budget or compensation")


def describe_compensation(row: VariantRow) -> str:
    """Return the name of the compensation, with ` + recovery` if the model was trained after pruning."""
    return f"{row.compensation or ''}{' + recovery' if row.recovery else ''}"


def describe_criterion(row: VariantRow) -> str:
    """Return the name of the criterion, with options that differ from their defaults; `dense` for the dense model."""
    return "dense" if row.criterion is None else format_criterion(row.criterion, row.criterion_options or {})


def format_criterion(name: str, options: Mapping[str, Any]) -> str:
    """Format a criterion with its options: `obs (damping=0.1)`."""
    listing = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name} ({listing})" if listing else name


def find_best(entries: Sequence[Entry]) -> Entry:
    """Return the entry of the highest top-1, or of the fewest MACs for a `max-drop` budget; the first of equal ones."""
    if entries[0].budget.kind == "max-drop":
        return min(entries, key=lambda entry: entry.macs)
    return max(entries, key=lambda entry: entry.top1)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
