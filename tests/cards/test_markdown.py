"""Cards as HTML: GitHub's Markdown, and nothing that could run or load anything."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest

from hubpub.cards.html import TAGS, URLS, VOID, safe_url
from hubpub.cards.markdown import css, to_html


class Strict(HTMLParser):
    """Fails on any tag, attribute or address a card must not have, and on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        for name, value in attrs:
            assert name in TAGS[tag] | {"class", "id", "rel", "tabindex"}, name
            assert name not in URLS or safe_url(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def strict(text: str) -> str:
    html = to_html(text, "/x/")
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<scr<script>ipt>alert(1)</scr</script>ipt>",
        "<img src=x onerror=alert(1)>",
        "<img src='javascript:alert(1)'>",
        "<img/src=x/onerror=alert(1)>",
        '<a href="jAvAsCrIpT:alert(1)">x</a>',
        '<a href="&#106;avascript:alert(1)">x</a>',
        '<a href="java&#10;script:alert(1)">x</a>',
        "[x](javascript:alert(1))",
        "[x](&#106;avascript:alert(1))",
        "![x](data:text/html;base64,AAAA)",
        "<svg onload=alert(1)><animate/></svg>",
        "<math><mtext></mtext></math>",
        "<iframe src=//evil></iframe>",
        "<style>@import '//evil'</style>",
        "<p style='position:fixed'>x</p>",
        "<details open><summary>a",
        "</div></main></body>",
        "<table><tr><td>open",
        "<b><i>crossed</b></i>",
        "<!-- --><b>x</b>",
        "<!--> <img src=x onerror=alert(1)> -->",
        "<div\nonclick=alert(1)\n>x",
        "<picture><source srcset='javascript:x, //y'><img src=z></picture>",
        "`<script>` and\n\n```html\n<script>alert(1)</script>\n```",
        '```python"><script>\nx\n```',
        '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
        '<textarea><img title="</textarea><img src=x onerror=alert(1)>">',
        "<form action=x><input name=y></form>",
        "<a id=theme name=state>x</a>",
        "&lt;script&gt; &amp; &nbsp; &#60;script&#62;",
        "<![CDATA[<script>]]>",
        "<?xml <script> ?>",
        "\x00<\x00script>",
    ],
)
def test_nothing_can_run(text: str) -> None:
    html = strict(text)
    assert "<script" not in html.lower()
    assert strict(f"before\n\n{text}\n\n<div>after</div>")


def test_what_github_shows() -> None:
    html = strict(
        "> [!WARNING]\n> careful\n\n| a | b |\n|---|---:|\n| 1 | ~~2~~ |\n\n# A *title*\n\n# A title\n\n"
        "[here](#a-title) [file](./x.pte) <https://example.org>\n\n```python\nimport os\n```\n\n<!-- gone -->"
    )
    assert '<blockquote class="alert warning">' in html
    assert '<p class="alert-title">Warning</p>' in html
    assert '<td class="right"><s>2</s></td>' in html
    assert 'id="card-a-title"' in html
    assert 'id="card-a-title-1"' in html
    assert 'href="#card-a-title"' in html
    assert 'href="/x/x.pte"' in html
    assert '<span class="kn">import</span>' in html
    assert "gone" not in html


def test_pictures_start_where_the_card_is() -> None:
    html = strict(
        '<picture>\n<source media="(prefers-color-scheme: dark)" srcset="./d.svg">\n<img src="./l.svg">\n</picture>'
    )
    assert 'srcset="/x/d.svg"' in html
    assert 'src="/x/l.svg"' in html


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "*a_" * 20_000, "<b>" * 20_000, "> " * 5_000 + "x", "|" * 50_000, "`" * 50_000]
)
def test_hostile_text_is_no_burden(text: str) -> None:
    started = time.process_time()
    strict(text)
    assert time.process_time() - started < 5


def test_the_style_sheet_loads_nothing() -> None:
    assert "url(" not in css()
    assert "@import" not in css()
