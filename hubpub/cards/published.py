"""What the Hub holds of a card, what a release would put there now, and the difference between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hubpub.cards.diff import README, CardChange, Published, diff, state
from hubpub.cards.render import CHARTS, golden_facts, recorded, render
from hubpub.config import Card, Project
from hubpub.errors import ConfigError
from hubpub.facts import CardFacts, FileFact
from hubpub.hub.hashing import parse_sha256sums
from hubpub.matrix import cells_of
from hubpub.plan import plan

if TYPE_CHECKING:
    from hubpub.hub.client import Client
    from hubpub.workspace import Workspace

# What may lie beside the large files, whether SHA256SUMS names it or not.
_SMALL = ("config.json", "LICENSE", "NOTICE", "Notice", *CHARTS)


def chosen(project: Project, names: Sequence[str]) -> tuple[Card, ...]:
    """The cards whose repo, variant or folder matches any of `names` (globs); all of them where there are none.

    Raises ConfigError for a name that matches nothing.
    """

    def matches(card: Card, name: str) -> bool:
        return any(fnmatchcase(own, name) for own in (card.repo, card.variant.name, card.folder.name))

    for name in names:
        if not any(matches(card, name) for card in project.cards):
            raise ConfigError(f"no card is called '{name}'", f"cards: {', '.join(card.repo for card in project.cards)}")
    return tuple(card for card in project.cards if not names or any(matches(card, name) for name in names))


def candidate(workspace: Workspace, card: Card) -> tuple[CardFacts | None, str]:
    """The facts a release of `card` would publish now, and where they are from.

    Those measured in the work folder, where every cell of the card is up to date there; else the committed ones.
    """
    measured = [step.facts() for step in plan(cells_of(workspace.project, card), workspace)]
    found = tuple(one for one in measured if one is not None)
    if found and len(found) == len(measured):
        made = CardFacts(repo=f"NAMESPACE/{card.repo}", version="NEXT", variant=card.variant.name, cells=found)
        return made, f"measured in {workspace.root}"
    committed = golden_facts(card)
    if committed is None:
        return None, "no facts yet"
    return committed, "committed" + (", of a rehearsal" if committed.scale_model else "")


def published(client: Client, repo_id: str, names: Sequence[str] = (), revision: str = "main") -> Published | None:
    """What `repo_id` holds at `revision`, or None where there is nothing: no repo, or an empty one.

    Files are those of its SHA256SUMS and facts.json, and `names`. Raises HubError.
    """
    refs = client.refs(repo_id)
    revisions = {**refs.tags, **refs.branches} if refs else {}
    commit = revisions.get(revision)
    if commit is None:
        return None
    readme, data, sums = (client.read(repo_id, commit, name) for name in (README, "facts.json", "SHA256SUMS"))
    facts, earlier = _facts(data), None
    if facts and facts.previous in revisions:
        earlier = _facts(client.read(repo_id, revisions[facts.previous], "facts.json"))
    try:
        hashes = parse_sha256sums(sums.decode()) if sums else {}
    except ValueError:
        hashes = {}
    listed = client.files(repo_id, commit, {*names, *hashes, *files_of(facts), *_SMALL, README})
    if not listed:
        return None
    files = tuple(
        FileFact(name=path, bytes=one.bytes, sha256=one.sha256 or hashes.get(path, "")) for path, one in listed.items()
    )
    text = readme.decode(errors="replace") if readme is not None else None
    return Published(text, facts, files, facts.version if facts else None, earlier)


def change(
    project: Project,
    card: Card,
    facts: CardFacts | None,
    held: Published | None,
    repo_id: str,
    version: str | None = None,
) -> CardChange:
    """What publishing `card` with `facts` to `repo_id` would change there, where `held` is there now.

    Without a `version` the card is rendered under the published one: then what is in it differs, and not the name of a
    release that nobody has chosen yet. Raises RenderError where the card cannot be rendered.
    """
    before = held.facts if held else None
    previous = None
    if facts is not None:
        # The same release again follows the same one.
        again = held is not None and before is not None and version in {None, before.version}
        previous = held.previous if held and again else before
        named = version or (before.version if before else facts.version)
        update = {"repo": repo_id, "version": named, "previous": previous.version if previous else None}
        facts = facts.model_copy(update=update)
    owner = repo_id.partition("/")[0]
    rendered = render(
        card,
        facts,
        namespace=owner,
        templates=project.templates_dir,
        previous=previous,
        among=project.readable_cards,
        known=recorded,
    )
    return replace(diff(repo_id, held, state(rendered.files, facts)), new_version=version)


def files_of(facts: CardFacts | None) -> tuple[str, ...]:
    """The names of the large files and of the tokenizer files of a release."""
    return tuple(file.name for cell in facts.cells for file in (cell.file, *cell.tokenizer)) if facts else ()


def _facts(data: bytes | None) -> CardFacts | None:
    """Facts as this version reads them; None for another program's file, or a schema that is no longer read."""
    try:
        return CardFacts.model_validate_json(data) if data else None
    except ValueError:
        return None
