"""Whether this machine, token and network can do a release."""

from __future__ import annotations

from pathlib import Path

import click

from hubpub.ci.changes import selected
from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.doctor import as_json, examine
from hubpub.errors import ToolchainError
from hubpub.hub.client import Client, Retry
from hubpub.plan import plan
from hubpub.workspace import Workspace


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
    steps = plan(selected(project, selectors, changed_since), Workspace(project, work, rehearse), force=force)
    client = None
    if not offline and not rehearse:
        client = Client.from_environment(hub)
        # Whoever asks what is wrong wants to know now: a Hub that does not answer is an answer.
        client.retry = Retry(attempts=1)
    checks = examine(steps, work, client=client, namespace=namespace, rehearse=rehearse)
    terminal.answer(as_json(checks), tables.checks(checks))
    if failed := [check for check in checks if check.verdict == "failed"]:
        raise ToolchainError(f"{len(failed)} of {len(checks)} checks failed, first: {failed[0].subject}", failed[0].fix)
