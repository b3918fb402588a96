"""How a measured number is written for a person: bytes, shares, seconds and figures, on cards and on screens alike."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """Bytes in decimal units with three significant digits, as the Hub gives file sizes, e.g. "1.30 MB"."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{count:.0f} B"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def number(value: float) -> str:
    """A measured value with three significant digits, e.g. "0.0145", "546" or "1,964"."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-") if "e" in text or (value and abs(value) < 0.001) else text


def percent(share: float) -> str:
    """A share of 1 as a percentage; only what is complete is written 100%."""
    text = f"{share:.1%}"
    if text == "100.0%" and share < 1:
        return "99.9%"
    return text.replace(".0%", "%")


def seconds(value: float) -> str:
    """A duration, e.g. "0.0145 s" or "546 s"."""
    return f"{number(value)} s"


def rate(tokens_per_second: float) -> str:
    """A speed, e.g. "31.4 tokens/s"."""
    return f"{number(tokens_per_second)} tokens/s"


def valued(value: float, unit: str) -> str:
    """A metric's value with its unit, as `hubpub.measure.compare` names units."""
    if unit == "bytes":
        return size(value)
    if unit == "share":
        return percent(value)
    if unit == "" and float(value).is_integer():
        return f"{value:,.0f}"
    return f"{number(value)} {unit}".rstrip()
