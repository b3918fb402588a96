"""After a release: what is published and staged, whether it is intact, and how a bad version is withdrawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ValidationError

from hubpub.errors import ConfigError, ConflictError, HubError
from hubpub.facts import CardFacts
from hubpub.hub.client import Add, Client, Committed, HeadMoved, Refs
from hubpub.hub.compare import listed_at
from hubpub.hub.content import CARD, SUMS, CardMerge, LocalFile
from hubpub.hub.hashing import parse_sha256sums
from hubpub.hub.names import STAGE_PREFIX, check_path, check_repo_id, check_version
from hubpub.hub.receipts import PullRequest, Receipt, load_receipt

FACTS = "facts.json"


@dataclass(frozen=True)
class StagedVersion:
    """What waits on a staging branch: the version, and the files staged for it, in name order."""

    version: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class RepoStatus:
    """One repo: `published` is the version that facts.json on main names; tags are (name, commit), in name order.

    `receipts` are those of this work folder, the latest last.
    """

    repo: str
    exists: bool
    head: str | None
    published: str | None
    tags: tuple[tuple[str, str], ...]
    staged: tuple[StagedVersion, ...]
    receipts: tuple[Receipt, ...]
    notes: tuple[str, ...] = ()
    """What does not agree: published, tagged, staged and released from here. None: all of it does."""


@dataclass(frozen=True)
class CheckedFile:
    """One published file: what SHA256SUMS or facts.json promise, and what the Hub records or a download gave."""

    path: str
    bytes: int | None
    expected: str
    found: str | None
    how: Literal["recorded", "downloaded", "missing"]

    @property
    def ok(self) -> bool:
        return self.found == self.expected


@dataclass(frozen=True)
class Verification:
    """Every file of a revision against what it promises. `problems` are sentences; none means intact."""

    repo: str
    revision: str
    commit: str
    files: tuple[CheckedFile, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def status(client: Client, repo_ids: Iterable[str], work: Path | None = None) -> tuple[RepoStatus, ...]:
    """What is published, staged and, with `work`, on record here, for each repo. Only reads."""
    return tuple(_status(client, check_repo_id(repo_id), work) for repo_id in repo_ids)


def verify(client: Client, repo_id: str, revision: str = "main", *, download: bool = False) -> Verification:
    """Check every published file of `revision` against SHA256SUMS and facts.json.

    Large files are compared by the hash the Hub records, small ones are downloaded; with `download` all of them are.
    Raises HubError where the repo or revision is missing.
    """
    refs = client.refs(repo_id)
    if refs is None:
        raise HubError(
            f"{repo_id} does not exist on {client.endpoint}", "check the name, and that the token may see it"
        )
    commit = refs.tags.get(revision) or refs.branches.get(revision) or revision
    problems: list[str] = []
    sums = client.read(repo_id, commit, SUMS)
    expected: dict[str, str] = {}
    sizes: dict[str, int] = {}
    if sums is None:
        problems.append(f"{SUMS} is missing")
    else:
        try:
            expected = parse_sha256sums(sums.decode())
        except ValueError as error:
            problems.append(f"{SUMS}: {error}")
    for name, size, digest in _promised(client, repo_id, commit, problems):
        sizes[name] = size
        if expected.setdefault(name, digest) != digest:
            problems.append(f"{name}: {SUMS} and {FACTS} promise different content")
    expected = {path: digest for path, digest in expected.items() if _named(path, problems)}
    recorded = client.files(repo_id, commit, [*expected, CARD])
    if CARD not in recorded:
        problems.append(f"{CARD} is missing")
    checked: list[CheckedFile] = []
    for path, digest in sorted(expected.items()):
        remote = recorded.get(path)
        if remote is None:
            checked.append(CheckedFile(path, None, digest, None, "missing"))
            problems.append(f"{path} is missing")
            continue
        if path in sizes and sizes[path] != remote.bytes:
            problems.append(f"{path}: {remote.bytes} bytes, {FACTS} says {sizes[path]}")
        if remote.sha256 is not None and not download:
            found, how = remote.sha256, "recorded"
        else:
            found, how = client.sha256(repo_id, commit, path) or "", "downloaded"
        checked.append(CheckedFile(path, remote.bytes, digest, found, how))  # type: ignore[arg-type]
        if found != digest:
            problems.append(f"{path}: sha256 {found[:12]} instead of {digest[:12]}")
    problems += _unlisted(client, repo_id, commit, expected, refs)
    return Verification(repo_id, revision, commit, tuple(checked), tuple(dict.fromkeys(problems)))


def _unlisted(client: Client, repo_id: str, commit: str, listed: Iterable[str], refs: Refs) -> list[str]:
    """Complaints about files that nobody vouches for: programs, and what another release listed and this one does not.

    Anything else may lie beside a release: pictures, documents, whatever its owner adds.
    """
    known = {*listed, CARD, SUMS}
    others = sorted(path for path in client.tree(repo_id, commit) if path not in known)
    once: dict[str, str] = {}
    for tag, at in sorted(refs.tags.items()) if others else ():
        if at != commit:
            once |= dict.fromkeys(listed_at(client, repo_id, at), tag)
    found = []
    for path in others:
        if path in once:
            found.append(f"{path} is not in {SUMS}: it is a leftover of {once[path]}")
        elif path.endswith((".pte", ".ptd")):
            found.append(f"{path} is not in {SUMS}: nothing says what it is")
    return found


def amend_card(client: Client, repo_id: str, merge: CardMerge, message: str) -> str | None:
    """Change the card on main alone, by one commit; tags stay. Returns the commit, or None where nothing changes.

    A change that somebody else makes meanwhile is kept: the card is read and merged again.
    """
    for last in (False, False, True):
        refs = client.refs(repo_id)
        if refs is None or "main" not in refs.branches:
            raise HubError(f"{repo_id} does not exist on {client.endpoint}")
        head = refs.branches["main"]
        content = client.read(repo_id, head, CARD)
        try:
            before = None if content is None else content.decode()
        except UnicodeDecodeError:
            raise ConflictError(f"{repo_id}: the published {CARD} is not UTF-8 text") from None
        after = merge(before)
        if after == before:
            return None
        file = LocalFile.text(CARD, after)
        add = Add(CARD, after.encode(), file.bytes, file.sha256)

        title, _, rest = message.partition("\n")
        find_committed = partial(_amended, client, repo_id, head, title, after.encode())
        try:
            return client.commit(
                repo_id, "main", [add], title=title, message=rest.strip(), parent=head, find_committed=find_committed
            ).commit
        except HeadMoved:
            if last:
                raise
    return None


def yank(client: Client, repo_id: str, tag: str, reason: str, *, new_version: str | None = None) -> str | None:
    """Withdraw a version: the card says so, with the reason; the tag and its files stay for whoever relies on them.

    `new_version` names another repo that takes over (the Hub then links to it). Returns the commit, or None where the
    card said just this before. Raises HubError where there is no such tag.
    """
    refs = client.refs(check_repo_id(repo_id))
    if refs is None or check_version(tag) not in refs.tags:
        known = f"versions: {', '.join(sorted(refs.tags))}" if refs and refs.tags else None
        raise HubError(f"{repo_id} has no version {tag}", known or "nothing is published there; check its name")
    reason = " ".join(reason.split())
    if not reason or "-->" in reason or "<!--" in reason:
        raise ConfigError("a version is withdrawn for a reason", "say in a sentence what is wrong with it")
    if new_version is not None:
        check_repo_id(new_version)

    def merge(card: str | None) -> str:
        return _withdrawn(card or "", tag, reason, new_version)

    return amend_card(client, repo_id, merge, f"Withdraw {tag}")


def _amended(client: Client, repo_id: str, head: str, title: str, card: bytes) -> Committed | None:
    """The commit on top of `head` that wrote just this card, if there is one."""
    history = client.commits(repo_id, "main")
    ids = [commit.id for commit in history]
    ours = [c for c in history[: ids.index(head) if head in ids else 0] if c.title == title]
    return next((Committed(c.id) for c in ours if client.read(repo_id, c.id, CARD) == card), None)


def _status(client: Client, repo_id: str, work: Path | None) -> RepoStatus:
    refs = client.refs(repo_id)
    receipts = []
    for folder in sorted((work / "releases").glob("*")) if work else ():
        receipt = load_receipt(folder.parent.parent, folder.name, repo_id)
        if receipt and _home(receipt.endpoint) == _home(client.endpoint):
            receipts.append(receipt)
    receipts.sort(key=lambda receipt: receipt.finished)
    if refs is None:
        gone = (f"released from here as {receipts[-1].version}, and not on the Hub",) if receipts else ()
        return RepoStatus(repo_id, False, None, None, (), (), tuple(receipts), gone)
    head = refs.branches.get("main")
    published = None
    if head and (content := client.read(repo_id, head, FACTS)):
        try:
            published = str(json.loads(content)["version"])
        except (ValueError, KeyError, TypeError):
            published = None
    staged = []
    main = client.tree(repo_id, head) if head else {}
    for branch, commit in sorted(refs.branches.items()):
        if branch.startswith(STAGE_PREFIX):
            version = branch.removeprefix(STAGE_PREFIX)
            tree = client.tree(repo_id, commit)
            files = sorted(path for path, file in tree.items() if main.get(path) != file)
            staged.append(StagedVersion(version, tuple(files)))
    notes = _disagreements(published, refs.tags, staged, receipts)
    tags = tuple(sorted(refs.tags.items()))
    return RepoStatus(repo_id, True, head, published, tags, tuple(staged), tuple(receipts), notes)


def _home(endpoint: str) -> str:
    """What tells one Hub from another: a local one belongs to the work folder, whatever port it got this time."""
    return "local" if urlsplit(endpoint).hostname in {"127.0.0.1", "localhost", "::1"} else endpoint


def _disagreements(
    published: str | None, tags: dict[str, str], staged: list[StagedVersion], receipts: list[Receipt]
) -> tuple[str, ...]:
    notes = []
    if published and published not in tags:
        notes.append(f"{published} is on main without its tag: run that release again")
    for waiting in staged:
        if waiting.version in tags:
            notes.append(f"{waiting.version} is published and still staged: 'hubpub unstage' drops the rest")
        else:
            notes.append(f"{waiting.version} is staged and not published: 'hubpub promote' publishes it")
    for receipt in receipts:
        commit = getattr(receipt.outcome, "commit", None)
        if isinstance(receipt.outcome, PullRequest):
            if receipt.version not in tags:
                notes.append(f"{receipt.version} waits in pull request #{receipt.outcome.number}")
        elif receipt.version not in tags:
            notes.append(f"{receipt.version} was released from here, and its tag is gone")
        elif commit != tags[receipt.version]:
            notes.append(f"{receipt.version} was released from here as {str(commit)[:12]}, and its tag is elsewhere")
    if receipts and published and receipts[-1].version != published and receipts[-1].version in tags:
        notes.append(f"the last release from here is {receipts[-1].version}, main holds {published}")
    return tuple(notes)


def _promised(client: Client, repo_id: str, commit: str, problems: list[str]) -> list[tuple[str, int, str]]:
    content = client.read(repo_id, commit, FACTS)
    if content is None:
        problems.append(f"{FACTS} is missing")
        return []
    try:
        facts = CardFacts.model_validate_json(content)
    except ValidationError as error:
        problems.append(f"{FACTS}: {error.errors()[0]['msg']}")
        return []
    files = [file for cell in facts.cells for file in (cell.file, *cell.tokenizer)]
    return list(dict.fromkeys((file.name, file.bytes, file.sha256) for file in files))


def _named(path: str, problems: list[str]) -> bool:
    try:
        check_path(path)
    except ConfigError as error:
        problems.append(f"{SUMS}: {error.message}")
        return False
    return True


def _withdrawn(card: str, tag: str, reason: str, new_version: str | None) -> str:
    """The card with a notice for `tag` at the top of its text; a notice it had for that tag is replaced."""
    begin, end = f"<!-- hubpub:withdrawn {tag} -->", f"<!-- /hubpub:withdrawn {tag} -->"
    block = f"{begin}\n> [!WARNING]\n> **{tag} was withdrawn:** {reason}\n{end}\n"
    card = re.sub(rf"\n?{re.escape(begin)}.*?{re.escape(end)}\n", "", card, flags=re.DOTALL)
    front = re.match(r"---\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", card, flags=re.DOTALL | re.MULTILINE)
    head, body = (card[: front.end()], card[front.end() :]) if front else ("", card)
    if new_version:
        line = f"new_version: {new_version}\n"
        if not head:
            head = f"---\n{line}---\n"
        elif re.search(r"^new_version:.*$", head, flags=re.MULTILINE):
            head = re.sub(r"^new_version:.*\n", line, head, flags=re.MULTILINE)
        else:
            head = re.sub(r"^---[ \t]*\r?\n?\Z", f"{line}---\n", head, flags=re.MULTILINE)
    return f"{head}\n{block}{body}" if head else f"{block}{body}"
