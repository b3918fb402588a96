"""The jobs of the release workflow, as a workflow runs them and as anybody can."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hubpub.ci import github, jobs
from hubpub.cli import options
from hubpub.cli.options import PATH, command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.workspace import Workspace


class Jobs(click.Group):
    """The jobs in the order in which a workflow runs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group("ci", cls=Jobs)
def ci_command() -> None:
    """One job of the release workflow; each can be repeated here.

    A workflow hands over names in environment variables, never as part of a command line.
    """


def job(function: Callable[..., None]) -> click.Command:
    """A job of a release: which one is said by options, or by the variables that the workflow sets."""

    @wraps(function)
    def run(
        terminal: Terminal,
        project: Project,
        work: Path,
        version: str | None,
        namespace: str | None,
        rehearsal_namespace: str | None,
        rehearse: bool,
        over_rehearsal: bool,
        dry_run: bool,
        facts: Path,
        receipts: Path,
        **names: Any,
    ) -> None:
        named = jobs.Job(
            workspace=Workspace(project, work, rehearse),
            version=jobs.tag_version(version),
            namespace=namespace,
            for_rehearsals=rehearsal_namespace,
            dry_run=dry_run,
            over_rehearsal=over_rehearsal,
            facts=facts,
            receipts=receipts,
        )
        function(terminal, named, **names)

    del run.__wrapped__
    for option in reversed(
        (
            click.option("--version", envvar="HUBPUB_VERSION", metavar="vX.Y.Z", help="Default: the tag."),
            click.option("--namespace", envvar="HUBPUB_NAMESPACE", metavar="NAME", help="Whose repos."),
            options.rehearsal_namespace,
            click.option("--rehearse", is_flag=True, envvar="HUBPUB_REHEARSE", help="On scale models."),
            options.over_rehearsal,
            click.option("--dry-run", is_flag=True, envvar="HUBPUB_DRY_RUN", help="Publish nothing."),
            click.option("--facts", type=PATH, default="facts", metavar="DIR", help="Default: facts."),
            click.option("--receipts", type=PATH, default="receipts", metavar="DIR", help="Default: receipts."),
        )
    ):
        run = option(run)
    return command(ci_command, function.__name__.removesuffix("_job").replace("_", "-"))(run)


one_cell = click.argument("cell", envvar="HUBPUB_CELL", metavar="CELL")
one_repo = click.argument("repo", envvar="HUBPUB_REPO", metavar="REPO")


@job
@click.argument("selectors", nargs=-1, envvar="HUBPUB_SELECTORS", metavar="[SELECTOR...]")
def plan_job(terminal: Terminal, job: jobs.Job, selectors: tuple[str, ...]) -> None:
    """Say which cells and repos there are, and refuse what cannot be released before a machine is started."""
    found = jobs.plan_jobs(job, selectors)
    if terminal.json:
        terminal.answer(found, "")


@command(ci_command, "free-disk")
def free_disk_job(_: Terminal) -> None:
    """Delete what GitHub's runners carry and no export needs."""
    github.free_disk()


@job
@one_cell
def resume_job(_: Terminal, job: jobs.Job, cell: str) -> None:
    """Whether the Hub holds this cell of this version already."""
    jobs.resume(job, cell)


@job
@one_cell
def fetch_job(_: Terminal, job: jobs.Job, cell: str) -> None:
    """Bring the source of a cell to this machine."""
    jobs.fetch(job, cell)


@job
@one_cell
def export_job(terminal: Terminal, job: jobs.Job, cell: str) -> None:
    """Export, inspect, validate and bench a cell."""
    with terminal.progress() as progress:
        jobs.export(job, cell, progress)


@job
@one_cell
def stage_job(terminal: Terminal, job: jobs.Job, cell: str) -> None:
    """Send a cell's file to the staging branch of its repo."""
    with terminal.progress() as progress:
        jobs.stage(job, cell, progress)


@job
@one_cell
def collect_job(_: Terminal, job: jobs.Job, cell: str) -> None:
    """Bring a staged file to a machine of another kind."""
    jobs.collect(job, cell)


@job
@one_cell
def measure_job(terminal: Terminal, job: jobs.Job, cell: str) -> None:
    """Validate and bench a collected file there."""
    with terminal.progress() as progress:
        jobs.measure(job, cell, progress)


@job
def sums_job(_: Terminal, job: jobs.Job) -> None:
    """Write SHA256SUMS of what this run made: what is attested."""
    print(jobs.sums(job))


@job
@one_repo
def promote_job(terminal: Terminal, job: jobs.Job, repo: str) -> None:
    """Render, one commit, tag and verify one repo."""
    with terminal.progress() as progress:
        jobs.promote(job, repo, progress)


@job
def announce_job(_: Terminal, job: jobs.Job) -> None:
    """Write the GitHub release of the tag."""
    print(jobs.announce(job))


@command(ci_command, "rehearse")
@click.argument("selectors", nargs=-1, metavar="[SELECTOR...]")
@click.option("--changed-since", envvar="HUBPUB_BASE", metavar="BASE", help="Only what differs from this commit.")
def rehearse_job(
    terminal: Terminal, project: Project, work: Path, selectors: tuple[str, ...], changed_since: str | None
) -> None:
    """What a pull request runs: its cells on scale models, and what its cards would change."""
    with terminal.progress() as progress:
        jobs.rehearse(project, work, changed_since, selectors, progress)
