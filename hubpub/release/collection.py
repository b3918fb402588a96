"""One collection per release: its repos in the order in which a person with some device looks for them.

What is in it is read from the repos themselves, so that any machine can make it or put it right, as often as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubpub.cards import choice
from hubpub.config import Card
from hubpub.errors import HubError
from hubpub.facts import CardFacts
from hubpub.hub.client import Collection
from hubpub.progress import Display
from hubpub.release.connect import Destination
from hubpub.units import size

TITLE = "ExecuTorch models {version}"
DESCRIPTION = "Language models for phones and computers, measured one by one. Smallest first; base models last."


@dataclass(frozen=True)
class Collected:
    """Where the collection is, and how many of its items were added, moved or given another note."""

    url: str
    repos: tuple[str, ...]
    changed: int


@dataclass(frozen=True)
class _Wanted:
    repo_id: str
    note: str
    order: tuple[bool, int, int, str]


def collect(to: Destination, cards: Sequence[Card], version: str) -> Collected | None:
    """Make the collection of `version` hold every repo of `cards` that was released as that, in order.

    None where fewer than two were: a repo is no collection. Whatever else somebody put there stays, at the end.
    Raises HubError, also where the token may not.
    """
    wanted = sorted(_released(to, cards, version), key=lambda one: one.order)
    if len(wanted) < 2:
        return None
    client, owner, title = to.client, to.namespace, TITLE.format(version=version)
    held = client.collection(owner, title) or client.create_collection(owner, title, DESCRIPTION)
    known = {item.repo_id for item in held.items}
    missing = [one for one in wanted if one.repo_id not in known]
    for one in missing:
        client.add_to_collection(held.slug, one.repo_id, one.note)
    if missing:
        held = client.collection(owner, title) or held
    changed = len(missing) + _ordered(to, held, wanted)
    return Collected(held.url, tuple(one.repo_id for one in wanted), changed)


def collected(to: Destination, cards: Sequence[Card], version: str, display: Display) -> None:
    """`collect`, for a release that is published whatever becomes of this: what does not work is a note."""
    try:
        if to.client.whoami().only(f"{to.namespace}/any"):
            display.note(f"this token is for single repos: 'hubpub collection --version {version}' collects them")
            return
        found = collect(to, cards, version)
    except HubError as error:
        display.note(
            f"the collection of {version} could not be made: {error.message}; what is published is published, and "
            f"'hubpub collection --version {version}' tries it again"
        )
    else:
        if found and found.changed:
            display.finish("collection", f"{len(found.repos)} repos in {found.url}")


def _released(to: Destination, cards: Sequence[Card], version: str) -> list[_Wanted]:
    found = []
    for card in cards:
        repo_id = to.repo_id(card)
        data = to.client.read(repo_id, version, "facts.json")
        try:
            facts = CardFacts.model_validate_json(data) if data else None
        except ValueError:
            continue
        if facts is None or facts.version != version or not facts.cells:
            continue
        best = next((cell for cell in facts.cells if cell.recipe == card.export.recommended), facts.cells[0])
        gigabytes = choice.device(best)
        kind = "for chat" if card.variant.chat else "a base model"
        note = f"{card.variant.size}, {kind}. {best.recipe}: {size(best.file.bytes)}, for {gigabytes} GB of RAM or more"
        found.append(_Wanted(repo_id, note, (not card.variant.chat, gigabytes, best.file.bytes, repo_id)))
    return found


def _ordered(to: Destination, held: Collection, wanted: Sequence[_Wanted]) -> int:
    """Give every item its note and its place; how many had another."""
    changed = 0
    order = [item.repo_id for item in held.items]
    items = {item.repo_id: item for item in held.items}
    for place, one in enumerate(wanted):
        item = items.get(one.repo_id)
        if item is None:
            continue
        note = one.note if item.note != one.note else None
        position = place if order.index(one.repo_id) != place else None
        if note is None and position is None:
            continue
        to.client.change_in_collection(held.slug, item, note=note, position=position)
        order.remove(one.repo_id)
        order.insert(place, one.repo_id)
        changed += 1
    return changed
