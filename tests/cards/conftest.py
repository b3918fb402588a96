"""A real browser, a project to edit and a Hub with cards on it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser as launched

from cards.sample import facts as sample
from hubpub.cards.render import recorded, render
from hubpub.config import Card, Project
from hubpub.facts import CardFacts, FileFact, dump
from hubpub.hub.hashing import sha256sums
from hubpub.localhub import LocalHub

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Read when the library starts: its cache must not meet that of the person who runs the tests.
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="hubpub-tests-"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless browser for the tests of a module; each test opens contexts of its own."""
    with launched() as running:
        yield running


@pytest.fixture
def mine(project: Project, tmp_path: Path) -> Project:
    """A project of its own to edit, with made-up facts committed for one card."""
    # Some cards are enough, and no slices: the first, with figures, is E2B's.
    for folder in sorted(project.cards_dir.glob("gemma-3n-E?B-*")) + sorted(project.cards_dir.glob("gemma-4-*")):
        shutil.copytree(folder, tmp_path / "cards" / folder.name)
    shutil.copytree(project.templates_dir, tmp_path / "templates")
    copy = Project(tmp_path / "cards", tmp_path / "templates")
    for card in copy.cards:
        (card.folder / "facts.json").unlink(missing_ok=True)
    card = copy.cards[0]
    (card.folder / "facts.json").write_text(dump(sample(copy, card)))
    return copy


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """An empty local Hub where `hubpub --work tmp_path` looks for one."""
    with LocalHub(tmp_path / "hub") as running:
        yield running


def held(facts: CardFacts) -> CardFacts:
    """`facts` of files that are small enough to be put on a Hub: each holds its own name."""

    def stand_in(file: FileFact) -> FileFact:
        data = file.name.encode()
        return file.model_copy(update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})

    cells = [
        cell.model_copy(update={"file": stand_in(cell.file), "tokenizer": tuple(map(stand_in, cell.tokenizer))})
        for cell in facts.cells
    ]
    return facts.model_copy(update={"cells": tuple(cells)})


def put(hub: LocalHub, project: Project, card: Card, facts: CardFacts, *, readme: str | None = None) -> str:
    """Put what a release of `card` holds on `hub`, its large files as small ones; `readme` in place of its card."""
    from huggingface_hub import CommitOperationAdd, HfApi

    repo = f"{hub.user}/{card.repo}"
    facts = held(facts).model_copy(update={"repo": repo})
    templates, among = project.templates_dir, project.readable_cards
    files = render(card, facts, namespace=hub.user, templates=templates, among=among, known=recorded).files
    files |= {one.name: one.name.encode() for cell in facts.cells for one in (cell.file, *cell.tokenizer)}
    sums = [(name, hashlib.sha256(data).hexdigest()) for name, data in files.items() if name != "README.md"]
    files |= {"facts.json": dump(facts).encode(), "SHA256SUMS": sha256sums(sums)}
    if readme is not None:
        files["README.md"] = readme.encode()
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(repo, exist_ok=True)
    api.create_commit(repo, [CommitOperationAdd(name, data) for name, data in files.items()], commit_message="Release")
    api.create_tag(repo, tag=facts.version)
    return repo
