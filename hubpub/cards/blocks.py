"""The generated blocks of a card, and what people wrote around them.

Prose from card.toml is in blocks too, so that editing it there reaches the Hub. A block carries the hash of its own
content: one that was edited by hand is recognised and never overwritten silently. Everything outside of the blocks
belongs to people and is kept byte for byte.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import yaml

# An editor on the Hub may have turned line ends into \r\n: a block is the same block then.
BLOCK = re.compile(
    r"<!-- hubpub:begin (?P<name>[a-z]+) sha256:(?P<hash>[0-9a-f]{12}) -->\r?\n"
    r"(?P<body>(?:(?!<!-- hubpub:begin ).)*?)<!-- hubpub:end (?P=name) -->",
    re.DOTALL,
)
MARK = re.compile(r"<!--\s*/?\s*hubpub\s*:", re.IGNORECASE)
FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>.*?(?:\r?\n))?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_ORPHAN = re.compile(r"<!-- hubpub:(?:begin|end) (?P<name>[a-z]+)[^\n]*")


@dataclass(frozen=True)
class Conflict:
    """A block that was edited by hand: its name, and the edit with what would replace it, as a unified diff."""

    block: str
    diff: str


@dataclass(frozen=True)
class Merged:
    """The card to publish, and what people edited in generated parts; with conflicts, `text` must not be published."""

    text: str
    conflicts: tuple[Conflict, ...]


def block(name: str, body: str) -> str:
    """`body` between the marks of block `name`."""
    # Empty lines keep marks out of tables and paragraphs whatever the reader of the Markdown thinks of comments.
    return f"<!-- hubpub:begin {name} sha256:{_hash(body)} -->\n\n{_content(body)}\n<!-- hubpub:end {name} -->"


def merge(existing: str, rendered: str) -> Merged:
    """`existing` with its blocks and generated metadata brought up to `rendered`; merging twice changes nothing more.

    A text without any block was not written by hubpub: the rendered card replaces it only where it is empty or holds
    metadata alone; otherwise the rendered blocks go below what is there. A block edited by hand, a mark without its
    other half and metadata that cannot be read are conflicts.
    """
    new = {match["name"]: match for match in BLOCK.finditer(rendered)}
    body = FRONT.sub("", existing)
    old = list(BLOCK.finditer(body))
    conflicts = _conflicts(existing, body, old, new)
    if not old and not body.strip():
        return Merged(_with_front(existing, rendered, FRONT.sub("", rendered)), conflicts)
    if not old:
        text = body.rstrip("\n") + "\n\n" + "\n\n".join(match[0] for match in new.values()) + "\n"
        return Merged(_with_front(existing, rendered, text), conflicts)
    return Merged(_with_front(existing, rendered, _placed(body, old, new)), conflicts)


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where there is none or it is no mapping."""
    return _read_front(text) or {}


def chips(values: dict[str, Any]) -> list[tuple[str, str]]:
    """What the Hub shows of a card's metadata under the repo's name, as (label, value)."""
    labels = {"pipeline_tag": "", "library_name": "", "license": "License:"}
    found = [(label, str(values[key])) for key, label in labels.items() if key in values]
    for key in ("language", "tags"):
        many = values.get(key)
        shown = {value for _, value in found}
        found += [("", str(one)) for one in (many if isinstance(many, list) else ()) if str(one) not in shown]
    return found


def front(values: dict[str, Any]) -> str:
    """`values` as front matter."""
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000) + "---\n"


def unified(before: str, after: str, name: str, other: str) -> str:
    """What turns `before` into `after`, as a unified diff between `name` and `other`."""
    # Line ends are kept apart by splitting at \n alone: U+2028 and friends do not end a line of Markdown.
    return "\n".join(difflib.unified_diff(before.split("\n"), after.split("\n"), name, other, lineterm=""))


def _conflicts(
    existing: str, body: str, old: list[re.Match[str]], new: dict[str, re.Match[str]]
) -> tuple[Conflict, ...]:
    found = []
    for match in old:
        name, held = match["name"], _content(match["body"])
        fresh = _content(new[name]["body"]) if name in new else ""
        if _hash(held) != match["hash"] and held != fresh:
            diff = unified(held, fresh, f"published ({name}, edited by hand)", f"rendered ({name})")
            found.append(Conflict(name, diff))
    for match in _ORPHAN.finditer(BLOCK.sub("", body)):
        diff = f"-{match[0]}"
        found.append(Conflict(match["name"], f"a mark of the block '{match['name']}' lost its other half:\n{diff}"))
    front_match = FRONT.match(existing)
    if front_match and _read_front(existing) is None:
        found.append(Conflict("metadata", "the YAML at the top cannot be read:\n" + front_match[0]))
    return tuple(found)


def _placed(body: str, old: list[re.Match[str]], new: dict[str, re.Match[str]]) -> str:
    """`body` with every old block replaced, blocks no longer rendered removed, and new ones where they belong."""
    kept = set()

    def fresh(match: re.Match[str]) -> str:
        # A block that was copied is generated once.
        if match["name"] not in new or match["name"] in kept:
            return ""
        kept.add(match["name"])
        return str(new[match["name"]][0])

    parts, end = [], 0
    for match in old:
        parts.append(body[end : match.start()])
        text = fresh(match)
        end = match.end()
        if text:
            parts.append(text)
        elif parts[-1].endswith("\n\n") and body[end : end + 2] == "\n\n":
            end += 2
    text = "".join(parts) + body[end:]
    # Blocks that are new go where the rendered card has them: after the block before them.
    order = list(new)
    for index, name in enumerate(order):
        if name in kept:
            continue
        before = next((other for other in reversed(order[:index]) if other in kept), None)
        anchor = f"<!-- hubpub:end {before} -->" if before else None
        if anchor and anchor in text:
            text = text.replace(anchor, f"{anchor}\n\n{new[name][0]}", 1)
        else:
            first = BLOCK.search(text)
            place = first.start() if first else len(text)
            text = text[:place] + new[name][0] + "\n\n" + text[place:]
        kept.add(name)
    return text


def _read_front(text: str) -> dict[str, Any] | None:
    """The front matter; None where it is no mapping or no YAML."""
    match = FRONT.match(text)
    if not match:
        return {}
    try:
        found = yaml.safe_load(match["yaml"] or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if found is None:
        return {}
    return found if isinstance(found, dict) else None


def _with_front(existing: str, rendered: str, body: str) -> str:
    kept, fresh = metadata(existing), metadata(rendered)
    match = FRONT.match(existing)
    if match and kept and all(kept.get(key) == value for key, value in fresh.items()):
        return match[0] + body
    return front({**fresh, **{key: value for key, value in kept.items() if key not in fresh}}) + body


def _content(body: str) -> str:
    """What a block says: its lines, whatever ends them and whatever empty lines are around them."""
    return body.replace("\r\n", "\n").strip("\n") + "\n"


def _hash(body: str) -> str:
    return hashlib.sha256(_content(body).encode()).hexdigest()[:12]
