"""Page of a run or a comparison."""

from __future__ import annotations

from pathprune.report.accuracy import build_accuracy_section, build_significance_section
from pathprune.report.classes import build_class_section
from pathprune.report.costs import build_cost_section
from pathprune.report.entries import Results
from pathprune.report.latency import build_latency_section
from pathprune.report.neurons import build_neuron_section
from pathprune.report.page import Page, Section
from pathprune.report.paths import build_path_section
from pathprune.report.setup import build_setup_section
from pathprune.report.verdict import compose_facts, compose_headline


def build_run_page(results: Results) -> Page:
    """Build the page of a run: conclusions first, then accuracy, neurons, paths, latency, costs and setup."""
    return Page(
        title=results.name,
        subtitle=f"{results.model} on {results.data}, {results.dense.num_images:,} evaluation images",
        headline=compose_headline(results),
        facts=compose_facts(results),
        sections=_build_sections(results),
    )


def _build_sections(results: Results) -> list[Section]:
    if not results.entries:
        return [build_setup_section(results)]
    sections = [build_accuracy_section(results)]
    if len(results.criteria) > 1:
        sections.append(build_significance_section(results))
    sections += [build_class_section(results), build_neuron_section(results)]
    for tokens, (stats, paths) in list(results.mined.items())[:1]:
        sections.append(build_path_section(stats, paths, tokens=tokens))
    if results.dense.timing:
        sections.append(build_latency_section(results, results.dense.timing))
    if results.costs:
        sections.append(build_cost_section(results))
    return [*sections, build_setup_section(results)]
