"""Benchmarks over programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from rich.console import Group

from hubpub.cli import options, tables
from hubpub.cli.options import PATH, POSITIVE, command
from hubpub.cli.talking import published
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.errors import UsageError
from hubpub.hub.programs import address
from hubpub.make import evaluations, existing
from hubpub.matrix import cells, matching
from hubpub.workspace import Workspace


@command(name="eval")
@click.argument("target", metavar="CELL|FILE.pte|REPO[@TAG]")
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks or groups of lm-evaluation-harness.")
@click.option("--limit", type=POSITIVE, metavar="N", help="Only the first N items of each: a subset, marked as one.")
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Examples before each item.")
@click.option("--chat", is_flag=True, help="Put items into the chat template.")
@click.option("--include", type=PATH, metavar="DIR", help="A folder with tasks of your own.")
@click.option("--tokenizer", type=PATH, metavar="PATH", help="tokenizer.json (default: beside the file).")
@click.option("--recipe", metavar="NAME", help="Which file of a repo (default: the recommended one).")
@click.option("--rehearse", is_flag=True, help="The cells of a rehearsal, on scale models.")
@options.hub
def eval_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    target: str,
    tasks: str,
    limit: int | None,
    shots: int | None,
    chat: bool,
    include: Path | None,
    tokenizer: Path | None,
    recipe: str | None,
    rehearse: bool,
    hub: str | None,
) -> None:
    """Put programs through benchmarks of lm-evaluation-harness (pip install 'hubpub[eval]').

    What a program answers is kept in the work folder: a run that was interrupted goes on where it was. What the files
    of a card's cells say is kept beside the card too, and shown by releases of those very files.
    """
    evaluations.require_harness()
    from hubpub.measure.harness import Asked

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UsageError("no task is named", "add --tasks, e.g. --tasks arc_easy,hellaswag")
    asked = Asked(names, limit, shots, chat, include)
    workspace = Workspace(project, work, rehearse)
    of_cell = {cell.id: cell for cell in matching(cells(project), target)}
    if not of_cell and address(target) and not Path(target).exists():
        pte = published(terminal, target, recipe, hub, work)
        targets: tuple[existing.Target, ...] = (existing.Target(pte.name, pte, None, None),)
    else:
        targets = existing.find(workspace, target, source=None, recipe=recipe)
    told, kept = {}, ""
    with terminal.progress() as progress:
        for one in targets:
            place = tokenizer or one.source
            said = partial(progress.update, one.name)
            told[one.name] = evaluations.evaluate(workspace, one.pte, place, asked, said)
            progress.finish(one.name, "done")
            if one.name in of_cell and not rehearse:
                kept = f"kept in {evaluations.keep(of_cell[one.name], told[one.name])}; 'hubpub render' shows it"
    value = {name: [each.model_dump(mode="json") for each in found] for name, found in told.items()}
    terminal.answer(value, Group(tables.evaluations(told), *([kept] if kept else [])))
