"""Fake results of any number of criteria, compensations, budgets, blocks and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pathprune.evaluation import Evaluation, retention, top1_ci
from pathprune.mining import ClassStats, PathSet
from pathprune.pruning import Budget, PrunePlan
from pathprune.report.entries import CriterionCost, Results, SplitInfo
from pathprune.report.rows import ForwardPasses, RecoveryRecord, Timing, VariantRow

CRITERIA = ("path", "variance", "taylor", "magnitude-l2", "random")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def fake_results(
    *,
    criteria: Sequence[str] = CRITERIA,
    compensations: Sequence[str] = ("none", "least-squares"),
    budgets: Sequence[Budget] = (Budget("neurons", 0.5), Budget("neurons", 0.7)),
    classes: Sequence[str] = CLASSES,
    num_blocks: int = 6,
    width: int = 64,
    num_images: int = 600,
    seeds: Sequence[int] = (0,),
    latency: bool = True,
    recovered: Sequence[str] = (),
) -> Results:
    """Return results in which loss of top-1 grows with the budget and with the criterion's place in `criteria`.

    With `least-squares` the loss is smaller. Every model of a criterion in `recovered` has a second, recovered variant
    that predicts like the dense model.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % len(classes)
    dense = _fake_evaluation(labels, rng.random(num_images) < 0.9, classes)
    evaluations = {"dense": [dense] * len(seeds)}
    plans = {}
    unpruned = _fake_plan(np.random.default_rng(0), 0.0, num_blocks, width)
    rows = [_fake_row(dense, dense, unpruned, seed=seeds[0], variant_id="dense", latency=latency)]
    for budget in budgets:
        share = budget.amount if budget.kind != "max-drop" else 0.4
        for place, criterion in enumerate(criteria):
            plan = _fake_plan(rng, share, num_blocks, width)
            for compensation in compensations:
                id = f"{criterion}--{compensation}--{budget.slug}"
                lost = share**2 * (0.05 + 0.05 * place) * (0.3 if compensation == "least-squares" else 1)
                plans[id] = plan
                evaluations[id] = [
                    _fake_evaluation(labels, dense.correct & (rng.random(num_images) > lost), classes) for _ in seeds
                ]
                names = {"criterion": criterion, "compensation": compensation, "variant_id": id}
                pruned_rows = [
                    _fake_row(evaluation, dense, plan, seed=seed, latency=latency, budget=budget, **names)
                    for seed, evaluation in zip(seeds, evaluations[id], strict=True)
                ]
                rows += pruned_rows
                if criterion in recovered:
                    evaluations[f"{id}--recovered"] = [dense] * len(seeds)
                    rows += [_recover(row, top1=rows[0].top1) for row in pruned_rows]
    return Results(
        name="fake",
        rows=rows,
        evaluations=evaluations,
        plans=plans,
        mined={"all": fake_paths(classes, num_blocks=num_blocks, width=width)},
        class_names=classes,
        costs=[CriterionCost(name, 12.0 if name == "path" else None, None, 0.5, 80.0) for name in criteria],
        model="`model`",
        data="`images`",
        recipe="name: fake\nseed: 0\n",
        environment={"python": "3.11", "device": "cpu", "threads": 2},
        splits=[SplitInfo("mine", "train", 200), SplitInfo("evaluate", "test", num_images)],
    )


def fake_paths(
    classes: Sequence[str], *, num_blocks: int = 6, width: int = 64, per_class: int = 20
) -> tuple[ClassStats, PathSet]:
    """Return class statistics and paths in which the classes 0 and 1, 2 and 3, and so on, share neurons."""
    rng = np.random.default_rng(1)
    names = tuple(f"blocks.{block}.mlp.fc2" for block in range(num_blocks))
    labels = np.repeat(np.arange(len(classes)), per_class)
    shared_NL = (labels[:, None] // 2 * 7 + 3 * np.arange(num_blocks)) % width
    random_NL = rng.integers(width, size=shared_NL.shape)
    chosen = torch.tensor(np.where(rng.random(shared_NL.shape) < 0.7, shared_NL, random_NL))
    stats = ClassStats.empty(dict.fromkeys(names, width), classes)
    stats.num_images += per_class
    for block in range(num_blocks):
        stats.count[block].index_put_(
            (torch.tensor(labels), chosen[:, block]), torch.ones((), dtype=torch.float64), True
        )
        stats.mass[block].copy_(stats.count[block] + torch.tensor(rng.random((len(classes), width))))
    ones = torch.tensor(labels)
    paths = PathSet(
        names, tuple(classes), torch.arange(len(labels)), ones, ones, ones, torch.ones(len(labels)), chosen[..., None]
    )
    return stats, paths


def _recover(row: VariantRow, *, top1: float) -> VariantRow:
    recovery = RecoveryRecord(rounds=1, epochs=1, history=[])
    return row.model_copy(update={"variant_id": f"{row.variant_id}--recovered", "recovery": recovery, "top1": top1})


def _fake_evaluation(labels: np.ndarray, correct: np.ndarray, classes: Sequence[str]) -> Evaluation:
    predictions = np.where(correct, labels, (labels + 1) % len(classes))
    return Evaluation(labels, predictions, (~correct).astype(np.int64), np.where(correct, 0.1, 2.0), len(classes))


def _fake_plan(rng: np.random.Generator, share: float, num_blocks: int, width: int) -> PrunePlan:
    names = [f"blocks.{block}.mlp.fc2" for block in range(num_blocks)]
    kept = {
        name: torch.tensor(rng.choice(width, size=round(width * (1 - share)), replace=False)).sort().values
        for name in names
    }
    return PrunePlan(kept, dict.fromkeys(names, width), {name: block for block, name in enumerate(names)})


def _fake_row(
    evaluation: Evaluation,
    dense: Evaluation,
    plan: PrunePlan,
    *,
    seed: int,
    variant_id: str,
    latency: bool,
    criterion: str | None = None,
    compensation: str | None = None,
    budget: Budget = Budget("neurons", 0.0),  # noqa: B008 (immutable)
) -> VariantRow:
    widths = [len(kept) for kept in plan.kept.values()]
    kept_share = sum(widths) / sum(plan.widths.values())
    retained = retention(evaluation, dense)
    milliseconds = 20 * kept_share + 10
    timing = Timing(
        latency_ms=milliseconds,
        latency_spread_ms=(0.9 * milliseconds, 1.1 * milliseconds),
        latency_batch_size=16,
        images_per_second=16000 / milliseconds,
        speedup=30 / milliseconds,
        speedup_spread=(0.97 * 30 / milliseconds, 1.04 * 30 / milliseconds),
    )
    row = VariantRow(
        variant_id=variant_id,
        criterion=criterion,
        criterion_options={},
        compensation=compensation,
        tokens=None,
        budget_kind=budget.kind,
        budget=budget.amount,
        budget_reached=budget.amount,
        budget_spread=None,
        neurons_removed=1 - kept_share,
        seed=seed,
        classes=None,
        num_images=evaluation.num_images,
        top1=float(evaluation.correct.mean()),
        top1_ci=top1_ci(evaluation),
        retention=retained.value,
        retention_ci=retained.ci,
        top5=0.99,
        nll=0.3,
        per_class=evaluation.summary()["per_class"],
        agreement=0.9,
        num_params=int(2.7e6 * (0.4 + 0.6 * kept_share)),
        macs=int(183e6 * (0.4 + 0.6 * kept_share)),
        forward_passes=ForwardPasses(scoring=9.0, fitting=300.0),
        kept_widths=widths,
        recovery=None,
        checkpoint=None,
        checkpoint_bytes=None,
    )
    return row.with_timing(timing) if latency else row
