"""Stage, then promote: large files first, on a branch of their own; then one commit on main, then the tag.

Every step compares with what the Hub records before it does anything, so that a run that was killed is finished by
running it again, and a run that has nothing to do sends nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

from hubpub.errors import AccessError, ConfigError, ConflictError, HubError, HubpubError
from hubpub.files import write_atomic
from hubpub.hub.client import Add, Change, Client, Commit, Copy, Delete, Landed, Moved, NotFound, Refs, RemoteFile
from hubpub.hub.hashing import HashCache, git_blob_id, parse_sha256sums
from hubpub.hub.names import STAGE_PREFIX, check_repo_id, check_version, stage_branch
from hubpub.hub.release import (
    CARD,
    SUMS,
    FileReceipt,
    LocalFile,
    NoChanges,
    Outcome,
    Planned,
    Progress,
    Published,
    PullRequest,
    Receipt,
    RepoRelease,
    Staged,
    StagedFile,
    TagOnly,
    receipt_path,
)

STAGE_TITLE = "Stage "
_RELEASE, _MANIFEST = "Hubpub-Release: ", "Hubpub-Manifest: "
# As many machines as a repo has recipes stage at the same moment; each conflict costs one small commit.
_STAGE_ATTEMPTS = 8


@dataclass(frozen=True)
class RepoAccess:
    """What is known about a repo before anything is built: whether it exists, its main commit and its tags."""

    repo_id: str
    exists: bool
    head: str | None
    tags: dict[str, str]


def preflight(client: Client, repo_ids: Iterable[str], *, create_pr: bool = False) -> tuple[RepoAccess, ...]:
    """Check names and rights for every repo, before hours are spent. Raises ConfigError or AccessError."""
    repo_ids = [check_repo_id(repo_id) for repo_id in repo_ids]
    client.whoami()
    found = []
    for repo_id in repo_ids:
        refs = client.refs(repo_id)
        if not create_pr:
            client.check_write(repo_id, exists=refs is not None)
            if refs is None and client.whoami().only(repo_id):
                raise AccessError(
                    f"{repo_id} does not exist on {client.endpoint}, and this token, made for that repo alone, "
                    "cannot make it",
                    "create the repo on the Hub first, empty",
                )
        elif client.whoami().role == "read":
            raise AccessError(f"no pull request to {repo_id}: the token may only read", "use a token with write access")
        elif refs is None:
            raise HubError(f"{repo_id} does not exist: there is nothing to open a pull request against")
        found.append(
            RepoAccess(
                repo_id, refs is not None, refs.branches.get("main") if refs else None, dict(refs.tags) if refs else {}
            )
        )
    return tuple(found)


def stage(
    client: Client,
    release: RepoRelease,
    work: Path,
    *,
    progress: Progress | None = None,
    create_pr: bool = False,
    small_too: bool = False,
) -> Staged:
    """Bring every large file of `release` that the repo lacks to the Hub, one by one; main does not change.

    `release` may hold just the files of this machine; with `small_too` all of them are staged, for a machine that will
    promote without having any (see `promote_all`). A file that is on main or staged already is neither read nor sent.
    For a pull request the content waits in storage instead of on a branch. Raises ConflictError where the version is
    taken by other content, HubpubError where a file is not what its recorded hash says.
    """
    began, retried = time.monotonic(), client.retries
    refs = _repo(client, release)
    large = [file for file in release.files if small_too or file.large]
    if release.version in refs.tags:
        _refuse_unless_same(client, release, refs.tags[release.version], large)
    base = refs.branches["main"]
    branch = stage_branch(release.version)
    hashes = HashCache(work / "hashes.json")
    on_main = _held(client, release.repo_id, base, large)
    waiting = _pull_request(client, release, large) if create_pr else None
    at = waiting.commit if waiting else refs.branches.get(branch)
    on_branch = _held(client, release.repo_id, at, large) if at else {}
    done: list[StagedFile] = []
    for file in large:
        path = file.path_in_repo
        told = partial(progress, release.repo_id, path) if progress else None
        sent = 0
        if path in on_main or path in on_branch:
            if told:
                told(file.bytes, file.bytes)
        elif file.source is not None:
            add = _ready(file, hashes)
            if create_pr:
                sent = client.send(release.repo_id, "main", add, told=told, pull=True).sent
            else:
                sent = _stage_one(client, release, add, base, told)
            if isinstance(file.source, Path) and hashes.sha256(file.source) != file.sha256:
                raise HubpubError(f"{file.source} changed while it was sent", "run again when nothing writes to it")
        where = "main" if path in on_main else "missing" if file.source is None and path not in on_branch else "staged"
        done.append(StagedFile(path, file.bytes, file.sha256, where, sent))  # type: ignore[arg-type]
    staged = Staged(
        release.repo_id,
        release.version,
        base,
        tuple(done),
        sum(file.sent_bytes for file in done),
        client.retries - retried,
        round(time.monotonic() - began, 3),
    )
    record = receipt_path(work, release.version, release.repo_id).with_suffix(".staged.json")
    write_atomic(record, (json.dumps(asdict(staged), indent=2) + "\n").encode())
    return staged


def promote(
    client: Client,
    release: RepoRelease,
    work: Path,
    *,
    staged: Staged | None = None,
    progress: Progress | None = None,
    create_pr: bool = False,
) -> Receipt:
    """Make the one commit on main, tag it, read both back and compare every hash.

    Without `staged` the release is compared with the commit its staging branch began at. Raises ConflictError where
    somebody else changed a file of this release meanwhile or the version is taken, HubError where a file is neither
    staged nor on main. Nothing is changed in either case.
    """
    began, retried = time.monotonic(), client.retries - (staged.retries if staged else 0)
    sent = {file.path: file.sent_bytes for file in staged.files} if staged else {}
    repo_id, tag = release.repo_id, release.version
    refs = _repo(client, release)
    changed: set[str] = set()
    outcome: Outcome
    if tag in refs.tags:
        commit = refs.tags[tag]
        files = _refuse_unless_same(client, release, commit)
        outcome = NoChanges(commit, tag)
    else:
        base = staged.base if staged else _stage_base(client, release, refs)
        for last in (False, True):
            head = refs.branches["main"]
            if base != head:
                _refuse_foreign(client, release, base, head)
            plan = _plan(client, release, refs)
            files, changed = plan.files, plan.changed
            if not changed and not plan.retired:
                commit = _release_commit(client, release, files, head)
                outcome = TagOnly(commit, tag)
                break
            _refuse_unfinished(client, release, files)
            waiting = _pull_request(client, release, files) if create_pr else None
            try:
                landed = waiting or _commit(client, release, plan, head, create_pr=create_pr)
            except Moved:
                if last:
                    raise
                base, refs = head, _repo(client, release)
                if tag in refs.tags:
                    _refuse_unless_same(client, release, refs.tags[tag])
                continue
            if not waiting:
                carried = changed - plan.copied.keys() - sent.keys()
                sent |= {file.path_in_repo: file.bytes for file in files if file.path_in_repo in carried}
            commit = landed.commit
            outcome = PullRequest(landed.pull, commit) if landed.pull else Published(commit, tag)
            break
        if not isinstance(outcome, PullRequest):
            commit = _tag(client, release, commit, files)
            _check(client, release, commit, files, card=isinstance(outcome, Published))
    if not isinstance(outcome, PullRequest) and stage_branch(tag) in refs.branches:
        client.delete_branch(repo_id, stage_branch(tag))
    receipt = Receipt(
        repo_id=repo_id,
        version=tag,
        endpoint=client.endpoint,
        user=client.whoami().user,
        outcome=outcome,
        files=tuple(
            FileReceipt(f.path_in_repo, f.bytes, f.sha256, f.path_in_repo in changed, sent.get(f.path_in_repo, 0))
            for f in files
        ),
        bytes_sent=sum(sent.values()),
        retries=client.retries - retried,
        seconds=round(time.monotonic() - began + (staged.seconds if staged else 0), 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    receipt.save(work)
    return receipt


def publish_all(
    client: Client,
    releases: Sequence[RepoRelease],
    work: Path,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    create_pr: bool = False,
) -> list[Receipt]:
    """Check every repo, stage every repo, then promote one after the other; nothing is staged unless all checks pass.

    A dry run only reads, and returns receipts that say which files would be sent and changed.
    """
    ids = [release.repo_id.lower() for release in releases]
    if len(set(ids)) != len(ids):
        raise ConfigError("a repo is named twice in one release")
    preflight(client, [release.repo_id for release in releases], create_pr=create_pr)
    dry = []
    for release in releases:
        dry.append(_rehearse(client, release))
    if dry_run:
        return dry
    staged = [stage(client, release, work, progress=progress, create_pr=create_pr) for release in releases]
    return [
        promote(client, release, work, staged=one, progress=progress, create_pr=create_pr)
        for release, one in zip(releases, staged, strict=True)
    ]


def promote_all(
    client: Client,
    releases: Sequence[RepoRelease],
    work: Path,
    *,
    progress: Progress | None = None,
    dry_run: bool = False,
    create_pr: bool = False,
) -> list[Receipt]:
    """Promote what other machines have staged: files of `releases` without a source are found by their SHA-256.

    Every repo is checked first; nothing is promoted where a file of any of them is neither staged nor on main.
    """
    preflight(client, [release.repo_id for release in releases], create_pr=create_pr)
    dry = [_rehearse(client, release) for release in releases]
    if dry_run:
        return dry
    return [promote(client, release, work, progress=progress, create_pr=create_pr) for release in releases]


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
    merged = len(_held(client, repo_id, head, release.files)) == len(release.files)
    outcome: Outcome
    if version in refs.tags:
        _refuse_unless_same(client, release, refs.tags[version], release.files)
        outcome = NoChanges(refs.tags[version], version)
    elif dry_run:
        outcome = Planned(False, not merged, True)
    else:
        if not merged:
            _refuse_foreign(client, release, base, head)
            _merge(client, release, found.pull)
        # Somebody may commit between the merge and this moment: the release is the first commit that holds it all.
        since = reversed(_until(client.commits(repo_id, "main"), base))
        held = (c.id for c in since if len(_held(client, repo_id, c.id, release.files)) == len(release.files))
        commit = next(held, None)
        if commit is None:
            raise HubError(
                f"{repo_id}: main does not hold {version} although pull request #{found.pull} was merged",
                "look at what was committed since, then publish the next version",
            )
        commit = _tag(client, release, commit, release.files)
        _check(client, release, commit, release.files, card=False)
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


def staged_versions(client: Client, repo_id: str) -> tuple[str, ...]:
    """Versions of `repo_id` that have a staging branch."""
    refs = client.refs(repo_id)
    branches = sorted(refs.branches) if refs else []
    return tuple(name.removeprefix(STAGE_PREFIX) for name in branches if name.startswith(STAGE_PREFIX))


def unstage(client: Client, repo_id: str, version: str) -> bool:
    """Drop what was staged for `version`; main and tags stay as they are. Returns whether anything was staged."""
    if version not in staged_versions(client, repo_id):
        return False
    client.delete_branch(repo_id, stage_branch(version))
    return True


def is_same(client: Client, repo_id: str, revision: str, file: LocalFile, remote: RemoteFile | None) -> bool:
    """Whether the Hub holds exactly `file` at `revision`, by recorded hashes wherever there are any."""
    if remote is None or remote.bytes != file.bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    content = file.source.read_bytes() if isinstance(file.source, Path) else file.source
    if content is None:
        return client.sha256(repo_id, revision, file.path_in_repo) == file.sha256
    return git_blob_id(content) == remote.blob_id


@dataclass(frozen=True)
class _Plan:
    """The files of the commit, which of them differ from main, those to copy from staging, those to remove."""

    files: tuple[LocalFile, ...]
    changed: set[str]
    copied: dict[str, str]
    retired: tuple[str, ...]


def _repo(client: Client, release: RepoRelease) -> Refs:
    refs = client.refs(release.repo_id)
    if refs is None:
        client.create_repo(release.repo_id, private=release.private)
        refs = client.refs(release.repo_id)
    if refs is None or "main" not in refs.branches:
        raise HubError(f"{release.repo_id} has no branch main", "create the repo with at least one commit")
    return refs


def _held(client: Client, repo_id: str, revision: str, files: Sequence[LocalFile]) -> dict[str, RemoteFile]:
    """Those of `files` that the Hub holds at `revision` with this very content."""
    found = client.files(repo_id, revision, [file.path_in_repo for file in files])
    return {
        file.path_in_repo: found[file.path_in_repo]
        for file in files
        if is_same(client, repo_id, revision, file, found.get(file.path_in_repo))
    }


def _ready(file: LocalFile, hashes: HashCache) -> Add:
    """`file` as something to send, once its content is known to be what was recorded."""
    assert file.source is not None
    if isinstance(file.source, Path):
        size = file.source.stat().st_size if file.source.is_file() else -1
        if size != file.bytes or hashes.sha256(file.source) != file.sha256:
            raise HubpubError(
                f"{file.source} is not the file that was measured: its size or SHA-256 differs",
                "export and measure it again",
            )
    return Add(file.path_in_repo, file.source, file.bytes, file.sha256)


def _stage_one(client: Client, release: RepoRelease, add: Add, base: str, told: partial[None] | None) -> int:
    """Send one file and commit it to the staging branch. Returns the bytes that travelled."""
    repo_id, branch = release.repo_id, stage_branch(release.version)

    def landed() -> Landed | None:
        refs = client.refs(repo_id)
        at = refs.branches.get(branch) if refs else None
        held = client.files(repo_id, at, [add.path]).get(add.path) if at else None
        same = held is not None and (held.sha256 or _sha256_of_blob(held, add)) == add.sha256
        return Landed(at) if at and same else None

    for attempt in range(_STAGE_ATTEMPTS):
        client.create_branch(repo_id, branch, base)
        sent = None
        try:
            sent = client.send(repo_id, branch, add, told=told)
            title = f"{STAGE_TITLE}{add.path} for {release.version}"
            client.commit(repo_id, branch, [sent], title=title, parent=None, landed=landed)
            break
        except (ConflictError, NotFound):
            # Another machine stages at the same moment, or a twin of this release has just been promoted and has
            # removed the branch.
            refs = client.refs(repo_id)
            if refs and release.version in refs.tags:
                large = [file for file in release.files if file.large]
                _refuse_unless_same(client, release, refs.tags[release.version], large)
                return sent.sent if sent else 0
            if attempt + 1 == _STAGE_ATTEMPTS:
                raise
            time.sleep(client.retry.wait(attempt, None))
    if landed() is None:
        _refuse_what_replaced(client, release, add)
    return sent.sent if sent else 0


def _refuse_what_replaced(client: Client, release: RepoRelease, add: Add) -> None:
    """Say why `add`, which the Hub took a moment ago, is no longer staged. Passes where its release is out already."""
    repo_id, branch = release.repo_id, stage_branch(release.version)
    refs = client.refs(repo_id)
    if refs and release.version in refs.tags:
        _refuse_unless_same(client, release, refs.tags[release.version], [f for f in release.files if f.large])
        return
    at = refs.branches.get(branch) if refs else None
    if at is None or client.files(repo_id, at, [add.path]):
        raise ConflictError(
            f"{repo_id}: another release of {release.version} replaced {add.path} while it was being staged",
            "let one machine at a time release this version, then run this again",
        )
    raise HubError(
        f"{repo_id}: {add.path} is not on {branch} although the Hub took it",
        "look for a .gitignore in the repo that hides it",
    )


def _sha256_of_blob(held: RemoteFile, add: Add) -> str | None:
    content = add.source.read_bytes() if isinstance(add.source, Path) else add.source
    return add.sha256 if held.blob_id == git_blob_id(content) else None


def _plan(client: Client, release: RepoRelease, refs: Refs) -> _Plan:
    """What one commit on top of main would have to change. Raises HubError where a file is nowhere to be had."""
    repo_id, head = release.repo_id, refs.branches["main"]
    files = release.complete(_card(client, repo_id, head))
    on_main = _held(client, repo_id, head, files)
    changed = {file.path_in_repo for file in files} - on_main.keys()
    at = refs.branches.get(stage_branch(release.version))
    # The Hub copies only what lies in large-file storage: other staged files come through here.
    waiting = [f for f in files if f.path_in_repo in changed and (f.large or f.source is None)]
    staged = _held(client, repo_id, at, waiting) if at else {}
    copied = {path: at for path, held in staged.items() if held.sha256 and at}
    files = tuple(
        replace(file, source=client.read(repo_id, at, file.path_in_repo))
        if at and file.source is None and file.path_in_repo in staged.keys() - copied.keys()
        else file
        for file in files
    )
    missing = [f.path_in_repo for f in files if f.source is None and f.path_in_repo in changed - copied.keys()]
    if missing:
        raise HubError(
            f"{repo_id}: {', '.join(missing)} is neither staged for {release.version} nor on main",
            "stage it on the machine that has it",
        )
    retired = tuple(sorted(client.files(repo_id, head, release.retire))) if release.retire else ()
    return _Plan(files, changed, copied, tuple(set(retired) - {file.path_in_repo for file in files}))


def _commit(client: Client, release: RepoRelease, plan: _Plan, head: str, *, create_pr: bool) -> Landed:
    changes: list[Change] = [Delete(path) for path in plan.retired]
    for file in plan.files:
        path = file.path_in_repo
        if path in plan.copied:
            changes.append(Copy(path, plan.copied[path]))
        elif path in plan.changed and file.source is not None:
            changes.append(Add(path, file.source, file.bytes, file.sha256))
    manifest = _MANIFEST + _manifest(plan.files)
    title = f"Release {release.version}"
    message = f"{release.message.removeprefix(title).strip()}\n\n{_RELEASE}{release.version}\n{manifest}".lstrip()

    def landed() -> Landed | None:
        if create_pr:
            return _pull_request(client, release, plan.files)
        history = client.commits(release.repo_id, "main")
        return next((Landed(c.id) for c in _until(history, head) if manifest in c.message), None)

    return client.commit(
        release.repo_id, "main", changes, title=title, message=message, parent=head, landed=landed, pull=create_pr
    )


def _pull_request(client: Client, release: RepoRelease, files: Sequence[LocalFile]) -> Landed | None:
    """The newest pull request of this version that holds just `files` already, if there is one."""
    refs = client.refs(release.repo_id, pulls=True)
    for number, commit in sorted(refs.pulls.items(), reverse=True)[:20] if refs else ():
        mine = any(_RELEASE + release.version in c.message for c in client.commits(release.repo_id, commit)[:5])
        if mine and len(_held(client, release.repo_id, commit, files)) == len(files):
            return Landed(commit, number)
    return None


def _pull_of(client: Client, repo_id: str, refs: Refs, version: str) -> Landed | None:
    """The newest pull request that was made for `version`, if there is one."""
    mark = _RELEASE + version
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
        raise HubError(f"{repo_id}@{commit[:12]} is no release: {_few(missing) or SUMS} is missing")
    files = [LocalFile(path, None, remote[path].bytes, digest) for path, digest in sums.items()]
    files.append(LocalFile.text(SUMS, content or b""))
    return RepoRelease(repo_id, version, tuple(files), f"Release {version}")


def _merge(client: Client, release: RepoRelease, number: int) -> None:
    """Merge pull request `number`; an answer that was lost is looked for on main."""

    def landed() -> bool:
        return len(_held(client, release.repo_id, "main", release.files)) == len(release.files)

    try:
        client.merge(release.repo_id, number, landed=landed)
    except ConflictError as error:
        raise ConflictError(error.message, "resolve or close it on the Hub, then run again") from None


def _manifest(files: Iterable[LocalFile]) -> str:
    """One hash for the content of a release. The card is left out: its text depends on what people wrote."""
    lines = (f"{f.sha256} {f.path_in_repo}\n" for f in files if f.path_in_repo != CARD)
    return sha256("".join(sorted(lines)).encode()).hexdigest()


def _until(history: list[Commit], end: str) -> list[Commit]:
    """The commits of `history` (newest first) that came after `end`."""
    ids = [commit.id for commit in history]
    return history[: ids.index(end)] if end in ids else history


def _release_commit(client: Client, release: RepoRelease, files: Sequence[LocalFile], head: str) -> str:
    """The commit that made main what it is: this release's own where the history has it, else the head."""
    manifest = _MANIFEST + _manifest(files)
    history = client.commits(release.repo_id, head)
    marks = (_RELEASE + release.version, manifest)
    return next((c.id for c in history if all(mark in c.message.split("\n") for mark in marks)), head)


def _refuse_unfinished(client: Client, release: RepoRelease, files: Sequence[LocalFile]) -> None:
    """Raise ConflictError where main has a commit of this version with other content that was never tagged."""
    for commit in client.commits(release.repo_id, "main"):
        lines = commit.message.split("\n")
        if _RELEASE + release.version in lines and _MANIFEST + _manifest(files) not in lines:
            raise ConflictError(
                f"{release.repo_id}: {release.version} was committed with other content by {_who(commit)} as "
                f"{commit.id[:12]} and is not tagged yet",
                "let that release finish, or run it again from where its files are; else choose the next version",
            )


def _refuse_unless_same(
    client: Client, release: RepoRelease, commit: str, only: Sequence[LocalFile] | None = None
) -> tuple[LocalFile, ...]:
    """The files of the release if the tag's commit holds just these. Raises ConflictError where it does not."""
    files = tuple(only) if only is not None else release.complete(_card(client, release.repo_id, commit))
    held = _held(client, release.repo_id, commit, files)
    other = [file.path_in_repo for file in files if file.path_in_repo not in held]
    if other:
        raise ConflictError(
            f"{release.repo_id}: {release.version} exists (commit {commit[:12]}) with other content: {_few(other)}",
            "a published version never changes: choose the next one",
        )
    return files


def _refuse_foreign(client: Client, release: RepoRelease, base: str, head: str) -> None:
    """Raise ConflictError where main changed a file of this release after `base`, and say who did. Cards are merged."""
    repo_id = release.repo_id
    files = {file.path_in_repo: file for file in release.files if file.path_in_repo != CARD}
    paths = [*files, SUMS, *release.retire]
    before, after = client.files(repo_id, base, paths), client.files(repo_id, head, paths)
    touched = [
        path
        for path in sorted({*before, *after})
        if _blob(before.get(path)) != _blob(after.get(path))
        and not (path in files and is_same(client, repo_id, head, files[path], after.get(path)))
    ]
    sums = {SUMS: release.complete(None)} if SUMS in touched and SUMS not in files else {}
    for complete in sums.values():
        ours = next(file for file in complete if file.path_in_repo == SUMS)
        if is_same(client, repo_id, head, ours, after.get(SUMS)):
            touched.remove(SUMS)
    if touched:
        who = "; ".join(
            f"{commit.id[:12]} '{commit.title}' by {_who(commit)}"
            for commit in _until(client.commits(repo_id, head), base)[:5]
        )
        raise ConflictError(
            f"{repo_id}: main changed since {release.version} was staged, in {_few(touched)}: {who}",
            "nothing was published; look at that change, then run again to publish over it",
        )


def _stage_base(client: Client, release: RepoRelease, refs: Refs) -> str:
    """The commit of main that the staging branch of this version began at; main's own where there is none."""
    head, branch = refs.branches["main"], stage_branch(release.version)
    if branch not in refs.branches:
        return head
    ours = {commit.id for commit in client.commits(release.repo_id, head)}
    return next((c.id for c in client.commits(release.repo_id, refs.branches[branch]) if c.id in ours), head)


def _tag(client: Client, release: RepoRelease, commit: str, files: Sequence[LocalFile]) -> str:
    """Create the tag, read it back, and return its commit. Raises ConflictError where it lies on other content."""
    repo_id, tag = release.repo_id, release.version
    with suppress(ConflictError):
        client.create_tag(repo_id, tag, commit)
    refs = client.refs(repo_id)
    found = refs.tags.get(tag) if refs else None
    if found is None:
        raise HubError(f"{repo_id}: the Hub does not show the tag {tag}", "run again: only the tag is missing")
    if found != commit:
        _refuse_unless_same(client, release, found)
    return found


def _check(client: Client, release: RepoRelease, commit: str, files: Sequence[LocalFile], *, card: bool) -> None:
    """Read every recorded hash back. Raises HubError naming the files that are not what was sent."""
    wanted = [file for file in files if card or file.path_in_repo != CARD]
    held = _held(client, release.repo_id, commit, wanted)
    wrong = [file.path_in_repo for file in wanted if file.path_in_repo not in held]
    if wrong:
        raise HubError(
            f"{release.repo_id}@{release.version}: the Hub records something else for {_few(wrong)}",
            "do not point anybody at this version; look for a .gitignore in the repo, then release the next version",
        )


def _rehearse(client: Client, release: RepoRelease) -> Receipt:
    """What a run would do, by reading alone. Raises what the run would raise before its first upload."""
    began = time.monotonic()
    repo_id, tag = release.repo_id, release.version
    refs = client.refs(repo_id)
    outcome: Outcome
    if refs is None or "main" not in refs.branches:
        files = release.complete(None)
        changed = {file.path_in_repo for file in files}
        sent, outcome = changed, Planned(True, True, True)
    elif tag in refs.tags:
        files = _refuse_unless_same(client, release, refs.tags[tag])
        changed, sent, outcome = set(), set(), NoChanges(refs.tags[tag], tag)
    else:
        plan = _plan(client, release, refs)
        files, changed, sent = plan.files, plan.changed, plan.changed - plan.copied.keys()
        if changed:
            _refuse_unfinished(client, release, files)
        outcome = Planned(False, bool(changed or plan.retired), True)
    return Receipt(
        repo_id=repo_id,
        version=tag,
        endpoint=client.endpoint,
        user=client.whoami().user,
        outcome=outcome,
        files=tuple(
            FileReceipt(
                f.path_in_repo,
                f.bytes,
                f.sha256,
                f.path_in_repo in changed,
                f.bytes if f.path_in_repo in sent and f.source is not None else 0,
            )
            for f in files
        ),
        bytes_sent=sum(f.bytes for f in files if f.path_in_repo in sent and f.source is not None),
        retries=0,
        seconds=round(time.monotonic() - began, 3),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _card(client: Client, repo_id: str, revision: str) -> str | None:
    """The published card as text, or None. Raises ConflictError where it is not text."""
    content = client.read(repo_id, revision, CARD)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        raise ConflictError(f"{repo_id}: the published {CARD} is not UTF-8 text", "repair or remove it first") from None


def _blob(file: RemoteFile | None) -> str | None:
    return file.blob_id if file else None


def _who(commit: Commit) -> str:
    return ", ".join(commit.authors) or "unknown"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
