"""The durable store: contents by SHA-256, and repos made of commits and references, all in plain files.

    token, tokens.json     who may do what (readable by their owner alone)
    blobs/ab/abcdef...     contents, named by their SHA-256
    repos/owner/name/      state.json (references, pull requests), commits/<id>.json, objects/<sha256> (uploaded here)
    collections/owner/     one file per collection
    unfinished/            whatever was being written when the process died; emptied at the start

A reference changes by replacing state.json in one step, after everything it points to is on disk. Killing the process
at any moment therefore leaves the state before or after a request, never one in between.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from hubpub.localhub import gitobjects
from hubpub.localhub.disk import Disk, Spool
from hubpub.localhub.names import check_path, check_ref_name, is_oid
from hubpub.localhub.patterns import DEFAULT_ATTRIBUTES
from hubpub.localhub.wire import HttpError

BRANCH, TAG, PULL = "refs/heads/", "refs/tags/", "refs/pr/"


@dataclass(frozen=True)
class Entry:
    """A file of a commit: size in bytes, git's blob id, SHA-256 of the content, and whether it is a large file."""

    size: int
    oid: str
    sha256: str
    lfs: bool

    @classmethod
    def regular(cls, size: int, oid: str, sha256: str) -> Entry:
        return cls(size, oid, sha256, False)

    @classmethod
    def large(cls, size: int, sha256: str) -> Entry:
        return cls(size, gitobjects.object_id("blob", gitobjects.pointer(sha256, size)), sha256, True)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree; `date` in seconds since 1970."""

    oid: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: int
    files: Mapping[str, Entry] = field(repr=False)


@dataclass(frozen=True)
class Authored:
    """What a commit says of itself, in a line and in full, and who made it."""

    title: str
    message: str
    author: str


@dataclass(frozen=True)
class Pull:
    """A pull request: `base` is the branch it is for, `base_commit` the commit it started from."""

    num: int
    title: str
    description: str
    author: str
    date: int
    base: str
    base_commit: str
    status: str = "open"
    merge_commit: str | None = None
    closed_by: str | None = None


@dataclass(frozen=True)
class State:
    """What can change about a repo. `gated` is kept and told, and keeps nobody out."""

    id: str
    private: bool
    created: int
    refs: Mapping[str, str]
    pulls: tuple[Pull, ...] = ()
    gated: bool | str = False


class Repo:
    """One repo. Whoever changes it holds `lock`, so that what was checked still holds when it is written."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self.lock = threading.RLock()
        self.gone = False
        stored = json.loads((folder / "state.json").read_bytes())
        stored["pulls"] = tuple(Pull(**pull) for pull in stored["pulls"])
        self.state = State(**stored)
        self.commit = lru_cache(maxsize=256)(self._read_commit)

    @property
    def id(self) -> str:
        return self.state.id

    def save(self, state: State) -> None:
        """Make `state` the repo's state, on disk first. Raises HttpError 404 where the repo is being deleted."""
        if self.gone:
            raise repo_not_found()
        self._disk.write_json(self._folder / "state.json", asdict(state))
        self.state = state

    def set_ref(self, ref: str, oid: str | None) -> None:
        """Point `ref` at a commit, or remove it."""
        refs = {name: target for name, target in self.state.refs.items() if name != ref}
        if oid is not None:
            refs[ref] = oid
        self.save(replace(self.state, refs=refs))

    def resolve(self, revision: str) -> str:
        """The commit id of a branch, tag, full reference or commit id. Raises HttpError 404 RevisionNotFound."""
        refs = self.state.refs
        for name in (revision, BRANCH + revision, TAG + revision):
            if name in refs:
                return refs[name]
        if is_oid(revision) and self._commit_path(revision).exists():
            return revision
        raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        return self.commit(self.resolve(revision))

    def branch_of(self, revision: str) -> str:
        """The reference that a commit to `revision` moves: a branch or a pull request. Raises HttpError."""
        refs = self.state.refs
        if BRANCH + revision in refs:
            return BRANCH + revision
        if revision in refs and not revision.startswith(TAG):
            return revision
        if TAG + revision in refs or revision in refs or is_oid(revision):
            raise HttpError(400, f"'{revision}' is not a branch: a commit needs one")
        raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, oid: str) -> Iterator[Commit]:
        """First parents from `oid` back to the beginning."""
        while True:
            commit = self.commit(oid)
            yield commit
            if not commit.parents:
                return
            oid = commit.parents[0]

    def _commit_path(self, oid: str) -> Path:
        return self._folder / "commits" / f"{oid}.json"

    def _read_commit(self, oid: str) -> Commit:
        stored = json.loads(self._commit_path(oid).read_bytes())
        stored["files"] = {path: Entry(*values) for path, values in stored["files"].items()}
        stored["parents"] = tuple(stored["parents"])
        return Commit(**stored)

    def write_commit(self, parents: Iterable[str], files: Mapping[str, Entry], made: Authored) -> Commit:
        """Put a commit on disk; no reference points at it yet."""
        return write_commit(self._disk, self._folder, tuple(parents), files, made)

    def own(self, sha256: str) -> None:
        """Record that this content was uploaded to this repo by somebody who had it."""
        place = self._folder / "objects" / sha256
        if not place.exists():
            self._disk.write(place, b"")

    def owns(self, sha256: str) -> bool:
        return (self._folder / "objects" / sha256).exists()

    def last_changes(self, oid: str, paths: Iterable[str]) -> dict[str, Commit]:
        """For each file or folder of `paths`, the newest commit up to `oid` in which it changed."""
        wanted, found = set(paths), {}
        history = self.history(oid)
        newer = next(history)
        for older in history:
            for path in list(wanted):
                if _below(newer.files, path) != _below(older.files, path):
                    found[path] = newer
                    wanted.discard(path)
            newer = older
        return {**dict.fromkeys(wanted, newer), **found}

    def add_ref(self, ref: str, oid: str) -> None:
        """Make a new branch or tag. Raises HttpError 409 where the name is taken."""
        check_ref_name(ref.removeprefix(BRANCH).removeprefix(TAG))
        if ref in self.state.refs:
            raise HttpError(409, f"Reference {ref} already exists")
        # Git keeps references as files in folders: one name cannot be the folder of another.
        if any(other.startswith(ref + "/") or ref.startswith(other + "/") for other in self.state.refs):
            raise HttpError(409, f"Reference {ref} conflicts with another one")
        self.set_ref(ref, oid)


def _below(files: Mapping[str, Entry], path: str) -> object:
    return files.get(path) or {name: entry.oid for name, entry in files.items() if name.startswith(path + "/")}


def write_commit(
    disk: Disk, folder: Path, parents: tuple[str, ...], files: Mapping[str, Entry], made: Authored
) -> Commit:
    """Put a commit into the repo at `folder`. Raises HttpError 400 where a file would also be a folder."""
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise HttpError(400, f"'{parent}' cannot be a file and a folder")
            parent = parent.rpartition("/")[0]
    # As for other builds that are to be the same again: the same content then has the same commit id.
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    tree = gitobjects.tree_ids((path, entry.oid) for path, entry in files.items())[""]
    text = f"{made.title}\n\n{made.message}" if made.message else made.title
    oid = gitobjects.commit_id(tree, parents, made.author, seconds, text)
    commit = Commit(oid, parents, made.title, made.message, made.author, seconds, dict(sorted(files.items())))
    stored = {
        **{name: getattr(commit, name) for name in ("oid", "parents", "title", "message", "author", "date")},
        "files": {path: [e.size, e.oid, e.sha256, e.lfs] for path, e in commit.files.items()},
    }
    disk.write_json(folder / "commits" / f"{oid}.json", stored)
    return commit


class Store:
    """All repos and contents of one server."""

    def __init__(self, disk: Disk) -> None:
        """Reads what is there and removes what was left unfinished."""
        self.disk = disk
        self._blobs = disk.root / "blobs"
        self._repos_folder = disk.root / "repos"
        shutil.rmtree(disk.unfinished, ignore_errors=True)
        for folder in (disk.unfinished, self._blobs, self._repos_folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._repos: dict[str, Repo] = {}
        for state in self._repos_folder.glob("*/*/state.json"):
            repo = Repo(disk, state.parent)
            self._repos[repo.id.casefold()] = repo

    def blob_path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def has_blob(self, sha256: str) -> bool:
        return self.blob_path(sha256).exists()

    def blob_size(self, sha256: str) -> int | None:
        try:
            return self.blob_path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read_blob(self, sha256: str) -> bytes:
        return self.blob_path(sha256).read_bytes()

    def keep(self, spool: Spool) -> str:
        """Move a finished file among the contents and return its SHA-256."""
        sha256 = spool.sha256
        if not self.has_blob(sha256):
            spool.move(self.blob_path(sha256))
        return sha256

    def keep_bytes(self, data: bytes) -> Entry:
        """Store a small file."""
        with self.disk.spool() as spool:
            spool.write(data)
            return Entry.regular(len(data), gitobjects.object_id("blob", data), self.keep(spool))

    def repos(self) -> list[Repo]:
        with self._lock:
            return sorted(self._repos.values(), key=lambda repo: repo.id)

    def find(self, repo_id: str) -> Repo | None:
        """The repo of exactly this id."""
        repo = self._repos.get(repo_id.casefold())
        return repo if repo and repo.id == repo_id else None

    def create(self, repo_id: str, *, private: bool, author: str) -> Repo | None:
        """A new repo with one commit, or None where there is one whose id differs in case at most."""
        with self._lock:
            if repo_id.casefold() in self._repos:
                return None
            blank = self.disk.blank()
            blank.mkdir()
            files = {".gitattributes": self.keep_bytes(DEFAULT_ATTRIBUTES.encode())}
            first = write_commit(self.disk, blank, (), files, Authored("initial commit", "", author))
            state = State(repo_id, private, first.date, {BRANCH + "main": first.oid})
            self.disk.write_json(blank / "state.json", asdict(state))
            place = self._repos_folder / repo_id
            place.parent.mkdir(exist_ok=True)
            blank.rename(place)
            repo = Repo(self.disk, place)
            self._repos[repo_id.casefold()] = repo
            return repo

    def delete(self, repo: Repo) -> None:
        with self._lock, repo.lock:
            if repo.gone:
                return
            repo.gone = True
            blank = self.disk.blank()
            (self._repos_folder / repo.id).rename(blank)
            del self._repos[repo.id.casefold()]
        shutil.rmtree(blank, ignore_errors=True)


def repo_not_found() -> HttpError:
    return HttpError(404, "Repository not found", "RepoNotFound")


def apply(files: Mapping[str, Entry], changes: Iterable[tuple[str, Entry | None]]) -> dict[str, Entry]:
    """`files` after `changes` in their order; None removes a file, or with a path ending in `/` a folder."""
    result = dict(files)
    for path, entry in changes:
        if entry is not None:
            result[check_path(path)] = entry
        elif path.endswith("/"):
            inside = [name for name in result if name.startswith(path)]
            if not inside:
                raise HttpError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del result[name]
        elif path in result:
            del result[path]
        else:
            raise HttpError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return result


def merged(base: Mapping[str, Entry], ours: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> dict[str, Entry]:
    """The three-way merge of whole files. Raises HttpError 409 naming the files both sides changed differently."""
    result, conflicts = dict(ours), []
    for path in base.keys() | theirs.keys():
        old, mine, other = base.get(path), ours.get(path), theirs.get(path)
        if other in (old, mine):
            continue
        if mine != old:
            conflicts.append(path)
        elif other is None:
            result.pop(path, None)
        else:
            result[path] = other
    if conflicts:
        raise HttpError(409, "Both sides changed: " + ", ".join(sorted(conflicts)))
    return result
