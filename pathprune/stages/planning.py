"""From a variant's budget to its plan: what a budget is measured on, and the search for the rung that meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pathprune.evaluation import neuron_cost, speedup
from pathprune.keys import key_of
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
from pathprune.stages.experiment import Experiment
from pathprune.stages.latency import timed, timing_key
from pathprune.stages.variants import Variant, label

_DAMAGE_SHARES = (0.75, 0.5, 0.35, 0.2, 0.1, 0.05, 0.0)  # kept of each block where damage is measured; 0: the least
_DAMAGE_IMAGES = 256


@dataclass(frozen=True)
class Planned:
    """A plan, and what it comes to in the terms of its budget."""

    plan: PrunePlan
    reached: float  # share removed, or points lost on the validation images
    spread: tuple[float, float] | None = None  # quartiles, where the share was timed
    work: float | None = 0.0  # multiply-accumulates of measuring damage, where they were counted


@dataclass(frozen=True)
class Planner:
    """Plans for the variants of one experiment. All processes plan alike; the main one measures."""

    experiment: Experiment

    def plan(self, variant: Variant) -> Planned:
        """Which neurons a variant keeps. Raises BudgetError, with the nearest plan, where none meets its budget."""
        config = self.experiment.recipe.prune
        damage, work = self._damage(variant) if config.normalize == "damage" else (None, 0.0)
        plans = self._ladder(variant, config.width_rules, cost=self._cost, damage=damage)
        by = {"latency": self._by_latency, "max-drop": self._by_accuracy}.get(variant.budget.kind, self._by_sum)
        return replace(by(variant, plans), work=work)

    def _by_sum(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Neurons, parameters and multiply-accumulates add up over blocks."""
        removed = plans.compute_removed_shares(self._cost)
        is_open = plans.competing or self._cost is not None
        rung = find_nearest_rung(removed, ratio=variant.budget.amount, total=self._of) if is_open else 0
        return Planned(plans.plan(rung), removed[rung])

    @property
    def _of(self) -> str:
        """What shares are of, in words."""
        kind = self.experiment.recipe.prune.budget
        return "the neurons that compete" if kind == "neurons" else f"the whole model's {UNITS[kind]}"

    @cached_property
    def _cost(self) -> Cost | None:
        """What shares are of; None for the neurons. Latency goes roughly with multiply-accumulates."""
        kind = self.experiment.recipe.prune.budget
        if kind == "neurons":
            return None
        size = self.experiment.data_config["input_size"][1:]
        return neuron_cost(self.experiment.adapted, "params" if kind == "params" else "macs", tuple(size))

    def _ladder(
        self,
        variant: Variant,
        rules: WidthRules,
        *,
        cost: Cost | None = None,
        damage: Mapping[str, Curve] | None = None,
    ) -> PlanLadder:
        return build_plan_ladder(
            self.experiment.scores(variant.criterion),
            sites=self.experiment.adapted.sites,
            rules=rules,
            cost=cost,
            damage=damage,
        )

    def _by_latency(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Plans of the same widths take the same time, whatever criterion they are by, and are timed once."""
        experiment, ratio = self.experiment, variant.budget.amount

        def measure(rung: int) -> ShareEstimate:
            models = {"dense": experiment.model, "pruned": prune(experiment.adapted, plan=plans.plan(rung)).model}
            times = timed(experiment, models)
            faster = speedup(times["dense"], times["pruned"])
            return ShareEstimate(*(1 - 1 / each for each in (faster.median, faster.low, faster.high)))

        def search() -> dict[str, Any]:
            rung, share = search_measured_rung(
                plans.compute_removed_shares(self._cost), ratio=ratio, total=self._of, measure=measure
            )
            return {"rung": rung, **share._asdict()}

        key = key_of(ladder=[plans.ladder.start, plans.ladder.changes], ratio=ratio, latency=timing_key(experiment))
        with experiment.main_first():
            found = experiment.folder.json_artifact(
                f"budgets/latency-{ratio}-{key[:8]}.json",
                key=key,
                make=search,
            )
        return Planned(plans.plan(found["rung"]), found["median"], (found["low"], found["high"]))

    def _by_accuracy(self, variant: Variant, plans: PlanLadder) -> Planned:
        """Every rung that is looked at is an evaluation of its own, so that an interrupted search goes on."""
        experiment, allowed = self.experiment, variant.budget.amount
        experiment.splits.check_validation("mine", "calibrate")
        dense = experiment.evaluation("validation/dense", lambda: experiment.model, use="validation")

        def drop(rung: int) -> float:
            plan = plans.plan(rung)
            found = experiment.evaluation(
                f"validation/{variant.id}/{rung}",
                lambda: experiment.pruned(variant, plan).model,
                key=experiment.variant_key(variant, plan),
                use="validation",
            )
            return 100 * float(dense.correct.mean() - found.correct.mean())

        removed = plans.compute_removed_shares(self._cost)
        rung = search_narrowest_rung(removed, is_acceptable=lambda rung: drop(rung) <= allowed + 1e-9)
        lost = drop(rung)
        if lost > allowed + 1e-9:
            raise BudgetError(
                f"no plan loses at most {allowed:g} points: the one that removes {removed[rung]:.4g} of {self._of} "
                f"loses {lost:.2f}; raise prune.max_drop, or lower prune.block_ratios"
            )
        return Planned(plans.plan(rung), lost)

    def _damage(self, variant: Variant) -> tuple[dict[str, Curve], float | None]:
        """Damage by width of each block narrowed alone, compensated as the variant is; and the work of measuring it.

        A compensation that fits block after block cannot be had for one block alone: least squares stand in for it.
        """
        experiment = self.experiment
        if experiment.num_classes is None:
            raise ValueError(
                "prune.normalize 'damage' measures class probabilities, which the model does not give; use none or "
                "mean, or give it classes by mine.objective={name: zero-shot, head: FILE}"
            )
        if variant.compensation.needs_batches:
            variant = replace(variant, compensation=LeastSquares())
        rules = replace(experiment.recipe.prune.width_rules, scope="uniform", normalize="none")
        plans = self._ladder(variant, rules)
        shares = np.asarray(plans.compute_removed_shares())
        rungs = sorted({int(np.abs(shares - (1 - kept)).argmin()) for kept in _DAMAGE_SHARES} - {0})
        if variant.compensation.needs_statistics:
            experiment.statistics()

        def measure() -> dict[str, Curve]:
            with experiment.counted(artifact, key=key):
                return measured()

        def measured() -> dict[str, Curve]:
            dense = plans.dense_widths
            curves: dict[str, list[tuple[int, float]]] = {name: [(dense[name], 0.0)] for name in plans.competing}
            for rung in rungs:
                narrowed = experiment.pruned(variant, plans.plan(rung))
                what = f"measuring damage at {1 - shares[rung]:.0%} width"
                batches = experiment.splits.calibration(what, num_images=_DAMAGE_IMAGES)
                found = measure_damage(
                    experiment.adapted, narrowed, batches, class_logits=experiment.objective.class_logits
                )
                widths = plans.ladder.widths_at(rung)
                for name in plans.competing:
                    if widths[name] < curves[name][-1][0]:
                        curves[name].append((widths[name], found[name]))
            return dict(curves)

        artifact = f"damage/{label(variant.criterion)}--{label(variant.compensation)}"
        key = key_of(
            models=[experiment.variant_key(variant, plans.plan(rung)) for rung in rungs],
            model=experiment.model_key,
            calibration=experiment.splits.key("calibrate"),
            num_images=_DAMAGE_IMAGES,
            head=experiment.head_key,
        )
        with experiment.main_first():
            curves: dict[str, Curve] = experiment.folder.json_artifact(f"{artifact}.json", key=key, make=measure)
        return curves, experiment.work(artifact, key=key)
