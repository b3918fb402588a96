"""Cards as HTML that cannot do anything: no tags of their own, no scripts, links that stay what they say."""

from __future__ import annotations

import html
import re
from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urljoin, urlsplit

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Environment: TypeAlias = MutableMapping[str, Any]

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ALERT = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]")
_SLUG = re.compile(r"[^\w\- ]+")


def render_card(text: str, base: str) -> Markup:
    """Markdown as HTML, safe to put into a page. Tags are shown as text, comments left out, links start at `base`."""
    environment = {"base": base}
    return Markup(_markdown().render(text, environment))  # noqa: S704 (all input is escaped by the renderer)


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Tags are parsed so that comments, which mark generated parts of a card, can be told from text; none is passed on.
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rules = {
        "html_block": _tag,
        "html_inline": _tag,
        "heading_open": _heading,
        "link_open": _link,
        "image": _image,
        "blockquote_open": _alert,
        "table_open": _table_open,
        "table_close": _table_close,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _tag(_self: Any, tokens: Sequence[Token], index: int, _options: Any, _environment: Any) -> str:
    return html.escape(_COMMENT.sub("", tokens[index].content))


def _heading(self: Any, tokens: Sequence[Token], index: int, options: Any, environment: Environment) -> str:
    words = _SLUG.sub("", tokens[index + 1].content.lower()).strip().replace(" ", "-")
    tokens[index].attrSet("id", f"card-{words}")
    return str(self.renderToken(tokens, index, options, environment))


def _alert(self: Any, tokens: Sequence[Token], index: int, options: Any, environment: Environment) -> str:
    """A quote that begins with [!NOTE] and the like is an alert, as on the Hub."""
    title = ""
    words = tokens[index + 2].children if tokens[index + 1].type == "paragraph_open" else None
    if words and (kind := _ALERT.fullmatch(words[0].content.strip())):
        tokens[index].attrSet("class", f"alert {kind[1].lower()}")
        title = f'<p class="alert-title">{kind[1].capitalize()}</p>\n'
        words[0].content = ""
        if len(words) > 1 and words[1].type == "softbreak":
            del words[1]
    return str(self.renderToken(tokens, index, options, environment)) + title


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, environment: Environment) -> str:
    target = str(tokens[index].attrGet("href") or "")
    if target.startswith("#"):
        target = f"#card-{target[1:]}"
    tokens[index].attrSet("href", _joined(environment, target))
    tokens[index].attrSet("rel", "noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, environment))


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, environment: Environment) -> str:
    tokens[index].attrSet("src", _joined(environment, str(tokens[index].attrGet("src") or "")))
    return str(self.image(tokens, index, options, environment))


def _table_open(_self: Any, _tokens: Sequence[Token], _index: int, _options: Any, _environment: Any) -> str:
    return '<div class="wide"><table>\n'


def _table_close(_self: Any, _tokens: Sequence[Token], _index: int, _options: Any, _environment: Any) -> str:
    return "</table></div>\n"


def _joined(environment: Environment, target: str) -> str:
    if target.startswith("#") or urlsplit(target).scheme:
        return target
    return urljoin(str(environment["base"]), target)
