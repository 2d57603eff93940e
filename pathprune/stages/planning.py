"""The planning stage: from a variant's budget to its plan, with the measurements that a budget needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pathprune.artifacts import JSON, Artifact, ArtifactKind, json_codec
from pathprune.evaluation import neuron_cost, speedup
from pathprune.models.seam import AdaptedModel
from pathprune.pruning import (
    BudgetError,
    Cost,
    LeastSquares,
    PlanLadder,
    PrunePlan,
    WidthRules,
    build_plan_ladder,
    measure_damage,
    prune,
)
from pathprune.pruning.allocation import Curve
from pathprune.pruning.budget import (
    UNITS,
    ShareEstimate,
    find_nearest_rung,
    search_measured_rung,
    search_narrowest_rung,
)
from pathprune.stages.context import Context
from pathprune.stages.evaluation import Evaluator
from pathprune.stages.images import Splits, check_disjoint
from pathprune.stages.latency import Stopwatch
from pathprune.stages.mining import Mining
from pathprune.stages.pruning import Pruning
from pathprune.stages.scoring import Scoring
from pathprune.stages.variants import Variant, label

_DAMAGE_SHARES = (0.75, 0.5, 0.35, 0.2, 0.1, 0.05, 0.0)  # kept of each block where damage is measured; 0: the least
_DAMAGE_IMAGES = 256


class TimedRung(NamedTuple):
    """The rung of a ladder that meets a latency budget, and the share of latency that it removes."""

    rung: int
    share: ShareEstimate


DAMAGE: ArtifactKind[dict[str, Curve]] = ArtifactKind(
    "damage/{}--{}.json",
    inputs=("model", "models", "calibration", "num_images", "head"),
    codec=JSON,
)
LATENCY_BUDGET: ArtifactKind[TimedRung] = ArtifactKind(
    "budgets/latency-{}.json",
    inputs=("ladder", "ratio", "setting"),
    codec=json_codec(
        lambda timed: {"rung": timed.rung, **timed.share._asdict()},
        lambda content: TimedRung(content.pop("rung"), ShareEstimate(**content)),
    ),
)


@dataclass(frozen=True)
class Planned:
    """A plan, and its result in the terms of its budget."""

    plan: PrunePlan
    reached: float  # share removed, or points lost on the validation images
    spread: tuple[float, float] | None = None  # quartiles of a share of latency
    damage: Artifact[Any] | None = None  # the damage curves that set the widths


class Planner:
    """Plans of a recipe's variants. All processes plan alike; the main process measures."""

    def __init__(
        self,
        context: Context,
        splits: Splits,
        mining: Mining,
        scoring: Scoring,
        pruning: Pruning,
        evaluator: Evaluator,
        stopwatch: Stopwatch,
    ) -> None:
        self._context, self._splits, self._mining = context, splits, mining
        self._scoring, self._pruning = scoring, pruning
        self._evaluator, self._stopwatch = evaluator, stopwatch
        self._config = context.recipe.prune

    def plan(self, variant: Variant) -> Planned:
        """Choose the neurons that a variant keeps; raises `BudgetError`, naming the nearest plan, where none fits."""
        config = self._config
        damage, artifact = self._damage(variant) if config.normalize == "damage" else (None, None)
        plans = self._ladder(variant, config.width_rules, cost=self._cost, damage=damage)
        search = {"latency": self._by_latency, "max-drop": self._by_accuracy}.get(variant.budget.kind, self._by_sum)
        return replace(search(variant, plans), damage=artifact)

    def _by_sum(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Meet a budget of neurons, parameters or multiply-accumulates, which add up over blocks."""
        removed = plans.compute_removed_shares(self._cost)
        is_open = plans.competing or self._cost is not None
        rung = find_nearest_rung(removed, ratio=variant.budget.amount, total=self._whole) if is_open else 0
        return Planned(plans.plan(rung), removed[rung])

    @property
    def _whole(self) -> str:
        """Words for the whole that shares are fractions of."""
        kind = self._config.budget
        return "the neurons that compete" if kind == "neurons" else f"the whole model's {UNITS[kind]}"

    @cached_property
    def _cost(self) -> Cost | None:
        """Cost that shares are fractions of; None for neurons. Latency is proportional to multiply-accumulates here."""
        kind = self._config.budget
        if kind == "neurons":
            return None
        model = self._context.model
        return neuron_cost(model.adapted, "params" if kind == "params" else "macs", model.image_size)

    def _ladder(
        self,
        variant: Variant,
        rules: WidthRules,
        *,
        cost: Cost | None = None,
        damage: Mapping[str, Curve] | None = None,
    ) -> PlanLadder:
        return build_plan_ladder(
            self._scoring.scores(variant.criterion),
            sites=self._context.model.adapted.sites,
            rules=rules,
            cost=cost,
            damage=damage,
        )

    def _by_latency(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Meet a latency budget; plans of equal widths take equal time whatever their criterion, and are timed once."""
        context, ratio = self._context, variant.budget.amount

        def measure(rung: int) -> ShareEstimate:
            pruned = prune(context.model.adapted, plan=plans.plan(rung)).model
            times = self._stopwatch.measure({"dense": context.model.module, "pruned": pruned})
            faster = speedup(times["dense"], times["pruned"])
            return ShareEstimate(*(1 - 1 / each for each in (faster.median, faster.low, faster.high)))

        def search() -> TimedRung:
            return TimedRung(
                *search_measured_rung(
                    plans.compute_removed_shares(self._cost), ratio=ratio, total=self._whole, measure=measure
                )
            )

        inputs = {
            "ladder": [plans.ladder.start, plans.ladder.changes],
            "ratio": ratio,
            "setting": self._stopwatch.setting,
        }
        name = f"{ratio}-{LATENCY_BUDGET.of('', **inputs).key[:8]}"  # one file per ladder
        found = context.obtain_by_main(LATENCY_BUDGET.of(name, **inputs), search)
        return Planned(plans.plan(found.rung), found.share.median, (found.share.low, found.share.high))

    def _by_accuracy(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Find the smallest plan within the allowed drop; every evaluated rung is stored, so that a search resumes."""
        allowed = variant.budget.amount
        others = {"mine": self._mining.sample.image_set, "calibrate": self._splits.of("calibrate")}
        check_disjoint(self._splits.of("validation"), others, purpose="validation")
        dense = self._evaluator.dense("validation")

        def drop(rung: int) -> float:
            plan = plans.plan(rung)
            pruned = self._evaluator.evaluate(
                f"validation/{variant.id}/{rung}",
                lambda: self._pruning.build(variant, plan).model,
                variant=self._pruning.artifact(variant, plan).key,
                use="validation",
            )
            return 100 * float(dense.correct.mean() - pruned.correct.mean())

        removed = plans.compute_removed_shares(self._cost)
        rung = search_narrowest_rung(removed, is_acceptable=lambda rung: drop(rung) <= allowed + 1e-9)
        lost = drop(rung)
        if lost > allowed + 1e-9:
            raise BudgetError(
                f"no plan loses at most {allowed:g} points: the one that removes {removed[rung]:.4g} of {self._whole} "
                f"loses {lost:.2f}; raise prune.max_drop, or lower prune.block_ratios"
            )
        return Planned(plans.plan(rung), lost)

    def _damage(self, variant: Variant) -> tuple[dict[str, Curve], Artifact[Any]]:
        """Return damage by width of each block narrowed alone, compensated like the variant.

        A compensation that fits block after block has no meaning for one block alone: least squares replace it.
        """
        context = self._context
        if context.model.num_classes is None:
            raise ValueError(
                "prune.normalize 'damage' compares class probabilities, but the model has no classes; use none or "
                "mean, or give it classes with mine.objective={name: zero-shot, head: FILE}"
            )
        if variant.compensation.needs_batches:
            variant = replace(variant, compensation=LeastSquares())
        rules = replace(self._config.width_rules, scope="uniform", normalize="none")
        plans = self._ladder(variant, rules)
        shares = np.asarray(plans.compute_removed_shares())
        rungs = sorted({int(np.abs(shares - (1 - kept)).argmin()) for kept in _DAMAGE_SHARES} - {0})
        if variant.compensation.needs_statistics:
            self._scoring.statistics()
        artifact = DAMAGE.of(
            label(variant.criterion),
            label(variant.compensation),
            model=context.model_key,
            models=[self._pruning.artifact(variant, plans.plan(rung)).key for rung in rungs],
            calibration=self._splits.of("calibrate").key,
            num_images=_DAMAGE_IMAGES,
            head=context.model.head_spec,
        )

        def measure() -> dict[str, Curve]:
            dense = plans.dense_widths
            curves: dict[str, list[tuple[int, float]]] = {name: [(dense[name], 0.0)] for name in plans.competing}
            with context.counted(artifact):
                for rung in rungs:
                    narrowed = self._pruning.build(variant, plans.plan(rung))
                    damage = self._damage_of(narrowed, f"measuring damage at {1 - shares[rung]:.0%} width")
                    widths = plans.ladder.widths_at(rung)
                    for name in plans.competing:
                        if widths[name] < curves[name][-1][0]:
                            curves[name].append((widths[name], damage[name]))
            return dict(curves)

        return context.obtain_by_main(artifact, measure), artifact

    def _damage_of(self, narrowed: AdaptedModel, description: str) -> dict[str, float]:
        return measure_damage(
            self._context.model.adapted,
            narrowed,
            self._splits.calibration(description, num_images=_DAMAGE_IMAGES),
            class_logits=self._context.model.objective.class_logits,
        )
