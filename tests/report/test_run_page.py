"""Tests of a run's page: its sentences against its numbers, and its look in Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import chromium, list_problems
from fake_results import CRITERIA, fake_results

from pathprune.evaluation import compare
from pathprune.pruning import Budget
from pathprune.report.page import list_figures
from pathprune.report.render import render
from pathprune.report.run_page import build_run_page
from pathprune.report.verdict import choose_featured, compose_facts, compose_headline

NEURONS = (Budget("neurons", 0.5), Budget("neurons", 0.7))


def test_headline_matches_the_rows() -> None:
    results = fake_results()
    for sentence, budget in zip(compose_headline(results), NEURONS, strict=True):
        leader = max(results.select(budget=budget), key=lambda entry: entry.top1)
        low, high = (100 * bound for bound in leader.retention.ci)
        assert sentence.startswith(f"{budget.amount:.0%}".replace("%", " %") + " of MLP neurons removed")
        for words in (f"`{leader.criterion}` and compensation `{leader.compensation}`", "faster on this CPU"):
            assert words in sentence
        assert f"{100 * leader.retention.value:.1f} % [{low:.1f}, {high:.1f}]" in sentence
        for entry in results.select(budget=budget, compensation=leader.compensation):
            if entry.id != leader.id:
                alone = compare(leader.evaluations[0], entry.evaluations[0])
                corrected = results.compare(leader, entry).result
                assert corrected.difference == alone.difference
                assert corrected.p_value >= alone.p_value
    weak = compose_headline(fake_results(compensations=("none",), budgets=(Budget("neurons", 0.9),)))[0]
    assert re.search(r"criteria are \d+\.\d \(`\w+`\) to \d+\.\d points \(`random`\) worse\.", weak)


def test_smallest_model_with_high_retention_is_featured() -> None:
    results = fake_results(budgets=(Budget("neurons", 0.3), *NEURONS))
    chosen = choose_featured(results)
    accurate = [entry for entry in results.entries if entry.retention.value >= 0.95]
    assert chosen.macs == min(entry.macs for entry in accurate)
    assert f"{100 * chosen.retention.value:.1f} %" in [fact.value for fact in compose_facts(results)]


def test_max_drop_models_are_compared_by_size_only() -> None:
    results = fake_results(budgets=(Budget("max-drop", 1.0),))
    assert results.pairs == []
    (sentence,) = compose_headline(results)
    assert sentence.startswith("At most 1 point of top-1 lost")
    assert "tie" not in sentence
    assert build_run_page(results).sections


def test_seeds_of_a_variant_share_an_entry() -> None:
    results = fake_results(seeds=(0, 1, 2), latency=False)
    assert len(results.entries) == 2 * len(CRITERIA) * 2
    entry = results.entries[0]
    assert entry.top1 == pytest.approx(sum(e.correct.mean() for e in entry.evaluations) / 3)
    assert "averaged over 3 seeds" in render(build_run_page(results))


def test_recovered_models_are_compared_with_recovered_models() -> None:
    results = fake_results(recovered=("path", "random"), budgets=NEURONS[:1])
    assert results.compensations == ["none", "none + recovery", "least-squares", "least-squares + recovery"]
    (sentence,) = compose_headline(results)
    assert "criterion `path` and compensation `none + recovery`. It keeps 100.0 %" in sentence
    assert sentence.endswith("`random` ties with it.")
    html = render(build_run_page(results))
    assert html.count("least-squares + recovery") >= 3


def test_run_without_pruning_has_a_page() -> None:
    html = render(build_run_page(fake_results(budgets=())))
    assert "This run prunes no model." in html


@pytest.mark.parametrize("size", ["small", "large"])
def test_chromium_shows_small_and_large_pages(tmp_path: Path, size: str) -> None:
    if size == "small":
        results = fake_results(criteria=("path",), compensations=("none",), budgets=NEURONS[:1], num_blocks=2)
    else:
        names = tuple(f"criterion-with-a-long-name-{index}" for index in range(10))
        results = fake_results(
            criteria=names, num_blocks=12, classes=[f"class <{index}> & more" for index in range(45)]
        )
    page = build_run_page(results)
    expected = {"retention", "criteria", "classes", "widths", "path-flow", "class-paths", "class-similarity", "speedup"}
    assert {figure.name for figure in list_figures(page)} >= expected
    assert ("overlap" in {figure.name for figure in list_figures(page)}) == (size == "large")
    file = tmp_path / "report.html"
    file.write_text(render(page), encoding="utf-8")
    with chromium() as browser:
        assert list_problems(browser, file) == []
