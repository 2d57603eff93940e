"""The page of a run: its words against its numbers, and how Chromium shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import chromium, problems
from invented import CRITERIA, invented

from pathprune.evaluation import compare
from pathprune.pruning import Budget
from pathprune.report.page import figures
from pathprune.report.render import render
from pathprune.report.run_page import run_page
from pathprune.report.verdict import facts, featured, headline

NEURONS = (Budget("neurons", 0.5), Budget("neurons", 0.7))


def test_the_headline_says_what_the_rows_say() -> None:
    results = invented()
    for sentence, budget in zip(headline(results), NEURONS, strict=True):
        leader = max(results.at(budget=budget), key=lambda entry: entry.top1)
        low, high = (100 * bound for bound in leader.retention.ci)
        assert sentence.startswith(f"{budget.amount:.0%}".replace("%", " %") + " of MLP neurons removed")
        for words in (f"`{leader.criterion}` with `{leader.compensation}`", "faster on this CPU"):
            assert words in sentence
        assert f"{100 * leader.retention.value:.1f} % [{low:.1f}, {high:.1f}]" in sentence
        for entry in results.at(budget=budget, compensation=leader.compensation):
            if entry.id != leader.id:
                alone = compare(leader.evaluations[0], entry.evaluations[0])
                found = results.pair(leader, entry).result
                assert found.difference == alone.difference
                assert found.p_value >= alone.p_value
    weak = headline(invented(compensations=("none",), budgets=(Budget("neurons", 0.9),)))[0]
    assert re.search(r"The others lose .* \(`\w+`\) to \d+\.\d points \(`random`\)", weak)


def test_the_smallest_model_that_keeps_enough_is_featured() -> None:
    results = invented(budgets=(Budget("neurons", 0.3), *NEURONS))
    chosen = featured(results)
    strong = [entry for entry in results.entries if entry.retention.value >= 0.95]
    assert chosen.macs == min(entry.macs for entry in strong)
    assert f"{100 * chosen.retention.value:.1f} %" in [fact.value for fact in facts(results)]


def test_models_within_a_drop_are_told_apart_by_size_alone() -> None:
    results = invented(budgets=(Budget("max-drop", 1.0),))
    assert results.pairs == []
    (sentence,) = headline(results)
    assert sentence.startswith("At most 1 points lost")
    assert "tie" not in sentence
    assert run_page(results).sections


def test_several_seeds_are_one_entry() -> None:
    results = invented(seeds=(0, 1, 2), latency=False)
    assert len(results.entries) == 2 * len(CRITERIA) * 2
    entry = results.entries[0]
    assert entry.top1 == pytest.approx(sum(e.correct.mean() for e in entry.evaluations) / 3)
    assert "means over 3 seeds" in render(run_page(results))


def test_recovered_models_are_compared_with_recovered_ones() -> None:
    results = invented(recovered=("path", "random"), budgets=NEURONS[:1])
    assert results.compensations == ["none", "none + recovery", "least-squares", "least-squares + recovery"]
    (sentence,) = headline(results)
    assert "`path` with `none + recovery` keeps 100.0 %" in sentence
    assert sentence.endswith("`random` ties with it.")
    html = render(run_page(results))
    assert html.count("least-squares + recovery") >= 3


def test_a_run_that_prunes_nothing_has_a_page() -> None:
    html = render(run_page(invented(budgets=())))
    assert "Nothing is pruned here" in html


@pytest.mark.parametrize("size", ["small", "large"])
def test_chromium_shows_all_of_it(tmp_path: Path, size: str) -> None:
    if size == "small":
        results = invented(criteria=("path",), compensations=("none",), budgets=NEURONS[:1], num_blocks=2)
    else:
        names = tuple(f"criterion-with-a-long-name-{index}" for index in range(10))
        results = invented(criteria=names, num_blocks=12, classes=[f"class <{index}> & more" for index in range(45)])
    page = run_page(results)
    expected = {"retention", "criteria", "classes", "widths", "path-flow", "class-paths", "class-similarity", "speedup"}
    assert {figure.name for figure in figures(page)} >= expected
    assert ("overlap" in {figure.name for figure in figures(page)}) == (size == "large")
    file = tmp_path / "report.html"
    file.write_text(render(page), encoding="utf-8")
    with chromium() as browser:
        assert problems(browser, file) == []
