"""The sizes that a model comes in, across repos: Gemma 3n E2B, E4B and the slices between, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hubpub.cards import choice
from hubpub.config import Card, Recipe
from hubpub.facts import CellFacts
from hubpub.sizing import known_as, known_sizes, need_of
from hubpub.slices import FAMILY, Published, published

Known = Callable[[Card], Sequence[CellFacts]]
"""What is known of the files of a card: facts of its cells, none where nothing was measured."""


@dataclass(frozen=True)
class Sized:
    """One size: the card it has, what was published of it, and its recommended file's facts (None: not released)."""

    card: Card
    published: Published
    cell: CellFacts | None = None

    @property
    def name(self) -> str:
        return self.published.slice.name

    @property
    def device(self) -> int | None:
        """GB of RAM of a device for it, as measured; None where nothing was."""
        return choice.device(self.cell) if self.cell else None

    def speed_beside(self, other: CellFacts) -> float | None:
        """Tokens per second, if measured as those of `other` were; None where the two say nothing of one another."""
        mine, theirs = self.cell.speed if self.cell else None, other.speed
        same = mine is not None and (mine.host, mine.threads) == (theirs.host, theirs.threads)
        return mine.decode_tokens_per_second if mine is not None and same else None

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

    def estimated_bytes(self, recipe: Recipe) -> int | None:
        """What a file of `recipe` would take, by the shapes of the model; None where nobody has written those down."""
        known = known_sizes().get(known_as(self.card.variant))
        return need_of(known, recipe).file if known else None


def _measured(cell: CellFacts) -> dict[str, Any]:
    whole = cell.parity.whole
    return {
        "file": cell.file.name,
        "scale_model": cell.source.scale_model,
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


def nothing(_: Card) -> Sequence[CellFacts]:
    """Knows of no card's files."""
    return ()


def alike(known: Known, *, scale_model: bool) -> Known:
    """`known` without what was measured on scale models, or with `scale_model` without all else."""
    return lambda card: [cell for cell in known(card) if cell.source.scale_model is scale_model]


def all_sizes(cards: Sequence[Card], known: Known) -> Sequence[Sized]:
    """The sizes of every model among `cards` that comes in several, one model after the other."""
    found: dict[str, Sized] = {}
    for card in cards:
        if card.repo not in found:
            found |= {one.card.repo: one for one in siblings(card, cards, known)}
    return tuple(found.values())


def siblings(card: Card, among: Iterable[Card], known: Known = nothing) -> Sequence[Sized]:
    """The sizes that `card` is one of, from the smallest; none where no slice is among them."""
    found = [
        Sized(one, published()[name], _recommended(one, known))
        for one in among
        if (name := size_of(one)) is not None and one.variant.chat == card.variant.chat
    ]
    if size_of(card) is None or not any(one.card.variant.slice for one in found):
        return ()
    return sorted(found, key=lambda one: one.published.effective)


def relatives(card: Card, among: Iterable[Card]) -> Sequence[Card]:
    """Cards of the same family that are no sizes of the very model: those for the same use first, then by name."""
    sizes = {one.card.repo for one in siblings(card, among)} | {card.repo}
    found = [one for one in among if one.variant.family == card.variant.family and one.repo not in sizes]
    return sorted(found, key=lambda one: (one.variant.chat != card.variant.chat, one.variant.name))


def _recommended(card: Card, known: Known) -> CellFacts | None:
    return next((cell for cell in known(card) if cell.recipe == card.export.recommended), None)
