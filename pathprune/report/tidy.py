"""Tidy tables of a comparison, with one observation per row, for plots and analysis by other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from pathprune.report.entries import Results
from pathprune.report.neurons import list_overlaps
from pathprune.report.rows import ForwardPasses, VariantRow

_INTERVALS = ("top1_ci", "retention_ci", "latency_spread_ms", "speedup_spread", "budget_spread")
_OMITTED = ("per_class", "kept_widths", "criterion_options", "recovery", "classes", "forward_passes")
"""Fields of a row that have a table or columns of their own."""


def build_tidy_tables(results: Results) -> dict[str, pyarrow.Table]:
    """Build the tables cells, classes, widths, significance, overlap and costs; a table without rows is omitted."""
    dense_macs = results.dense.macs
    tables = {
        "cells": [_flatten_row(row, dense_macs) for row in results.rows],
        "classes": [line for row in results.rows for line in _list_classes(row, results.class_names)],
        "widths": [line for row in results.rows for line in _list_widths(row, results.dense.kept_widths)],
        "significance": list(_list_pairs(results)),
        "overlap": list_overlaps(results),
        "costs": [{**asdict(cost), "seconds": cost.seconds} for cost in results.costs],
    }
    return {name: _to_arrow(rows) for name, rows in tables.items() if rows}


def save_tables(tables: Mapping[str, pyarrow.Table], folder: Path) -> list[Path]:
    """Write each table as `<name>.parquet` and `<name>.csv`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in tables.items():
        parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
        pyarrow.parquet.write_table(table, parquet)
        pyarrow.csv.write_csv(table, csv)
        files += [parquet, csv]
    return files


def _to_arrow(rows: Sequence[Mapping[str, object]]) -> pyarrow.Table:
    """Convert rows to a table with a column for every key of any row."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return pyarrow.table({key: [row.get(key) for row in rows] for key in keys})


def _flatten_row(row: VariantRow, dense_macs: int) -> dict[str, object]:
    """Return a row's fields as columns: intervals as two columns each, and options as JSON."""
    values = row.to_json()
    cell: dict[str, object] = {key: value for key, value in values.items() if key not in (*_INTERVALS, *_OMITTED)}
    for key in _INTERVALS:
        low, high = values[key] or (None, None)
        cell |= {f"{key}_low": low, f"{key}_high": high}
    for step, passes in (row.forward_passes or ForwardPasses()).model_dump().items():
        cell[f"forward_passes_{step}"] = passes
    return cell | {
        "criterion_options": json.dumps(row.criterion_options or {}),
        "is_recovered": row.recovery is not None,
        "macs_removed": 1 - row.macs / dense_macs,
    }


def _list_classes(row: VariantRow, class_names: Sequence[str]) -> Iterator[dict[str, object]]:
    for name, top1 in zip(class_names, row.per_class, strict=True):
        if top1 is not None:
            yield {"variant_id": row.variant_id, "seed": row.seed, "class": name, "top1": top1}


def _list_widths(row: VariantRow, dense: Sequence[int]) -> Iterator[dict[str, object]]:
    for block, (kept, width) in enumerate(zip(row.kept_widths, dense, strict=True)):
        yield {"variant_id": row.variant_id, "seed": row.seed, "block": block, "width": width, "kept": kept}


def _list_pairs(results: Results) -> Iterator[dict[str, object]]:
    entries = {entry.id: entry for entry in results.entries}
    for pair in results.pairs:
        a, b, result = entries[pair.a], entries[pair.b], pair.result
        yield {
            "budget_kind": a.budget.kind,
            "budget": a.budget.amount,
            "compensation": a.compensation,
            "criterion_a": a.criterion,
            "criterion_b": b.criterion,
            "difference": result.difference,
            "ci_low": result.ci[0],
            "ci_high": result.ci[1],
            "p_corrected": result.p_value,
            "verdict": result.verdict,
        }
