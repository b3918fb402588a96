"""One cell, from a checkpoint on disk to a measured `.pte`: export, inspect, validate, bench.

Runs in a worker process. Each stage leaves a JSON file in the cell's folder that names the SHA-256 of the file it is
of, so that a killed run goes on where it was, and nothing that was measured is ever attached to another file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hubpub.config import Recipe, Variant
from hubpub.errors import ExportError
from hubpub.facts import MEASURING, CellFacts, Context, Exported, Parity, SliceFact, Source, Speed, load, save
from hubpub.files import HashCache
from hubpub.gates import evaluate_gates
from hubpub.measure.bench import speed
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import SCALE_TOKENS, measure, text_length
from hubpub.measure.prompting import prompt_format, sampling
from hubpub.model.checkpoint import TOKENIZER_FILES, Checkpoint, digest
from hubpub.progress import Progress
from hubpub.slices import Slice
from hubpub.workspace import integers_of

Measured = TypeVar("Measured", Parity, Speed)


@dataclass(frozen=True)
class Job:
    """What a worker needs to make one cell: plain values, so that they travel between processes.

    `context` and `prefill` are the card's; `checkpoint` holds the source files; `references` is a folder shared by the
    cells of a variant; `hashes` is the file that keeps hashes. `scale_model`: the checkpoint stands in for the variant;
    `slice` is the part of it that is exported, None for all.
    """

    cell: str
    variant: Variant
    recipe: Recipe
    context: int
    prefill: int
    fingerprint: str
    checkpoint: Path
    references: Path
    hashes: Path
    folder: Path
    file: str
    scale_model: bool
    slice: Slice | None = None

    @property
    def pte(self) -> Path:
        return self.folder / self.file


def export(job: Job, progress: Progress) -> Exported:
    """Only the export of one cell, whatever was there before. Raises HubpubError."""
    return _export(_checkpoint(job), job, progress)


def build(job: Job, progress: Progress) -> None:
    """Export one cell and compare it with its reference: all that can be done while other cells are made."""
    checkpoint = _checkpoint(job)
    _parity(checkpoint, job, _exported(checkpoint, job, progress), progress)


def make(job: Job, progress: Progress) -> CellFacts:
    """Make and measure one cell, and evaluate its gates. Stages that were finished before are read, not repeated.

    Raises HubpubError; a cell that fails its gates is returned, with the gates saying so.
    """

    checkpoint = _checkpoint(job)
    exported = _exported(checkpoint, job, progress)
    progress("inspect", 0.0)
    program = inspect(job.pte)
    parity = _parity(checkpoint, job, exported, progress)
    speed = _measured(Speed, job.folder / "speed.json", exported, lambda: _bench(job, exported.context, progress))
    facts = CellFacts(
        cell=job.cell,
        variant=job.variant.name,
        recipe=job.recipe.name,
        summary=job.recipe.summary,
        tuned=job.recipe.tuned,
        fingerprint=job.fingerprint,
        file=exported.file,
        tokenizer=tuple(digest(p) for n in TOKENIZER_FILES if (p := job.checkpoint / n).is_file()),
        source=Source(
            repo=job.variant.source,
            revision=job.variant.revision or "not pinned",
            license=job.variant.license,
            scale_model=job.scale_model,
            architecture=checkpoint.family.architecture,
            slice=_slice(checkpoint),
            qat_of=job.variant.qat.of if job.variant.qat else None,
            files=checkpoint.files(),
        ),
        parameters=exported.parameters,
        layers=exported.layers,
        context=exported.context,
        vocabulary=exported.vocabulary,
        program=program,
        parity=parity,
        speed=speed,
        gates=evaluate_gates(
            job.recipe.gates,
            parity,
            program,
            exported.vocabulary,
            speed.memory,
            exported.parameters.total,
            trained=job.variant.qat is not None and job.recipe.in_four_bits,
        ),
        patches=exported.patches,
        toolchain=exported.toolchain,
        stages=exported.stages,
        prompt=prompt_format(job.checkpoint, checkpoint.family.begins_with_bos),
        sampling=sampling(job.checkpoint),
    )
    save(facts, job.folder / "facts.json")
    return facts


def _slice(checkpoint: Checkpoint) -> SliceFact | None:
    if checkpoint.slice is None or checkpoint.whole is None:
        return None
    part, layers = checkpoint.slice, checkpoint.whole.config["text_config"]["num_hidden_layers"]
    return SliceFact(name=part.name, widths=part.widths, skip=part.skip, layers=layers)


def _checkpoint(job: Job) -> Checkpoint:
    checkpoint = Checkpoint.open(job.checkpoint, job.slice)
    if checkpoint.family.name != job.variant.family:
        raise ExportError(f"{job.cell}: {job.checkpoint} is a {checkpoint.family.name}, not a {job.variant.family}")
    return checkpoint


def _exported(checkpoint: Checkpoint, job: Job, progress: Progress) -> Exported:
    """What export.json says of the file that lies beside it; exported anew where it speaks of another."""
    path = job.folder / "export.json"
    if path.exists() and job.pte.exists():
        kept = load(Exported, path)
        if HashCache(job.hashes).sha256(job.pte) == kept.file.sha256:
            return kept
    exported = _export(checkpoint, job, progress)
    # Taken while the file was written: whoever publishes it need not read it again.
    HashCache(job.hashes).record(job.pte, exported.file.sha256)
    save(exported, path)
    return exported


def _export(checkpoint: Checkpoint, job: Job, progress: Progress) -> Exported:
    from hubpub.export.cell import export

    return export(
        checkpoint,
        job.recipe,
        job.pte,
        context=job.context,
        prefill=job.prefill,
        # A scale model may be shorter than the card asks for; a real model may not.
        shorten=job.scale_model,
        kept=integers_of(job.pte),
        progress=progress,
    )


def _measured(model: type[Measured], path: Path, exported: Exported, measure: Callable[[], Measured]) -> Measured:
    """What `path` keeps, where it was measured on this very file in the way it is measured now; else measured anew."""
    if path.exists():
        kept = load(model, path)
        if kept.sha256 == exported.file.sha256 and kept.measuring == MEASURING:
            return kept
        path.unlink()
    value = measure().model_copy(update={"sha256": exported.file.sha256})
    save(value, path)
    return value


def _parity(checkpoint: Checkpoint, job: Job, exported: Exported, progress: Progress) -> Parity:
    def measured() -> Parity:

        # A window is shorter than the text: several are compared, one after the other.
        window = job.recipe.window
        length = SCALE_TOKENS if window else text_length(exported.context.exported, scale_model=job.scale_model)
        return measure(job.pte, checkpoint, job.recipe, length, job.references, progress)

    return _measured(Parity, job.folder / "parity.json", exported, measured)


def _bench(job: Job, context: Context, progress: Progress) -> Speed:
    progress("bench", 0.0)
    tokenizer = job.checkpoint / "tokenizer.json" if job.recipe.layout == "cache" else None
    if not job.scale_model:
        return speed(job.pte, context.exported, tokenizer)
    found = speed(job.pte, context.exported, tokenizer, runs=1, fresh=False)
    return found.model_copy(update={"representative": False, "reason": "a scale model, timed beside other work"})
