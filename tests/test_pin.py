"""Pinning changes one value of a card and nothing else of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hubpub.config import load_card
from hubpub.pin import write_revision

COMMIT = "0123456789abcdef" * 2 + "01234567"
REST = """
[export] # what is offered
recipes = ["8da4w"]
recommended = "8da4w"   # phones

[card]
title = "Toy"
"""
FIELDS = 'name = "toy" # its name\nsource = "a/b"   # where it is\nfamily = "gemma4"\nlicense = "gemma"\n'
VARIANTS = {
    "plain": f"[variant]\n{FIELDS}",
    "a comment behind the header": f"[variant] # what it is of\n{FIELDS}",
    "spaces in the header": f"[ variant ]\n{FIELDS}",
    "indented": "[variant]\n" + "".join(f"  {line}\n" for line in FIELDS.splitlines()),
    "inline": 'variant = { name = "toy", source = "a/b", family = "gemma4", license = "gemma" } # all of it\n',
    "dotted": "".join(f"variant.{line}\n" for line in FIELDS.splitlines()),
    "pinned": f'[variant]\n{FIELDS}revision = "{"9" * 40}" # of last week\n',
    "pinned, other quotes": f"[variant]\nrevision='{'9' * 40}'\n{FIELDS}",
    "last, without a line end": None,
}


@pytest.mark.parametrize("form", VARIANTS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_comments_and_layout_survive(form: str, ends: str, tmp_path: Path) -> None:
    head = '# A card.\nschema = 1\nrepo = "toy-pte"\n\n'
    text = head + (VARIANTS[form] or "") + REST
    if VARIANTS[form] is None:
        text = head + REST.strip() + f"\n\n[variant]\n{FIELDS}".rstrip("\n")
    # A dotted key or an inline table belongs before the first header.
    path = tmp_path / "card.toml"
    path.write_bytes(text.replace("\n", ends).encode())
    before = tomllib.loads(path.read_text())
    assert write_revision(load_card(tmp_path), COMMIT) == path
    assert load_card(tmp_path).variant.revision == COMMIT
    after = tomllib.loads(path.read_text())
    assert after == {**before, "variant": {**before["variant"], "revision": COMMIT}}
    old, new = text.splitlines(), path.read_bytes().decode().split(ends)
    gone = [line for line in old if line not in new]
    added = [line for line in new if line not in old]
    assert len(added) == 1 and COMMIT in added[0]
    assert len(gone) <= 1 and all("revision" in line or form == "inline" for line in gone)
    for comment in (line.partition("#")[2] for line in old if "#" in line):
        assert comment in path.read_text()
    write_revision(load_card(tmp_path), COMMIT)
    assert path.read_bytes().decode().split(ends) == new
