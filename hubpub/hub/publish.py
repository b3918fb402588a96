"""Stage, then promote: large files first, on a branch of their own; then one commit on main, then the tag.

Every step compares with what the Hub records before it does anything, so that a run that was killed is finished by
running it again, and a run that has nothing to do sends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hubpub.errors import AccessError, ConfigError, HubError
from hubpub.hub.client import Add, Change, Client, Committed, Copy, Delete, HeadMoved, Refs
from hubpub.hub.compare import held_at, listed_at, published_card, refuse_foreign, refuse_unless_same
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.history import (
    MANIFEST,
    RELEASE,
    last_release,
    manifest_of,
    own_commit,
    refuse_older,
    refuse_unfinished,
    stage_base,
    until,
)
from hubpub.hub.names import check_repo_id, stage_branch
from hubpub.hub.pulls import waiting_pull
from hubpub.hub.receipts import (
    FileReceipt,
    NoChanges,
    Outcome,
    Planned,
    Published,
    PullRequest,
    Receipt,
    Staged,
    TagOnly,
)
from hubpub.hub.staging import ensured_repo, stage
from hubpub.hub.tags import tag_and_check
from hubpub.progress import Display, unseen


@dataclass(frozen=True)
class RepoAccess:
    """What is known about a repo before anything is built: whether it exists, its main commit and its tags."""

    repo_id: str
    exists: bool
    head: str | None
    tags: dict[str, str]


def preflight(
    client: Client, repo_ids: Iterable[str], *, create_pr: bool = False, version: str | None = None
) -> tuple[RepoAccess, ...]:
    """Check names and rights for every repo, and the place for `version`, before hours are spent.

    Raises ConfigError or AccessError, and ConflictError where a newer version than `version` is out.
    """
    repo_ids = [check_repo_id(repo_id) for repo_id in repo_ids]
    identity = client.whoami()
    found = []
    for repo_id in repo_ids:
        refs = client.refs(repo_id)
        if not create_pr:
            client.check_write(repo_id, exists=refs is not None)
            if refs is None and identity.only(repo_id):
                raise AccessError(
                    f"{repo_id} does not exist on {client.endpoint}, and this token, made for that repo alone, "
                    "cannot make it",
                    "create the repo on the Hub first, empty",
                )
        elif identity.role == "read":
            raise AccessError(f"no pull request to {repo_id}: the token may only read", "use a token with write access")
        elif refs is None:
            raise HubError(f"{repo_id} does not exist: there is nothing to open a pull request against")
        head = refs.branches.get("main") if refs else None
        if refs and head and version is not None:
            refuse_older(client, repo_id, version, refs)
        found.append(RepoAccess(repo_id, refs is not None, head, dict(refs.tags) if refs else {}))
    return tuple(found)


def plan_all(client: Client, releases: Sequence[RepoRelease], *, unstaged: bool = False) -> list[Receipt]:
    """What `publish_all` would do, by reading alone: receipts that say which files would be sent and changed.

    Raises what that would raise before its first upload. With `unstaged`, files that are nowhere to be had are taken
    for those that others have yet to stage.
    """
    ids = [release.repo_id.lower() for release in releases]
    if len(set(ids)) != len(ids):
        raise ConfigError("a repo is named twice in one release")
    return [_dry_run(client, release, unstaged=unstaged) for release in releases]


def publish_all(
    client: Client,
    releases: Sequence[RepoRelease],
    work: Path,
    *,
    display: Display | None = None,
    create_pr: bool = False,
) -> list[Receipt]:
    """Look at every repo, stage what is here, then promote one after the other; nothing is sent unless all looks well.

    Files without a source were staged by other machines and are found by their SHA-256. Rights are the caller's to
    check (`preflight`).
    """
    plan_all(client, releases)
    staged = [_stage_what_is_here(client, release, work, display, create_pr=create_pr) for release in releases]
    return [
        promote(client, release, work, staged=one, create_pr=create_pr)
        for release, one in zip(releases, staged, strict=True)
    ]


def _stage_what_is_here(
    client: Client, release: RepoRelease, work: Path, display: Display | None, *, create_pr: bool
) -> Staged | None:
    """None where there is nothing to stage: all was staged elsewhere, or was committed and is only to be tagged."""
    if not any(file.source is not None for file in release.files if file.large):
        return None
    refs = client.refs(release.repo_id)
    if refs and "main" in refs.branches and own_commit(client, release, refs.branches["main"]):
        return None
    progress = partial(display.update, release.repo_id) if display else unseen
    return stage(client, release, work, progress=progress, create_pr=create_pr)


def promote(
    client: Client, release: RepoRelease, work: Path, *, staged: Staged | None = None, create_pr: bool = False
) -> Receipt:
    """Make the one commit on main, tag it, read both back and compare every hash.

    Without `staged` the release is compared with the commit its staging branch began at. Raises ConflictError where
    somebody else changed a file of this release meanwhile, the version is taken or a newer one is out, HubError where
    a file is neither staged nor on main. Nothing is changed in either case. What does not work once the tag is there
    is a note on the receipt.
    """
    began, retried = time.monotonic(), client.retries - (staged.retries if staged else 0)
    repo_id, tag, user = release.repo_id, release.version, client.whoami().user
    refs = ensured_repo(client, release)
    if tag in refs.tags:
        files = refuse_unless_same(client, release, refs.tags[tag])
        made = _Made(NoChanges(refs.tags[tag], tag), files)
    else:
        made = _committed(client, release, staged.base if staged else stage_base(client, release, refs), create_pr)
    outcome, notes = made.outcome, tuple[str, ...]()
    if isinstance(outcome, Published | TagOnly):
        card = isinstance(outcome, Published)
        commit, notes = tag_and_check(client, release, outcome.commit, made.files, card=card)
        outcome = Published(commit, tag) if isinstance(outcome, Published) else TagOnly(commit, tag)
    done = not isinstance(outcome, PullRequest) and stage_branch(tag) in refs.branches
    if done:
        notes += _without_branch(client, repo_id, stage_branch(tag))
    sent = {file.path: file.sent_bytes for file in staged.files} if staged else {}
    sent |= {f.path_in_repo: f.bytes for f in made.files if f.path_in_repo in made.carried - sent.keys()}
    receipt = Receipt(
        repo_id=repo_id,
        version=tag,
        endpoint=client.endpoint,
        user=user,
        outcome=outcome,
        files=tuple(
            FileReceipt(f.path_in_repo, f.bytes, f.sha256, f.path_in_repo in made.changed, sent.get(f.path_in_repo, 0))
            for f in made.files
        ),
        bytes_sent=sum(sent.values()),
        retries=client.retries - retried,
        seconds=round(time.monotonic() - began + (staged.seconds if staged else 0), 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        retired=made.retired,
        notes=notes,
    )
    return receipt.kept(work)


@dataclass(frozen=True)
class _Made:
    """What a release came to before its tag: its files, which the commit changed, carried itself and removed."""

    outcome: Outcome
    files: tuple[LocalFile, ...]
    changed: frozenset[str] = frozenset()
    carried: frozenset[str] = frozenset()
    retired: tuple[str, ...] = ()


def _committed(client: Client, release: RepoRelease, base: str, create_pr: bool) -> _Made:
    """The one commit of a release, found or made on top of main as it is now; `base` is what it was compared with."""
    repo_id, tag = release.repo_id, release.version
    for last in (False, True):
        refs = ensured_repo(client, release)
        if tag in refs.tags:
            files = refuse_unless_same(client, release, refs.tags[tag])
            return _Made(TagOnly(refs.tags[tag], tag), files)
        head = refs.branches["main"]
        if mine := own_commit(client, release, head):
            return _Made(TagOnly(mine, tag), release.complete(published_card(client, repo_id, mine)))
        refuse_unfinished(client, release, head)
        refuse_older(client, repo_id, tag, refs)
        if base != head:
            refuse_foreign(client, release, base, head)
        plan = _plan(client, release, refs)
        if not plan.changed and not plan.retired:
            return _Made(TagOnly(head, tag), plan.files)
        changed, carried = frozenset(plan.changed), frozenset(plan.changed - plan.copied.keys())
        if create_pr and (waiting := waiting_pull(client, release, plan.files)) and waiting.pull:
            return _Made(PullRequest(waiting.pull, waiting.commit), plan.files, changed, retired=plan.retired)
        try:
            made = _commit(client, release, plan, head, create_pr=create_pr)
        except HeadMoved:
            if last:
                raise
            base = head
            continue
        outcome = PullRequest(made.pull, made.commit) if made.pull else Published(made.commit, tag)
        return _Made(outcome, plan.files, changed, carried, plan.retired)
    raise AssertionError("the second attempt ends one way or the other")


def _without_branch(client: Client, repo_id: str, branch: str) -> tuple[str, ...]:
    """Remove a staging branch whose release is out; a note where that does not work."""
    try:
        client.delete_branch(repo_id, branch)
    except HubError as error:
        return (f"{branch} could not be removed ({error.message}): 'hubpub unstage {repo_id}' does it",)
    return ()


def _dry_run(client: Client, release: RepoRelease, *, unstaged: bool) -> Receipt:
    """What a run would do, by reading alone. Raises what the run would raise before its first upload."""
    began = time.monotonic()
    repo_id, tag = release.repo_id, release.version
    refs, user = client.refs(repo_id), client.whoami().user
    retired: tuple[str, ...] = ()
    outcome: Outcome
    if refs is None or "main" not in refs.branches:
        files = release.complete(None)
        changed = {file.path_in_repo for file in files}
        sent, outcome = changed, Planned(True, True, True)
    elif tag in refs.tags:
        files = refuse_unless_same(client, release, refs.tags[tag])
        changed, sent, outcome = set(), set(), NoChanges(refs.tags[tag], tag)
    elif mine := own_commit(client, release, refs.branches["main"]):
        files, changed, sent = release.complete(published_card(client, repo_id, mine)), set(), set()
        outcome = Planned(False, False, True)
    else:
        refuse_unfinished(client, release, refs.branches["main"])
        refuse_older(client, repo_id, tag, refs)
        plan = _plan(client, release, refs, unstaged=unstaged)
        files, changed, sent, retired = plan.files, plan.changed, plan.changed - plan.copied.keys(), plan.retired
        outcome = Planned(False, bool(changed or retired), True)
    return Receipt(
        repo_id=repo_id,
        version=tag,
        endpoint=client.endpoint,
        user=user,
        outcome=outcome,
        files=tuple(
            FileReceipt(
                f.path_in_repo,
                f.bytes,
                f.sha256,
                f.path_in_repo in changed,
                f.bytes if f.path_in_repo in sent and (unstaged or f.source is not None) else 0,
            )
            for f in files
        ),
        bytes_sent=sum(f.bytes for f in files if f.path_in_repo in sent and (unstaged or f.source is not None)),
        retries=0,
        seconds=round(time.monotonic() - began, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        retired=retired,
    )


@dataclass(frozen=True)
class _Plan:
    """The files of the commit, which of them differ from main, those to copy from staging, those to remove."""

    files: tuple[LocalFile, ...]
    changed: set[str]
    copied: dict[str, str]
    retired: tuple[str, ...]


def _plan(client: Client, release: RepoRelease, refs: Refs, *, unstaged: bool = False) -> _Plan:
    """What one commit on top of main would have to change.

    Raises HubError where a file is nowhere to be had, unless others have yet to stage it (`unstaged`).
    """
    repo_id, head = release.repo_id, refs.branches["main"]
    files = release.complete(published_card(client, repo_id, head))
    on_main = held_at(client, repo_id, head, files)
    changed = {file.path_in_repo for file in files} - on_main.keys()
    at = refs.branches.get(stage_branch(release.version))
    # The Hub copies only what lies in large-file storage: other staged files come through here.
    waiting = [f for f in files if f.path_in_repo in changed and (f.large or f.source is None)]
    staged = held_at(client, repo_id, at, waiting) if at else {}
    copied = {path: at for path, held in staged.items() if held.sha256 and at}
    files = tuple(
        replace(file, source=client.read(repo_id, at, file.path_in_repo))
        if at and file.source is None and file.path_in_repo in staged.keys() - copied.keys()
        else file
        for file in files
    )
    missing = [f.path_in_repo for f in files if f.source is None and f.path_in_repo in changed - copied.keys()]
    if missing and not unstaged:
        raise HubError(
            f"{repo_id}: {', '.join(missing)} is neither staged for {release.version} nor on main",
            "stage it on the machine that has it",
        )
    return _Plan(files, changed, copied, _retired(client, repo_id, refs, files))


def _retired(client: Client, repo_id: str, refs: Refs, files: Sequence[LocalFile]) -> tuple[str, ...]:
    """Files that the release before listed and this one does not; what somebody changed since is theirs, and stays."""
    before = last_release(client, repo_id, refs)
    listed = listed_at(client, repo_id, before) if before else {}
    left = {path: digest for path, digest in listed.items() if path not in {file.path_in_repo for file in files}}
    there = client.files(repo_id, refs.branches["main"], left)
    ours = [LocalFile(path, None, held.bytes, left[path]) for path, held in there.items()]
    return tuple(sorted(held_at(client, repo_id, refs.branches["main"], ours)))


def _commit(client: Client, release: RepoRelease, plan: _Plan, head: str, *, create_pr: bool) -> Committed:
    changes: list[Change] = [Delete(path) for path in plan.retired]
    for file in plan.files:
        path = file.path_in_repo
        if path in plan.copied:
            changes.append(Copy(path, plan.copied[path]))
        elif path in plan.changed and file.source is not None:
            changes.append(Add(path, file.source, file.bytes, file.sha256))
    manifest = MANIFEST + manifest_of(plan.files)
    title = f"Release {release.version}"
    gone = "".join(f"\n\nRemoved: {path} is not part of this version." for path in plan.retired)
    said = f"{release.message.removeprefix(title).strip()}{gone}".strip()
    message = f"{said}\n\n{RELEASE}{release.version}\n{manifest}".lstrip()

    def find_committed() -> Committed | None:
        if create_pr:
            return waiting_pull(client, release, plan.files)
        history = client.commits(release.repo_id, "main")
        return next((Committed(c.id) for c in until(history, head) if manifest in c.message), None)

    return client.commit(
        release.repo_id,
        "main",
        changes,
        title=title,
        message=message,
        parent=head,
        find_committed=find_committed,
        pull=create_pr,
    )
