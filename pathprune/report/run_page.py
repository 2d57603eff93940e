"""The page of a run or a comparison, from its results."""

from __future__ import annotations

from pathprune.report.accuracy import accuracy_section, significance_section
from pathprune.report.classes import class_section, path_section
from pathprune.report.entries import Results
from pathprune.report.neurons import neuron_section
from pathprune.report.page import Page, Section
from pathprune.report.setup import cost_section, latency_section, setup_section
from pathprune.report.verdict import facts, headline


def run_page(results: Results) -> Page:
    """Everything that is known of a run, in the order in which a reader asks."""
    return Page(
        title=results.name,
        subtitle=f"{results.model} on {results.data}, {results.dense.num_images:,} evaluation images",
        headline=headline(results),
        facts=facts(results),
        sections=_sections(results),
    )


def _sections(results: Results) -> list[Section]:
    if not results.entries:
        return [setup_section(results)]
    sections = [accuracy_section(results)]
    if len(results.criteria) > 1:
        sections.append(significance_section(results))
    sections += [class_section(results), neuron_section(results)]
    sections += [
        path_section(stats, paths, tokens=tokens) for tokens, (stats, paths) in list(results.mined.items())[:1]
    ]
    if results.dense.timing:
        sections.append(latency_section(results))
    if results.costs:
        sections.append(cost_section(results))
    return [*sections, setup_section(results)]
