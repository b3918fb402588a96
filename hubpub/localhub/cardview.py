"""Cards as HTML that cannot do anything: see `hubpub.cards.markdown`."""

from __future__ import annotations

from markupsafe import Markup

from hubpub.cards.markdown import to_html


def render_card(text: str, base: str) -> Markup:
    """Markdown as HTML, safe to put into a page. Comments are left out, links start at `base`."""
    return Markup(to_html(text, base))  # noqa: S704 (made by the sanitizer)
