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

BLOCK = re.compile(
    r"<!-- hubpub:begin (?P<name>[a-z]+) sha256:(?P<hash>[0-9a-f]{12}) -->\n(?P<body>.*?)<!-- hubpub:end (?P=name) -->",
    re.DOTALL,
)
FRONT = re.compile(r"\A---\n(?P<yaml>.*?\n)---\n", re.DOTALL)


@dataclass(frozen=True)
class Conflict:
    """A block that was edited by hand: its name, and the edit with what would replace it, as a unified diff."""

    block: str
    diff: str


@dataclass(frozen=True)
class Merged:
    """The card to publish, and the blocks that people edited; with conflicts, `text` must not be published."""

    text: str
    conflicts: tuple[Conflict, ...]


def block(name: str, body: str) -> str:
    """`body` between the marks of block `name`."""
    body = body.strip("\n") + "\n"
    return f"<!-- hubpub:begin {name} sha256:{_hash(body)} -->\n{body}<!-- hubpub:end {name} -->"


def merge(existing: str, rendered: str) -> Merged:
    """`existing` with its blocks and generated metadata brought up to `rendered`.

    A text without any block was not written by hubpub: the rendered card replaces it only where it is empty or holds
    metadata alone; otherwise the rendered blocks go below what is there.
    """
    new = {match["name"]: match for match in BLOCK.finditer(rendered)}
    old = list(BLOCK.finditer(existing))
    body = FRONT.sub("", existing)
    if not old and not body.strip():
        return Merged(_with_front(existing, rendered, FRONT.sub("", rendered)), ())
    conflicts = []
    for match in old:
        fresh = new.get(match["name"])
        if _hash(match["body"]) != match["hash"] and (fresh is None or fresh["body"] != match["body"]):
            lines = difflib.unified_diff(
                match["body"].splitlines(),
                (fresh["body"] if fresh else "").splitlines(),
                f"published ({match['name']}, edited by hand)",
                f"rendered ({match['name']})",
                lineterm="",
            )
            conflicts.append(Conflict(match["name"], "\n".join(lines)))
    if not old:
        text = body.rstrip("\n") + "\n\n" + "\n\n".join(match[0] for match in new.values()) + "\n"
        return Merged(_with_front(existing, rendered, text), ())
    text = BLOCK.sub(lambda match: new[match["name"]][0] if match["name"] in new else "", body)
    held = {match["name"] for match in old}
    # Blocks that are new go where the rendered card has them: after the block before them.
    order = list(new)
    for index, name in enumerate(order):
        if name in held:
            continue
        before = next((other for other in reversed(order[:index]) if other in held), None)
        anchor = f"<!-- hubpub:end {before} -->" if before else None
        if anchor and anchor in text:
            text = text.replace(anchor, f"{anchor}\n\n{new[name][0]}", 1)
        else:
            first = BLOCK.search(text)
            place = first.start() if first else len(text)
            text = text[:place] + new[name][0] + "\n\n" + text[place:]
        held.add(name)
    return Merged(_with_front(existing, rendered, text), tuple(conflicts))


def metadata(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where there is none or it is no mapping."""
    match = FRONT.match(text)
    if not match:
        return {}
    try:
        found = yaml.safe_load(match["yaml"])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def front(values: dict[str, Any]) -> str:
    """`values` as front matter."""
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000) + "---\n"


def _with_front(existing: str, rendered: str, body: str) -> str:
    kept, fresh = metadata(existing), metadata(rendered)
    match = FRONT.match(existing)
    if match and kept and all(kept.get(key) == value for key, value in fresh.items()):
        return match[0] + body
    return front({**fresh, **{key: value for key, value in kept.items() if key not in fresh}}) + body


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]
