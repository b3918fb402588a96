"""The chart of the choice: one point a file, its size against how far it is from the original, as SVG.

The area of a point is its speed, so that what is small, fast and close to the original stands out at the upper left.

Only presentation attributes are used: a Hub serves SVG under a policy that may block style sheets inside of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hubpub.facts import CellFacts
from hubpub.units import number, size

# As wide as a card on a phone, so that letters are there as large as they are here.
WIDTH, HEIGHT = 380, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 62, 58
_SMALL, _LARGE = 4.0, 12.0
# A mean KL below this is the rounding of float arithmetic: nobody chooses by it.
_FLOOR = -6
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
    radius: float


def choice(cells: Sequence[CellFacts], recommended: str, theme: Theme) -> str:
    """The chart of `cells` as an SVG document. Further left is smaller, further up is closer to the original."""
    sizes, values = [cell.file.bytes for cell in cells], [cell.parity.logits.kl_mean for cell in cells]
    ticks = _ticks(min(sizes), max(sizes))
    first, octaves = ticks[0], math.log2(ticks[-1] / ticks[0])
    low, high = _decades(values)

    def x(count: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log2(max(count, 1) / first) / octaves

    def y(kl: float) -> float:
        share = (math.log10(max(kl, 10.0**low)) - low) / (high - low)
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * min(max(share, 0.0), 1.0)

    fastest = max(cell.speed.decode_tokens_per_second for cell in cells)
    points = [
        _Point(
            cell,
            x(cell.file.bytes),
            y(cell.parity.logits.kl_mean),
            max(_SMALL, _LARGE * math.sqrt(max(cell.speed.decode_tokens_per_second, 0.0) / fastest))
            if fastest
            else _SMALL,
        )
        for cell in cells
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-labelledby="t d" font-family="{_FONT}">',
        '<title id="t">Distance from the original against size; a larger point is faster</title>',
        f'<desc id="d">{escape(described(cells))}</desc>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{theme.ground}"/>',
        _text((12, 26), "↑ closer to the original", theme.ink, bold=True),
        _text((_LEFT, HEIGHT - 10), "← smaller file", theme.ink, bold=True),
        f'<circle cx="{WIDTH - 126}" cy="21" r="3" fill="{theme.point}"/>',
        f'<circle cx="{WIDTH - 112}" cy="21" r="7" fill="{theme.point}"/>',
        _text((WIDTH - 12, 26), "larger: faster", theme.soft, "end"),
        _text((12, 46), "KL divergence", theme.soft),
    ]
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        parts.append(_line(_LEFT, at, WIDTH - _RIGHT, at, theme.line))
        parts.append(_text((_LEFT - 8, at + 5), _decade(decade), theme.soft, "end"))
    every = math.ceil(len(ticks) / 4)
    for index, tick in enumerate(ticks):
        parts.append(_line(x(tick), HEIGHT - _BOTTOM, x(tick), HEIGHT - _BOTTOM + 5, theme.line))
        # Four of them find room; the last would end beyond the edge.
        if index % every == 0 and tick != ticks[-1]:
            parts.append(_text((x(tick), HEIGHT - _BOTTOM + 20), _round_size(tick), theme.soft, "middle"))
    parts += _labels(points, recommended, theme)
    parts += _marks(points, recommended, theme)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _marks(points: Sequence[_Point], recommended: str, theme: Theme) -> list[str]:
    """The points, small ones over large ones; the recommended one in a ring."""
    parts = []
    for point in sorted(points, key=lambda one: -one.radius):
        mine = point.cell.recipe == recommended
        colour = theme.accent if mine else theme.point
        centre = f'cx="{point.x:.1f}" cy="{point.y:.1f}"'
        if mine:
            ring = f'r="{point.radius + 5:.1f}" fill="none" stroke="{colour}" stroke-width="2"'
            parts.append(f"<circle {centre} {ring}/>")
        # The rim keeps points apart that lie over one another.
        parts.append(
            f'<circle {centre} r="{point.radius:.1f}" fill="{colour}" stroke="{theme.ground}" stroke-width="1.5"/>'
        )
    return parts


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
    taken = [(p.x - p.radius, p.y - p.radius, p.x + p.radius, p.y + p.radius) for p in points]
    parts = []
    for point in sorted(points, key=lambda one: (one.cell.recipe != recommended, one.x, one.y)):
        mine = point.cell.recipe == recommended
        name = point.cell.recipe
        below = f"{number(point.cell.speed.decode_tokens_per_second)} tokens/s"
        width = max(8.3 * len(name), 7.0 * len(below)) + 4
        left, top, anchor = _place(point, width, taken)
        taken.append((left, top, left + width, top + _LABEL_HEIGHT))
        x = left if anchor == "start" else left + width
        gap = max(top - point.y, point.y - top - _LABEL_HEIGHT)
        if gap > point.radius + 6:
            edge = top if top > point.y else top + _LABEL_HEIGHT
            parts.append(_line(point.x, point.y, min(max(point.x, left), left + width), edge, theme.soft))
        parts.append(_text((x, top + 14), name, theme.accent if mine else theme.ink, anchor, theme.ground, bold=True))
        parts.append(_text((x, top + 31), below, theme.soft, anchor, theme.ground))
    return parts


def _place(point: _Point, width: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float, str]:
    """Left, top and text anchor of a label near `point` in free room; to its right at its own height at best."""
    away = point.radius + 10
    places = []
    for shift in range(-260, 261, 10):
        top = point.y - _LABEL_HEIGHT / 2 + shift
        places += [(point.x + away, top, "start", abs(shift)), (point.x - away - width, top, "end", abs(shift))]
        if abs(shift) >= _LABEL_HEIGHT / 2 + point.radius:
            # Above or below, where a label can begin or end at the point itself.
            places += [(point.x - 8, top, "start", abs(shift)), (point.x + 8 - width, top, "end", abs(shift))]
    for left, top, anchor, _ in sorted(places, key=lambda one: one[3]):
        inside = left >= _LEFT and left + width <= WIDTH - 4 and top >= 48 and top + _LABEL_HEIGHT <= HEIGHT - _BOTTOM
        if inside and all(
            left >= x1 or left + width <= x0 or top >= y1 or top + _LABEL_HEIGHT <= y0 for x0, y0, x1, y1 in taken
        ):
            return left, top, anchor
    return point.x + away, point.y - _LABEL_HEIGHT / 2, "start"


def _ticks(smallest: float, largest: float) -> list[float]:
    """Marks on the size axis, each twice the one before, from below the smallest file to above the largest."""
    unit = 1000.0 ** math.floor(math.log(max(smallest, 1), 1000))
    low = math.floor(math.log2(max(smallest, 1) / unit * 0.97))
    high = max(math.ceil(math.log2(max(largest, 1) / unit * 1.1)), low + 2)
    return [unit * 2.0**power for power in range(low, high + 1)]


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The exponents of ten that hold all positive `values`, at least two apart."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1e-4]
    low, high = (
        max(_FLOOR, end) for end in (math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))))
    )
    if low == high:
        low -= 1
    return (low - 1, high) if high - low < 2 else (low, high)


def _round_size(count: float) -> str:
    """A round number of bytes without idle zeros, e.g. "2 MB"."""
    value, _, unit = size(count).partition(" ")
    return f"{float(value):g} {unit}"


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:.{max(0, -exponent)}f}" if exponent > -5 else f"1e{exponent}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    at: tuple[float, float], text: str, colour: str, anchor: str = "start", halo: str = "", *, bold: bool = False
) -> str:
    (x, y), points = at, 14 if bold else 13
    more = ' font-weight="600"' if bold else ""
    if halo:
        # The ground around the letters keeps lines behind them from being read as part of them.
        more += f' paint-order="stroke" stroke="{halo}" stroke-width="5" stroke-linejoin="round"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{points}" text-anchor="{anchor}"{more}>'
        f"{escape(text)}</text>"
    )
