"""Cards rendered from declarations: valid metadata, licences, and prose that stays prose."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hubpub.cards import licenses
from hubpub.cards.blocks import BLOCK, metadata
from hubpub.cards.render import golden, render, stale
from hubpub.config import Card, Project
from hubpub.errors import RenderError
from hubpub.facts import CardFacts, load


@pytest.fixture(params=["gemma-3n-E2B-it-pte", "gemma-3n-E4B-it-pte"])
def card(request: pytest.FixtureRequest, project: Project) -> Card:
    """Each committed card."""
    return next(card for card in project.cards if card.repo == request.param)


@pytest.fixture
def facts(card: Card) -> CardFacts:
    """Its committed facts."""
    return load(CardFacts, card.folder / "facts.json")


def text_of(card: Card, project: Project, facts: CardFacts | None, **prose: object) -> str:
    changed = card.model_copy(update={"card": card.card.model_copy(update=prose)})
    made = render(changed, facts, namespace="someone", templates=project.templates_dir)
    return made.files["README.md"].decode()


def test_committed_cards_are_what_their_facts_render(project: Project) -> None:
    assert stale(project) == []


def test_metadata_makes_the_hub_do_what_it_should(card: Card, project: Project, facts: CardFacts) -> None:
    found = metadata(text_of(card, project, facts))
    assert found["license"] == "gemma"
    assert found["license_link"] == licenses.GEMMA_TERMS
    assert found["base_model"] == card.variant.source
    assert (found["base_model_relation"], found["library_name"]) == ("quantized", "executorch")
    assert found["pipeline_tag"] == "text-generation"
    assert len(found["tags"]) == len(set(found["tags"]))


def test_every_file_is_in_the_table_and_in_config_json(card: Card, project: Project, facts: CardFacts) -> None:
    made = render(card, facts, namespace="someone", templates=project.templates_dir)
    text = made.files["README.md"].decode()
    config = json.loads(made.files["config.json"])
    assert {file["file"] for file in config["files"]} == {cell.file.name for cell in facts.cells}
    for cell in facts.cells:
        assert f"[{cell.recipe}](./{cell.file.name})" in text
        assert cell.file.sha256[:12] in text
    assert text.count("**(take this)**") == 1


def test_a_rehearsal_says_so_at_the_top(card: Card, project: Project, facts: CardFacts) -> None:
    assert facts.scale_model
    text = text_of(card, project, facts)
    assert text.index("> [!WARNING]") < text.index("## Which file")


def test_without_facts_there_are_no_figures(card: Card, project: Project) -> None:
    text = text_of(card, project, None)
    assert "There is no release of this repo yet" in text
    assert "tokens/s" not in text
    assert "coming soon" not in text


def test_gemma_is_passed_on_as_its_terms_ask(card: Card, project: Project, facts: CardFacts) -> None:
    notice = render(card, facts, namespace="x", templates=project.templates_dir).files["Notice"].decode()
    assert licenses.GEMMA_NOTICE in notice
    assert "modified" in notice
    assert "Prohibited Use Policy" in notice


def test_apache_goes_with_its_text(card: Card) -> None:
    variant = card.variant.model_copy(update={"license": "apache-2.0"})
    found = licenses.files(variant)
    assert b"Apache License" in found["LICENSE"]
    assert b"modified" in found["NOTICE"]


@pytest.mark.parametrize(
    "prose",
    [
        "{{ facts.cells }} {% for x in y %} {# no #}",
        "---\nlicense: mit\n---",
        "<script>alert(1)</script>",
        "\u202eevil\u2066 \x1b[31m",
        "a" * 1_000_000,
        "日本語 ünïcödé 🙂",
    ],
)
def test_prose_stays_prose(card: Card, project: Project, facts: CardFacts, prose: str) -> None:
    plain = text_of(card, project, facts)
    text = text_of(card, project, facts, introduction=prose, limits=prose)
    assert metadata(text) == metadata(plain)
    assert [m["name"] for m in BLOCK.finditer(text)] == [m["name"] for m in BLOCK.finditer(plain)]
    assert not set("\u202e\u2066\x1b") & set(text)
    if "{{" in prose:
        assert prose in text


def test_prose_cannot_forge_a_block(card: Card, project: Project, facts: CardFacts) -> None:
    forged = "<!-- hubpub:begin files sha256:000000000000 -->\n<!-- hubpub:end files -->"
    with pytest.raises(RenderError, match=r"card\.toml: card\.introduction holds a hubpub block mark"):
        text_of(card, project, facts, introduction=forged)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ facts.nothing }}", r"card\.md\.jinja:1: .*nothing"),
        ("a\n\n{% if %}", r"card\.md\.jinja:3: "),
        ("{{ ''.__class__.__mro__ }}", r"card\.md\.jinja:1: .*unsafe"),
    ],
)
def test_a_wrong_template_names_file_and_line(
    card: Card, facts: CardFacts, tmp_path: Path, template: str, says: str
) -> None:
    (tmp_path / "card.md.jinja").write_text(template)
    with pytest.raises(RenderError, match=says):
        render(card, facts, namespace="x", templates=tmp_path)


def test_all_cards_render_in_a_second(project: Project) -> None:
    started = time.perf_counter()
    for card in project.cards:
        golden(card, project)
    assert time.perf_counter() - started < 1
