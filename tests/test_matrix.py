"""Declarations: what is accepted, and what an error says about what is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError
from hubpub.matrix import cells, select

CARD = """
schema = 1
repo = "{name}-pte"

[variant]
name = "{name}"
source = "google/gemma-3n-E2B-it"
revision = "5e092ebca197cdcd8d8b195040accf22693501bc"
family = "gemma3n"
license = "gemma"

[export]
recipes = ["8da4w", "bf16"]
recommended = "8da4w"

[card]
title = "A model"
"""


def make(root: Path, **cards: str) -> Project:
    for name, text in cards.items():
        folder = root / "cards" / name
        folder.mkdir(parents=True)
        (folder / "card.toml").write_text(text)
    return Project.find(root)


def test_cells_are_variants_times_recipes(project: Project) -> None:
    ids = [cell.id for cell in cells(project)]
    assert len(ids) == len(set(ids))
    for card in project.cards:
        assert [i for i in ids if i.startswith(f"{card.variant.name}/")] == [
            f"{card.variant.name}/{recipe}" for recipe in card.export.recipes
        ]


def test_selectors_are_globs_over_ids(project: Project) -> None:
    everything = cells(project)
    assert {c.recipe.name for c in select(everything, ["*/8da4w"])} == {"8da4w"}
    assert {c.variant.name for c in select(everything, ["gemma-3n-E2B-it"])} == {"gemma-3n-E2B-it"}
    assert select(everything, []) == everything


def test_a_selector_that_matches_nothing_names_itself_and_a_neighbour(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"selector 'gemma-3n-E2B-it/8da5w' matches no cell") as caught:
        select(cells(project), ["gemma-3n-E2B-it/8da5w"])
    assert caught.value.hint is not None
    assert "gemma-3n-E2B-it/8da" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[export]", "[exprot]", r"card\.toml:12: exprot: unknown key"),
        ("recommended", "recomended", r"export\.recomended: unknown key"),
        ('"8da4w", "bf16"', '"8da4w", "int2"', r"export\.recipes: unknown recipe 'int2'"),
        ("5e092ebca197cdcd8d8b195040accf22693501bc", "main", r"variant\.revision: must be a commit id"),
        ('repo = "a-pte"', 'repo = "../a"', r"repo: must be 1 to 96"),
        ("google/gemma-3n-E2B-it", "gemma", r"variant\.source: must be 'owner/name'"),
        ('recommended = "8da4w"', 'recommended = "int8"', r"'int8' is not one of recipes"),
        ("schema = 1", "schema = 2", r"card\.toml:2: schema"),
        ("schema = 1", "schema = ", r"not valid TOML"),
        ('title = "A model"', "", r"card\.title: this key is missing"),
    ],
)
def test_a_wrong_card_names_file_key_and_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = CARD.format(name="a")
    assert old in text
    with pytest.raises(ConfigError, match=says):
        cells(make(tmp_path, a=text.replace(old, new, 1)))


def test_two_cards_with_one_file_name_are_refused(tmp_path: Path) -> None:
    project = make(tmp_path, a=CARD.format(name="a"), b=CARD.format(name="a").replace("a-pte", "b-pte"))
    with pytest.raises(ConfigError, match=r"duplicate file name 'a-8da4w\.pte'"):
        cells(project)


def test_two_cards_with_one_repo_are_refused(tmp_path: Path) -> None:
    project = make(tmp_path, a=CARD.format(name="a"), b=CARD.format(name="b").replace("b-pte", "a-pte"))
    with pytest.raises(ConfigError, match=r"'a-pte' is also declared in a/card\.toml"):
        cells(project)


def test_a_recipe_no_backend_can_run_is_refused(tmp_path: Path) -> None:
    own = """
[recipe.mine]
summary = "int8 weights on xnnpack"
dtype = "fp32"
backend = "xnnpack"
linear = { weight = "int8" }
[recipe.mine.gates]
kl_mean_max = 1.0
top1_min = 0.1
"""
    with pytest.raises(ConfigError, match=r"recipe\.mine: linear: xnnpack has no weight-only"):
        cells(make(tmp_path, a=CARD.format(name="a") + own))


def test_an_excluded_recipe_says_why(tmp_path: Path) -> None:
    text = CARD.format(name="a").replace("[card]", '[[exclude]]\nrecipe = "bf16"\nreason = "too large"\n\n[card]')
    assert [c.excluded for c in cells(make(tmp_path, a=text))] == [None, "too large"]


def test_a_project_without_templates_uses_those_of_hubpub(tmp_path: Path, project: Project) -> None:
    shutil.copytree(project.cards_dir, tmp_path / "cards")
    assert Project.find(tmp_path).templates_dir.is_dir()
