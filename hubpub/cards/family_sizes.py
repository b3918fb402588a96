"""The sizes that a model comes in, across repos: Gemma 3n E2B, E4B and the slices between, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hubpub.cards import choice
from hubpub.config import Card
from hubpub.facts import CellFacts
from hubpub.slices import FAMILY, Published, published


@dataclass(frozen=True)
class Sized:
    """One size: the card it has, what was published of it, and its recommended file's facts (None: not released)."""

    card: Card
    published: Published
    cell: CellFacts | None = None

    @property
    def name(self) -> str:
        return self.published.slice.name

    def as_json(self) -> dict[str, Any]:
        cell = self.cell
        return {
            "size": self.name,
            "repo": self.card.repo,
            "effective_billions": self.published.effective,
            "published_mmlu": self.published.mmlu,
            "released": cell is not None,
            **({} if cell is None else _measured(cell)),
        }


def _measured(cell: CellFacts) -> dict[str, Any]:
    whole = cell.parity.whole
    return {
        "file": cell.file.name,
        "device_ram_gb": choice.device(cell),
        "bytes": cell.file.bytes,
        "top1_agreement": cell.parity.logits.top1_agreement,
        "kl_to_whole": whole.kl_mean if whole else None,
        "decode_tokens_per_second": cell.speed.decode_tokens_per_second,
        "host": cell.speed.host,
    }


def size_of(card: Card) -> str | None:
    """The size of a card's model by its published name; None where its family has no slices, or it is a custom one."""
    variant = card.variant
    name = variant.slice.name if variant.slice else variant.size
    return name if variant.family == FAMILY and name in published() else None


def all_sizes(cards: Sequence[Card], facts: Callable[[Card], CellFacts | None]) -> Sequence[Sized]:
    """The sizes of every model among `cards` that comes in several, one model after the other."""
    found: dict[str, Sized] = {}
    for card in cards:
        if card.repo not in found:
            found |= {one.card.repo: one for one in siblings(card, cards, facts)}
    return tuple(found.values())


def siblings(
    card: Card, among: Iterable[Card], facts: Callable[[Card], CellFacts | None] = lambda _: None
) -> Sequence[Sized]:
    """The sizes that `card` is one of, from the smallest; none where no slice is among them."""
    alike = [
        Sized(one, published()[name], facts(one))
        for one in among
        if (name := size_of(one)) is not None and one.variant.chat == card.variant.chat
    ]
    if size_of(card) is None or not any(one.card.variant.slice for one in alike):
        return ()
    return sorted(alike, key=lambda one: one.published.effective)


def relatives(card: Card, among: Iterable[Card]) -> Sequence[Card]:
    """Cards of the same family that are no sizes of the very model: those for the same use first, then by name."""
    sizes = {one.card.repo for one in siblings(card, among)} | {card.repo}
    found = [one for one in among if one.variant.family == card.variant.family and one.repo not in sizes]
    return sorted(found, key=lambda one: (one.variant.chat != card.variant.chat, one.variant.name))
