"""Rendering cards, and the facts they are rendered from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from hubpub.cards.family_sizes import all_sizes
from hubpub.cards.render import golden, recorded, stale
from hubpub.cli import options, tables
from hubpub.cli.options import PATH, command
from hubpub.cli.terminal import Terminal
from hubpub.config import Card, Project
from hubpub.errors import RenderError
from hubpub.facts import CardFacts, CellFacts, load
from hubpub.files import write_atomic
from hubpub.matrix import cells_of
from hubpub.measure.compare import compare
from hubpub.plan import plan
from hubpub.workspace import Workspace


@command(name="render")
@click.option("--check", is_flag=True, help="Only say whether they are stale (exit code 8).")
def render_command(terminal: Terminal, project: Project, check: bool) -> None:
    old = stale(project)
    if check:
        paths = [str(path) for path, _ in old]
        terminal.answer({"stale": paths}, "" if old else "every card is up to date")
        for path, diff in old:
            print(f"{path} is stale:\n{diff}", file=sys.stderr)
        if old:
            raise RenderError(f"{len(old)} committed cards are stale", "run 'hubpub render' and commit the result")
        return
    for card in project.cards:
        for path, data in golden(card, project).items():
            write_atomic(path, data)
    written = "\n".join(f"wrote {path}" for path, _ in old)
    terminal.answer({"written": [str(path) for path, _ in old]}, written or "every card is up to date")


@click.group("facts")
def facts_command() -> None:
    """Compare the facts of two releases."""


@command(facts_command, "diff")
@click.argument("old", type=PATH, metavar="OLD")
@click.argument("new", type=PATH, metavar="NEW")
def facts_diff(terminal: Terminal, old: Path, new: Path) -> None:
    """What got smaller, faster, better or worse."""
    found = compare(load(CardFacts, old), load(CardFacts, new))
    terminal.answer(found.as_json(), tables.difference(found))


@command(facts_command, "sizes")
@options.rehearse
def facts_sizes(terminal: Terminal, project: Project, work: Path, rehearse: bool) -> None:
    """The sizes of a model side by side, across repos: memory, quality and speed of the recommended files.

    What was published by others and what is estimated of files that were not made is marked as such.
    """
    workspace = Workspace(project, work, rehearse)

    def made(card: Card) -> list[CellFacts]:
        return [facts for step in plan(cells_of(project, card), workspace) if (facts := step.facts()) is not None]

    rows = all_sizes(project.cards, made if rehearse else recorded)
    estimated = {
        one.card.repo: one.estimated_bytes(project.recipe(one.card, one.card.export.recommended))
        for one in rows
        if one.cell is None
    }
    found = [{**one.as_json(), "estimated_bytes": estimated.get(one.card.repo)} for one in rows]
    terminal.answer({"sizes": found}, tables.sizes(rows, estimated))


@command(name="schema")
def schema_command(terminal: Terminal) -> None:
    dialect = "https://json-schema.org/draft/2020-12/schema"
    terminal.json = True
    terminal.answer({"$schema": dialect, **CardFacts.model_json_schema(by_alias=True)}, "")
