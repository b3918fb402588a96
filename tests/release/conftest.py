"""A local Hub, a project of one card and two cells, and made-up facts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cards.sample import cell as sample_cell

from hubpub.config import Card, Project
from hubpub.facts import MEASURING, CardFacts, CellFacts
from hubpub.hub.client import Client, Retry
from hubpub.localhub import Fault, LocalHub

CARD = """
schema = 1
repo = "small-pte"
[variant]
name = "small"
source = "google/small"
{revision}
family = "gemma3n"
license = "gemma"
[export]
recipes = ["8da4w", "8da8w"]
recommended = "8da4w"
[card]
title = "Small"
"""
PINNED = 'revision = "' + "0" * 40 + '"'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as running:
        yield running
        assert not running.errors


@pytest.fixture
def client(hub: LocalHub) -> Client:
    return Client(hub.url, hub.token, retry=Retry(attempts=2, first=0.05, longest=0.1))


def write_card(root: Path, text: str = CARD, *, revision: str = PINNED, name: str = "small") -> Project:
    """A project in `root` with this card."""
    folder = root / "cards" / f"{name}-pte"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.toml").write_text(text.format(revision=revision).replace("small", name))
    return Project.find(root)


@pytest.fixture
def small(tmp_path: Path) -> Project:
    return write_card(tmp_path)


Facts = Callable[..., CellFacts]


def facts_of(project: Project, recipe: str, *, scale_model: bool = False, card: Card | None = None) -> CellFacts:
    """Facts of one cell of the project's first card, measured as now."""
    card = card or project.cards[0]
    facts = sample_cell(card, recipe, project.recipe(card, recipe).summary, scale_model=scale_model)
    now = {"measuring": MEASURING, "sha256": facts.file.sha256}
    parity, speed = facts.parity.model_copy(update=now), facts.speed.model_copy(update=now)
    return facts.model_copy(update={"parity": parity, "speed": speed})


def release_facts(project: Project, version: str, *, scale_model: bool) -> CardFacts:
    card = project.cards[0]
    cells = tuple(facts_of(project, recipe, scale_model=scale_model) for recipe in card.export.recipes)
    return CardFacts(repo=f"local/{card.repo}", version=version, variant=card.variant.name, cells=cells)


def silent_once_tagged(
    monkeypatch: pytest.MonkeyPatch,
    hub: LocalHub,
    *,
    status: int = 503,
    path: str = "/paths-info/",
    answers: int = 0,
    times: int = 100,
) -> None:
    """Once a tag is made, the Hub answers `answers` times more at `path`, and then only `status`, `times` times."""
    create_tag = Client.create_tag

    def then_silent(self: Client, repo_id: str, tag: str, commit: str) -> None:
        create_tag(self, repo_id, tag, commit)
        hub.arm(Fault(path=path, status=status, times=times, skip=answers))

    monkeypatch.setattr(Client, "create_tag", then_silent)
