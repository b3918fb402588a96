"""Releasing, from a plan to receipts, and promoting what was staged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hubpub.cli import options, tables
from hubpub.cli.options import PATH, check_selection, command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.errors import ConfigError, UsageError
from hubpub.release.collection import collect
from hubpub.release.promote import promote
from hubpub.release.run import make_and_stage, planned, run
from hubpub.release.targets import destination
from hubpub.release.version import checked_version
from hubpub.workspace import Workspace


@command(name="release")
@options.selectors()
@options.all_cards
@click.option("--version", metavar="vX.Y.Z", help="The tag of this release (a rehearsal can do without).")
@options.rehearse
@options.force
@options.hub
@options.namespace
@options.rehearsal_namespace
@options.over_rehearsal
@options.jobs
@options.dry_run
@options.pull_request
@options.record
@click.option(
    "--stage", is_flag=True, help="Stop when the files are staged on the Hub: 'hubpub promote' publishes them."
)
def release_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    selectors: tuple[str, ...],
    everything: bool,
    version: str | None,
    rehearse: bool,
    force: bool,
    hub: str | None,
    namespace: str | None,
    rehearsal_namespace: str | None,
    over_rehearsal: bool,
    jobs: int | None,
    dry_run: bool,
    pr: bool,
    record: bool,
    stage: bool,
) -> None:
    check_selection(selectors, everything)
    if stage and (pr or dry_run or record):
        raise UsageError("--stage goes with none of --pr, --dry-run and --record", "give them to 'hubpub promote'")
    workspace = Workspace(project, work, rehearse)
    where = destination(workspace, hub, namespace, rehearsal_namespace, create_pr=pr, over_rehearsal=over_rehearsal)
    with terminal.progress() as progress, where as to:
        steps = planned(workspace, selectors, force=force)
        if stage:
            report = make_and_stage(steps, to, version, progress, jobs=jobs)
        else:
            report = run(steps, to, version, progress, jobs=jobs, dry_run=dry_run, keep=record)
    # The report says what failed: one JSON value is all there is on stdout.
    terminal.answer(report.as_json(), tables.report(report))
    report.raise_for_failures()


@command(name="promote")
@options.selectors()
@options.all_cards
@click.option("--version", metavar="vX.Y.Z", required=True, help="The version that was staged.")
@click.option(
    "--facts",
    type=PATH,
    metavar="DIR",
    help="Folder with the *.facts.json of every staged cell (default: what was staged from this work folder).",
)
@click.option("--rehearse", is_flag=True, help="What was staged is of scale models.")
@options.hub
@options.namespace
@options.rehearsal_namespace
@options.over_rehearsal
@options.dry_run
@options.pull_request
@options.record
def promote_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    selectors: tuple[str, ...],
    everything: bool,
    version: str,
    facts: Path | None,
    rehearse: bool,
    hub: str | None,
    namespace: str | None,
    rehearsal_namespace: str | None,
    over_rehearsal: bool,
    dry_run: bool,
    pr: bool,
    record: bool,
) -> None:
    """Publish what was staged, or merge the pull request that waits.

    SELECTOR names cells or repos; each repo is promoted whole.
    """
    check_selection(selectors, everything)
    workspace = Workspace(project, work, rehearse)
    where = destination(workspace, hub, namespace, rehearsal_namespace, create_pr=pr, over_rehearsal=over_rehearsal)
    with terminal.progress() as progress, where as to:
        receipts = promote(workspace, to, selectors, version, progress, facts=facts, dry_run=dry_run, keep=record)
    terminal.answer(
        {"version": version, "receipts": [receipt.as_json() for receipt in receipts]}, tables.receipts(receipts)
    )


@command(name="collection")
@click.option("--version", metavar="vX.Y.Z", required=True, help="The release whose repos it holds.")
@options.hub
@options.namespace
def collection_command(
    terminal: Terminal, project: Project, work: Path, version: str, hub: str | None, namespace: str | None
) -> None:
    """Make the collection of a release on the Hub, or put it right.

    A release does so by itself where its token may: one that was made for a single repo may not.
    """
    version = checked_version(version, "write it as it was released: --version v1.0.0")
    workspace = Workspace(project, work, rehearsal=False)
    with destination(workspace, hub, namespace, None) as to:
        found = collect(to, project.cards, version)
    if found is None:
        raise ConfigError(f"fewer than two repos of {version} are published: that is no collection")
    changed = f"{found.changed} of them added or moved" if found.changed else "all in their places"
    terminal.answer(asdict(found), f"{found.url}\n{len(found.repos)} repos, {changed}")
