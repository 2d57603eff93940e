"""Diagrams of the documentation, for light and dark pages: `python docs/_draw.py [FOLDER]`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"


@dataclass(frozen=True)
class Palette:
    """Colours of a light or a dark page."""

    ink: str
    muted: str
    faint: str
    panel: str
    accent: str
    warm: str


PALETTES = {
    "light": Palette("#1b1f24", "#57606b", "#c3cad2", "#f1f3f6", "#0b5cad", "#c2570b"),
    "dark": Palette("#e7eaee", "#a2adb9", "#5a6775", "#1e242b", "#78b7ff", "#ff9d57"),
}


@dataclass
class Canvas:
    """Elements of an SVG file; lengths are pixels."""

    width: int
    height: int
    title: str
    palette: Palette
    elements: list[str] = field(default_factory=list)

    def add(self, tag: str, content: str = "", **attributes: Any) -> None:
        """Add an element; the attribute `stroke_width` is written as `stroke-width`."""
        joined = " ".join(f'{name.replace("_", "-")}="{_format_number(value)}"' for name, value in attributes.items())
        self.elements.append(f"<{tag} {joined}>{content}</{tag}>" if content else f"<{tag} {joined}/>")

    def add_text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 14,
        color: str = "",
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = 600 if bold else 400
        fill = color or self.palette.ink
        self.add("text", words, x=x, y=y, font_size=size, font_weight=weight, fill=fill, text_anchor=anchor)

    def add_panel(self, x: float, y: float, width: float, height: float) -> None:
        self.add("rect", x=x, y=y, width=width, height=height, rx=8, fill=self.palette.panel, stroke=self.palette.faint)

    def add_neuron(
        self, x: float, y: float, *, radius: float = 6, is_chosen: bool = False, is_removed: bool = False
    ) -> None:
        colors = self.palette
        if is_removed:
            style = {"fill": "none", "stroke": colors.faint, "stroke_dasharray": "2 2"}
        elif is_chosen:
            style = {"fill": colors.accent, "stroke": colors.accent}
        else:
            style = {"fill": "none", "stroke": colors.muted}
        self.add("circle", cx=x, cy=y, r=radius, stroke_width=1.5, **style)

    def add_line(
        self, points: Sequence[tuple[float, float]], *, color: str, width: float = 1.5, **attributes: Any
    ) -> None:
        joined = " ".join(f"{_format_number(x)},{_format_number(y)}" for x, y in points)
        self.add(
            "polyline",
            points=joined,
            fill="none",
            stroke=color,
            stroke_width=width,
            stroke_linejoin="round",
            **attributes,
        )

    def add_arrow(self, x: float, y: float) -> None:
        """Add a short arrow to the right that starts at `x`."""
        color, end = self.palette.muted, x + 11
        self.add_line([(x, y), (end, y)], color=color)
        self.add_line([(end - 5, y - 5), (end, y), (end - 5, y + 5)], color=color)

    def to_svg(self) -> str:
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="system-ui, sans-serif">\n<title>{self.title}</title>\n'
            f"{body}\n</svg>\n"
        )


def _format_number(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


# made-up scores of the pipeline's bars, and the lowest score that its budget keeps
SCORES = (0.9, 0.35, 0.6, 0.2, 0.75, 0.3, 0.15, 0.5)
BUDGET = 0.45

SCALING = "Scale the chosen neurons together, from 0 to their value"


def draw_pipeline(palette: Palette) -> Canvas:
    """Draw the stages of a run in order."""
    canvas = Canvas(640, 330, "The pipeline: mine, score, plan, prune, compensate, evaluate", palette)
    stages: list[tuple[str, str, Callable[[Canvas, float, float], None]]] = [
        ("1 mine", "influential neurons", _draw_mining),
        ("2 score", "a number per neuron", _draw_scoring),
        ("3 plan", "what a budget keeps", _draw_planning),
        ("4 prune", "narrower layers", _draw_pruning),
        ("5 compensate", "refit kept weights", _draw_compensating),
        ("6 evaluate", "accuracy, latency", _draw_evaluating),
    ]
    for index, (name, caption, draw) in enumerate(stages):
        x, y = 4 + 216 * (index % 3), 4 + 166 * (index // 3)
        canvas.add_panel(x, y, 200, 156)
        draw(canvas, x + 30, y + 16)
        canvas.add_text(x + 100, y + 121, name, size=19, bold=True)
        canvas.add_text(x + 100, y + 145, caption, size=17, color=palette.muted)
        if index % 3 < 2:
            canvas.add_arrow(x + 202, y + 58)
    return canvas


def _draw_column(
    canvas: Canvas, x: float, y: float, number: int, *, chosen: Iterable[int] = (), removed: Iterable[int] = ()
) -> None:
    for row in range(number):
        canvas.add_neuron(x, y + 22 * row, is_chosen=row in chosen, is_removed=row in removed)


def _draw_mining(canvas: Canvas, x: float, y: float) -> None:
    path = [2, 0, 3, 1]
    canvas.add_line(
        [(x + 10 + 40 * column, y + 8 + 22 * row) for column, row in enumerate(path)],
        color=canvas.palette.accent,
        width=2.5,
    )
    for column, row in enumerate(path):
        _draw_column(canvas, x + 10 + 40 * column, y + 8, 4, chosen=[row])


def _draw_bars(canvas: Canvas, x: float, y: float, *, lowest: float = 0.0) -> None:
    """Draw the scores as bars; scores below `lowest` are dashed."""
    kept: dict[str, Any] = {"fill": canvas.palette.accent}
    removed: dict[str, Any] = {"fill": "none", "stroke": canvas.palette.muted, "stroke_dasharray": "2 2"}
    for index, score in enumerate(SCORES):
        style = kept if score >= lowest else removed
        canvas.add("rect", x=x + 18 * index, y=y + 82 - 80 * score, width=11, height=80 * score, **style)
    canvas.add_line([(x - 6, y + 82), (x + 146, y + 82)], color=canvas.palette.muted)


def _draw_scoring(canvas: Canvas, x: float, y: float) -> None:
    _draw_bars(canvas, x, y)


def _draw_planning(canvas: Canvas, x: float, y: float) -> None:
    _draw_bars(canvas, x, y, lowest=BUDGET)
    height = y + 82 - 80 * BUDGET
    canvas.add_line([(x - 6, height), (x + 146, height)], color=canvas.palette.warm, width=2, stroke_dasharray="6 4")


def _draw_pruning(canvas: Canvas, x: float, y: float) -> None:
    for column, removed in enumerate([(1, 3), (0, 2), (1, 2), (0, 3)]):
        _draw_column(canvas, x + 10 + 40 * column, y + 8, 4, removed=removed)


def _draw_compensating(canvas: Canvas, x: float, y: float) -> None:
    out = (x + 112, y + 41)
    for row, width in ((0, 3.5), (2, 2.5)):
        canvas.add_line([(x + 30, y + 8 + 22 * row), out], color=canvas.palette.warm, width=width)
    for row in (1, 3):
        canvas.add_line(
            [(x + 30, y + 8 + 22 * row), out], color=canvas.palette.faint, width=1.5, stroke_dasharray="3 3"
        )
    _draw_column(canvas, x + 30, y + 8, 4, chosen=(0, 2), removed=(1, 3))
    canvas.add(
        "circle", cx=out[0], cy=out[1], r=9, fill=canvas.palette.panel, stroke=canvas.palette.ink, stroke_width=1.5
    )
    canvas.add_text(out[0], out[1] + 5, "Σ", size=13)


def _draw_evaluating(canvas: Canvas, x: float, y: float) -> None:
    palette = canvas.palette
    canvas.add_line([(x, y), (x, y + 82), (x + 140, y + 82)], color=palette.muted)
    for levels, color in (((10, 12, 19, 32), palette.accent), ((10, 22, 42, 70), palette.muted)):
        points = [(x + 14 + 38 * index, y + level) for index, level in enumerate(levels)]
        canvas.add_line(points, color=color, width=2)
        for index, (px, py) in enumerate(points):
            spread = 2 + 2 * index
            canvas.add_line([(px, py - spread), (px, py + spread)], color=color, width=2)
            canvas.add("circle", cx=px, cy=py, r=3, fill=color)


def draw_neuron_path(palette: Palette) -> Canvas:
    """Draw one neuron in every block, and the integral over their common scale."""
    canvas = Canvas(640, 480, "A neuron path: one MLP neuron in every block of a Vision Transformer", palette)
    _draw_model(canvas, chosen=(2, 0, 3, 1))
    canvas.add_line([(12, 272), (628, 272)], color=palette.faint)
    canvas.add_text(
        12, 304, "Scale the chosen neurons together, from 0 to their value", size=17, anchor="start", bold=True
    )
    for index, (label, share) in enumerate((("0", 0.0), ("⅓", 1 / 3), ("⅔", 2 / 3), ("1", 1.0))):
        y = 338 + 32 * index
        canvas.add_text(46, y + 6, f"α = {label}", size=17)
        for column in range(4):
            _draw_scaled_neuron(canvas, 110 + 36 * column, y, share)
    _draw_integral(canvas, 300, 434)
    return canvas


def _draw_model(canvas: Canvas, *, chosen: Sequence[int]) -> None:
    """Draw patches, blocks with a chosen neuron each, and class probabilities."""
    palette, top, step = canvas.palette, 114, 30
    canvas.add_text(42, 26, "image", size=17, bold=True)
    for row in range(3):
        for column in range(3):
            x, y = 12 + 21 * column, 134 + 21 * row
            canvas.add("rect", x=x, y=y, width=18, height=18, rx=2, fill=palette.panel, stroke=palette.muted)
    canvas.add_text(42, 224, "patches", size=16, color=palette.muted)
    columns = [145 + 106 * index for index in range(len(chosen))]
    for x, name in zip(columns, ("block 1", "block 2", "block 3", "block L"), strict=True):
        canvas.add_text(x, 26, name, size=17, bold=True)
        canvas.add_panel(x - 45, 40, 90, 214)
        canvas.add("rect", x=x - 40, y=46, width=80, height=26, rx=5, fill="none", stroke=palette.faint)
        canvas.add_text(x, 65, "attention", size=16, color=palette.muted)
        canvas.add_text(x, 92, "MLP", size=16, color=palette.muted)
        canvas.add_arrow(x - 59, 164)
    canvas.add_arrow(columns[-1] + 48, 164)
    places = [(x, top + step * row) for x, row in zip(columns, chosen, strict=True)]
    canvas.add_line(places, color=palette.accent, width=3)
    for x, chosen_row in zip(columns, chosen, strict=True):
        for row in range(5):
            canvas.add_neuron(x, top + step * row, radius=9, is_chosen=row == chosen_row)
    canvas.add_text(580, 26, "class", size=17, bold=True)
    for row, share in enumerate((0.18, 0.9, 0.1)):
        color = palette.accent if row == 1 else palette.faint
        canvas.add("rect", x=532, y=130 + 25 * row, width=105 * share, height=17, rx=2, fill=color)
    canvas.add_text(580, 224, "probability p", size=16, color=palette.muted)


def _draw_scaled_neuron(canvas: Canvas, x: float, y: float, share: float) -> None:
    color = canvas.palette.accent
    canvas.add("circle", cx=x, cy=y, r=10, fill="none", stroke=color, stroke_width=1.5)
    if share:
        canvas.add("circle", cx=x, cy=y, r=10 * share**0.5, fill=color)


def _draw_integral(canvas: Canvas, x: float, y: float) -> None:
    """Draw a gradient over α, and the area below it, from its lower left corner."""
    palette = canvas.palette
    curve = [(x + 3.2 * step, y - 96 * _compute_gradient(step / 100)) for step in range(0, 101, 4)]
    area = " ".join(f"{px:g},{py:g}" for px, py in [(x, y), *curve, (x + 320, y)])
    canvas.add("polygon", points=area, fill=palette.warm, fill_opacity=0.25)
    canvas.add_line(curve, color=palette.warm, width=2.5)
    canvas.add_line([(x, y - 104), (x, y), (x + 326, y)], color=palette.muted)
    canvas.add_text(x + 160, y + 26, "α from 0 to 1", size=16, color=palette.muted)
    canvas.add_text(x + 10, y - 92, "gradient of p", size=16, color=palette.muted, anchor="start")
    canvas.add_text(x + 168, y - 22, "score = activation × area", size=17, bold=True)


def _compute_gradient(share: float) -> float:
    """Return a gradient that rises, and falls as the probability saturates."""
    bump: float = (4 * share * (1 - share)) ** 1.4
    return 0.12 + 0.82 * bump + 0.05 * share


def draw_removal(palette: Palette) -> Canvas:
    """Draw the weights that are removed with a neuron."""
    canvas = Canvas(640, 250, "Removing a neuron removes its row of fc1 and its column of fc2", palette)
    removed = (1, 4)
    canvas.add_text(120, 26, "fc1", size=18, bold=True)
    canvas.add_text(320, 26, "neurons", size=18, bold=True)
    canvas.add_text(520, 26, "fc2", size=18, bold=True)
    for row in range(6):
        is_removed, y = row in removed, 48 + 27 * row
        style: dict[str, Any] = {"fill": palette.panel, "stroke": palette.muted}
        if is_removed:
            style = {"fill": "none", "stroke": palette.faint, "stroke_dasharray": "3 3"}
        canvas.add("rect", x=50, y=y, width=140, height=21, rx=2, **style)
        canvas.add("rect", x=449 + 24 * row, y=52, width=19, height=150, rx=2, **style)
        canvas.add_neuron(320, y + 10.5, radius=9, is_removed=is_removed)
        color = palette.faint if is_removed else palette.muted
        dash: dict[str, Any] = {"stroke_dasharray": "3 3"} if is_removed else {}
        canvas.add_line([(192, y + 10.5), (308, y + 10.5)], color=color, **dash)
        canvas.add_line([(332, y + 10.5), (446, 127)], color=color, **dash)
    canvas.add_text(120, 238, "a row per neuron", size=17, color=palette.muted)
    canvas.add_text(320, 238, "dashed: removed", size=17, color=palette.muted)
    canvas.add_text(520, 238, "a column per neuron", size=17, color=palette.muted)
    return canvas


DIAGRAMS = {"pipeline": draw_pipeline, "neuron-path": draw_neuron_path, "removal": draw_removal}


def draw(folder: Path) -> None:
    """Write every diagram, light and dark, to `folder`."""
    for name, diagram in DIAGRAMS.items():
        for scheme, palette in PALETTES.items():
            (folder / f"{name}-{scheme}.svg").write_text(diagram(palette).to_svg(), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
