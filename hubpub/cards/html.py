"""The few HTML tags a card may hold, what they may carry, and what is wrong with a piece of HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlsplit

_ANY = frozenset({"align", "title", "dir", "lang"})
_PLAIN = (
    "b blockquote br center code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i ins kbd li p picture pre q s "
    "samp small span strong sub summary sup table tbody tfoot thead tr u ul var"
)
TAGS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_PLAIN.split(), _ANY),
    "a": _ANY | {"href", "name", "id"},
    "details": _ANY | {"open"},
    "img": _ANY | {"src", "alt", "width", "height"},
    "ol": _ANY | {"start"},
    "source": _ANY | {"srcset", "media", "type"},
    "td": _ANY | {"colspan", "rowspan"},
    "th": _ANY | {"colspan", "rowspan"},
}
VOID = frozenset({"br", "hr", "img", "source"})
URLS = frozenset({"href", "src", "srcset"})
_SCHEMES = frozenset({"", "http", "https", "mailto"})


def safe_url(url: str) -> bool:
    """Whether `url` leads to a page or an address: not to a script, and not to data."""
    # Browsers ignore control characters and blanks inside of "java\nscript:".
    try:
        return urlsplit("".join(url.split()).lstrip("".join(map(chr, range(33))))).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def fault(text: str) -> str | None:
    """What is wrong with the HTML of `text`: a tag or attribute cards do not hold, or a tag left open; else None."""
    checker = _Checker()
    checker.feed(text)
    checker.close()
    if checker.fault is None and checker.open:
        return f"<{checker.open[-1]}> is never closed"
    return checker.fault


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fault: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self._say(f"<{tag}> is no tag that a card can hold")
            return
        for name, value in attrs:
            if name not in TAGS[tag]:
                self._say(f"<{tag}> may not have '{name}'")
            elif name in URLS and not safe_url(value or ""):
                self._say(f"{name} of <{tag}> is no address of a page")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # HTML knows no <p/>: browsers take it for an opening tag.
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self._say(f"</{tag}> closes nothing")

    def handle_decl(self, decl: str) -> None:
        self._say(f"<!{decl[:20]}> is no tag that a card can hold")

    def handle_pi(self, data: str) -> None:
        self._say(f"<?{data[:20]}> is no tag that a card can hold")

    def unknown_decl(self, data: str) -> None:
        self._say(f"<![{data[:20]}]> is no tag that a card can hold")

    def _say(self, what: str) -> None:
        self.fault = self.fault or what
