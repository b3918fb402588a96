"""Layers that are worth eight bits, found for a variant and written into its card, where every release reads them."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path

import tomlkit

from hubpub.card_file import edited
from hubpub.config import Card, Project, Tuned
from hubpub.errors import UsageError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def card_of(project: Project, variant: str, recipe: str) -> Card:
    """The card that offers `variant` by `recipe`. Raises UsageError where there is none."""
    card = next((one for one in project.cards if variant in (one.variant.name, one.repo)), None)
    if card is None:
        names = ", ".join(dict.fromkeys(one.variant.name for one in project.cards))
        raise UsageError(f"no card has a variant '{variant}'", f"variants: {names}")
    if recipe not in card.export.recipes:
        raise UsageError(f"{card.repo} does not offer {recipe}", f"its recipes: {', '.join(card.export.recipes)}")
    return card


def bytes_of(text: str) -> int:
    """Bytes that a person wrote as "105MB", "1.3 GB" or a plain number. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"'{text}' is no size", "write it as 105MB, 1.3GB or in bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def write_tuned(card: Card, recipe: str, tuned: Tuned) -> Path:
    """Write what was chosen for `recipe` into the card's file in place of what was there. Returns the file.

    Nothing else of it changes; an empty choice takes the table away.
    """
    with edited(card) as document:
        if "tuned" not in document:
            document["tuned"] = tomlkit.table(is_super_table=True)
        tables = document["tuned"]
        assert isinstance(tables, MutableMapping)
        tables.pop(recipe, None)
        if tuned:
            table = tomlkit.table()
            for kind, ranges in tuned.items():
                table[kind] = list(ranges)
            tables[recipe] = table
        if not tables:
            del document["tuned"]
    return card.folder / "card.toml"
