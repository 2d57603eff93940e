"""Tests of a page with every kind of part: its HTML, its figures' files, and its look in Chromium."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, list_problems, show
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Drawing
from PIL import Image

from pathprune.report.page import (
    Cell,
    Code,
    Column,
    Details,
    Fact,
    Figure,
    Gallery,
    Page,
    Picture,
    Prose,
    Section,
    Table,
)
from pathprune.report.render import render, save_figures
from pathprune.report.theme import COLORS, SERIES, STRONGEST_SHADE, figure_style, new_panel

HOSTILE = "$1 & <script>alert('x')</script> 漢字"


@figure_style()
def draw_panel(*, empty: bool = False) -> Drawing:
    figure = new_panel()
    axes = figure.subplots()
    if not empty:
        axes.plot([0, 1], [0, 1], color=SERIES[0], label=HOSTILE)
        axes.fill_between([0, 1], [0, 0.8], [0.2, 1.2], color=SERIES[0], alpha=0.2)
        axes.legend()
    figure.suptitle("a panel")
    return figure


def make_picture() -> Picture:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(stream, "PNG")
    return Picture(stream.getvalue(), alt="a red square", caption="red")


def make_page(**changes: Any) -> Page:
    wide = Table(
        "A table `of` many columns",
        [Column("criterion", is_number=False), *(Column(f"column {index}") for index in range(12))],
        [["path", *[Cell("78.1", "[77.0, 79.1]", tone="good", share=0.5)] * 12], [HOSTILE, *["1"] * 12]],
        group_starts=frozenset({1}),
    )
    parts = (
        Prose("Text with `code`."),
        wide,
        Figure("curves", "Two panels", "a rising line", [draw_panel(), draw_panel()], caption="of one figure"),
        Gallery("Pictures", [make_picture()] * 3),
        Details("Recipe", [Code("seed: 0\n" + "x" * 300), Figure("hidden", "In details", "a line", [draw_panel()])]),
    )
    page = Page(
        "quickstart",
        f"a model on {HOSTILE}",
        ["At 50 % `path` keeps 98.3 % [97.8, 98.7]."],
        [Fact("98.3 %", "retained", "[97.8, 98.7]")] * 3,
        [Section(f"Section {number}", parts if number == 1 else [Prose("Nothing.")]) for number in (1, 2, 3)],
    )
    return replace(page, **changes)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_page_is_self_contained_and_runs_no_script() -> None:
    html = render(make_page())
    parser = _Tags()
    parser.feed(html)
    tags = [tag for tag, _ in parser.tags]
    assert {"script", "iframe", "object"}.isdisjoint(tags)
    for _, attributes in parser.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "default-src 'none'" in html
    assert tags.count("svg") == 3
    assert [tag for tag in tags if re.fullmatch("h[1-6]", tag)] == ["h1", "h2", "h3", "h2", "h2"]
    assert html.count("&lt;script&gt;") >= 3
    assert "<code>path</code>" in html


def test_inline_figures_use_the_colours_of_the_page() -> None:
    html = render(make_page())
    figures = "".join(re.findall("<svg.*?</svg>", html, flags=re.DOTALL))
    assert "var(--series-1)" in figures
    assert "var(--ink)" in figures
    for light, _ in COLORS.values():
        assert light not in figures


def test_figures_are_saved_as_files(tmp_path: Path) -> None:
    names = {file.name for file in save_figures(make_page(), tmp_path / "figures")}
    assert names == {f"{name}.{kind}" for name in ("curves", "curves-2", "hidden") for kind in ("svg", "png")}
    for name in names:
        assert (tmp_path / "figures" / name).stat().st_size > 0
    assert "var(" not in (tmp_path / "figures" / "curves.svg").read_text(encoding="utf-8")


def test_colours_have_enough_contrast_in_both_schemes() -> None:
    for scheme in (0, 1):
        page = COLORS["page"][scheme]
        for name in ("ink", "muted", "accent", "good", "bad"):
            assert measure_contrast(COLORS[name][scheme], page) >= 4.5
            assert measure_contrast(COLORS[name][scheme], COLORS["raised"][scheme]) >= 4.5
        for name in [name for name in COLORS if name.startswith("series-")]:
            assert measure_contrast(COLORS[name][scheme], page) >= 3
            assert measure_contrast(COLORS["ink"][scheme], mix(COLORS[name][scheme], page)) >= 4.5
    assert measure_contrast("#000000", "#ffffff") == pytest.approx(21)


def measure_contrast(text: str, page: str) -> float:
    """Return the contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""

    def luminance(color: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(text), luminance(page)))
    return (high + 0.05) / (low + 0.05)


def mix(color: str, page: str) -> str:
    """Return the strongest shade of a colour over the page."""
    channels = [
        round(STRONGEST_SHADE * int(color[at : at + 2], 16) + (1 - STRONGEST_SHADE) * int(page[at : at + 2], 16))
        for at in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def test_chromium_shows_the_page_on_screens_phones_and_in_print(tmp_path: Path) -> None:
    file, faulty = tmp_path / "report.html", tmp_path / "faulty.html"
    file.write_text(render(make_page()), encoding="utf-8")
    empty = Section("Empty", [Figure("empty", "Empty", "nothing", [draw_panel(empty=True)])])
    html = render(make_page(sections=[empty]))
    broken = '<p style="color: #999; width: 500px">faint<th>x</th><img src="https://example.com/x.png"></p>'
    faulty.write_text(html.replace("</main>", broken + "</main>"), encoding="utf-8")
    with chromium() as browser:
        assert list_problems(browser, file) == []
        messages = "\n".join(list_problems(browser, faulty))
        for problem in ("nothing drawn in empty", "contrast of faint", "scrolls sideways", "alt text", "example.com"):
            assert problem in messages
        show(browser, file, scheme="dark")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 254)"
