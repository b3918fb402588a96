"""From a plan to measured cells: sources, processes, and what was made before.

Cells are exported and held against their originals side by side, as many as the machine holds; their speed is taken one
after the other. A cell that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.config import Project
from hubpub.errors import HubpubError, SourceError, ToolchainError, UsageError
from hubpub.facts import MEASURING, CellFacts
from hubpub.gates import missed_gates, with_current_gates
from hubpub.matrix import Cell
from hubpub.plan import Step, remember
from hubpub.progress import Display

if TYPE_CHECKING:
    from hubpub.cell import Exported, Job
    from hubpub.release.run import Options

SCALE_BYTES = 3 << 30


def _check_room(todo: Sequence[Step], work: Path) -> None:
    """Raise ToolchainError where the files of `todo` will not fit on the disk of the work folder."""
    import shutil

    from hubpub.sizing import Size, need_of, sizes

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


def refuse_links(folder: Path) -> None:
    """Raise SourceError for a link in a checkpoint that leads out of it (the Hub's cache links to its own blobs)."""
    if not folder.is_dir():
        return
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise SourceError(f"{path} is a link that leads out of the checkpoint", "put the file itself there")


def make(
    project: Project, steps: Sequence[Step], options: Options, display: Display
) -> tuple[dict[str, CellFacts], dict[str, HubpubError]]:
    """Facts of every cell that is not skipped, by id, and the errors of those that failed.

    Cells whose fingerprint was measured before are read; the others are made in parallel processes.
    """
    facts: dict[str, CellFacts] = {}
    failures: dict[str, HubpubError] = {}
    todo: list[Step] = []
    for step in steps:
        if step.action == "skip":
            display.finish(step.cell.id, step.reason)
        elif step.action == "reuse" and (known := step.facts()) and _measured_as_now(known):
            facts[step.cell.id] = with_current_gates(step.cell, known)
        else:
            todo.append(step)
    if todo:
        from hubpub.workers import run_all

        began = time.time()
        sources = _sources(todo, options, display)
        for folder in sources.values():
            refuse_links(folder)
        if not options.rehearse:
            _check_room(todo, options.work)
        jobs = _jobs(len(todo), sources, options)
        tasks = []
        for step in _longest_first(todo):
            if options.force:
                _forget(step)
            remember(step)
            tasks.append((step.cell.id, make_cell, (_job(step, sources, options),)))
        made = []
        for built in run_all([(name, build_cell, args) for name, _, args in tasks], jobs, display.update):
            if built.error is not None:
                failures[built.name] = built.error
                display.finish(built.name, f"failed: {built.error.message}")
            else:
                made.append(built.name)
        # Speed is taken one cell after the other, when nothing else of ours runs, and on all cores.
        for done in run_all([task for task in tasks if task[0] in made], 1, display.update):
            if done.value is not None:
                facts[done.name] = done.value
                _note_hash(next(step for step in todo if step.cell.id == done.name), done.value, began, options)
                display.finish(done.name, "done" if done.value.passed else "gate failed")
            elif done.error is not None:
                failures[done.name] = done.error
                display.finish(done.name, f"failed: {done.error.message}")
    for name, found in facts.items():
        if (error := missed_gates(found)) is not None:
            failures[name] = error
    return facts, failures


def _note_hash(step: Step, facts: CellFacts, began: float, options: Options) -> None:
    """Keep the hash that was taken while this run wrote the file: publishing need not read it again."""
    from hubpub.hub.hashing import HashCache

    stat = step.pte.stat()
    if stat.st_mtime >= began and stat.st_size == facts.file.bytes:
        HashCache(options.work / "hashes.json").record(step.pte, facts.file.sha256)


def _measured_as_now(facts: CellFacts) -> bool:
    return facts.parity.measuring == facts.speed.measuring == MEASURING


def build_cell(job: Job, progress: Any) -> None:
    """One cell exported and held against its original, in a worker process."""
    from hubpub.cell import make as make_one

    make_one(job, progress)


def make_cell(job: Job, progress: Any) -> CellFacts:
    """One cell, in a worker process."""
    from hubpub.cell import run as run_cell

    return run_cell(job, progress)


def export_from(
    chosen: Sequence[Cell], source: Path, out: Path, jobs: int | None, context: int | None, display: Display
) -> dict[str, Exported]:
    """Export `chosen` from the checkpoint folder `source` into `out`, each in a process. Raises the first error."""
    from hubpub.cell import Job
    from hubpub.model.checkpoint import Checkpoint
    from hubpub.workers import default_jobs, run_all

    refuse_links(source)
    family = Checkpoint.open(source).family.name
    if other := [cell for cell in chosen if cell.variant.family != family]:
        raise UsageError(f"{source} is a {family} checkpoint, and {other[0].id} a {other[0].variant.family}")
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
            folder=out,
            file=cell.file,
            scale_model=False,
        )
        tasks.append((cell.id, export_cell, (job,)))
    heaviest = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    made = {}
    for done in run_all(tasks, jobs or default_jobs(len(tasks), SCALE_BYTES + heaviest), display.update):
        if done.error or done.value is None:
            raise done.error or HubpubError(f"{done.name}: nothing was made")
        made[done.name] = done.value
        display.finish(done.name, f"{done.value.file.bytes:,} bytes")
    return {cell.id: made[cell.id] for cell in chosen}


def export_cell(job: Job, progress: Any) -> Exported:
    """Only the export of one cell, in a worker process."""
    from hubpub.cell import export
    from hubpub.model.checkpoint import Checkpoint

    return export(Checkpoint.open(job.checkpoint), job, progress)


def build_scale(variant: str, family: Any, cache: Path, progress: Any) -> Path:
    """One scale model, in a worker process."""
    from hubpub.model.scale import build

    return build(variant, family, cache, progress=progress)


def _sources(todo: Sequence[Step], options: Options, display: Display) -> dict[str, Path]:
    """The checkpoint folder of every variant: a scale model in a rehearsal, else a download."""
    variants = {step.cell.variant.name: step.cell.variant for step in todo}
    if not options.rehearse:
        from hubpub.hub.sources import download_source

        found = {}
        for name, variant in variants.items():
            display.note(f"{name}: fetching {variant.source}@{str(variant.revision)[:12]}")
            found[name] = download_source(variant.source, revision=variant.revision)
        return found
    from hubpub.workers import run_all

    cache = options.work / "scale"
    tasks = [(name, build_scale, (name, v.family, cache)) for name, v in variants.items()]
    # A base variant waits for the training of its tuned sibling: that one first.
    tasks.sort(key=lambda task: not task[0].endswith("-it"))
    found = {}
    for done in run_all(tasks, _scale_jobs(len(tasks), options), display.update):
        if done.error or done.value is None:
            raise done.error or HubpubError(f"{done.name}: no scale model was made")
        found[done.name] = done.value
        display.finish(done.name, "scale model ready")
    return found


def _scale_jobs(count: int, options: Options) -> int:
    from hubpub.workers import default_jobs

    return min(count, options.jobs or default_jobs(count, SCALE_BYTES))


def _jobs(count: int, sources: dict[str, Path], options: Options) -> int:
    """Processes for the cells: each may need its source twice over and some room to work."""
    from hubpub.workers import default_jobs

    if options.jobs:
        return min(count, options.jobs)
    heaviest = max(sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in sources.values())
    return default_jobs(count, SCALE_BYTES + 2 * heaviest)


def _longest_first(todo: Sequence[Step]) -> list[Step]:
    """Delegated recipes take longest to lower; starting with them keeps every process busy to the end."""
    return sorted(todo, key=lambda step: step.cell.recipe.backend != "xnnpack")


def _job(step: Step, sources: dict[str, Path], options: Options) -> Job:
    from hubpub.cell import Job

    cell = step.cell
    return Job(
        cell=cell.id,
        variant=cell.variant,
        recipe=cell.recipe,
        context=cell.card.export.context,
        prefill=cell.card.export.prefill,
        fingerprint=step.fingerprint.value,
        checkpoint=sources[cell.variant.name],
        references=options.work
        / "references"
        / step.fingerprint.source
        / step.fingerprint.context
        / step.fingerprint.code,
        folder=step.folder,
        file=cell.file,
        scale_model=options.rehearse,
    )


def _forget(step: Step) -> None:
    for name in ("export.json", "parity.json", "speed.json", "facts.json"):
        (step.folder / name).unlink(missing_ok=True)
