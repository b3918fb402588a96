"""The sizes of a model side by side, on every card of one of them and in one table."""

from __future__ import annotations

from pathlib import Path

from conftest import hubpub_here

from cards.sample import facts as sample
from hubpub.cards.family_sizes import siblings
from hubpub.cards.render import render
from hubpub.config import Project
from hubpub.facts import CardFacts

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
    known = {card.repo: sample(project, card).cells}
    found = {one.name: one.as_json() for one in siblings(card, project.cards, lambda one: known.get(one.repo, ()))}
    assert found["E4B"]["released"] and found["E4B"]["device_ram_gb"] > 0 and found["E4B"]["published_mmlu"] == 0.623
    assert not found["E2.69B"]["released"] and "bytes" not in found["E2.69B"]


def measured(project: Project, repo: str, *, scale_model: bool = False, **speed: object) -> CardFacts:
    card = next(card for card in project.cards if card.repo == repo)
    found = sample(project, card, scale_model=scale_model)
    cells = [cell.model_copy(update={"speed": cell.speed.model_copy(update=speed)}) for cell in found.cells]
    return found.model_copy(update={"cells": tuple(cells)})


def test_a_card_shows_what_was_measured_of_its_other_sizes_and_only_that(project: Project) -> None:
    """Not what was measured of stand-ins, nor how fast another machine is; and says what others published."""
    facts = {
        "gemma-3n-E2B-it-pte": measured(project, "gemma-3n-E2B-it-pte", decode_tokens_per_second=17.25),
        "gemma-3n-E1.96B-it-pte": measured(project, "gemma-3n-E1.96B-it-pte", host="Another", threads=8),
        "gemma-3n-E2.69B-it-pte": measured(project, "gemma-3n-E2.69B-it-pte", scale_model=True),
        "gemma-3n-E4B-it-pte": measured(project, "gemma-3n-E4B-it-pte"),
    }
    card = next(card for card in project.cards if card.repo == "gemma-3n-E4B-it-pte")
    made = render(
        card,
        facts[card.repo],
        namespace="me",
        templates=project.templates_dir,
        among=project.cards,
        known=lambda one: facts[one.repo].cells if one.repo in facts else (),
    )
    text = made.files["README.md"].decode()
    lines = [line for line in text.splitlines() if line.endswith(" B |")]
    rows = {next(name for name in ORDER if f"{name}]" in line or f"{name}*" in line): line for line in lines}
    assert list(rows) == ORDER
    assert "| 8 GB | 3.24 GB | 91.3% | 17.2 | 50.9% |" in rows["E2B"]
    assert "| 8 GB | 3.24 GB | 91.3% | – | 53.4% |" in rows["E1.96B"]
    assert "| – | – | – | – | 57.7% |" in rows["E2.69B"] and "| – | – | – | – | 63% |" in rows["E3.39B"]
    assert "published by Google" in text and "agreement with that size's own weights" in text


def test_the_command_shows_them_all(tmp_path: Path) -> None:
    ran = hubpub_here("facts", "sizes", "--rehearse", "--json", work=tmp_path)
    assert [row["size"] for row in ran.json["sizes"]] == ORDER
    assert not any(row["released"] for row in ran.json["sizes"])
    # What files would take, by the shapes of the model; the real ones of noise took 2.80 and 3.39 GB.
    guessed = {row["size"]: row["estimated_bytes"] / 1e9 for row in ran.json["sizes"]}
    assert 2.7 < guessed["E1.96B"] < 2.9 and 3.3 < guessed["E2.69B"] < 3.5
    shown = hubpub_here("facts", "sizes", "--rehearse", work=tmp_path).out
    assert "~2.76 GB" in shown and "estimated" in shown and "published by Google" in shown
