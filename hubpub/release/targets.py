"""What may be published where: rights, and that rehearsals and releases never mix. Checked before anything is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from hubpub.config import Card
from hubpub.errors import ConflictError, UsageError
from hubpub.facts import CardFacts
from hubpub.hub.client import Client
from hubpub.hub.publish import RepoAccess, preflight
from hubpub.release.connect import LOCAL, Destination, connect
from hubpub.workspace import Workspace


def rehearsal_owner(endpoint: str, owner: str | None, for_rehearsals: str | None) -> str | None:
    """The owner of the repos of a rehearsal: on a local Hub any; elsewhere the one that was given for rehearsals.

    Raises UsageError where there is none, or where releases go there too.
    """
    if endpoint == LOCAL:
        return for_rehearsals or owner
    if not for_rehearsals:
        raise UsageError(
            f"a rehearsal on {endpoint} needs a namespace that is for rehearsals alone",
            "name it with --rehearsal-namespace (in a workflow: the variable HF_REHEARSAL_NAMESPACE)",
        )
    if owner and owner.lower() == for_rehearsals.lower():
        raise UsageError(
            f"releases and rehearsals would both go to {owner}", "give rehearsals a user or organisation of their own"
        )
    return for_rehearsals


@contextmanager
def destination(
    workspace: Workspace,
    hub: str | None,
    namespace: str | None,
    for_rehearsals: str | None,
    *,
    create_pr: bool = False,
    over_rehearsal: bool = False,
) -> Iterator[Destination]:
    """Where a release goes: to `hub`, or the one of HF_ENDPOINT, as whoever only reads would find it.

    A rehearsal goes to the local Hub unless another one and an owner were named for it.
    """
    owner = namespace
    if workspace.rehearsal:
        hub = hub or LOCAL
        owner = rehearsal_owner(hub, namespace, for_rehearsals)
    with connect(hub, workspace.hub, owner) as to:
        yield replace(to, create_pr=create_pr, over_rehearsal=over_rehearsal)


def check_targets(
    to: Destination,
    cards: Sequence[Card],
    *,
    rehearsal: bool,
    version: str | None = None,
) -> tuple[RepoAccess, ...]:
    """Names and rights for the repo of every card, and what lies there, before hours are spent.

    Raises AccessError or ConfigError as `preflight` does, and ConflictError where a newer version than `version` is
    out, where a rehearsal would go to a repo that holds a real release, or a release to one that holds a rehearsal
    where `to` does not say that it may.
    """
    found = preflight(to.client, [to.repo_id(card) for card in cards], create_pr=to.create_pr, version=version)
    for access in found:
        check_kind(to.client, access.repo_id, rehearsal=rehearsal, over_rehearsal=to.over_rehearsal)
    return found


def check_kind(client: Client, repo_id: str, *, rehearsal: bool, over_rehearsal: bool) -> None:
    """Raise ConflictError where `repo_id` holds the other kind: real figures beside those of scale models."""
    refs = client.refs(repo_id)
    if refs is None:
        return
    if not rehearsal:
        held = _scale_model(client, repo_id, refs.branches["main"]) if "main" in refs.branches else None
        if held and not over_rehearsal:
            raise ConflictError(
                f"{repo_id} holds a rehearsal: figures and files of scale models",
                "release to another namespace, delete that repo, or pass --over-rehearsal to publish over it",
            )
        return
    # A rehearsal that was once let in would hide a release on main: tags are looked at too.
    for name, commit in {**refs.tags, **refs.branches}.items():
        if _scale_model(client, repo_id, commit) is False:
            raise ConflictError(
                f"{repo_id} holds a real release ({name}): a rehearsal never goes there",
                "rehearse on the local Hub, or in a namespace that is for rehearsals alone",
            )


def _scale_model(client: Client, repo_id: str, commit: str) -> bool | None:
    """Whether the facts at `commit` are of scale models; None where there are none. Facts nobody can read are real."""
    data = client.read(repo_id, commit, "facts.json")
    if data is None:
        return None
    try:
        return CardFacts.model_validate_json(data).scale_model
    except ValueError:
        return False
