"""KL divergence against file size as a picture: ours and llama.cpp's types of the same weights, one panel a model.

    python benchmarks/quality_chart.py TITLE=quality.json [TITLE=quality.json ...] --out quality.svg

Each quality.json is what benchmarks/quality.py wrote. The vertical axis is logarithmic: lower is nearer to the source.
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path

WIDTH, PANEL, TOP, BOTTOM, LEFT, RIGHT = 640, 280, 44, 40, 56, 96
OURS, OTHERS = "#c2410c", "#2563eb"


def points(path: Path) -> list[tuple[str, float, float, bool]]:
    """(name, megabytes, KL in nats, whether it is ours) of every file in a quality.json, the smallest first."""
    found = []
    for name, row in json.loads(path.read_text("utf-8")).items():
        ours = "parity" in row
        kl = row["parity"]["logits"]["kl_mean"] if ours else row["kl_mean"]
        found.append((name, row["bytes"] / 1e6, max(float(kl), 1e-6), ours))
    return sorted(found, key=lambda one: one[1])


def panel(title: str, files: list[tuple[str, float, float, bool]], top: int) -> list[str]:
    """The picture of one model, `top` pixels down."""
    largest = max(size for _, size, _, _ in files) * 1.05
    exponents = [math.log10(kl) for _, _, kl, _ in files]
    low, high = math.floor(min(exponents)), max(math.ceil(max(exponents)), math.floor(min(exponents)) + 1)
    begin, end = top + TOP, top + PANEL - BOTTOM

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * size / largest

    def y(kl: float) -> float:
        return end - (end - begin) * (math.log10(kl) - low) / (high - low)

    parts = [f'<text x="{LEFT}" y="{top + 24}" font-weight="bold">{escape(title)}</text>']
    for exponent in range(low, high + 1):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#8886"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    step = 10 ** math.floor(math.log10(largest / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if largest / (step * factor) <= 6)
    for index in range(int(largest / step) + 1):
        at = x(index * step)
        parts.append(f'<text x="{at:.1f}" y="{end + 18}" text-anchor="middle">{index * step:g} MB</text>')
    written: list[tuple[float, float]] = []
    for number, (name, size, kl, ours) in enumerate(files):
        color, at, down = OURS if ours else OTHERS, x(size), y(kl)
        parts.append(f'<circle cx="{at:.1f}" cy="{down:.1f}" r="4" fill="{color}"/>')
        # To the left of a dot that has another one close to its right, and below what is written there.
        left = number + 1 < len(files) and x(files[number + 1][1]) - at < 40
        side = f'x="{at - 8:.1f}" text-anchor="end"' if left else f'x="{at + 8:.1f}"'
        line = down + 4
        for along, height in written:
            if left and abs(along - at) < 60 and abs(height - line) < 12:
                line = height + 12
        if left:
            written.append((at, line))
        parts.append(f'<text {side} y="{line:.1f}" fill="{color}">{escape(name)}</text>')
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="TITLE=quality.json")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    height = PANEL * len(given.models) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#666">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, model in enumerate(given.models):
        title, _, path = model.partition("=")
        parts += panel(title, points(Path(path)), PANEL * number)
    parts.append(f'<circle cx="{LEFT + 4}" cy="{height - 14}" r="4" fill="{OURS}"/>')
    parts.append(f'<text x="{LEFT + 14}" y="{height - 10}">hubpub</text>')
    parts.append(f'<circle cx="{LEFT + 84}" cy="{height - 14}" r="4" fill="{OTHERS}"/>')
    parts.append(f'<text x="{LEFT + 94}" y="{height - 10}">llama.cpp; KL in nats against file size</text>')
    given.out.write_text("\n".join([*parts, "</svg>"]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
