"""Releases that wait in a pull request: how they are found, merged, tagged and checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hubpub.errors import ConflictError, HubError
from hubpub.hub.client import Client, Committed, Pull
from hubpub.hub.compare import few, held_at, refuse_foreign, refuse_unless_same
from hubpub.hub.content import SUMS, LocalFile, RepoRelease
from hubpub.hub.hashing import parse_sha256sums
from hubpub.hub.history import RELEASE, refuse_older, until
from hubpub.hub.names import check_repo_id, check_version
from hubpub.hub.receipts import FileReceipt, NoChanges, Outcome, Planned, Published, Receipt, TagOnly
from hubpub.hub.tags import tag_and_check


def promote_pull(client: Client, repo_id: str, version: str, work: Path, *, dry_run: bool = False) -> Receipt | None:
    """Merge the pull request that holds `version`, then tag and check main; None where there is no such request.

    One that was merged by hand is only tagged. Raises ConflictError where somebody changed a file of it on main
    meanwhile; nothing is merged then.
    """
    began, retried = time.monotonic(), client.retries
    check_version(version)
    refs = client.refs(check_repo_id(repo_id))
    found = _pull_of(client, repo_id, version) if refs else None
    if refs is None or found is None:
        return None
    user = client.whoami().user
    head, tip = refs.branches["main"], found.commit
    release = _recorded(client, repo_id, tip, version)
    history = client.commits(repo_id, head)
    ours = {commit.id for commit in history}
    base = next((c.id for c in client.commits(repo_id, tip) if c.id in ours and c.id != tip), head)
    merged = found.merged or len(held_at(client, repo_id, head, release.files)) == len(release.files)
    if not merged:
        refuse_older(client, repo_id, version, refs)
    outcome: Outcome
    notes: tuple[str, ...] = ()
    if version in refs.tags:
        refuse_unless_same(client, release, refs.tags[version], release.files)
        outcome = NoChanges(refs.tags[version], version)
    elif dry_run:
        outcome = Planned(False, not merged, True)
    else:
        if not merged:
            refuse_foreign(client, release, base, head)
            _merge(client, release, found.number)
        # Somebody may commit between the merge and this moment: the release is the first commit that holds it all.
        since = reversed(until(client.commits(repo_id, "main"), base))
        held = (c.id for c in since if len(held_at(client, repo_id, c.id, release.files)) == len(release.files))
        commit = next(held, None)
        if commit is None:
            raise HubError(
                f"{repo_id}: main does not hold {version} although pull request #{found.number} was merged",
                "look at what was committed since, then publish the next version",
            )
        commit, notes = tag_and_check(client, release, commit, release.files, card=False)
        outcome = TagOnly(commit, version) if merged else Published(commit, version)
    changed = isinstance(outcome, Published | Planned) and not merged
    receipt = Receipt(
        repo_id=repo_id,
        version=version,
        endpoint=client.endpoint,
        user=user,
        outcome=outcome,
        files=tuple(FileReceipt(f.path_in_repo, f.bytes, f.sha256, changed, 0) for f in release.files),
        bytes_sent=0,
        retries=client.retries - retried,
        seconds=round(time.monotonic() - began, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=notes,
    )
    return receipt if dry_run else receipt.kept(work)


def waiting_pull(client: Client, release: RepoRelease, files: Sequence[LocalFile]) -> Committed | None:
    """The newest open pull request of this version that holds just `files` already, if there is one."""
    for pull in client.pulls(release.repo_id):
        mine = pull.open and _is_for(client, release.repo_id, pull, release.version)
        if mine and len(held_at(client, release.repo_id, pull.commit, files)) == len(files):
            return Committed(pull.commit, pull.number)
    return None


def _pull_of(client: Client, repo_id: str, version: str) -> Pull | None:
    """The newest pull request for `version` that is open or merged, if there is one; a closed one was turned down."""
    for pull in client.pulls(repo_id):
        if (pull.open or pull.merged) and _is_for(client, repo_id, pull, version):
            return pull
    return None


def _is_for(client: Client, repo_id: str, pull: Pull, version: str) -> bool:
    """Whether a pull request was made for `version`: people may have added commits of their own."""
    mark = RELEASE + version
    return any(mark in commit.message.split("\n") for commit in client.commits(repo_id, pull.commit)[:20])


def _recorded(client: Client, repo_id: str, commit: str, version: str) -> RepoRelease:
    """The release that lies at `commit`, as its SHA256SUMS tells. Raises HubError where there is none."""
    content = client.read(repo_id, commit, SUMS)
    try:
        sums = parse_sha256sums((content or b"").decode())
    except ValueError as error:
        raise HubError(f"{repo_id}@{commit[:12]}: {SUMS}: {error}") from None
    remote = client.files(repo_id, commit, sums)
    missing = sorted(sums.keys() - remote.keys())
    if not sums or missing:
        raise HubError(f"{repo_id}@{commit[:12]} is no release: {few(missing) or SUMS} is missing")
    files = [LocalFile(path, None, remote[path].bytes, digest) for path, digest in sums.items()]
    files.append(LocalFile.text(SUMS, content or b""))
    return RepoRelease(repo_id, version, tuple(files), f"Release {version}")


def _merge(client: Client, release: RepoRelease, number: int) -> None:
    """Merge pull request `number`; an answer that was lost is looked for on main."""

    def is_merged() -> bool:
        return len(held_at(client, release.repo_id, "main", release.files)) == len(release.files)

    try:
        client.merge(release.repo_id, number, is_merged=is_merged)
    except ConflictError as error:
        raise ConflictError(error.message, "resolve or close it on the Hub, then run again") from None
