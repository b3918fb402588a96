"""Releasing, from a plan to receipts, and promoting what was staged."""

from __future__ import annotations

from pathlib import Path

import click

from hubpub.cli import options, tables
from hubpub.cli.options import PATH, check_selection, command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.release.promote import promote
from hubpub.release.run import Options, run


@command(name="release")
@options.selectors()
@options.all_cards
@click.option("--version", metavar="vX.Y.Z", help="The tag of this release (a rehearsal can do without).")
@options.rehearse
@options.force
@options.hub
@options.namespace
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
    jobs: int | None,
    dry_run: bool,
    pr: bool,
    record: bool,
    stage: bool,
) -> None:
    check_selection(selectors, everything)
    asked = Options(
        selectors=selectors,
        work=work,
        version=version,
        rehearse=rehearse,
        hub=hub,
        namespace=namespace,
        jobs=jobs,
        force=force,
        dry_run=dry_run,
        create_pr=pr,
        record=record,
        stage=stage,
    )
    with terminal.progress() as progress:
        report = run(project, asked, progress)
    # The report says what failed: one JSON value is all there is on stdout.
    terminal.answer(report.as_json(), tables.report(report))
    report.raise_for_failures()


@command(name="promote")
@options.selectors()
@options.all_cards
@click.option("--version", metavar="vX.Y.Z", required=True, help="The version that was staged.")
@click.option("--facts", type=PATH, metavar="DIR", help="Folder with the facts.json of every cell.")
@click.option("--rehearse", is_flag=True, help="What was staged is of scale models.")
@options.hub
@options.namespace
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
    dry_run: bool,
    pr: bool,
    record: bool,
) -> None:
    """Publish what was staged, or merge the pull request that waits.

    SELECTOR names cells or repos; each repo is promoted whole.
    """
    check_selection(selectors, everything)
    asked = Options(
        selectors=selectors,
        work=work,
        version=version,
        rehearse=rehearse,
        hub=hub,
        namespace=namespace,
        dry_run=dry_run,
        create_pr=pr,
        record=record,
    )
    with terminal.progress() as progress:
        receipts = promote(project, asked, facts, progress)
    terminal.answer(
        {"version": version, "receipts": [receipt.as_json() for receipt in receipts]}, tables.receipts(receipts)
    )
