"""The release: each step's value threaded into the next, from a plan to receipts.

plan -> (scale models) -> cells -> facts.json per card -> rendered files -> stage and promote -> receipts. Nothing is
published of a repo unless every one of its cells passed its gates, and nothing at all before every repo is staged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.config import PACKAGE, Card, Project, locate
from hubpub.errors import ConfigError, ConflictError, GateError, HubpubError, UsageError
from hubpub.facts import CellFacts, dump, load
from hubpub.gates import with_current_gates
from hubpub.make.run import make
from hubpub.matrix import cells, select
from hubpub.plan import Step, plan
from hubpub.progress import Display
from hubpub.release.assemble import files_of, repo_release, sources_here
from hubpub.release.connect import HUGGING_FACE, connect
from hubpub.release.version import VERSION
from hubpub.workspace import Workspace

if TYPE_CHECKING:
    from hubpub.hub.client import Client
    from hubpub.hub.content import LocalFile
    from hubpub.hub.receipts import Receipt, Staged


@dataclass(frozen=True)
class Options:
    """What one release is asked to do. `hub` is "local" or an endpoint; `jobs` None: as many as the machine holds."""

    selectors: tuple[str, ...]
    work: Path
    version: str | None = None
    rehearse: bool = False
    hub: str | None = None
    namespace: str | None = None
    jobs: int | None = None
    force: bool = False
    dry_run: bool = False
    create_pr: bool = False
    record: bool = False
    stage: bool = False
    """Stop once the files of the selected cells are on staging branches: `promote` publishes them, from anywhere."""

    def workspace(self, project: Project) -> Workspace:
        return Workspace(project, self.work, self.rehearse)

    @property
    def endpoint(self) -> str:
        return self.hub or ("local" if self.rehearse else HUGGING_FACE)


@dataclass(frozen=True)
class Report:
    """What came of a release: the plan, the facts of every cell, what failed, and the Hub's receipts by repo."""

    version: str
    steps: tuple[Step, ...]
    facts: dict[str, CellFacts]
    failures: dict[str, HubpubError]
    receipts: tuple[Receipt, ...]
    pages: tuple[str, ...]
    local_hub: Path | None
    seconds: float = field(default=0.0)
    staged: tuple[Staged, ...] = ()

    def raise_for_failures(self) -> None:
        """Raise the worst of what went wrong: an error of a cell before a gate that was not passed."""
        if not self.failures:
            return
        errors = list(self.failures.values())
        first = next((e for e in errors if not isinstance(e, GateError)), errors[0])
        more = f" ({len(errors) - 1} more cells failed)" if len(errors) > 1 else ""
        raise type(first)(first.message + more, first.hint)

    def as_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "seconds": round(self.seconds, 2),
            "cells": [
                {
                    **step.as_json(),
                    "error": str(self.failures[step.cell.id]) if step.cell.id in self.failures else None,
                    "passed": facts.passed if (facts := self.facts.get(step.cell.id)) else None,
                    "bytes": facts.file.bytes if facts else None,
                    "sha256": facts.file.sha256 if facts else None,
                }
                for step in self.steps
            ],
            "staged": [asdict(one) for one in self.staged],
            "receipts": [receipt.as_json() for receipt in self.receipts],
            "pages": list(self.pages),
        }


def run(project: Project, options: Options, display: Display) -> Report:
    """Plan, make, measure, render and publish. Raises HubpubError; failed cells are in the report instead."""
    from time import monotonic

    started = monotonic()
    workspace = options.workspace(project)
    steps = plan(select(cells(project), options.selectors), workspace, force=options.force)
    if not options.rehearse and options.version is None:
        raise UsageError("a release needs a version", "add --version vX.Y.Z, or --rehearse to try it on scale models")
    if options.stage and options.version is None:
        raise UsageError("files are staged for a version", "add --version vX.Y.Z: 'hubpub promote' asks for the same")
    if options.stage and (options.create_pr or options.dry_run):
        raise UsageError("--stage goes with neither --pr nor --dry-run", "give --pr to 'hubpub promote'")
    if options.version is not None and not VERSION.fullmatch(options.version):
        raise UsageError(f"'{options.version}' is not a version", "write it as vX.Y.Z, e.g. --version v1.0.0")
    if not options.rehearse:
        _pinned(steps)
    with ExitStack() as stack:
        client, local_hub = connect(options, stack)
        namespace = options.namespace or client.namespace
        repos = {step.cell.card.repo: f"{namespace}/{step.cell.card.repo}" for step in steps}
        _preflight(client, list(repos.values()), options)
        if not options.rehearse:
            _check_sources(steps)
        made = make(steps, workspace, display, jobs=options.jobs, force=options.force)
        facts, failures = made.facts, made.failures
        if options.stage:
            assert options.version
            staged = _stage(client, steps, facts, failures, repos, options, display)
            pages = tuple(f"{client.endpoint}/{one.repo_id}" for one in staged)
            seconds = monotonic() - started
            return Report(options.version, steps, facts, failures, (), pages, local_hub, seconds, staged)
        cards = _complete(project, steps, facts, failures, options)
        version = options.version or _rehearsal_version(project, cards)
        releases = []
        for card, found in cards:
            try:
                here = _here(card, found, options)
                release = repo_release(client, project, card, *here, repos[card.repo], version, options)
            except GateError as error:
                failures[f"{card.variant.name}/*"] = error
                display.finish(card.repo, f"not published: {error.message}")
            else:
                releases.append(release)
        receipts: list[Receipt] = []
        if releases:
            from hubpub.hub.publish import publish_all

            def told(repo: str, path: str, sent: int, total: int) -> None:
                display.update(repo, f"send {path}", sent / total if total else 1.0)

            receipts = publish_all(
                client,
                releases,
                options.work,
                progress=told,
                dry_run=options.dry_run,
                create_pr=options.create_pr,
            )
            for receipt in receipts:
                display.finish(receipt.repo_id, receipt.summary)
        pages = tuple(f"{client.endpoint}/{release.repo_id}" for release in releases)
    return Report(version, steps, facts, failures, tuple(receipts), pages, local_hub, monotonic() - started)


def _stage(
    client: Client,
    steps: Sequence[Step],
    facts: dict[str, CellFacts],
    failures: dict[str, HubpubError],
    repos: dict[str, str],
    options: Options,
    display: Display,
) -> tuple[Staged, ...]:
    """Put the selected cells that passed their gates, and their tokenizers, on the staging branch of each repo."""
    from hubpub.hub.content import RepoRelease
    from hubpub.hub.staging import stage

    assert options.version is not None
    files: dict[str, dict[str, LocalFile]] = {}
    for step in steps:
        found = facts.get(step.cell.id)
        if found is None or step.cell.id in failures:
            continue
        own = files.setdefault(step.cell.card.repo, {})
        for file in files_of([found], sources_here(step.cell.card, [step], options)):
            own[file.path_in_repo] = file

    def told(repo: str, path: str, sent: int, total: int) -> None:
        display.update(repo, f"stage {path}", sent / total if total else 1.0)

    done = []
    for repo, own in files.items():
        release = RepoRelease(repos[repo], options.version, tuple(own.values()), f"Release {options.version}")
        one = stage(client, release, options.work, progress=told, small_too=True)
        display.finish(one.repo_id, one.summary)
        done.append(one)
    return tuple(done)


def _pinned(steps: Sequence[Step]) -> None:
    for card in {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}.values():
        if card.variant.revision is None:
            path, line = locate(card, "variant.source")
            raise ConfigError(
                f"{path}: variant.revision is missing: a release needs one commit of {card.variant.source}",
                f"run 'hubpub pin {card.repo}': it asks the Hub and writes the commit into card.toml",
                path=str(path),
                line=line,
            )


def _preflight(client: Client, repo_ids: Sequence[str], options: Options) -> None:
    from hubpub.hub.publish import preflight

    for access in preflight(client, repo_ids, create_pr=options.create_pr):
        if options.version and options.version in access.tags and options.force:
            raise ConflictError(
                f"{access.repo_id} already has {options.version}, and a forced export would make other files",
                "choose the next version",
            )


def _check_sources(steps: Sequence[Step]) -> None:
    """Raise AccessError before the first download where a source that has to be fetched may not be read."""
    from hubpub.hub.client import Client
    from hubpub.hub.sources import cached_source, check_source

    todo = {step.cell.variant.source: step.cell.variant for step in steps if step.action == "export"}
    missing = [variant.source for variant in todo.values() if cached_source(variant.source, variant.revision) is None]
    client = Client.from_environment() if missing else None
    for source in missing:
        assert client is not None
        check_source(client, source)


def _complete(
    project: Project,
    steps: Sequence[Step],
    facts: dict[str, CellFacts],
    failures: dict[str, HubpubError],
    options: Options,
) -> list[tuple[Card, dict[str, Step]]]:
    """The cards that can be published, each with the steps of all of its cells.

    A card with a failed cell is left out. Cells of a card that were not selected must have been made before.
    """
    chosen = {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}
    failed = {step.cell.card.repo for step in steps if step.cell.id in failures}
    found = []
    for repo, card in chosen.items():
        if repo in failed:
            continue
        own = [cell for cell in cells(project) if cell.card.repo == repo and not cell.excluded]
        all_steps = plan(own, options.workspace(project))
        for step in all_steps:
            if step.cell.id in facts:
                continue
            known = step.facts()
            if known is None:
                raise ConfigError(
                    f"{repo} cannot be published: {step.cell.id} was not selected and has not been made",
                    f"select all of it ('{step.cell.variant.name}/*'), or exclude the recipe in its card.toml",
                )
            facts[step.cell.id] = known
            if not facts[step.cell.id].passed:
                raise GateError(f"{repo} cannot be published: {step.cell.id} does not pass its gates")
        found.append((card, {step.cell.id: step for step in all_steps}))
    return found


def _here(card: Card, steps: dict[str, Step], options: Options) -> tuple[tuple[CellFacts, ...], dict[str, Path]]:
    """The facts of cells that were made on this machine, and where each of their files lies."""
    measured = tuple(facts for step in steps.values() if (facts := step.facts()))
    return measured, sources_here(card, steps.values(), options)


def _rehearsal_version(project: Project, cards: Sequence[tuple[Card, dict[str, Step]]]) -> str:
    """A version that names the content: rehearsing the same thing again gives the same tag."""
    digest = hashlib.sha256()
    for card, steps in cards:
        digest.update((card.folder / "card.toml").read_bytes())
        for step in steps.values():
            facts = load(CellFacts, step.folder / "facts.json")
            digest.update(dump(with_current_gates(step.cell, facts)).encode())
    for path in sorted(project.templates_dir.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    rooms = PACKAGE / "cards"
    for path in sorted(rooms.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"v0.0.0-rehearsal.{digest.hexdigest()[:8]}"
