"""Cells are variants times recipes; selectors are globs over their names."""

from __future__ import annotations

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError
from hubpub.matrix import cells, select


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


def test_a_selector_that_is_like_no_other_is_told_the_variants_and_not_every_cell(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"selector 'zzz' matches no cell") as caught:
        select(cells(project), ["zzz"])
    assert caught.value.hint is not None
    assert all(card.variant.name in caught.value.hint for card in project.cards)
    assert "/" not in caught.value.hint
