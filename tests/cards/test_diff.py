"""What publishing would change, before it does."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from cards.sample import facts as sample
from cards.sample import one_card
from hubpub.cards.diff import Published, diff, state
from hubpub.cards.render import render
from hubpub.cli import tables
from hubpub.config import Project
from hubpub.facts import CardFacts, FileFact


@pytest.fixture
def facts(project: Project) -> CardFacts:
    """A release."""
    return sample(project, one_card(project))


def published(project: Project, facts: CardFacts | None, previous: CardFacts | None = None) -> Published:
    card = one_card(project)
    made = render(card, facts, namespace="someone", templates=project.templates_dir, previous=previous)
    return state(made.files, facts)


def test_the_same_again_changes_nothing(project: Project, facts: CardFacts) -> None:
    change = diff("a/b", published(project, facts), published(project, facts))
    assert change.empty
    assert "nothing would change" in change.as_markdown()


def test_a_first_release_adds_everything(project: Project, facts: CardFacts) -> None:
    change = diff("a/b", None, published(project, facts))
    assert {file.kind for file in change.files} == {"added"}
    assert {cell.file.name for cell in facts.cells} <= {file.name for file in change.files}
    assert change.new_version == "v1.0.0"
    assert change.figures is None


def test_files_sizes_metadata_prose_and_figures(project: Project, facts: CardFacts) -> None:
    cell = facts.cells[0]
    worse = cell.parity.logits.model_copy(update={"kl_mean": 0.09})
    changed = cell.model_copy(
        update={
            "file": cell.file.model_copy(update={"bytes": 3_000_000_000, "sha256": "f" * 64}),
            "parity": cell.parity.model_copy(update={"logits": worse}),
        }
    )
    new = facts.model_copy(update={"version": "v1.1.0", "cells": (changed, *facts.cells[1:])})
    old = published(project, facts)
    assert old.readme is not None
    theirs = old.readme.replace("license: gemma", "license: mit") + "\nMy words.\n"
    change = diff("a/b", Published(theirs, old.facts, old.files), published(project, new, facts))
    assert [(m.key, m.old, m.new) for m in change.metadata] == [("license", "mit", "gemma")]
    assert [f.name for f in change.files if f.name.endswith(".pte")] == [cell.file.name]
    assert {"files", "verify", "changes"} <= set(change.blocks)
    assert "-My words." not in change.readme
    assert change.figures
    text = change.as_markdown()
    assert f"| {cell.file.name} | changed | 3.24 GB | 3.00 GB |" in text
    assert "**regression**" in text
    assert json.loads(json.dumps(change.as_json()))["old_version"] == "v1.0.0"
    console = Console(width=120, record=True, file=None, quiet=True)
    console.print(tables.card_change(change))


def test_files_of_others_stay_and_files_without_a_hash_are_compared_by_size(project: Project, facts: CardFacts) -> None:
    new = published(project, facts.model_copy(update={"version": "v1.1.0", "cells": facts.cells[:-1]}))
    old = published(project, facts)
    files = [file.model_copy(update={"sha256": ""}) for file in old.files]
    files.append(FileFact(name=".gitattributes", bytes=1500, sha256=""))
    change = diff("a/b", Published(old.readme, old.facts, tuple(files)), new)
    kinds = {file.name: file.kind for file in change.files}
    assert kinds.pop(facts.cells[-1].file.name) == "dropped"
    assert set(kinds.values()) == {"changed"}
    assert not [name for name in kinds if name.endswith(".pte") or name == ".gitattributes"]


def test_hashes_of_blocks_are_no_change(project: Project, facts: CardFacts) -> None:
    change = diff("a/b", published(project, facts), published(project, facts.model_copy(update={"version": "v2.0.0"})))
    assert change.readme
    assert "sha256:" not in change.readme


def test_an_edit_on_the_hub_is_a_conflict(project: Project, facts: CardFacts) -> None:
    old = published(project, facts)
    assert old.readme is not None
    edited = Published(old.readme.replace("## Speed and memory", "## Fast"), old.facts, old.files)
    change = diff("a/b", edited, published(project, facts))
    assert [conflict.block for conflict in change.conflicts] == ["speed"]
    assert not change.empty
    assert "was edited on the Hub" in change.as_markdown()


def test_a_rehearsal_is_not_compared_with_a_release(project: Project, facts: CardFacts) -> None:
    rehearsal = sample(project, one_card(project), "v0.0.0", scale_model=True)
    assert diff("a/b", published(project, rehearsal), published(project, facts)).figures is None
