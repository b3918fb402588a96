"""Which file to take: what each needs of a device, which are worth a look, and what each trades against another.

All of it is arithmetic on measured figures; config.json holds what is computed here, so that nothing on a card is
known to the card alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from hubpub.cards.words import code, listed
from hubpub.facts import CellFacts
from hubpub.units import percent

# What phones, tablets and computers are sold with, in GB.
_DEVICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Differences that are noise, or that nobody would choose by: a share of size and speed, and of the tokens agreed on.
_ALIKE, _ALIKE_AGREEMENT = 0.05, 0.01


def window(cell: CellFacts) -> int | None:
    """The tokens that a program without a KV cache takes at once; None for one that has a cache."""
    method = cell.program.forward
    if method is None or len(method.inputs) != 1 or not method.inputs[0].shape:
        return None
    last = method.inputs[0].shape[-1]
    return last if isinstance(last, int) else None


def weights(cell: CellFacts) -> int:
    """Bytes of all constants, inside and outside of delegates."""
    return cell.program.constant_bytes + cell.program.delegate_bytes


def planned(cell: CellFacts) -> int:
    """Bytes of the arena of the method that needs most; it holds the KV cache at full context."""
    return max((method.planned_bytes for method in cell.program.methods), default=0)


def memory(cell: CellFacts) -> int:
    """Bytes of RAM to expect at full context: what a run took, or what the file asks for, whichever is more."""
    return max(cell.speed.peak_resident_bytes, weights(cell) + planned(cell))


def device(cell: CellFacts) -> int:
    """GB of the smallest usual device of which the file takes no more than half: the rest is for the system and
    other apps."""
    needed = 2 * memory(cell) / 1e9
    return next((size for size in _DEVICES if size >= needed), _DEVICES[-1])


def worth_a_look(cells: Sequence[CellFacts], recommended: str) -> list[CellFacts]:
    """The cells that no other beats, without those made for scoring where there are others; order is kept."""
    writers = [cell for cell in cells if window(cell) is None] or list(cells)
    kept = [cell for cell in writers if cell.recipe == recommended or not any(_beats(one, cell) for one in writers)]
    return kept or writers


def beaten_by(cell: CellFacts, cells: Sequence[CellFacts]) -> str | None:
    """The recipe that is better than `cell` in something and worse in nothing; None where there is none."""
    better = [one for one in cells if window(one) is None and _beats(one, cell)]
    return max(better, key=lambda one: one.speed.decode_tokens_per_second).recipe if better else None


def why(best: CellFacts, shown: Sequence[CellFacts], cells: Sequence[CellFacts]) -> str:
    """A sentence on what speaks for `best` among `cells`, of which some are `shown`; "" where nothing does.

    Where others are smaller and others closer to the original, it is compared with the nearest of each.
    """
    extremes = (("smaller", _smaller), ("closer to the original", _closer))
    if none := [words for words, better in extremes if not any(better(cell, best) for cell in cells)]:
        return f"No other file is clearly {listed(none, 'or')}."
    said = []
    for nearest in (
        min((cell for cell in shown if _closer(cell, best)), key=lambda cell: cell.file.bytes, default=None),
        max((cell for cell in shown if _smaller(cell, best)), key=lambda cell: cell.file.bytes, default=None),
    ):
        if nearest and (merits := [words for words, better in _MERITS if better(best, nearest)]):
            said.append(f"{listed(merits)} than {code(nearest.recipe)}")
    return f"It is {', and '.join(said)}." if said else ""


def trade(cell: CellFacts, against: CellFacts) -> str:
    """What `cell` gains and loses against another, e.g. "12% smaller, but further from the original (86.7%)"."""
    gains: list[str] = []
    losses: list[str] = []
    size = cell.file.bytes / against.file.bytes
    if abs(size - 1) > _ALIKE:
        (gains if size < 1 else losses).append(_times(size, "smaller", "larger"))
    agreed, base = cell.parity.logits.top1_agreement, against.parity.logits.top1_agreement
    if abs(agreed - base) > _ALIKE_AGREEMENT:
        nearer = agreed > base
        where = "closer to" if nearer else "further from"
        (gains if nearer else losses).append(f"{where} the original ({percent(agreed)})")
    speed = _ratio(cell.speed.decode_tokens_per_second, against.speed.decode_tokens_per_second)
    if abs(speed - 1) > _ALIKE:
        (gains if speed > 1 else losses).append(_times(speed, "slower", "faster"))
    said = " but ".join(listed(part) for part in (gains, losses) if part) or f"much the same as {code(against.recipe)}"
    needed, base_needed = device(cell), device(against)
    if needed == base_needed:
        return said
    return f"{said}; {needed} GB of RAM is enough" if needed < base_needed else f"{said}; it needs {needed} GB of RAM"


def _smaller(one: CellFacts, other: CellFacts) -> bool:
    return other.file.bytes / one.file.bytes - 1 > _ALIKE


def _faster(one: CellFacts, other: CellFacts) -> bool:
    return _ratio(one.speed.decode_tokens_per_second, other.speed.decode_tokens_per_second) - 1 > _ALIKE


def _closer(one: CellFacts, other: CellFacts) -> bool:
    return one.parity.logits.top1_agreement - other.parity.logits.top1_agreement > _ALIKE_AGREEMENT


_MERITS = (("smaller", _smaller), ("faster", _faster), ("closer to the original", _closer))


def _beats(one: CellFacts, other: CellFacts) -> bool:
    """Whether `one` is clearly better than `other` in size, memory, speed or agreement and clearly worse in none."""
    smaller = other.file.bytes / one.file.bytes - 1
    leaner = _ratio(memory(other), memory(one)) - 1
    faster = _ratio(one.speed.decode_tokens_per_second, other.speed.decode_tokens_per_second) - 1
    closer = one.parity.logits.top1_agreement - other.parity.logits.top1_agreement
    leads = ((smaller, _ALIKE), (leaner, _ALIKE), (faster, _ALIKE), (closer, _ALIKE_AGREEMENT))
    return one is not other and any(lead > most for lead, most in leads) and all(lead >= -most for lead, most in leads)


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else 1.0 if one <= 0 else float("inf")


def _times(ratio: float, less: str, more: str) -> str:
    """A ratio in words: "12% smaller", "twice as fast" as "2.0 times as fast"."""
    if ratio < 1:
        return f"{1 - ratio:.0%} {less}" if ratio > 0.01 else f"far {less}"
    return f"{ratio - 1:.0%} {more}" if ratio < 2 else f"{ratio:.2g} times as {_PLAIN[more]}"


_PLAIN = {"larger": "large", "faster": "fast"}
