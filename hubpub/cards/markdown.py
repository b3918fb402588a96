"""Cards as HTML that cannot do anything: GitHub-flavoured Markdown, a few harmless tags, no scripts.

`to_html` gives a piece of a page to be styled by `page.css`. Nothing in it runs, and nothing in it is loaded but the
images a card names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping, Sequence
from functools import cache
from html import escape
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from hubpub.cards.html import TAGS, URLS, VOID, safe_url

if TYPE_CHECKING:
    from markdown_it.token import Token

_ALERT = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]")
_SLUG = re.compile(r"[^\w\- ]+")
_ID = re.compile(r"[\w-]+")


def to_html(text: str, base: str = "") -> str:
    """Markdown (without front matter) as HTML, safe to put into a page. Relative addresses start at `base`.

    Headings get the ids the Hub gives them, behind "card-"; comments are left out.
    """
    balancer = _Balancer()
    balancer.feed(str(_parser().render(text, {"base": base, "slugs": {}})))
    return balancer.finish()


@cache
def css() -> str:
    """The style sheet of cards and of the pages around them: light and dark, from phones to wide screens."""
    return files("hubpub.cards").joinpath("page.css").read_text("utf-8")


class _Sanitizer(HTMLParser):
    """Keeps allowed tags with allowed attributes, shows the others as text, and closes what it opened."""

    def __init__(self, base: str) -> None:
        super().__init__(convert_charrefs=False)
        self.base = base
        self.out: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.out.append(escape(self.get_starttag_text() or ""))
            return
        kept = []
        for name, value in attrs:
            text = value or ""
            if name not in TAGS[tag] or (name in URLS and not safe_url(text)):
                continue
            if name in {"id", "name"}:
                text = f"card-{text}"
            elif name == "srcset":
                text = ", ".join(_joined(self.base, one.strip()) for one in text.split(","))
            elif name in URLS:
                text = _joined(self.base, text)
            kept.append(f' {name}="{escape(text)}"')
        if tag == "a":
            kept.append(' rel="noreferrer nofollow"')
        self.out.append(f"<{tag}{''.join(kept)}>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in TAGS and tag not in VOID:
            self.out.append(f"</{tag}>")
        elif tag not in TAGS:
            self.out.append(escape(f"</{tag}>"))

    def handle_data(self, data: str) -> None:
        self.out.append(escape(data))

    def handle_entityref(self, name: str) -> None:
        self.out.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.out.append(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        pass

    def handle_decl(self, decl: str) -> None:
        self.out.append(escape(f"<!{decl}>"))

    def handle_pi(self, data: str) -> None:
        self.out.append(escape(f"<?{data}>"))

    def unknown_decl(self, data: str) -> None:
        self.out.append(escape(f"<![{data}]>"))


class _Balancer(HTMLParser):
    """Closes every tag that was left open and drops every end tag without a beginning, so that a page stays whole."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.out: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.out.append(self.get_starttag_text() or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open:
                last = self.open.pop()
                self.out.append(f"</{last}>")
                if last == tag:
                    break

    def handle_data(self, data: str) -> None:
        self.out.append(data)

    def handle_entityref(self, name: str) -> None:
        self.out.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.out.append(f"&#{name};")

    def finish(self) -> str:
        self.close()
        return "".join(self.out) + "".join(f"</{tag}>" for tag in reversed(self.open))


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rules: dict[str, Callable[..., str]] = {
        "html_block": _raw,
        "html_inline": _raw,
        "heading_open": _heading,
        "link_open": _link,
        "image": _image,
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


def _raw(_self: Any, tokens: Sequence[Token], index: int, _options: Any, env: MutableMapping[str, Any]) -> str:
    sanitizer = _Sanitizer(str(env["base"]))
    sanitizer.feed(tokens[index].content)
    sanitizer.close()
    return "".join(sanitizer.out)


def _heading(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    words = "".join(child.content for child in tokens[index + 1].children or ())
    slug = _SLUG.sub("", words.lower()).strip().replace(" ", "-")
    seen: dict[str, int] = env["slugs"]
    seen[slug] = seen.get(slug, -1) + 1
    tokens[index].attrSet("id", f"card-{slug}" + (f"-{seen[slug]}" if seen[slug] else ""))
    return str(self.renderToken(tokens, index, options, env))


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    tokens[index].attrSet("href", _joined(str(env["base"]), str(tokens[index].attrGet("href") or "")))
    tokens[index].attrSet("rel", "noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, env))


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    tokens[index].attrSet("src", _joined(str(env["base"]), str(tokens[index].attrGet("src") or "")))
    return str(self.image(tokens, index, options, env))


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
