"""Figures as SVG, in light and dark: plain marks, lines and text; the same figure gives the same bytes."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leaderboard.content.document import Axis, Figure, Point, Series
from ltm.untrusted.display import one_line

WIDTH, HEIGHT = 460, 330
"""Size in pixels, without the legend."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 44
"""Margins around the plotting area, in pixels."""
EDGE = 8
"""Where the title begins, in pixels."""
FONT, LEGEND_LINE, RADIUS = 12, 17, 4
"""Font size, height of a line of the legend, and radius of a mark, in pixels."""
COLOURS = 6
"""The number of colours; further series use them again."""
CROWD = 40
"""Points beyond which faint ones are not labelled."""
TINIEST = 1e-100
"""Smaller numbers are drawn here on logarithmic axes."""
MADE_BY = "<!-- made by ltm-leaderboard build -->"
"""Marks the files that a later build may remove."""

STYLE = (
    ".plot{--ink:#1f2328;--paper:#fff;--line:#d0d7de;--c0:#0550ae;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#a40e26;"
    "--c5:#59636e;font:12px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.plot{--ink:#e6edf3;--paper:#0d1117;--line:#3d444d;--c0:#79c0ff;--c1:#ffa657;"
    "--c2:#7ee787;--c3:#d2a8ff;--c4:#ff7b72;--c5:#9198a1}}"
    ".plot text{fill:var(--ink)}.plot .title{font-weight:600}.plot .grid{stroke:var(--line)}.plot path{fill:none}"
    ".plot .paper{fill:var(--paper)}.plot .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px}"
    + "".join(
        f".plot .c{i}{{stroke:var(--c{i})}}.plot circle.c{i}{{fill:var(--c{i})}}.plot circle.faint.c{i}"
        "{fill:var(--paper)}"
        for i in range(COLOURS)
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The map from values to pixels along one axis, and the ticks as (value, text)."""

    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


def svg(figure: Figure, *, alone: bool = True) -> str:
    """Return the figure, with its style if it stands `alone` in a file, without it for a page that has `STYLE`."""
    points = [point for series in figure.series for point in series.points]
    x = _scale(figure.x, [p.x for p in points], LEFT, WIDTH - RIGHT)
    y = _scale(figure.y, [p.y for p in points], HEIGHT - BOTTOM, TOP)
    title, words = _text(figure.title), _text(figure.words)
    named = [(_colour(series, i), series) for i, series in enumerate(figure.series) if series.name]
    height = HEIGHT + LEGEND_LINE * len(named)
    lines = [
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{title}. {words}">',
        *([MADE_BY, f"<style>{STYLE}</style>"] if alone else []),
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{EDGE}" y="16">{_text(_shortened(figure.title, WIDTH - EDGE - RIGHT))}</text>',
        *_axes(figure, x, y),
    ]
    for i, series in enumerate(figure.series):
        lines += _marks(series, _colour(series, i), x, y)
    lines += [*_legend(named), *_labels(points, x, y)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _axes(figure: Figure, x: Scale, y: Scale) -> list[str]:
    low, high = HEIGHT - BOTTOM, TOP
    lines = []
    for value, text in x.ticks:
        at = _px(x.place(value))
        lines.append(f'<path class="grid" d="M{at} {high}V{low}"/>')
        lines.append(f'<text x="{at}" y="{low + 16}" text-anchor="middle">{_text(text)}</text>')
    for value, text in y.ticks:
        at = _px(y.place(value))
        lines.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{_text(text)}</text>')
    middle = (low + high) // 2
    lines.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">{_text(figure.x.label)}</text>'
    )
    turned = f'transform="translate(14 {middle}) rotate(-90)" text-anchor="middle"'
    lines.append(f"<text {turned}>{_text(figure.y.label)}</text>")
    return lines


def _marks(series: Series, colour: str, x: Scale, y: Scale) -> list[str]:
    lines = []
    if series.joined:
        path = "L".join(f"{_px(x.place(p.x))} {_px(y.place(p.y))}" for p in series.points)
        dash = ' stroke-dasharray="5 4"' if series.dashed else ""
        lines.append(f'<path class="{colour}" stroke-width="1.5"{dash} d="M{path}"/>')
    for p in series.points:
        cx, cy = _px(x.place(p.x)), _px(y.place(p.y))
        faint = " faint" if p.faint else ""
        tip = f"<title>{_text(p.tip)}</title>" if p.tip else ""
        lines.append(
            f'<circle class="{colour}{faint}" stroke-width="1.5" cx="{cx}" cy="{cy}" r="{RADIUS}">{tip}</circle>'
        )
    return lines


def _legend(named: Sequence[tuple[str, Series]]) -> list[str]:
    """The names of series below the plot, one per line."""
    lines = []
    for n, (colour, series) in enumerate(named):
        y = HEIGHT + LEGEND_LINE * n + 8
        dash = ' stroke-dasharray="5 4"' if series.dashed else ""
        mark = f"M{LEFT} {y - 4}h18" if series.joined else f"M{LEFT + 5} {y - 4}h8"
        lines.append(f'<path class="{colour}" stroke-width="{2 if series.joined else 8}"{dash} d="{mark}"/>')
        name = _text(_shortened(series.name, WIDTH - LEFT - 30))
        lines.append(f'<text x="{LEFT + 26}" y="{y}">{name}</text>')
    return lines


def _labels(points: Sequence[Point], x: Scale, y: Scale) -> list[str]:
    """The labels of points, short ones first and faint ones last: as many as fit, and in a crowd no faint ones."""
    boxes = []
    for p in points:
        cx, cy = x.place(p.x), y.place(p.y)
        boxes.append((cx - RADIUS, cy - RADIUS, cx + RADIUS, cy + RADIUS))
    named = [p for p in points if p.label and not (p.faint and len(points) > CROWD)]
    return [
        line
        for point in sorted(named, key=lambda p: (p.faint, len(p.label)))
        for line in _label(point, x.place(point.x), y.place(point.y), boxes)
    ]


def _label(point: Point, x: float, y: float, boxes: list[tuple[float, float, float, float]]) -> list[str]:
    """The label of a point in the first free place around it; nothing if all are taken."""
    width = _width(point.label)
    for dx, dy in ((8, 4), (-8 - width, 4), (8, -8), (8, 16), (-width / 2, -9), (-width / 2, 19), (-8 - width, -8)):
        left, bottom = x + dx, y + dy
        box = (left, bottom - FONT + 2, left + width, bottom + 2)
        inside = LEFT <= box[0] and box[2] <= WIDTH - 2 and TOP <= box[1] and box[3] <= HEIGHT - BOTTOM
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            boxes.append(box)
            return [f'<text class="halo" x="{_px(left)}" y="{_px(bottom)}">{_text(point.label)}</text>']
    return []


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    transform: Callable[[float], float] = (lambda value: math.log10(max(value, TINIEST))) if axis.log else float
    transformed = [transform(value) for value in (*values, *(value for value, _ in axis.ticks))] or [0.0]
    low, high = min(transformed), max(transformed)
    size = max(abs(low), abs(high), 1.0)
    # Values that are all but equal are in the middle of an axis on which floats can still be told apart.
    margin = 0.06 * (high - low) if high - low > 1e-9 * size else max(0.5, 1e-6 * size)
    low, high = low - margin, high + margin
    ticks = axis.ticks or tuple((value, _tick(value)) for value in _round_numbers(low, high, log=axis.log))
    return Scale(place=lambda value: start + (transform(value) - low) / (high - low) * (end - start), ticks=ticks)


def _round_numbers(low: float, high: float, *, log: bool) -> list[float]:
    """Return at most seven ticks between the ends, which are logarithms to base 10 if `log`; the ticks are not."""
    if log and high - low >= 1:
        steps = (1, 2, 5) if high - low < 2 else (1,)
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [m * 10.0**p for p in powers for m in steps if low <= p + math.log10(m) <= high]
        return ticks[:: math.ceil(len(ticks) / 7)]
    if log:
        low, high = 10**low, 10**high
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 6)
    # Multiples, so that 0.1 + 0.2 stays 0.3.
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e15:
        return f"{value:.0e}".replace("e+", "e").replace("e0", "e")
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= max(10**power, 10_000):
            return f"{value / 10**power:g}{letter}"
    return f"{value:.6g}"


def _colour(series: Series, place: int) -> str:
    return f"c{(place if series.colour is None else series.colour) % COLOURS}"


def _shortened(text: str, width: float) -> str:
    most = int(width / _width("x"))
    return text if len(text) <= most else text[: most - 1] + "…"


def _width(text: str) -> float:
    # There is no font to measure with; sans-serif letters are a little over half as wide as they are high.
    return 0.56 * FONT * len(text)


def _text(text: str) -> str:
    return html.escape(one_line(text))


def _px(value: float) -> str:
    return f"{value:.1f}"
