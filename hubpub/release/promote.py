"""Publishing: the one way to do it, for what this machine made, what others staged, and what waits in a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubpub.cards.licenses import lacks_agreement
from hubpub.config import Card
from hubpub.errors import ConflictError, GateError, HubError
from hubpub.facts import CardFacts, CellFacts
from hubpub.hub.client import Client
from hubpub.hub.content import RepoRelease
from hubpub.hub.maintenance import verify
from hubpub.hub.publish import plan_all, publish_all
from hubpub.hub.pulls import promote_pull
from hubpub.hub.receipts import Planned, PullRequest, Receipt
from hubpub.hub.staging import staged_versions
from hubpub.hub.tags import UNVERIFIED, unverified
from hubpub.matrix import cells, select
from hubpub.progress import Display
from hubpub.release.assemble import Ready, assemble, beside, complete_card, record
from hubpub.release.collection import collected
from hubpub.release.connect import Destination
from hubpub.release.handover import handed_over
from hubpub.release.targets import check_targets
from hubpub.release.version import checked_version
from hubpub.workspace import Workspace


@dataclass(frozen=True)
class Publication:
    """What came of publishing: the Hub's receipts, the facts that were published, and why repos were kept back."""

    receipts: tuple[Receipt, ...]
    facts: Mapping[str, CardFacts]
    kept_back: Mapping[str, GateError]


def publish(
    workspace: Workspace,
    to: Destination,
    ready: Sequence[Ready],
    version: str,
    display: Display,
    *,
    pulls: Sequence[Card] = (),
    dry_run: bool = False,
    unstaged: bool = False,
) -> Publication:
    """Publish every card of `ready`, and merge the requests of `pulls` that wait for `version`.

    Nothing is sent before all of it was looked at, and nothing is promoted before every repo is staged. A card that is
    worse than its release before is kept back alone. What was published is read back and checked as `verify` does.
    A dry run only reads; with `unstaged`, it takes files that are nowhere to be had for those others have yet to stage.
    """

    client, root = to.client, workspace.root
    with workspace.locked(display.note):
        releases, facts, kept_back = _assembled(workspace, to, ready, version)
        for repo, error in kept_back.items():
            display.finish(repo, f"not published: {error.message}")
        # Whatever stops one repo is found before the first request is merged.
        planned = plan_all(client, releases, unstaged=dry_run and unstaged) if dry_run or pulls else []
        merged = [_merged(to, card, version, root, dry_run=dry_run) for card in pulls]
        made = planned if dry_run else publish_all(client, releases, root, display=display, create_pr=to.create_pr)
        receipts = [*merged, *made]
        for receipt in receipts:
            display.finish(receipt.repo_id, receipt.summary)
        if not dry_run:
            receipts = [_verified(client, receipt, root) for receipt in receipts]
    if not workspace.rehearsal:
        for todo in dict.fromkeys(lacks_agreement(one.card.variant, one.card.folder.parent) for one in ready):
            if todo:
                display.note(f"the terms of Gemma are linked, not passed on: {todo}")
    if not dry_run and not to.create_pr:
        collected(to, workspace.project.readable_cards, version, display)
    return Publication(tuple(receipts), facts, kept_back)


def _assembled(
    workspace: Workspace, to: Destination, ready: Sequence[Ready], version: str
) -> tuple[list[RepoRelease], dict[str, CardFacts], dict[str, GateError]]:
    """The releases of `ready` and their facts, and by repo why others are kept back."""
    releases, facts, kept_back = list[RepoRelease](), dict[str, CardFacts](), dict[str, GateError]()
    known = beside(ready)
    for one in ready:
        try:
            release, facts[one.card.repo] = assemble(workspace.project, one, to, version, known)
        except GateError as error:
            kept_back[one.card.repo] = error
        else:
            releases.append(release)
    if kept_back and releases:
        # Cards show figures of their other sizes: none of what is not published.
        rest = [one for one in ready if one.card.repo not in kept_back]
        releases, facts, _ = _assembled(workspace, to, rest, version)
    return releases, facts, kept_back


def _merged(to: Destination, card: Card, version: str, work: Path, *, dry_run: bool) -> Receipt:
    """The receipt of the request that waits. Raises ConflictError where it does not wait any more."""
    repo_id = to.repo_id(card)
    receipt = promote_pull(to.client, repo_id, version, work, dry_run=dry_run)
    if receipt is None:
        raise ConflictError(
            f"{repo_id}: the pull request of {version}, which was to be merged, is closed",
            "ask who closed it; 'hubpub release' publishes without one",
        )
    return receipt


def _verified(client: Client, receipt: Receipt, work: Path) -> Receipt:
    """The receipt of what was looked at as whoever downloads it would. Raises HubError where it is not intact.

    A Hub that does not answer any more is a note on the receipt: what is published is published. Where it answers,
    what could not be looked at before has been by now.
    """
    repo_id, version = receipt.repo_id, receipt.version
    if isinstance(receipt.outcome, PullRequest | Planned):
        return receipt
    try:
        checked = verify(client, repo_id, version)
    except HubError as error:
        kept = [note for note in receipt.notes if not note.startswith(UNVERIFIED)]
        return replace(receipt, notes=(*kept, unverified(repo_id, version, error))).kept(work)
    if not checked.ok:
        raise HubError(
            f"{repo_id}@{version} is not intact: {checked.problems[0]}",
            f"'hubpub verify {repo_id}@{version}' lists everything; mend it with the next version",
        )
    if checked.commit != receipt.outcome.commit:
        raise HubError(
            f"{repo_id}@{version} is {checked.commit[:12]} now, and was published as {receipt.outcome.commit[:12]}",
            "somebody moved the tag: ask who may write to the repo",
        )
    notes = tuple(note for note in receipt.notes if not note.startswith(UNVERIFIED))
    return receipt if notes == receipt.notes else replace(receipt, notes=notes).kept(work)


def promote(
    workspace: Workspace,
    to: Destination,
    selectors: Sequence[str],
    version: str | None,
    display: Display,
    *,
    facts: Path | None = None,
    dry_run: bool = False,
    unstaged: bool = False,
    keep: bool = False,
) -> tuple[Receipt, ...]:
    """Publish what was staged for a version: by machines that staged cells, or by a pull request that waits for it.

    The files themselves need not be here: the facts that staging left, below `facts` or else in the work folder, say
    what must have been staged. With `keep` they are recorded in the checkout. A dry run may be of cells that were made
    and not staged (`unstaged`), and then of some cells of a repo alone.
    """
    version = checked_version(version, "write it as it was staged: --version vX.Y.Z")
    project = workspace.project
    chosen = select(cells(project), selectors)
    cards = list({cell.card.repo: cell.card for cell in chosen if not cell.excluded}.values())
    check_targets(to, cards, rehearsal=workspace.rehearsal, version=version)
    pulls = []
    for card in cards:
        waits = not to.create_pr and version not in staged_versions(to.client, to.repo_id(card))
        if waits and promote_pull(to.client, to.repo_id(card), version, workspace.root, dry_run=True):
            pulls.append(card)
    known: Mapping[str, CellFacts] = {}
    if len(pulls) < len(cards):
        known = handed_over(facts or workspace.receipts / version)
    ready = [
        complete_card(project, card, known, {}, rehearsal=workspace.rehearsal, partial=dry_run and unstaged)
        for card in cards
        if card not in pulls
    ]
    done = publish(workspace, to, ready, version, display, pulls=pulls, dry_run=dry_run, unstaged=unstaged)
    if keep:
        record(project, done.facts)
    for error in done.kept_back.values():
        raise error
    return done.receipts
