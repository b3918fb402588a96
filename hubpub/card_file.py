"""The file of a card, changed by a command: what the command does not speak of stays as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tomlkit

from hubpub.config import Card, load_card
from hubpub.files import write_atomic


@contextmanager
def edited(card: Card) -> Iterator[tomlkit.TOMLDocument]:
    """The card.toml of `card` as a document; as the block leaves it, it is written, and read again as a card.

    Raises ConfigError where it is no card any more.
    """
    path = card.folder / "card.toml"
    # Bytes, for the line ends are to stay as they are; the last line may lack one.
    text = path.read_bytes().decode("utf-8")
    if not text.endswith("\n"):
        text += "\r\n" if "\r\n" in text else "\n"
    document = tomlkit.parse(text)
    yield document
    write_atomic(path, tomlkit.dumps(document).encode("utf-8"))
    load_card(card.folder)
