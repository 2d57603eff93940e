"""Tables in the terminal, in the style of the package."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from pathprune.report.page import Cell, Table


def new_terminal_table(title: str) -> TerminalTable:
    """Return an empty table without columns."""
    return TerminalTable(title=title, header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def to_terminal_table(table: Table) -> TerminalTable:
    """Convert a page's table for the terminal; the note of a cell follows its text."""
    converted = new_terminal_table(table.caption)
    for column in table.columns:
        converted.add_column(column.heading, justify="right" if column.is_number else "left")
    for index, row in enumerate(table.rows):
        if index in table.group_starts:
            converted.add_section()
        converted.add_row(*(f"{cell.text} {cell.note}" if isinstance(cell, Cell) else cell for cell in row))
    return converted
