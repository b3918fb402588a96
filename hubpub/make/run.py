"""From a plan to measured cells: sources, processes, and what was made before.

Cells are exported and compared with their references side by side, as many as the machine holds; their speed is taken
one after the other, but for scale models. A cell that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubpub.config import Variant
from hubpub.errors import HubpubError, SourceError, ToolchainError, UsageError
from hubpub.facts import CellFacts, Exported
from hubpub.gates import missed_gates
from hubpub.hub.source_sizes import sizes
from hubpub.hub.sources import download_source
from hubpub.machine import processes_that_fit
from hubpub.make import cell as one_cell
from hubpub.make.cell import Job
from hubpub.make.pool import Done, Workers, run_all
from hubpub.matrix import Cell
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import build, slice_of
from hubpub.plan import Step, remember
from hubpub.progress import Display, Progress
from hubpub.sizing import Size, need_of
from hubpub.workspace import Workspace, integers_of

# Memory of a process beside its source: Python, the export stack and graphs of a scale model.
PROCESS_BYTES = 3 << 30


@dataclass(frozen=True)
class Made:
    """What came of making cells: the facts of each, with its gates as they are now, and the error of each that failed.

    A cell that was measured and does not pass its gates is in both.
    """

    facts: dict[str, CellFacts]
    failures: dict[str, HubpubError]


def make(steps: Sequence[Step], workspace: Workspace, display: Display, *, jobs: int | None = None) -> Made:
    """Make every cell of `steps` that is not skipped, in `jobs` processes (None: as many as the machine holds).

    Cells whose fingerprint was measured before are read, unless their step is forced. One process at a time makes
    cells in a work folder: another one waits.
    """
    facts: dict[str, CellFacts] = {}
    failures: dict[str, HubpubError] = {}
    with workspace.locked(display.note):
        todo: list[Step] = []
        for step in steps:
            if step.action == "skip":
                display.finish(step.cell.id, step.reason)
            elif step.action == "reuse" and (known := _finished(step)) is not None:
                facts[step.cell.id] = known
            else:
                todo.append(step)
        for done in _make(todo, workspace, display, jobs) if todo else ():
            if done.error is not None:
                failures[done.name] = done.error
            elif done.value is not None:
                facts[done.name] = done.value
    for name, found in facts.items():
        if (error := missed_gates(found)) is not None:
            failures[name] = error
    return Made(facts, failures)


def _finished(step: Step) -> CellFacts | None:
    """The facts of a cell with which nothing is left to do."""
    try:
        known = step.facts()
    except HubpubError:
        # Damaged: they are put together again from what the stages left.
        return None
    return known if known is not None and known.measured_as_now else None


def _make(todo: Sequence[Step], workspace: Workspace, display: Display, jobs: int | None) -> Iterator[Done[CellFacts]]:
    """The facts of each cell of `todo`, or the error that ended it, as they are done."""
    for step in todo:
        if step.forced:
            _forget(step)
    making = _of_scale_models if workspace.rehearsal else _of_sources
    for done in making(todo, workspace, display, jobs):
        if done.error is not None:
            display.finish(done.name, f"failed: {done.error.message}")
        elif done.value is not None:
            display.finish(done.name, "done" if done.value.passed else "gate failed")
        yield done


def _of_scale_models(
    todo: Sequence[Step], workspace: Workspace, display: Display, jobs: int | None
) -> Iterator[Done[CellFacts]]:
    """Each cell as soon as its scale model is there, timed beside the others: its speed says nothing."""
    waiting: dict[str, list[Step]] = {}
    for step in _longest_first(todo):
        waiting.setdefault(step.cell.variant.name, []).append(step)
    # A base variant waits for the training of its tuned sibling: that one first.
    variants = sorted((steps[0].cell.variant for steps in waiting.values()), key=lambda variant: not variant.chat)
    count = len(todo)
    with Workers(min(count, jobs or processes_that_fit(count, PROCESS_BYTES)), display.update) as workers:
        for variant in variants:
            workers.submit(variant.name, _build_scale, (variant, workspace.scale_models))
        for done in workers.finished():
            if done.name not in waiting:
                yield done
                continue
            if done.error or done.value is None:
                raise done.error or HubpubError(f"{done.name}: no scale model was made")
            display.finish(done.name, "scale model ready")
            for step in waiting[done.name]:
                workers.submit(step.cell.id, one_cell.make, (_job(step, done.value, workspace),))


def _of_sources(
    todo: Sequence[Step], workspace: Workspace, display: Display, jobs: int | None
) -> Iterator[Done[CellFacts]]:
    """Cells of downloaded checkpoints: exported and compared side by side, and then timed one after the other."""
    sources = {}
    for variant in {step.cell.variant.name: step.cell.variant for step in todo}.values():
        display.note(f"{variant.name}: fetching {variant.source}@{str(variant.revision)[:12]}")
        sources[variant.name] = download_source(variant.source, revision=variant.revision)
    _check_disk(todo, workspace.root)
    made = [_job(step, sources[step.cell.variant.name], workspace) for step in _longest_first(todo)]
    failed = set()
    builds = [(job.cell, one_cell.build, (job,)) for job in made]
    for built in run_all(builds, _processes(len(todo), sources, jobs), display.update):
        if built.error is not None:
            failed.add(built.name)
            yield Done(built.name, None, built.error)
    # Speed is taken one cell after the other, when nothing else of ours runs, and on all cores.
    yield from run_all([(job.cell, one_cell.make, (job,)) for job in made if job.cell not in failed], 1, display.update)


def export_from(
    chosen: Sequence[Cell], source: Path, out: Path, jobs: int | None, context: int | None, display: Display
) -> dict[str, Exported]:
    """Export `chosen` from the checkpoint folder `source` into `out`, each in a process. Raises the first error."""

    refuse_links(source)
    family = Checkpoint.open(source).family.name
    if other := [cell for cell in chosen if cell.variant.family != family]:
        raise UsageError(
            f"{source} is a {family} checkpoint, and {other[0].id} a {other[0].variant.family}",
            f"give --source the checkpoint of {other[0].variant.source}, or name a cell of {family}",
        )
    tasks = []
    for cell in chosen:
        job = Job(
            cell=cell.id,
            variant=cell.variant,
            recipe=cell.recipe,
            context=context or cell.card.export.context,
            prefill=cell.card.export.prefill,
            fingerprint="",
            checkpoint=source,
            references=out,
            hashes=out / "hashes.json",
            folder=out,
            file=cell.file,
            scale_model=False,
            slice=cell.variant.slice,
        )
        tasks.append((cell.id, one_cell.export, (job,)))
    made = {}
    for done in run_all(
        tasks, jobs or processes_that_fit(len(tasks), PROCESS_BYTES + _bytes_of(source)), display.update
    ):
        if done.error or done.value is None:
            raise done.error or HubpubError(f"{done.name}: nothing was made")
        made[done.name] = done.value
        display.finish(done.name, f"{done.value.file.bytes:,} bytes")
    return {cell.id: made[cell.id] for cell in chosen}


def refuse_links(folder: Path) -> None:
    """Raise SourceError for a link in a checkpoint that leads out of it (the Hub's cache links to its own blobs)."""
    if not folder.is_dir():
        return
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        # The blobs of the repo, which may be links themselves, to those that all repos of the cache share.
        allowed += [home.parent.parent / "blobs", home.parent.parent.parent / "blobs"]
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise SourceError(f"{path} is a link that leads out of the checkpoint", "put the file itself there")


def _check_disk(todo: Sequence[Step], work: Path) -> None:
    """Raise ToolchainError where the files of `todo` will not fit on the disk of the work folder."""
    known = sizes(todo, None)
    needs = [
        need_of(size, step.cell.recipe) for step in todo if isinstance(size := known[step.cell.variant.name], Size)
    ]
    needed = sum(need.file for need in needs)
    place = next(folder for folder in (work, *work.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ToolchainError(
            f"{len(todo)} cells need {needed / 1e9:.1f} GB in {work}, where {free / 1e9:.1f} GB are free",
            "free some disk space, point --work at another disk, or release fewer cells at a time",
        )


def _build_scale(variant: Variant, cache: Path, progress: Progress) -> Path:
    """One scale model, in a worker process."""

    return build(variant, cache, progress=progress)


def _processes(count: int, sources: dict[str, Path], jobs: int | None) -> int:
    """Processes for the cells: each may need its source twice over and some room to work."""
    if jobs:
        return min(count, jobs)
    return processes_that_fit(count, PROCESS_BYTES + 2 * max(map(_bytes_of, sources.values())))


def _bytes_of(source: Path) -> int:
    return sum(path.stat().st_size for path in source.glob("*.safetensors"))


def _longest_first(todo: Sequence[Step]) -> list[Step]:
    """Delegated recipes take longest to lower; starting with them keeps every process busy to the end."""
    return sorted(todo, key=lambda step: step.cell.recipe.backend != "xnnpack")


def _job(step: Step, source: Path, workspace: Workspace) -> Job:
    """What a worker needs to make the cell of `step` from `source`; what its fingerprint is made of is noted down."""
    refuse_links(source)
    remember(step)
    cell = step.cell
    return Job(
        cell=cell.id,
        variant=cell.variant,
        recipe=cell.recipe,
        context=cell.card.export.context,
        prefill=cell.card.export.prefill,
        fingerprint=step.fingerprint.value,
        checkpoint=source,
        references=workspace.references(step.fingerprint.source, step.fingerprint.code),
        hashes=workspace.hashes.path,
        folder=step.folder,
        file=cell.file,
        scale_model=workspace.rehearsal,
        slice=slice_of(cell.variant, rehearsal=workspace.rehearsal),
    )


def _forget(step: Step) -> None:
    integers_of(step.pte).unlink(missing_ok=True)
    for name in ("export.json", "parity.json", "speed.json", "facts.json"):
        (step.folder / name).unlink(missing_ok=True)
