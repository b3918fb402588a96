"""Variants x recipes -> cells, and the selectors that name some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from hubpub.config import Card, Project, Recipe, Variant
from hubpub.errors import ConfigError


@dataclass(frozen=True)
class Cell:
    """One (variant, recipe) pair: one `.pte` file of one Hub repo. `excluded` says why it is not built."""

    card: Card
    recipe: Recipe
    excluded: str | None = None

    @property
    def variant(self) -> Variant:
        return self.card.variant

    @property
    def id(self) -> str:
        return f"{self.variant.name}/{self.recipe.name}"

    @property
    def file(self) -> str:
        """Name of the `.pte` in the Hub repo, unique in the whole matrix."""
        return f"{self.variant.name}-{self.recipe.name}.pte"


def cells(project: Project) -> tuple[Cell, ...]:
    """Every declared cell, in the order of cards and of each card's recipes.

    Raises ConfigError for an unknown recipe, an exclusion of a recipe the card does not offer, and two cells or
    repos that would share a name.
    """
    found: list[Cell] = []
    repos: dict[str, Card] = {}
    files: dict[str, Cell] = {}
    for card in project.cards:
        twin = repos.setdefault(card.repo.lower(), card)
        if twin is not card:
            raise ConfigError(
                f"{card.folder.name}/card.toml: repo: '{card.repo}' is also declared in {twin.folder.name}/card.toml",
                "give each card a repo of its own",
                path=str(card.folder / "card.toml"),
            )
        reasons = {e.recipe: e.reason for e in card.exclude}
        for name in reasons.keys() - set(card.export.recipes):
            raise ConfigError(
                f"{card.folder.name}/card.toml: exclude: '{name}' is not one of export.recipes",
                path=str(card.folder / "card.toml"),
            )
        for name in card.export.recipes:
            cell = Cell(card, project.recipe(card, name), reasons.get(name))
            same = files.setdefault(cell.file.lower(), cell)
            if same is not cell:
                raise ConfigError(
                    f"{card.folder.name}/card.toml: duplicate file name '{cell.file}': "
                    f"{same.card.folder.name}/card.toml declares it as {same.id}",
                    "rename the variant or the recipe",
                    path=str(card.folder / "card.toml"),
                )
            found.append(cell)
    return tuple(found)


def cells_of(project: Project, card: Card) -> tuple[Cell, ...]:
    """The cells of one card that are built: all of them make its repo, and a repo is published whole."""
    return tuple(cell for cell in cells(project) if cell.card.repo == card.repo and not cell.excluded)


def select(declared: Sequence[Cell], selectors: Sequence[str]) -> tuple[Cell, ...]:
    """The cells whose id matches any selector (a glob; a bare variant or repo name means all of its cells).

    No selector means every cell. Raises ConfigError for a selector that matches nothing.
    """
    if not selectors:
        return tuple(declared)
    for selector in selectors:
        if not any(_matches(selector, cell) for cell in declared):
            ids = [cell.id for cell in declared]
            variants = list(dict.fromkeys(cell.variant.name for cell in declared))
            close = get_close_matches(selector, [*ids, *variants], 1)
            hint = f"'hubpub plan' lists all cells; variants: {', '.join(variants)}"
            hint = f"did you mean '{close[0]}'?" if close else hint
            raise ConfigError(f"selector '{selector}' matches no cell", hint)
    return tuple(cell for cell in declared if any(_matches(selector, cell) for selector in selectors))


def matching(declared: Sequence[Cell], selector: str) -> tuple[Cell, ...]:
    """The cells that `selector` means, as in `select`; none where it matches nothing."""
    return tuple(cell for cell in declared if _matches(selector, cell))


def _matches(selector: str, cell: Cell) -> bool:
    return any(fnmatchcase(name, selector) for name in (cell.id, cell.variant.name, cell.card.repo))
