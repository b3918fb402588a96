"""Addresses and raw HTML on a card."""

from __future__ import annotations

import pytest

from hubpub.cards.html import fault, safe_url


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://a.b/c", True),
        ("./x.svg", True),
        ("#part", True),
        ("mailto:a@b.c", True),
        ("javascript:alert(1)", False),
        ("JaVa\nScRiPt:alert(1)", False),
        ("\x01javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("vbscript:x", False),
        ("//[", False),
    ],
)
def test_addresses(url: str, safe: bool) -> None:
    assert safe_url(url) is safe


def test_nested_html_must_close_in_order() -> None:
    assert fault("<b><i>x</i></b><br>") is None
    assert fault("<b><i>x</b></i>")
