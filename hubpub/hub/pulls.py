"""Releases that wait in a pull request: how they are found, merged, tagged and checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hubpub.errors import ConflictError, HubError
from hubpub.hub.client import Client, Landed, Refs
from hubpub.hub.compare import few, held_at, refuse_foreign, refuse_unless_same
from hubpub.hub.content import SUMS, LocalFile, RepoRelease
from hubpub.hub.hashing import parse_sha256sums
from hubpub.hub.history import RELEASE, until
from hubpub.hub.names import check_repo_id, check_version
from hubpub.hub.receipts import FileReceipt, NoChanges, Outcome, Planned, Published, Receipt, TagOnly
from hubpub.hub.tags import make_tag, read_back


def promote_pull(client: Client, repo_id: str, version: str, work: Path, *, dry_run: bool = False) -> Receipt | None:
    """Merge the pull request that holds `version`, then tag and check main; None where there is no such request.

    One that was merged by hand is only tagged. Raises ConflictError where somebody changed a file of it on main
    meanwhile; nothing is merged then.
    """
    began, retried = time.monotonic(), client.retries
    check_version(version)
    refs = client.refs(check_repo_id(repo_id), pulls=True)
    found = _pull_of(client, repo_id, refs, version) if refs else None
    if refs is None or found is None or found.pull is None:
        return None
    head, tip = refs.branches["main"], found.commit
    release = _recorded(client, repo_id, tip, version)
    history = client.commits(repo_id, head)
    ours = {commit.id for commit in history}
    base = next((c.id for c in client.commits(repo_id, tip) if c.id in ours and c.id != tip), head)
    merged = len(held_at(client, repo_id, head, release.files)) == len(release.files)
    outcome: Outcome
    if version in refs.tags:
        refuse_unless_same(client, release, refs.tags[version], release.files)
        outcome = NoChanges(refs.tags[version], version)
    elif dry_run:
        outcome = Planned(False, not merged, True)
    else:
        if not merged:
            refuse_foreign(client, release, base, head)
            _merge(client, release, found.pull)
        # Somebody may commit between the merge and this moment: the release is the first commit that holds it all.
        since = reversed(until(client.commits(repo_id, "main"), base))
        held = (c.id for c in since if len(held_at(client, repo_id, c.id, release.files)) == len(release.files))
        commit = next(held, None)
        if commit is None:
            raise HubError(
                f"{repo_id}: main does not hold {version} although pull request #{found.pull} was merged",
                "look at what was committed since, then publish the next version",
            )
        commit = make_tag(client, release, commit, release.files)
        read_back(client, release, commit, release.files, card=False)
        outcome = TagOnly(commit, version) if merged else Published(commit, version)
    changed = isinstance(outcome, Published | Planned) and not merged
    receipt = Receipt(
        repo_id=repo_id,
        version=version,
        endpoint=client.endpoint,
        user=client.whoami().user,
        outcome=outcome,
        files=tuple(FileReceipt(f.path_in_repo, f.bytes, f.sha256, changed, 0) for f in release.files),
        bytes_sent=0,
        retries=client.retries - retried,
        seconds=round(time.monotonic() - began, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not dry_run:
        receipt.save(work)
    return receipt


def waiting_pull(client: Client, release: RepoRelease, files: Sequence[LocalFile]) -> Landed | None:
    """The newest pull request of this version that holds just `files` already, if there is one."""
    refs = client.refs(release.repo_id, pulls=True)
    for number, commit in sorted(refs.pulls.items(), reverse=True)[:20] if refs else ():
        mine = any(RELEASE + release.version in c.message for c in client.commits(release.repo_id, commit)[:5])
        if mine and len(held_at(client, release.repo_id, commit, files)) == len(files):
            return Landed(commit, number)
    return None


def _pull_of(client: Client, repo_id: str, refs: Refs, version: str) -> Landed | None:
    """The newest pull request that was made for `version`, if there is one."""
    mark = RELEASE + version
    for number, commit in sorted(refs.pulls.items(), reverse=True)[:20]:
        if any(mark in c.message.split("\n") for c in client.commits(repo_id, commit)[:5]):
            return Landed(commit, number)
    return None


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

    def landed() -> bool:
        return len(held_at(client, release.repo_id, "main", release.files)) == len(release.files)

    try:
        client.merge(release.repo_id, number, landed=landed)
    except ConflictError as error:
        raise ConflictError(error.message, "resolve or close it on the Hub, then run again") from None
