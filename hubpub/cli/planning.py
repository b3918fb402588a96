"""Before anything runs: what a release would do."""

from __future__ import annotations

from pathlib import Path

import click

from hubpub.ci.changes import selected
from hubpub.ci.github import job_matrix
from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.plan import plan
from hubpub.workspace import Workspace


@command(name="plan")
@options.selectors()
@options.rehearse
@options.force
@options.changed_since
@click.option("--github", is_flag=True, help="Print the job matrix of a workflow as JSON.")
def plan_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    selectors: tuple[str, ...],
    rehearse: bool,
    force: bool,
    changed_since: str | None,
    github: bool,
) -> None:
    steps = plan(selected(project, selectors, changed_since), Workspace(project, work, rehearse), force=force)
    if github:
        terminal.json = True
        terminal.answer(job_matrix(steps, rehearsal=rehearse), "")
    else:
        terminal.answer({"cells": [step.as_json() for step in steps]}, tables.plan(steps))
