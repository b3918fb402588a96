"""The metadata at the top of a card: only keys that make the Hub do something, checked before anything is sent."""

from __future__ import annotations

import re
from typing import Any

from hubpub.cards import licenses
from hubpub.cards.html import safe_url
from hubpub.cards.prose import plain, prose_error
from hubpub.config import Card

PIPELINE_TAG = "text-generation"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
_LONGEST_TAG, _MOST_TAGS = 96, 64


def metadata(card: Card) -> dict[str, Any]:
    """The front matter of `card`: filters, model tree, license and download code of the Hub come from it.

    Raises RenderError naming the key for a value the Hub would refuse or not understand.
    """
    prose = card.card
    chat = ("conversational",) if card.variant.chat else ()
    many = ("multilingual",) if len(set(prose.language)) > 1 else ()
    always = ("executorch", PIPELINE_TAG, *chat, *many, card.variant.family, "on-device")
    tags = [*always, *(plain(tag) for tag in prose.tags)]
    for tag in tags:
        if not tag or len(tag) > _LONGEST_TAG:
            raise prose_error(card, "tags", f"'{tag[:40]}' must be 1 to {_LONGEST_TAG} characters on one line")
    unique = list({tag.casefold(): tag for tag in reversed(tags)}.values())[::-1]
    if len(unique) > _MOST_TAGS:
        raise prose_error(card, "tags", f"more than {_MOST_TAGS} tags", "keep those that people filter by")
    for language in prose.language:
        if not _LANGUAGE.fullmatch(language):
            raise prose_error(
                card, "language", f"'{plain(language)[:40]}' is no ISO 639 code", 'write it like "en" or "de"'
            )
    values: dict[str, Any] = {
        **licenses.metadata(card.variant),
        "library_name": "executorch",
        "pipeline_tag": PIPELINE_TAG,
        "base_model": card.variant.source,
        "base_model_relation": "quantized",
        "language": list(dict.fromkeys(prose.language)),
        "tags": unique,
    }
    if not values["language"]:
        del values["language"]
    if prose.thumbnail is not None:
        url = prose.thumbnail
        if not url.startswith("https://") or not safe_url(url) or url != plain(url) or " " in url or len(url) > 2000:
            raise prose_error(card, "thumbnail", "must be an https address of an image")
        values["thumbnail"] = url
    return values
