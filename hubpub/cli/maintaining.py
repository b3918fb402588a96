"""Looking after what is published and staged; the local Hub."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Group

from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.errors import ExportError, HubError, UsageError
from hubpub.hub.maintenance import status, verify, yank
from hubpub.hub.publish import preflight
from hubpub.hub.staging import unstage_all
from hubpub.localhub import LocalHub, serve
from hubpub.make import rebuild as rebuilding
from hubpub.make.rebuild import published_facts, rebuild
from hubpub.matrix import cells
from hubpub.release.connect import HUGGING_FACE, LOCAL_PORT, connect, hub_of
from hubpub.workspace import Workspace


@command(name="status")
@options.hub
@options.namespace
def status_command(terminal: Terminal, project: Project, work: Path, hub: str | None, namespace: str | None) -> None:
    with connect(hub or HUGGING_FACE, work / "hub", namespace) as to:
        found = status(to.client, [to.repo_id(card) for card in project.cards], work)
    terminal.answer({"repos": [asdict(one) for one in found]}, tables.status(found))


@command(name="verify")
@click.argument("repo", metavar="REPO[@TAG]")
@options.hub
@options.namespace
@click.option("--download", is_flag=True, help="Read every byte, not just what the Hub recorded.")
@click.option("--rebuild", "cell", metavar="CELL", help="Export it again from its source and compare the bytes.")
@click.option("--record", is_flag=True, help="Keep beside the card that the file was rebuilt.")
def verify_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    repo: str,
    hub: str | None,
    namespace: str | None,
    download: bool,
    cell: str | None,
    record: bool,
) -> None:
    """Check published files against their sums.

    REPO is e.g. someone/gemma-3n-E2B-it-pte, or someone/gemma-3n-E2B-it-pte@v1.0.0. With --rebuild, one of its files
    is also exported again: from the pinned source, with the versions on record.
    """
    if record and cell is None:
        raise UsageError("--record keeps what --rebuild found", "add --rebuild CELL, e.g. gemma-3n-E2B-it/8da4w")
    name, _, revision = repo.partition("@")
    with connect(hub_of(name, hub, HUGGING_FACE), work / "hub", namespace) as to:
        found = verify(to.client, name, revision or "main", download=download)
        facts = None
        if cell and found.ok:
            facts = published_facts(to.client.read(name, found.commit, "facts.json"), cell, repo)
    again = None
    if facts is not None:
        with terminal.progress() as progress:
            again = rebuild(Workspace(project, work, facts.source.scale_model), facts, progress)
        if record and again.same:
            card = next(one.card for one in cells(project) if one.id == facts.cell)
            rebuilding.record(card, again)
    terminal.answer(
        {**asdict(found), "ok": found.ok, "rebuilt": {**asdict(again), "same": again.same} if again else None},
        Group(tables.verification(found), tables.rebuilt(again)) if again else tables.verification(found),
    )
    if not found.ok:
        raise HubError(f"{repo} is not intact: {found.problems[0]}", "release a new version; tags never move")
    if again and not again.same:
        raise ExportError(f"{again.file}: its source gave another file here", again.reason)


@command(name="yank")
@click.argument("repo", metavar="REPO@TAG")
@click.option("--reason", required=True, metavar="TEXT", help="What is wrong with it, in a sentence.")
@click.option("--new-version", metavar="REPO", help="Another repo that takes over, for the Hub to link to.")
@options.hub
@options.namespace
def yank_command(
    terminal: Terminal,
    work: Path,
    repo: str,
    reason: str,
    new_version: str | None,
    hub: str | None,
    namespace: str | None,
) -> None:
    """Mark a bad version on its card; the tag stays.

    REPO@TAG is e.g. someone/gemma-3n-E2B-it-pte@v1.0.0.
    """
    name, _, tag = repo.partition("@")
    if not tag:
        raise UsageError(f"'{repo}' names no version", "write it as OWNER/REPO@vX.Y.Z")
    with connect(hub_of(name, hub, HUGGING_FACE), work / "hub", namespace) as to:
        commit = yank(to.client, name, tag, reason, new_version=new_version)
    said = f"{name}: the card says so already"
    if commit:
        said = f"{name}: the card says that {tag} was withdrawn (commit {commit[:12]}); the tag and its files stay"
    terminal.answer({"repo": name, "tag": tag, "reason": reason, "commit": commit}, said)


@command(name="unstage")
@click.argument("repo", metavar="REPO")
@click.option("--version", metavar="vX.Y.Z", help="Of this version alone (default: of all).")
@options.hub
@options.namespace
def unstage_command(
    terminal: Terminal, work: Path, repo: str, version: str | None, hub: str | None, namespace: str | None
) -> None:
    """Drop what was staged and never promoted.

    REPO is e.g. someone/gemma-3n-E2B-it-pte.
    """
    with connect(hub_of(repo, hub, HUGGING_FACE), work / "hub", namespace) as to:
        preflight(to.client, [repo])
        dropped = unstage_all(to.client, repo, version)
    said = f"{repo}: dropped {', '.join(dropped)}" if dropped else f"{repo}: nothing was staged"
    terminal.answer({"repo": repo, "dropped": dropped}, said)


@click.group("hub")
def hub_command() -> None:
    """The embedded local Hub."""


@command(hub_command, "serve")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=LOCAL_PORT,
    metavar="PORT",
    help=f"Default: {LOCAL_PORT}; 0: any that is free.",
)
def hub_serve(terminal: Terminal, work: Path, port: int) -> None:
    """Serve the local Hub until Ctrl-C."""

    def ready(hub: LocalHub) -> None:
        said = f"local Hub at {hub.url}  (stored in {hub.root}; Ctrl-C stops it)"
        terminal.announce({"url": hub.url, "root": str(hub.root)}, said)

    # Nothing is left undone that could go on.
    with suppress(KeyboardInterrupt):
        serve(LocalHub(work / "hub", port), ready)
