"""The code on a card that cannot run here, held to what its sources are known to say: see signatures.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cards.sample import facts as sample
from cards.sample import one_card
from hubpub.cards.render import render
from hubpub.config import Project

SIGNATURES = tomllib.loads((Path(__file__).parent / "signatures.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def page(project: Project) -> str:
    """The rendered card of a tuned model whose files take a prompt in pieces."""
    card = one_card(project)
    facts = sample(project, card)
    cells = tuple(
        cell.model_copy(update={"context": cell.context.model_copy(update={"max_prefill": 128})})
        for cell in facts.cells
    )
    made = render(card, facts.model_copy(update={"cells": cells}), namespace="x", templates=project.templates_dir)
    return made.files["README.md"].decode()


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", text))


@pytest.mark.parametrize("language", SIGNATURES)
def test_what_was_looked_up_is_on_the_card(page: str, language: str) -> None:
    text = page if language == "page" else "".join(re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL))
    text = " ".join(text.split())
    missing = [claim["card"] for claim in SIGNATURES[language]["claim"] if " ".join(claim["card"].split()) not in text]
    assert missing == []


@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_every_name_in_the_code_was_looked_up(page: str, language: str) -> None:
    (code,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    code = re.sub(r"(?m)^\s*(//|/\*\*).*$", "", code)
    known = words(SIGNATURES[language]["plain"]).union(*(words(one["card"]) for one in SIGNATURES[language]["claim"]))
    # The name of the file is the card's own.
    unknown = words(re.sub(r'"[^"]*"', '""', code)) - known
    assert unknown == set()


def test_the_versions_are_those_that_were_looked_up(page: str) -> None:
    assert "executorch-android:1.4.1" in page
    assert "`swiftpm-1.4.1`" in page
    assert "--branch v1.4.1 " in page


def test_every_block_is_on_the_list_of_how_it_is_checked(page: str) -> None:
    """A block that is added or goes is an entry of docs/code-on-cards.md, which says how it is checked."""
    found = re.findall(r"(?ms)^(?:```)(\w+)\n.*?^```$", page)
    counted = {language: found.count(language) for language in dict.fromkeys(found) if language != "text"}
    assert counted == {"sh": 9, "python": 4, "kotlin": 1, "swift": 1, "ts": 1, "cmake": 1, "cpp": 2}
