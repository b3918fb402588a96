"""Cards as HTML that cannot do anything: GitHub-flavoured Markdown, a few harmless tags, no scripts.

`to_html` gives a piece of a page to be styled by `page.css`. Nothing in it runs, and nothing in it is loaded but the
images a card names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping, Sequence
from functools import cache, partial
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import nh3

from hubpub.cards.html import TAGS, URLS, safe_url

if TYPE_CHECKING:
    from markdown_it.token import Token

_ALERT = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]")
_SLUG = re.compile(r"[^\w\- ]+")
_ID = re.compile(r"[\w-]+")
_SCHEMES = {"http", "https", "mailto"}
# What the parser itself adds, and only in the forms in which it does.
_CLASSES = {
    "blockquote": re.compile(r"alert [a-z]+"),
    "p": re.compile("alert-title"),
    "div": re.compile("wide"),
    "th": re.compile("left|right|center"),
    "td": re.compile("left|right|center"),
    "code": re.compile(r"language-[\w-]+"),
    "span": re.compile(r"[a-z][a-z0-9]{0,2}"),
}
_ATTRIBUTES: dict[str, set[str]] = {tag: {*names, "class", "id", "tabindex"} for tag, names in TAGS.items()}


def to_html(text: str, base: str = "") -> str:
    """Markdown (without front matter) as HTML, safe to put into a page. Relative addresses start at `base`.

    Headings get the ids the Hub gives them, behind "card-"; comments are left out.
    """
    return nh3.clean(
        str(_parser().render(text, {"slugs": {}})),
        tags=set(TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=partial(_kept, base),
        url_schemes=_SCHEMES,
        link_rel="noreferrer nofollow",
    )


@cache
def css() -> str:
    """The style sheet of cards and of the pages around them: light and dark, from phones to wide screens."""
    return files("hubpub.cards").joinpath("page.css").read_text("utf-8")


def _kept(base: str, tag: str, name: str, value: str) -> str | None:
    """The value of an attribute as a page may hold it; None where it may not."""
    if name == "class":
        return value if tag in _CLASSES and _CLASSES[tag].fullmatch(value) else None
    if name == "tabindex":
        return value if value == "0" else None
    if name in {"id", "name"}:
        return value if value.startswith("card-") else f"card-{value}"
    if name == "srcset":
        addresses = [one.strip() for one in value.split(",")]
        return ", ".join(_joined(base, one) for one in addresses) if all(map(safe_url, addresses)) else None
    if name in URLS:
        return _joined(base, value) if safe_url(value) else None
    return value


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rules: dict[str, Callable[..., str]] = {
        "heading_open": _heading,
        "blockquote_open": _quote,
        "fence": _fence,
        "th_open": _aligned,
        "td_open": _aligned,
        "table_open": lambda *_: '<div class="wide" tabindex="0"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _heading(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    words = "".join(child.content for child in tokens[index + 1].children or ())
    slug = _SLUG.sub("", words.lower()).strip().replace(" ", "-")
    seen: dict[str, int] = env["slugs"]
    seen[slug] = seen.get(slug, -1) + 1
    tokens[index].attrSet("id", f"card-{slug}" + (f"-{seen[slug]}" if seen[slug] else ""))
    return str(self.renderToken(tokens, index, options, env))


def _quote(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    """A quote that begins with [!NOTE] and the like is an alert, as on the Hub."""
    title = ""
    words = tokens[index + 2].children if tokens[index + 1].type == "paragraph_open" else None
    if words and (kind := _ALERT.fullmatch(words[0].content.strip())):
        tokens[index].attrSet("class", f"alert {kind[1].lower()}")
        title = f'<p class="alert-title">{kind[1].capitalize()}</p>\n'
        words[0].content = ""
        if len(words) > 1 and words[1].type == "softbreak":
            del words[1]
    return str(self.renderToken(tokens, index, options, env)) + title


def _aligned(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    """Alignment as a class: a page need not allow inline styles."""
    style = str(tokens[index].attrs.pop("style", ""))
    if style:
        tokens[index].attrSet("class", style.rpartition(":")[2])
    return str(self.renderToken(tokens, index, options, env))


def _fence(_self: Any, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
    token = tokens[index]
    return code_html(token.content, token.info.split()[0] if token.info.split() else "")


def code_html(text: str, language: str) -> str:
    """`text` as a block of code, its words marked up where `language` is known."""
    shown = _highlighted(text, language) if language and len(text) < 100_000 else None
    named = f' class="language-{language}"' if _ID.fullmatch(language) else ""
    return f'<pre tabindex="0"><code{named}>{shown if shown is not None else escape(text)}</code></pre>\n'


def _highlighted(text: str, language: str) -> str | None:
    from pygments import highlight  # type: ignore[import-untyped]
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    return str(highlight(text, lexer, HtmlFormatter(nowrap=True)))


def _joined(base: str, target: str) -> str:
    """`target` as seen from a page: within the card, beside it, or elsewhere."""
    if target.startswith("#"):
        return f"#card-{target[1:]}" if _ID.fullmatch(target[1:]) else "#"
    try:
        return urljoin(base, target)
    except ValueError:
        return "#"
