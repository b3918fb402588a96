"""The release: each step's value threaded into the next, from a plan to receipts.

plan -> (scale models) -> cells -> facts.json per card -> rendered files -> stage and promote -> receipts. Nothing is
published of a repo unless every one of its cells passed its gates, and nothing at all before every repo is staged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from hubpub.config import locate
from hubpub.errors import ConfigError, ConflictError, GateError, HubpubError
from hubpub.facts import CellFacts
from hubpub.hub.client import Client
from hubpub.hub.receipts import Receipt, Staged
from hubpub.hub.sources import cached_source, check_source
from hubpub.make.run import make
from hubpub.matrix import cells, cells_of, select
from hubpub.plan import Step, plan
from hubpub.progress import Display
from hubpub.release.assemble import complete_card, record, sources_here
from hubpub.release.connect import Destination
from hubpub.release.promote import publish
from hubpub.release.staging import stage
from hubpub.release.targets import check_targets
from hubpub.release.version import checked_version, rehearsal_version
from hubpub.workspace import Workspace


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
        """Raise the worst of what went wrong."""
        if error := worst(self.failures.values()):
            raise error

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


def worst(errors: Iterable[HubpubError]) -> HubpubError | None:
    """The error that stands for all: one of a cell before a gate that was not passed. None where there is none."""
    found = list(errors)
    if not found:
        return None
    first = next((error for error in found if not isinstance(error, GateError)), found[0])
    more = f" ({len(found) - 1} more cells failed)" if len(found) > 1 else ""
    return type(first)(first.message + more, first.hint)


def run(
    chosen: Sequence[Step],
    to: Destination,
    version: str | None,
    display: Display,
    *,
    jobs: int | None = None,
    dry_run: bool = False,
    keep: bool = False,
) -> Report:
    """Make the `chosen` cells (see `planned`) and publish them. Raises HubpubError; failed cells are in the report
    instead.

    Cells of the same repos that were not chosen must have been made before. A rehearsal without a `version` gets one
    that names its content. With `keep`, facts and cards are recorded in the checkout.
    """
    started = monotonic()
    workspace = chosen[0].workspace
    project = workspace.project
    if version is not None or not workspace.rehearsal:
        version = checked_version(version, "add --version vX.Y.Z, or --rehearse to try it on scale models")
    steps = whole_repos(chosen)
    _check(to, steps, version)
    made = make(steps, workspace, display, jobs=jobs)
    failures = dict(made.failures)
    ready = []
    for card in {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}.values():
        own = [step for step in steps if step.cell.card is card and step.action != "skip"]
        if not any(step.cell.id in failures for step in own):
            sources = sources_here(card, own)
            ready.append(complete_card(project, card, made.facts, sources, rehearsal=workspace.rehearsal))
    version = version or rehearsal_version(project, ready)
    done = publish(workspace, to, ready, version, display, dry_run=dry_run)
    for one in ready:
        if error := done.kept_back.get(one.card.repo):
            failures[f"{one.card.variant.name}/*"] = error
    if keep:
        record(project, done.facts)
    pages = tuple(f"{to.client.endpoint}/{receipt.repo_id}" for receipt in done.receipts)
    seconds = monotonic() - started
    return Report(version, steps, made.facts, failures, done.receipts, pages, to.store, seconds)


def make_and_stage(
    steps: Sequence[Step], to: Destination, version: str | None, display: Display, *, jobs: int | None = None
) -> Report:
    """Make the cells of `steps` and leave them on the staging branches of its repos, for `promote` to publish."""
    started = monotonic()
    version = checked_version(version, "add --version vX.Y.Z: 'hubpub promote' asks for the same")
    workspace = steps[0].workspace
    _check(to, steps, version)
    made = make(steps, workspace, display, jobs=jobs)
    passed = {name: facts for name, facts in made.facts.items() if name not in made.failures}
    staged = stage(to, steps, passed, version, display)
    pages = tuple(f"{to.client.endpoint}/{one.repo_id}" for one in staged)
    seconds = monotonic() - started
    return Report(version, tuple(steps), made.facts, made.failures, (), pages, to.store, seconds, staged)


def planned(workspace: Workspace, selectors: Sequence[str], *, force: bool = False) -> tuple[Step, ...]:
    """A step for every selected cell. Raises ConfigError where none of them can be released."""
    steps = plan(select(cells(workspace.project), selectors), workspace, force=force)
    if all(step.action == "skip" for step in steps):
        raise _nothing_left(steps)
    return steps


def _nothing_left(steps: Sequence[Step]) -> ConfigError:
    first = steps[0]
    card = first.cell.card
    key = "exclude" if first.cell.excluded else "variant.source"
    path, line = locate(card, key)
    hint = None if first.cell.excluded else f"run 'hubpub pin {card.repo}': it asks the Hub and writes the commit"
    return ConfigError(f"nothing to release: {first.cell.id}: {first.reason}", hint, path=str(path), line=line)


def whole_repos(steps: Sequence[Step]) -> tuple[Step, ...]:
    """`steps` and those of the other cells of the same repos, which have been made before.

    Raises ConfigError for one that was not: a repo is published whole or not at all.
    """
    workspace = steps[0].workspace
    chosen = {step.cell.id for step in steps}
    cards = {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}
    others = [cell for card in cards.values() for cell in cells_of(workspace.project, card) if cell.id not in chosen]
    rest = plan(others, workspace)
    for step in rest:
        if step.action == "export":
            raise ConfigError(
                f"{step.cell.card.repo} cannot be published: {step.cell.id} was not selected and has not been made",
                f"select all of it ('{step.cell.variant.name}/*'), or exclude the recipe in its card.toml",
            )
    return (*steps, *rest)


def _check(to: Destination, steps: Sequence[Step], version: str | None) -> None:
    """Everything that can be known to go wrong before the first download and the first export."""
    rehearsal = steps[0].workspace.rehearsal
    cards = list({step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}.values())
    forced = any(step.forced for step in steps)
    for access in check_targets(to, cards, rehearsal=rehearsal, version=version):
        if forced and version in access.tags:
            raise ConflictError(
                f"{access.repo_id} already has {version}, and a forced export would make other files",
                "choose the next version",
            )
    if not rehearsal:
        check_sources(steps)


def check_sources(steps: Sequence[Step]) -> None:
    """Raise AccessError before the first download where a source that has to be fetched may not be read."""
    todo = {step.cell.variant.source: step.cell.variant for step in steps if step.action == "export"}
    missing = [variant.source for variant in todo.values() if cached_source(variant.source, variant.revision) is None]
    client = Client.from_environment() if missing else None
    for source in missing:
        assert client is not None
        check_source(client, source)
