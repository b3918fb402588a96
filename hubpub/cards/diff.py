"""What publishing would change on the Hub: metadata, prose, files, sizes and figures, as one frozen value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from hubpub.cards.blocks import BLOCK, FRONT, Conflict, merge, metadata, unified
from hubpub.cards.words import cell, code, counted
from hubpub.errors import UsageError
from hubpub.facts import CardFacts, FileFact
from hubpub.measure.compare import CardDiff, compare
from hubpub.units import size, valued

README = "README.md"
_HASH = re.compile(r"(<!-- hubpub:begin [a-z]+) sha256:[0-9a-f]{12} -->")


@dataclass(frozen=True)
class Published:
    """The state of a repo: the text of its card, its facts, and its files. `version` is the tag that names it.

    A file whose `sha256` is "" is one the Hub records no hash of: it is compared by size. `previous` are the
    facts of the release that this one followed.
    """

    readme: str | None
    facts: CardFacts | None
    files: tuple[FileFact, ...]
    version: str | None = None
    previous: CardFacts | None = None


@dataclass(frozen=True)
class MetadataChange:
    """A key of the front matter before and after; None where it is not there."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class FileChange:
    """A file that differs, with its size in bytes before and after; None where it is not there.

    A dropped file was part of the release before and is not any more.
    """

    name: str
    kind: Literal["added", "changed", "dropped"]
    old_bytes: int | None
    new_bytes: int | None


@dataclass(frozen=True)
class CardChange:
    """What a repo would get. `readme` is the unified diff of the card's text without its metadata, `text` the new card.

    `conflicts` are generated parts that people edited on the Hub: with any, nothing is published. `figures` is None
    where there is nothing to compare with. `first`: nothing is published yet. `refused` is why the Hub would not take
    the card, in its own words, where it was asked.
    """

    repo: str
    old_version: str | None
    new_version: str | None
    metadata: tuple[MetadataChange, ...]
    blocks: tuple[str, ...]
    readme: str
    files: tuple[FileChange, ...]
    figures: CardDiff | None
    conflicts: tuple[Conflict, ...]
    first: bool
    text: str = field(repr=False)
    refused: str | None = None

    @property
    def empty(self) -> bool:
        """Whether publishing would change nothing."""
        return not (self.metadata or self.readme or self.files or self.conflicts or self.refused)

    @property
    def headline(self) -> str:
        """The repo and the two versions, in one line."""
        if self.empty:
            return f"{self.repo}: nothing would change"
        new = self.new_version or "the next release"
        if self.first:
            return f"{self.repo}: nothing is published yet; {new} would be the first"
        return f"{self.repo}: {self.old_version or 'no release'} → {new}"

    @property
    def moved(self) -> CardDiff | None:
        """`figures` without what stayed as it was."""
        if self.figures is None:
            return None
        cells = []
        for one in self.figures.cells:
            changes = tuple(change for change in one.changes if change.verdict not in {"same", "not comparable"})
            if changes or one.interface or one.kernels_added or one.kernels_removed or one.gates_lost:
                cells.append(replace(one, changes=changes))
        return replace(self.figures, cells=tuple(cells))

    def as_json(self) -> dict[str, Any]:
        """The whole difference as values that json can write; the new card itself is left out."""
        return {**{key: value for key, value in asdict(self).items() if key != "text"}, "empty": self.empty}

    def as_markdown(self) -> str:
        """The difference as a comment on a pull request: what matters first, the text of the card folded away."""
        return _markdown(self)


def diff(repo: str, published: Published | None, new: Published) -> CardChange:
    """What publishing `new` to `repo` would change, where `published` is there now (None: nothing).

    The card is compared as it would be after merging it into what people wrote on the Hub.
    """
    before = published or Published(None, None, ())
    merged = merge(before.readme, new.readme) if before.readme is not None and new.readme is not None else None
    readme = merged.text if merged else new.readme or ""
    old_text = before.readme or ""
    return CardChange(
        repo=repo,
        old_version=before.version or (before.facts.version if before.facts else None),
        new_version=new.version or (new.facts.version if new.facts else None),
        metadata=_metadata(metadata(old_text), metadata(readme)),
        blocks=_blocks(old_text, readme),
        readme=unified(_prose(old_text), _prose(readme), "published", "new"),
        files=_files(before, new),
        figures=_figures(before.facts, new.facts),
        conflicts=merged.conflicts if merged else (),
        first=published is None,
        text=readme,
    )


def state(files: Mapping[str, bytes], facts: CardFacts | None) -> Published:
    """The state that rendered `files` and the files named in `facts` would make."""
    listed = [FileFact(name=n, bytes=len(d), sha256=sha256(d).hexdigest()) for n, d in files.items() if n != README]
    for one in facts.cells if facts else ():
        listed += [one.file, *one.tokenizer]
    readme = files.get(README)
    unique = {file.name: file for file in listed}
    return Published(
        readme=readme.decode() if readme is not None else None,
        facts=facts,
        files=tuple(unique[name] for name in sorted(unique)),
        version=facts.version if facts else None,
    )


def _metadata(old: dict[str, Any], new: dict[str, Any]) -> tuple[MetadataChange, ...]:
    keys = dict.fromkeys([*new, *old])
    return tuple(MetadataChange(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key))


def _blocks(old: str, new: str) -> tuple[str, ...]:
    """Names of the blocks whose content differs."""
    before = {match["name"]: match["hash"] for match in BLOCK.finditer(old)}
    after = {match["name"]: match["hash"] for match in BLOCK.finditer(new)}
    return tuple(name for name in dict.fromkeys([*after, *before]) if before.get(name) != after.get(name))


def _prose(text: str) -> str:
    """A card without its metadata, and without the hashes of its blocks: they change whenever a block does."""
    return _HASH.sub(r"\1 -->", FRONT.sub("", text))


def _files(old: Published, new: Published) -> tuple[FileChange, ...]:
    before = {file.name: file for file in old.files if file.name != README}
    after = {file.name: file for file in new.files if file.name != README}
    # What else is in a repo is none of a release's business and stays.
    ours = {file.name for cell in old.facts.cells for file in (cell.file, *cell.tokenizer)} if old.facts else set()
    found = []
    for name in sorted(after.keys() | (ours & before.keys())):
        was, now = before.get(name), after.get(name)
        if was and now:
            hashed = was.sha256 and now.sha256
            if was.sha256 != now.sha256 if hashed else was.bytes != now.bytes:
                found.append(FileChange(name, "changed", was.bytes, now.bytes))
        elif now:
            found.append(FileChange(name, "added", None, now.bytes))
        elif was:
            found.append(FileChange(name, "dropped", was.bytes, None))
    return tuple(found)


def _figures(old: CardFacts | None, new: CardFacts | None) -> CardDiff | None:
    if old is None or new is None:
        return None
    try:
        return compare(old, new)
    except UsageError:
        return None


def _bytes(count: int | None) -> str:
    return "" if count is None else size(count)


def _value(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _markdown(change: CardChange) -> str:
    lines = [f"### {cell(change.headline)}", ""]
    if change.refused:
        lines += ["> [!WARNING]", f"> The Hub would refuse this card: {cell(change.refused)}", ""]
    for conflict in change.conflicts:
        lines += ["> [!WARNING]", f"> The part `{conflict.block}` was edited on the Hub; publishing would stop.", ""]
        lines += _folded(f"The edit of {conflict.block}", conflict.diff)
    if change.files:
        lines += ["| file | | before | after |", "|---|---|---:|---:|"]
        lines += [
            f"| {cell(file.name)} | {file.kind} | {_bytes(file.old_bytes)} | {_bytes(file.new_bytes)} |"
            for file in change.files
        ]
        lines.append("")
    if change.metadata:
        lines += ["| metadata | before | after |", "|---|---|---|"]
        lines += [f"| {code(one.key)} | {cell(_value(one.old))} | {cell(_value(one.new))} |" for one in change.metadata]
        lines.append("")
    lines += _figures_markdown(change.moved)
    if change.first:
        lines += _folded("The card", change.text, "markdown")
    elif change.readme:
        names = f" in {', '.join(change.blocks)}" if change.blocks else ""
        touched = sum(line[:1] in "+-" and line[:3] not in {"+++", "---"} for line in change.readme.split("\n") if line)
        lines += _folded(f"The card: {counted(touched, 'line')}{names}", change.readme)
    return "\n".join(lines).rstrip("\n") + "\n"


def _figures_markdown(figures: CardDiff | None) -> list[str]:
    if figures is None:
        return []
    rows = [
        f"| {code(one.cell)} | {change.name} | {valued(change.old, change.unit)} | {valued(change.new, change.unit)} | "
        f"{'**regression**' if change.regression else change.verdict} |"
        for one in figures.cells
        for change in one.changes
    ]
    notes = [f"- {code(name)} is new" for name in figures.added] + [
        f"- {code(name)} is gone" for name in figures.removed
    ]
    for one in figures.cells:
        notes += [f"- {code(one.cell)}: {cell(line)}" for line in one.interface]
        notes += [f"- {code(one.cell)}: an app must now link {code(name)}" for name in one.kernels_added]
        notes += [f"- {code(one.cell)}: gate {code(name)} no longer passes" for name in one.gates_lost]
    table = ["| cell | figure | before | after | |", "|---|---|---:|---:|---|", *rows, ""] if rows else []
    return [*table, *notes, ""] if notes else table


def _folded(title: str, text: str, language: str = "diff") -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [
        "<details>",
        f"<summary>{cell(title)}</summary>",
        "",
        f"{fence}{language}",
        text,
        fence,
        "",
        "</details>",
        "",
    ]
