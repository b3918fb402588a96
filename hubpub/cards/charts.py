"""The chart of the choice: one point a file, its size against how far it is from the original, as SVG.

Only presentation attributes are used: a Hub serves SVG under a policy that may block style sheets inside of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hubpub.cards.words import number, size
from hubpub.facts import CellFacts

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 44, 44, 54
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_LABEL_HEIGHT = 36


@dataclass(frozen=True)
class Theme:
    """The colours of one chart."""

    ground: str
    ink: str
    soft: str
    line: str
    point: str
    accent: str


LIGHT = Theme("#ffffff", "#1d1f23", "#5d636d", "#e3e5e9", "#7d8694", "#2c5f9e")
DARK = Theme("#14161a", "#e6e8eb", "#9aa2ad", "#30353d", "#8d96a3", "#8ab8f0")


@dataclass(frozen=True)
class _Point:
    cell: CellFacts
    x: float
    y: float


def choice(cells: Sequence[CellFacts], recommended: str, theme: Theme) -> str:
    """The chart of `cells` as an SVG document. Further left is smaller, further up is closer to the original."""
    sizes, values = [cell.file.bytes for cell in cells], [cell.parity.logits.kl_mean for cell in cells]
    step, end = _ticks(max(sizes))
    low, high = _decades(values)

    def x(count: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * count / end

    def y(kl: float) -> float:
        share = (math.log10(max(kl, 10.0**low)) - low) / (high - low)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * min(max(share, 0.0), 1.0)

    points = [_Point(cell, x(cell.file.bytes), y(cell.parity.logits.kl_mean)) for cell in cells]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-labelledby="t d" font-family="{_FONT}">',
        '<title id="t">Size of each file against its distance from the original</title>',
        f'<desc id="d">{escape(described(cells))}</desc>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{theme.ground}"/>',
        _text(16, 24, "Closer to the original ↑", theme.soft, 13),
        _text(WIDTH - _RIGHT, HEIGHT - 12, "← smaller file", theme.soft, 13, "end"),
    ]
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        parts.append(_line(_LEFT, at, WIDTH - _RIGHT, at, theme.line))
        parts.append(_text(_LEFT - 10, at + 4, f"KL {_decade(decade)}", theme.soft, 12, "end"))
    for index in range(round(end / step) + 1):
        at = x(index * step)
        parts.append(_line(at, HEIGHT - _BOTTOM, at, HEIGHT - _BOTTOM + 5, theme.line))
        parts.append(_text(at, HEIGHT - _BOTTOM + 20, _round_size(index * step), theme.soft, 12, "middle"))
    parts += _labels(points, recommended, theme)
    for point in points:
        mine = point.cell.recipe == recommended
        colour = theme.accent if mine else theme.point
        if mine:
            parts.append(f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="11" fill="none" stroke="{colour}"/>')
        parts.append(f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="6" fill="{colour}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def described(cells: Sequence[CellFacts]) -> str:
    """The chart in a sentence, for those who cannot see it."""
    each = (
        f"{cell.recipe}: {size(cell.file.bytes)}, KL {number(cell.parity.logits.kl_mean)}, "
        f"{number(cell.speed.decode_tokens_per_second)} tokens/s"
        for cell in cells
    )
    return "; ".join(each)


def _labels(points: Sequence[_Point], recommended: str, theme: Theme) -> list[str]:
    """A label for each point, placed where it hides no point and no other label."""
    taken = [(p.x - 12, p.y - 12, p.x + 12, p.y + 12) for p in points]
    parts = []
    for point in sorted(points, key=lambda one: (one.cell.recipe != recommended, one.y, one.x)):
        mine = point.cell.recipe == recommended
        name = point.cell.recipe + (" (take this)" if mine else "")
        below = f"{size(point.cell.file.bytes)}, {number(point.cell.speed.decode_tokens_per_second)} tokens/s"
        width = 7.4 * max(len(name), len(below)) + 4
        left, top, anchor = _place(point, width, taken)
        taken.append((left, top, left + width, top + _LABEL_HEIGHT))
        x = left if anchor == "start" else left + width
        if abs(top + _LABEL_HEIGHT / 2 - point.y) > _LABEL_HEIGHT / 2:
            parts.append(_line(point.x, point.y, x, top + _LABEL_HEIGHT / 2, theme.soft))
        parts.append(_text(x, top + 14, name, theme.accent if mine else theme.ink, 14, anchor, theme.ground, bold=True))
        parts.append(_text(x, top + 31, below, theme.soft, 12, anchor, theme.ground))
    return parts


def _place(point: _Point, width: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float, str]:
    """Left, top and text anchor of a label near `point` in free room; to its right at its own height at best."""
    for shift in (0, -30, 30, -60, 60, -90, 90, -120, 120, -150, 150):
        for anchor, left in (("start", point.x + 18), ("end", point.x - 18 - width)):
            top = point.y - _LABEL_HEIGHT / 2 + shift
            inside = left >= 4 and left + width <= WIDTH - 4 and top >= 28 and top + _LABEL_HEIGHT <= HEIGHT - _BOTTOM
            if inside and all(
                left >= x1 or left + width <= x0 or top >= y1 or top + _LABEL_HEIGHT <= y0 for x0, y0, x1, y1 in taken
            ):
                return left, top, anchor
    return point.x + 18, point.y - _LABEL_HEIGHT / 2, "start"


def _ticks(largest: float) -> tuple[float, float]:
    """Distance of the marks on the size axis and its end, both round numbers; there are 3 to 6 marks."""
    rough = largest * 1.15 / 4
    base = 10.0 ** math.floor(math.log10(max(rough, 1)))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough)
    return step, step * math.ceil(largest * 1.05 / step)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The exponents of ten that hold all positive `values`, at least two apart."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1e-4]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    if low == high:
        low -= 1
    return (low - 1, high) if high - low < 2 else (low, high)


def _round_size(count: float) -> str:
    """A round number of bytes without idle zeros, e.g. "2.5 MB"."""
    value, _, unit = size(count).partition(" ")
    return f"{float(value):g} {unit}" if count else "0"


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:.{max(0, -exponent)}f}" if exponent > -5 else f"1e{exponent}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    points: int,
    anchor: str = "start",
    halo: str = "",
    *,
    bold: bool = False,
) -> str:
    more = ' font-weight="600"' if bold else ""
    if halo:
        # The ground around the letters keeps lines behind them from being read as part of them.
        more += f' paint-order="stroke" stroke="{halo}" stroke-width="5" stroke-linejoin="round"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{points}" text-anchor="{anchor}"{more}>'
        f"{escape(text)}</text>"
    )
