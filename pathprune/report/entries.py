"""The variants of a run as its page tells of them: named for people, one entry for all seeds of a variant."""

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
    """One pruned model of the comparison; `rows` and `evaluations` are those of its seeds."""

    rows: Sequence[VariantRow]
    evaluations: Sequence[Evaluation]
    retention: Retention

    @property
    def row(self) -> VariantRow:
        """The first seed's row; what does not depend on the seed is the same in all."""
        return self.rows[0]

    @property
    def id(self) -> str:
        return self.row.variant_id

    @property
    def criterion(self) -> str:
        """The criterion's name, with the options that are not the defaults."""
        return criterion_name(self.row)

    @property
    def compensation(self) -> str:
        return terms(self.row)

    @property
    def budget(self) -> Budget:
        return Budget(self.row.budget_kind, self.row.budget)

    @property
    def top1(self) -> float:
        """Mean over the seeds."""
        return _mean(row.top1 for row in self.rows)

    @property
    def macs(self) -> float:
        """Mean over the seeds, an image."""
        return _mean(row.macs for row in self.rows)

    @property
    def top5(self) -> float:
        """Mean over the seeds."""
        return _mean(row.top5 for row in self.rows)

    @property
    def nll(self) -> float:
        """Mean over the seeds, in nats."""
        return _mean(row.nll for row in self.rows)

    @property
    def agreement(self) -> float:
        """Mean over the seeds of the share of images to which the dense model gives the same class."""
        return _mean(row.agreement for row in self.rows if row.agreement is not None)


@dataclass(frozen=True)
class Results:
    """What a run found, as plain values: all that its page is made of.

    `rows` of every seed, the dense model's first; `evaluations` one per seed; `plans` and `mined` are the first seed's.
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
    recipe: str  # YAML
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
        """Every pruned variant, in the order of the recipe."""
        by_id: dict[str, list[VariantRow]] = {}
        for row in self.rows:
            if not row.is_dense:
                by_id.setdefault(row.variant_id, []).append(row)
        return [
            Entry(rows, self.evaluations[id], mean_retention(self.evaluations[id], self.dense_evaluation))
            for id, rows in by_id.items()
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

    def at(self, *, budget: Budget, compensation: str | None = None) -> list[Entry]:
        """The entries of a budget, and of one compensation where it is given."""
        return [
            entry for entry in self.entries if entry.budget == budget and compensation in (None, entry.compensation)
        ]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every pair of criteria under the same budget and compensation; each such setting is a family of its own.

        Models within a drop of accuracy differ in size instead, and are not compared by accuracy.
        """
        return [
            pair
            for budget in self.budgets
            if budget.kind != "max-drop"
            for compensation in self.compensations
            for pair in compare_all(
                {entry.id: entry.evaluations for entry in self.at(budget=budget, compensation=compensation)}
            )
        ]

    def leads(self, entry: Entry) -> bool:
        """Whether an entry is the best of its budget and compensation, or ties with that."""
        leader = best(self.at(budget=entry.budget, compensation=entry.compensation))
        if entry.id == leader.id or entry.budget.kind == "max-drop":
            return entry.id == leader.id
        return self.pair(leader, entry).result.verdict == "tie"

    def pair(self, a: Entry, b: Entry) -> Pair:
        """`a` against `b`, of the same setting."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (a.id, b.id):
                return pair
            if (pair.a, pair.b) == (b.id, a.id):
                return pair.swap()
        raise KeyError(f"{a.id} and {b.id} are not of one setting")


@dataclass(frozen=True)
class CriterionCost:
    """What it took to score every neuron by a criterion; shared work counts for each that needs it.

    None: not needed, or not known, as of scores that an earlier version left.
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
    """Which images a use reads."""

    use: str
    split: str
    num_images: int


def terms(row: VariantRow) -> str:
    """What was done to the kept weights: the compensation, and whether training followed."""
    return f"{row.compensation or ''}{' + recovery' if row.recovery else ''}"


def criterion_name(row: VariantRow) -> str:
    """A row's criterion, with the options that are not the defaults; `dense` for the dense model."""
    return "dense" if row.criterion is None else named(row.criterion, row.criterion_options or {})


def named(criterion: str, options: Mapping[str, Any]) -> str:
    """A criterion's name, with the options that are not the defaults."""
    said = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{criterion} ({said})" if said else criterion


def best(entries: Sequence[Entry]) -> Entry:
    """The entry of the highest top-1, or of the fewest MACs where a drop was asked for; the first of equal ones."""
    if entries[0].budget.kind == "max-drop":
        return min(entries, key=lambda entry: entry.macs)
    return max(entries, key=lambda entry: entry.top1)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
