"""What people write in card.toml, made safe to stand between generated parts: it stays text, and it ends where it ends.

Prose is Markdown. It may not hold our block marks, an open code fence or HTML that a card cannot show, because each of
them would change what comes after it.
"""

from __future__ import annotations

import re

from hubpub.cards import html
from hubpub.cards.blocks import MARK
from hubpub.config import Card, Prose, locate
from hubpub.errors import RenderError

LONGEST = 200_000
# Characters that reorder or hide text, control characters and non-characters: on a card they only serve to deceive.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029]")


def checked(card: Card) -> Prose:
    """The prose of a card, ready to be put into it. Raises RenderError naming file, key and line."""
    prose = card.card
    title = _markdown(card, "title", prose.title)
    if "\n" in title or not title:
        raise prose_error(card, "title", "must be one line of text", "move the rest to card.introduction")
    return prose.model_copy(
        update={
            "title": title,
            **{key: _markdown(card, key, getattr(prose, key)) for key in ("introduction", "intended_use", "limits")},
            "section": tuple(
                one.model_copy(
                    update={
                        "title": " ".join(_markdown(card, "section.title", one.title).split()),
                        "body": _markdown(card, "section.body", one.body),
                    }
                )
                for one in prose.section
            ),
        }
    )


def plain(text: str) -> str:
    """`text` without hidden characters, on one line."""
    return " ".join(_HIDDEN.sub("", _LINE_ENDS.sub(" ", text)).split())


def prose_error(card: Card, key: str, what: str, hint: str | None = None) -> RenderError:
    """A RenderError about `card.<key>` that names file and line."""
    path, line = locate(card, f"card.{key}")
    where = f"{card.folder.name}/{path.name}" + (f":{line}" if line else "")
    return RenderError(f"{where}: card.{key}: {what}", hint, path=str(path), line=line)


def _markdown(card: Card, key: str, text: str) -> str:
    if len(text) > LONGEST:
        raise prose_error(
            card, key, f"is longer than {LONGEST:,} characters", "put it into a file of its own and link it"
        )
    text = _HIDDEN.sub("", _LINE_ENDS.sub("\n", text)).strip()
    # Looked for after hidden characters are gone: they could be in the middle of a mark.
    if MARK.search(text):
        raise prose_error(card, key, "holds a hubpub block mark", "write prose only; blocks are generated")
    if "<" in text or "```" in text or "~~~" in text:
        what = _fault(text)
        if what:
            raise prose_error(card, key, what, "write Markdown, and put code between backticks")
    return text


def _fault(text: str) -> str | None:
    """Why `text` would not stay within its block: an open code fence or comment, or HTML."""
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    pieces = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.type == "fence" and token.level == 0 and token.map:
            first, end = token.map
            last = lines[end - 1].strip()
            if end - first < 2 or set(last) != {token.markup[0]} or len(last) < len(token.markup):
                return f"the code fence of line {first + 1} of this text is never closed"
        elif token.type == "html_block":
            pieces.append(token.content)
        for child in token.children or ():
            if child.type == "html_inline":
                pieces.append(child.content)
    found = "\n".join(pieces)
    for begin, end_mark in (("<!--", "-->"), ("<![", "]]>"), ("<?", "?>")):
        if found.count(begin) != found.count(end_mark):
            return f"'{begin}' is never closed, or is no tag that a card can hold"
    return html.fault(found)
