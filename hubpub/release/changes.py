"""What a release would change on a Hub, card by card, and what is published there now. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hubpub.cards.diff import CardChange, Published
from hubpub.cards.published import candidate, change, chosen, files_of, published
from hubpub.cards.render import golden_facts
from hubpub.config import Card
from hubpub.errors import AccessError, HubError
from hubpub.hub.client import Retry
from hubpub.release.connect import LOCAL, Destination, connect
from hubpub.workspace import Workspace


def changes(
    workspace: Workspace, to: Destination, names: Sequence[str], version: str | None
) -> tuple[tuple[CardChange, str], ...]:
    """What releasing the cards called `names` (all where there are none) would change, each with where its facts are
    from.

    Raises AccessError where nobody says whose repos are compared with, and what the card and the Hub raise.
    """
    to.client.retry = Retry(attempts=3)
    try:
        owner = to.namespace
    except AccessError as error:
        raise type(error)(error.message, f"name the owner with --namespace; or {error.hint}") from None
    found = []
    for card in chosen(workspace.project, names):
        facts, origin = candidate(workspace, card)
        repo = f"{owner}/{card.repo}"
        one = change(workspace.project, card, facts, published(to.client, repo, files_of(facts)), repo, version)
        found.append((replace(one, refused=to.client.card_problem(one.text)), origin))
    return tuple(found)


def published_now(hub: str, store: Path, namespace: str | None, card: Card) -> tuple[str, Published | None]:
    """The id of the repo of `card` on `hub`, and what that holds. Asked once and let go: a release may need the Hub.

    Raises HubError, also where no local Hub lies in `store`.
    """
    if hub == LOCAL and not store.is_dir():
        raise HubError(
            f"there is no local Hub in {store.parent} yet",
            "run 'hubpub release --all --rehearse', or name a Hub with --hub",
        )
    with connect(hub, store, namespace) as to:
        to.client.retry = Retry(attempts=1)
        repo = to.repo_id(card)
        return repo, published(to.client, repo, files_of(golden_facts(card)))
