"""Pinning: the latest commit of a source model, written into the card that names it."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomlkit

from hubpub.card_file import edited
from hubpub.config import Card, Project
from hubpub.errors import HubError, UsageError

if TYPE_CHECKING:
    from hubpub.hub.client import Client


@dataclass(frozen=True)
class Pinned:
    """A card whose source was looked up: the commit it named before (None: none) and the one it names now."""

    card: str
    source: str
    old: str | None
    new: str

    def __str__(self) -> str:
        was = f"was {self.old[:12]}" if self.old else "was not pinned"
        return f"{self.card}: {self.source} at {self.new} ({'as before' if self.old == self.new else was})"

    def as_json(self) -> dict[str, str | None]:
        return asdict(self)


def pin(project: Project, names: Sequence[str], client: Client) -> tuple[Pinned, ...]:
    """Write the commit that `main` of each source is at into the cards called `names`; without names, into those
    that are not pinned yet.

    Raises UsageError for an unknown card, HubError where a source is not on the Hub.
    """
    known = {card.repo: card for card in project.cards}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no card '{unknown[0]}'", f"cards: {', '.join(known)}")
    chosen = [known[name] for name in names] or [card for card in known.values() if card.variant.revision is None]
    return tuple(_pin(card, client) for card in chosen)


def _pin(card: Card, client: Client) -> Pinned:
    source, old = card.variant.source, card.variant.revision
    refs = client.refs(source)
    if refs is None or "main" not in refs.branches:
        raise HubError(f"{source} is not on {client.endpoint}", "look at variant.source in card.toml")
    commit = refs.branches["main"]
    if old != commit:
        write_revision(card, commit)
    return Pinned(card.repo, source, old, commit)


def write_revision(card: Card, revision: str) -> Path:
    """Write `revision` as the pinned one into the card's file, and change nothing else of it. Returns the file."""
    with edited(card) as document:
        variant = document["variant"]
        assert isinstance(variant, MutableMapping)
        if "revision" in variant:
            variant["revision"] = revision
        else:
            added, source = tomlkit.string(revision), variant["source"].trivia
            # As far to the right, and with the same line end, as the line that names the source.
            added.trivia.indent = source.indent
            if source.trail.strip(" \t"):
                added.trivia.trail = source.trail
            variant["revision"] = added
    return card.folder / "card.toml"
