"""The sizes of a model side by side, on every card of one of them and in one table."""

from __future__ import annotations

from pathlib import Path

from conftest import hubpub

from cards.sample import facts as sample
from hubpub.cards.family_sizes import siblings
from hubpub.cards.render import render
from hubpub.config import Project

ORDER = ["E2B", "E1.96B", "E2.69B", "E3.39B", "E4B"]


def test_sizes_are_listed_from_the_smallest_on_each_of_their_cards(project: Project) -> None:
    for repo in ("gemma-3n-E2B-it-pte", "gemma-3n-E2.69B-it-pte"):
        card = next(card for card in project.cards if card.repo == repo)
        assert [one.name for one in siblings(card, project.cards)] == ORDER
        made = render(card, None, namespace="me", templates=project.templates_dir, among=project.cards)
        text = made.files["README.md"].decode()
        assert "| [E3.39B](https://huggingface.co/me/gemma-3n-E3.39B-it-pte) | 3.39 B | 63% |" in text
        assert ", this repo | " in text


def test_a_model_without_slices_lists_no_sizes(project: Project) -> None:
    # The base models have none beside them, and Gemma 4's sizes are not slices of one another.
    for repo in ("gemma-3n-E2B-pte", "gemma-4-E2B-it-pte"):
        card = next(card for card in project.cards if card.repo == repo)
        assert not siblings(card, project.cards)


def test_what_was_measured_stands_beside_what_was_published(project: Project) -> None:
    card = next(card for card in project.cards if card.repo == "gemma-3n-E4B-it-pte")
    known = {card.repo: sample(project, card).cells[0]}
    found = {one.name: one.as_json() for one in siblings(card, project.cards, lambda one: known.get(one.repo))}
    assert found["E4B"]["released"] and found["E4B"]["device_ram_gb"] > 0 and found["E4B"]["published_mmlu"] == 0.623
    assert not found["E2.69B"]["released"] and "bytes" not in found["E2.69B"]


def test_the_command_shows_them_all(tmp_path: Path) -> None:
    ran = hubpub("facts", "sizes", "--rehearse", "--json", work=tmp_path)
    assert [row["size"] for row in ran.json["sizes"]] == ORDER
    assert not any(row["released"] for row in ran.json["sizes"])
