"""Before anything runs: what a release would do, and whether this machine can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hubpub.ci.changes import changed_since
from hubpub.ci.github import job_matrix
from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.doctor import as_json, examine
from hubpub.errors import ToolchainError
from hubpub.hub.client import Client, Retry
from hubpub.matrix import Cell, cells, select
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
    steps = plan(_chosen(project, selectors, changed_since), Workspace(project, work, rehearse), force=force)
    if github:
        terminal.json = True
        terminal.answer(job_matrix(steps, rehearsal=rehearse), "")
    else:
        terminal.answer({"cells": [step.as_json() for step in steps]}, tables.plan(steps))


def _chosen(project: Project, selectors: Sequence[str], base: str | None) -> Sequence[Cell]:
    """The selected cells; with a base those of them whose files would come out differently."""
    chosen = select(cells(project), selectors)
    if base is None:
        return chosen
    changed = changed_since(project, base)
    return [cell for cell in chosen if cell.id in changed]


@command(name="doctor")
@options.selectors()
@options.rehearse
@options.force
@options.changed_since
@options.hub
@options.namespace
@click.option("--offline", is_flag=True, help="Ask nobody; say what could not be checked.")
def doctor_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    selectors: tuple[str, ...],
    rehearse: bool,
    force: bool,
    changed_since: str | None,
    hub: str | None,
    namespace: str | None,
    offline: bool,
) -> None:
    steps = plan(_chosen(project, selectors, changed_since), Workspace(project, work, rehearse), force=force)
    client = None
    if not offline and not rehearse:
        client = Client.from_environment(hub)
        # Whoever asks what is wrong wants to know now: a Hub that does not answer is an answer.
        client.retry = Retry(attempts=1)
    checks = examine(steps, work, client=client, namespace=namespace, rehearse=rehearse)
    terminal.answer(as_json(checks), tables.checks(checks))
    if failed := [check for check in checks if check.verdict == "failed"]:
        raise ToolchainError(f"{len(failed)} of {len(checks)} checks failed, first: {failed[0].subject}", failed[0].fix)
