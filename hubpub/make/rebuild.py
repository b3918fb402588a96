"""Was a published file made as its facts say? Exported again from the pinned source, and compared by its SHA-256.

A file that came out the same is noted beside the card, in rebuilds.json, and named by the releases of that very file.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import hubpub
from hubpub.config import Card
from hubpub.errors import ConfigError, HubError, HubpubError, SourceError, ToolchainError, UsageError
from hubpub.facts import CardFacts, CellFacts, Fact, Rebuilt, load, save
from hubpub.machine import STACK, system, versions
from hubpub.make import cell as one_cell
from hubpub.make.cell import Job
from hubpub.make.existing import source_of
from hubpub.make.pool import run_all
from hubpub.make.run import refuse_links
from hubpub.matrix import Cell, cells
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import slice_of
from hubpub.plan import fingerprint
from hubpub.progress import Display
from hubpub.workspace import Workspace

REBUILDS = "rebuilds.json"


@dataclass(frozen=True)
class Comparison:
    """A published file and what its source gave here; `kept` is where the file of this machine lies if it differs.

    `reason` says what is known of why it differs, "" where nothing is.
    """

    cell: str
    file: str
    published: str
    rebuilt: str
    python: str
    system: str
    reason: str = ""
    kept: str | None = None

    @property
    def same(self) -> bool:
        return self.published == self.rebuilt


class RebuildRecord(Fact):
    """That a file came out the same: its cell and SHA-256, and where and when that was."""

    cell: str
    sha256: str
    rebuilt: Rebuilt


class Rebuilds(Fact):
    """rebuilds.json beside a card.toml."""

    made: tuple[RebuildRecord, ...] = ()


def rebuild(workspace: Workspace, facts: CellFacts, display: Display) -> Comparison:
    """Export the cell of the published `facts` again and compare the file's SHA-256 with the published one.

    Raises ConfigError where the cell is not declared here, ToolchainError where this machine's versions are not those
    that are on record, SourceError where the source is not the one the file was made of.
    """
    cell = next((one for one in cells(workspace.project) if one.id == facts.cell), None)
    if cell is None:
        raise ConfigError(f"{facts.cell} is not declared in {workspace.project.cards_dir}", "name its --project")
    refuse_other_versions(facts)
    with workspace.locked(display.note):
        variant = cell.variant.model_copy(update={"source": facts.source.repo, "revision": facts.source.revision})
        source = source_of(variant, workspace)
        refuse_links(source)
        _refuse_other_source(source, facts)
        folder = workspace.rebuilds(facts.cell)
        job = Job(
            cell=facts.cell,
            variant=cell.variant,
            recipe=cell.recipe,
            context=facts.context.exported,
            prefill=facts.context.max_prefill,
            fingerprint=facts.fingerprint,
            checkpoint=source,
            references=folder,
            hashes=workspace.hashes.path,
            folder=folder,
            file=facts.file.name,
            scale_model=False,
            slice=slice_of(cell.variant, rehearsal=workspace.rehearsal),
        )
        (done,) = run_all([(facts.cell, one_cell.export, (job,))], 1, display.update)
        if done.error or done.value is None:
            raise done.error or HubpubError(f"{facts.cell}: nothing was made")
        found = done.value.file.sha256
        same = found == facts.file.sha256
        if same:
            job.pte.unlink()
        display.finish(facts.cell, "the same file" if same else "another file")
    return Comparison(
        cell=facts.cell,
        file=facts.file.name,
        published=facts.file.sha256,
        rebuilt=found,
        python=platform.python_version(),
        system=system(),
        reason="" if same else _difference(cell, facts, workspace),
        kept=None if same else str(job.pte),
    )


def published_facts(data: bytes | None, cell: str, repo: str) -> CellFacts:
    """The facts of `cell` in a published facts.json. Raises HubError where it cannot be read, UsageError without it."""
    try:
        known = CardFacts.model_validate_json(data or b"").cells
    except ValueError:
        raise HubError(
            f"the facts.json of {repo} cannot be read", "it is of a release that this hubpub cannot rebuild"
        ) from None
    facts = next((one for one in known if one.cell == cell), None)
    if facts is None:
        raise UsageError(f"{repo} holds no {cell}", f"its cells: {', '.join(one.cell for one in known)}")
    return facts


def refuse_other_versions(facts: CellFacts) -> None:
    """Raise ToolchainError unless the packages that write a `.pte` are installed here as they are on record."""
    here = {"hubpub": hubpub.__version__, **versions()}
    recorded = {name: facts.toolchain.get(name, "not recorded") for name in ("hubpub", *STACK)}
    if other := [name for name in recorded if recorded[name] != here[name]]:
        raise ToolchainError(
            f"{facts.file.name} was made with "
            + ", ".join(f"{name} {recorded[name]} (here: {here[name]})" for name in other),
            "pip install " + " ".join(f"'{name}=={recorded[name]}'" for name in other),
        )


def _refuse_other_source(source: Path, facts: CellFacts) -> None:

    here = {file.name: file.sha256 for file in Checkpoint.open(source).files()}
    for file in facts.source.files:
        if here.get(file.name) != file.sha256:
            raise SourceError(
                f"{source / file.name} is not the one that {facts.file.name} was made of",
                "a scale model is made anew when its recipe or the versions change; a download must be complete",
            )


def _difference(cell: Cell, facts: CellFacts, workspace: Workspace) -> str:
    if (made_on := facts.toolchain.get("platform", system())) != system():
        return (
            f"it was made on {made_on}, this is {system()}: sums of floating-point numbers are rounded in another way"
        )
    if fingerprint(cell, rehearsal=workspace.rehearsal).value == facts.fingerprint:
        return "source, recipe, versions and code are those on record: the export does not give the same file here"
    commit = f" (commit {facts.workflow.commit})" if facts.workflow else ""
    return f"recipe or code here are not those the file was made with: check out its release{commit} and try again"


def record(card: Card, found: Comparison) -> Path:
    """Note beside `card` that a file was rebuilt; the card's committed facts, where they are of it, say so too."""
    assert found.same
    path = card.folder / REBUILDS
    kept = load(Rebuilds, path).made if path.exists() else ()
    today = datetime.now(UTC).date().isoformat()
    rebuilt = Rebuilt(date=today, python=found.python, system=found.system)
    new = RebuildRecord(cell=found.cell, sha256=found.published, rebuilt=rebuilt)
    if new not in kept:
        save(Rebuilds(made=tuple(sorted((*kept, new), key=lambda one: (one.cell, one.rebuilt.date)))), path)
    recorded = card.folder / "facts.json"
    if recorded.exists():
        save(with_rebuilds(load(CardFacts, recorded), card), recorded)
    return path


def with_rebuilds(facts: CardFacts, card: Card) -> CardFacts:
    """`facts` with when and where the very files they are of were rebuilt."""
    path = card.folder / REBUILDS
    kept = load(Rebuilds, path).made if path.exists() else ()

    def own(cell: CellFacts) -> CellFacts:
        found = tuple(one.rebuilt for one in kept if (one.cell, one.sha256) == (cell.cell, cell.file.sha256))
        return cell.model_copy(update={"rebuilt": found})

    return facts.model_copy(update={"cells": tuple(map(own, facts.cells))})
