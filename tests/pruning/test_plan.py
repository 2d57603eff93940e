"""Tests of plans: kept neurons by hand, and budgets that are met."""

import json

import pytest
import torch
from torch import nn

from pathprune.models.seam import NeuronSite
from pathprune.pruning import PlanRow, PrunePlan, make_plan
from pathprune.pruning.budget import BudgetError, Cost


def make_sites(*widths: int) -> list[NeuronSite]:
    return [NeuronSite(f"blocks.{i}.mlp.fc2", i, nn.Linear(width, 1)) for i, width in enumerate(widths)]


def plan_rows(*rows: list[float], **settings) -> PrunePlan:
    sites = make_sites(*map(len, rows))
    return make_plan(
        {s.name: torch.tensor(row, dtype=torch.float64) for s, row in zip(sites, rows, strict=True)},
        sites=sites,
        **settings,
    )


def plan_random_scores(*widths: int, seed: int = 0, **settings) -> PrunePlan:
    generator = torch.Generator().manual_seed(seed)
    return plan_rows(*(torch.rand(width, generator=generator).tolist() for width in widths), **settings)


def list_kept(plan: PrunePlan) -> list[list[int]]:
    return [columns.tolist() for columns in plan.kept.values()]


def list_kept_widths(plan: PrunePlan) -> list[int]:
    return [row.kept for row in plan.table()]


def test_uniform_keeps_the_top_neurons_of_every_block():
    plan = plan_rows([1, 4, 2, 3], [0.1, 0.2, 0.4, 0.3], ratio=0.5)
    assert list_kept(plan) == [[1, 3], [2, 3]]
    assert plan.neurons_removed == 0.5


def test_global_keeps_the_top_neurons_of_the_whole_model():
    plan = plan_rows([1, 4, 2, 3], [0.1, 5, 0.4, 0.3], ratio=0.5, scope="global")
    assert list_kept(plan) == [[1, 2, 3], [1]]


def test_global_with_normalize_mean_divides_scores_by_their_blocks_mean():
    rows = [1, 4, 2, 3], [10.0, 50, 40, 30]  # over their means: .4, 1.6, .8, 1.2 and .31, 1.54, 1.23, .92
    plan = plan_rows(*rows, ratio=0.625, scope="global", normalize="mean")
    assert list_kept(plan) == [[1], [1, 2]]


def test_global_with_normalize_none_compares_raw_scores():
    plan = plan_rows([1, 4, 2, 3], [10, 50, 40, 30], ratio=0.5, scope="global")
    assert list_kept(plan) == [[1], [1, 2, 3]]  # min_width keeps one neuron in block 0


def test_global_respects_min_width_and_still_meets_the_total():
    plan = plan_rows([1, 2, 3, 4], [5, 6, 7, 8], ratio=0.5, scope="global", min_width=2)
    assert list_kept(plan) == [[2, 3], [2, 3]]
    plan = plan_rows([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], ratio=0.5, scope="global", min_width=1)
    assert list_kept(plan) == [[3], [3], [0, 1, 2, 3]]
    assert plan.neurons_removed == 0.5


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_ties_keep_the_earlier_site_and_column(scope):
    plan = plan_rows([1, 1, 1, 1], [1, 1, 1, 1], ratio=0.5, scope=scope)
    assert list_kept(plan) == ([[0, 1], [0, 1]] if scope == "uniform" else [[0, 1, 2], [0]])


def test_a_uniform_width_is_the_nearest_allowed_and_the_wider_of_two():
    def width(dense: int, ratio: float, **settings) -> int:
        return list_kept_widths(plan_random_scores(dense, ratio=ratio, **settings))[0]

    assert width(10, 0.7) == 3
    assert width(5, 0.5) == 3  # 2.5: the wider width
    assert width(15, 0.9) == 2  # 1.5, although 15 * (1 - 0.9) is 1.4999… in binary
    assert width(64, 0.5, round_to=8) == 32
    assert width(64, 0.4, round_to=8) == 40  # 38.4
    assert width(64, 0.42, round_to=8) == 40  # 37.12
    assert width(64, 0.45, round_to=8) == 32  # 35.2
    assert width(20, 0.05, round_to=8) == 20  # 19: the dense width need not be a multiple
    assert width(20, 0.15, round_to=8) == 16  # 17
    assert width(64, 0.0, round_to=48) == 64
    assert width(64, 0.82, min_width=12) == 12  # 11.52, within a step
    assert width(64, 0.85, min_width=12, round_to=8) == 16  # 9.6: min_width, rounded up


@pytest.mark.parametrize("seed", range(20))
def test_global_meets_its_total_with_allowed_widths_only(seed):
    generator = torch.Generator().manual_seed(seed)
    widths = (torch.randint(3, 9, (4,), generator=generator) * 7).tolist()
    ratio = float(torch.rand((), generator=generator)) * 0.8
    round_to = [1, 2, 4, 8][seed % 4]
    plan = plan_random_scores(*widths, seed=seed, ratio=ratio, scope="global", round_to=round_to, min_width=3)
    target = sum(widths) * (1 - ratio)
    assert abs(sum(list_kept_widths(plan)) - target) <= max(1, round_to / 2)
    for row in plan.table():
        assert row.kept >= 3
        assert row.kept % round_to == 0 or row.kept == row.width


def test_global_removes_no_neuron_with_a_higher_score_than_a_kept_one():
    scores = [torch.rand(32, generator=torch.Generator().manual_seed(i)).tolist() for i in range(3)]
    plan = plan_rows(*scores, ratio=0.6, scope="global")
    kept_scores = torch.cat(
        [torch.tensor(row)[columns] for row, columns in zip(scores, plan.kept.values(), strict=True)]
    )
    removed_scores = torch.cat(
        [torch.tensor(row)[plan.pruned(name)] for row, name in zip(scores, plan.kept, strict=True)]
    )
    assert len(kept_scores) == 38  # 96 * 0.4 = 38.4
    assert kept_scores.min() > removed_scores.max()


def test_global_with_equal_scores_and_a_partial_last_step_keeps_allowed_widths():
    score = 0.9410173212256553  # fsum([score] * 5) / 5 < fsum([score] * 3) / 3
    plan = plan_rows([score] * 13, [score] * 13, ratio=0.5, scope="global", round_to=5)
    assert list_kept_widths(plan) == [10, 5]


def test_blocks_with_their_own_ratio_and_excluded_blocks_do_not_compete():
    settings = {"block_ratios": {0: 0.25}, "exclude_blocks": [1]}
    rows = [[1.0, 2, 3, 4], [0.0, 0, 0, 0], [5.0, 6, 7, 8], [50.0, 60, 70, 80]]
    assert list_kept(plan_rows(*rows, ratio=0.5, **settings)) == [[1, 2, 3], [0, 1, 2, 3], [2, 3], [2, 3]]
    plan = plan_rows(*rows, ratio=0.375, scope="global", **settings)
    assert list_kept(plan) == [[1, 2, 3], [0, 1, 2, 3], [3], [0, 1, 2, 3]]
    assert plan.neurons_removed == 4 / 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.2}, r"ratio 1\.2 is out of range; a ratio is the fraction removed: at least 0, less than 1"),
        ({"ratio": -0.1}, r"ratio -0\.1 is out of range"),
        ({"ratio": float("nan")}, "ratio nan is out of range"),
        ({"block_ratios": {1: 1.0}}, r"block_ratios\[1\] 1 is out of range"),
        ({"block_ratios": {7: 0.5}}, "block 7 does not exist; choose from blocks 0 … 1"),
        ({"exclude_blocks": [-1]}, "block -1 does not exist"),
        (
            {"exclude_blocks": [0], "block_ratios": {0: 0.1}},
            "block 0 is in both block_ratios and exclude_blocks",
        ),
        ({"exclude_blocks": [0, 1]}, "exclude_blocks names every block"),
        ({"min_width": 9}, "min_width is 9, but block 0 has 8 neurons; choose 1 … 8, or exclude the block"),
        ({"min_width": 0}, "min_width is 0"),
        ({"round_to": 0}, "round_to is 0"),
        ({"scope": "local"}, "unknown scope 'local'; choose from uniform, global"),
        ({"normalize": "max"}, "unknown normalize 'max'; choose from none, mean, damage"),
        (
            {"ratio": 0.9, "min_width": 6},
            r"no plan removes 0\.9 of these neurons: at most 0\.25 can be",
        ),
        ({"ratio": 0.9, "min_width": 6, "scope": "global"}, "at most 0.25 can be removed"),
        ({"block_ratios": {1: 0.9}, "min_width": 4}, r"0\.9 of the neurons of block 1: at most 0\.5 can be removed"),
        ({"scope": "global", "normalize": "damage"}, r"needs a damage curve of blocks\.0\.mlp\.fc2"),
        (
            {
                "scope": "global",
                "normalize": "damage",
                "damage": {f"blocks.{block}.mlp.fc2": [(8, 0.0), (2, 1.0)] for block in (0, 1)},
            },
            r"curve of blocks\.0\.mlp\.fc2 has widths \[2, 8\] but must cover the allowed widths 1 … 8",
        ),
    ],
)
def test_settings_without_a_possible_plan_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan_random_scores(8, 8, **settings)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_share_of_the_whole_models_cost_is_met_to_a_point_or_a_step(seed, scope, round_to):
    widths = [64, 48, 80]
    cost = Cost(total=6000.0, per_neuron=dict(zip([s.name for s in make_sites(*widths)], [20, 30, 25], strict=True)))
    plan = plan_random_scores(*widths, seed=seed, ratio=0.4, cost=cost, scope=scope, round_to=round_to, min_width=2)
    removed = sum(cost.per_neuron[row.site] * (row.width - row.kept) for row in plan.table()) / cost.total
    step = round_to * (75 if scope == "uniform" else 30) / cost.total  # a uniform step takes one neuron of every block
    assert abs(removed - 0.4) <= max(0.01, step)
    assert all(row.kept >= 2 for row in plan.table())


def test_a_ratio_beyond_the_neurons_share_of_the_cost_is_refused_with_the_nearest():
    cost = Cost(total=100.0, per_neuron={"blocks.0.mlp.fc2": 3.0, "blocks.1.mlp.fc2": 3.0})
    with pytest.raises(
        BudgetError, match=r"removes 0\.5 of the whole model's cost: at most 0\.42 can be removed; ask for 0\.42"
    ):
        plan_random_scores(8, 8, ratio=0.5, cost=cost)


def test_damage_chooses_the_widths_and_scores_choose_the_neurons():
    damage = {"blocks.0.mlp.fc2": [(4, 0.0), (1, 9.0)], "blocks.1.mlp.fc2": [(4, 0.0), (2, 0.2), (1, 4.2)]}
    rows = [1.0, 4, 2, 3], [0.1, 0.2, 0.4, 0.3]
    plan = plan_rows(*rows, ratio=0.25, scope="global", normalize="damage", damage=damage)
    assert list_kept(plan) == [[0, 1, 2, 3], [2, 3]]  # two neurons at a damage of 0.1 each
    plan = plan_rows(*rows, ratio=0.5, scope="global", normalize="damage", damage=damage)
    assert list_kept(plan) == [[1, 3], [2, 3]]  # then two neurons at 3 each rather than one at 4


def test_normalize_mean_with_a_mean_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"the mean of blocks\.0\.mlp\.fc2 is -1; use a criterion"):
        plan_rows([-1.0, -1.0], [1.0, 2.0], scope="global", normalize="mean")


def test_scores_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"scores of blocks\.0\.mlp\.fc2 have shape \[3\], but the site has 4 neurons"):
        make_plan({"blocks.0.mlp.fc2": torch.rand(3)}, sites=make_sites(4))


def test_a_plan_survives_a_round_trip_through_json():
    plan = plan_random_scores(8, 6, ratio=0.5)
    restored = PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert restored.table() == plan.table()
    assert list_kept(restored) == list_kept(plan)
    assert restored.neurons_removed == plan.neurons_removed == 0.5


def test_a_plan_lists_removed_columns_and_one_row_per_site():
    plan = plan_rows([1, 4, 2, 3], [1.0, 2.0], ratio=0.5)
    assert plan.pruned("blocks.0.mlp.fc2").tolist() == [0, 2]
    assert plan.table() == [PlanRow("blocks.0.mlp.fc2", 0, 4, 2), PlanRow("blocks.1.mlp.fc2", 1, 2, 1)]


@pytest.mark.parametrize("columns", [[], [1, 0], [0, 0], [-1, 2], [4], [0.5]])
def test_columns_that_are_not_a_sorted_subset_are_refused(columns):
    with pytest.raises(ValueError, match="must be sorted int64 columns from 0 to 3"):
        PrunePlan(kept={"a": torch.tensor(columns)}, widths={"a": 4}, blocks={"a": 0})


def test_a_plan_whose_parts_name_different_sites_is_refused():
    with pytest.raises(ValueError, match="must name the same sites"):
        PrunePlan(kept={"a": torch.tensor([0])}, widths={"b": 4}, blocks={"a": 0})
