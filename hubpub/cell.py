"""One cell, from a checkpoint on disk to a measured `.pte`: export, inspect, validate, bench.

Runs in a worker process. Each stage leaves a JSON file in the cell's folder, so that a killed run goes on where it was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import hubpub
from hubpub.config import Recipe, Variant
from hubpub.errors import ExportError
from hubpub.facts import (
    MEASURING,
    CellFacts,
    Context,
    FileFact,
    Layers,
    Parameters,
    Parity,
    Patch,
    Source,
    Speed,
    Stages,
    load,
    save,
)
from hubpub.gates import evaluate_gates
from hubpub.machine import peak_resident_bytes, versions

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """What a worker needs to make one cell: plain values, so that they travel between processes.

    `context` and `prefill` are the card's; `checkpoint` holds the source files; `references` is a folder shared by the
    cells of a variant. `scale_model` says that the checkpoint stands in for the variant.
    """

    cell: str
    variant: Variant
    recipe: Recipe
    context: int
    prefill: int
    fingerprint: str
    checkpoint: Path
    references: Path
    folder: Path
    file: str
    scale_model: bool

    @property
    def pte(self) -> Path:
        return self.folder / self.file


class Exported(BaseModel):
    """What only the export knows: counts on the model, patches, seconds. Kept as export.json beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: FileFact
    parameters: Parameters
    layers: Layers
    context: Context
    vocabulary: int
    patches: tuple[Patch, ...]
    toolchain: dict[str, str]
    stages: Stages


def make(job: Job, progress: Progress) -> None:
    """Export one cell and hold it against its original: all that can be done while other cells are made."""
    checkpoint, exported = _exported(job, progress)
    _parity(checkpoint, job, exported.context, progress)


def run(job: Job, progress: Progress) -> CellFacts:
    """Make, measure and judge one cell. Stages that were finished before are read, not repeated.

    Raises HubpubError; a cell that fails its gates is returned, with the gates saying so.
    """
    from hubpub.measure.inspect import inspect
    from hubpub.measure.prompting import prompt_format
    from hubpub.model.checkpoint import TOKENIZER_FILES, digest

    checkpoint, exported = _exported(job, progress)
    progress("inspect", 0.0)
    program = inspect(job.pte)
    parity = _parity(checkpoint, job, exported.context, progress)
    speed = _measured(Speed, job.folder / "speed.json", lambda: _bench(job, exported.context, progress), job.pte)
    facts = CellFacts(
        cell=job.cell,
        variant=job.variant.name,
        recipe=job.recipe.name,
        summary=job.recipe.summary,
        fingerprint=job.fingerprint,
        file=exported.file,
        tokenizer=tuple(digest(p) for n in TOKENIZER_FILES if (p := job.checkpoint / n).is_file()),
        source=Source(
            repo=job.variant.source,
            revision=job.variant.revision or "not pinned",
            license=job.variant.license,
            scale_model=job.scale_model,
            architecture=checkpoint.family.architecture,
            files=checkpoint.files(),
        ),
        parameters=exported.parameters,
        layers=exported.layers,
        context=exported.context,
        vocabulary=exported.vocabulary,
        program=program,
        parity=parity,
        speed=speed,
        gates=evaluate_gates(job.recipe.gates, parity, program, exported.vocabulary),
        patches=exported.patches,
        toolchain=exported.toolchain,
        stages=exported.stages,
        prompt=prompt_format(job.checkpoint),
    )
    save(facts, job.folder / "facts.json")
    return facts


def _exported(job: Job, progress: Progress) -> tuple[Any, Exported]:
    from hubpub.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(job.checkpoint)
    if checkpoint.family.name != job.variant.family:
        raise ExportError(f"{job.cell}: {job.checkpoint} is a {checkpoint.family.name}, not a {job.variant.family}")
    return checkpoint, _kept(Exported, job.folder / "export.json", lambda: export(checkpoint, job, progress), job.pte)


def _parity(checkpoint: Any, job: Job, context: Context, progress: Progress) -> Parity:
    path = job.folder / "parity.json"
    found: Parity = _measured(Parity, path, lambda: _validate(checkpoint, job, context, progress), job.pte)
    return found


def _measured(model: Any, path: Path, make: Callable[[], Any], pte: Path) -> Any:
    """As `_kept`, but what was measured in an older way is measured again."""
    if path.exists() and load(model, path).measuring != MEASURING:
        path.unlink()
    return _kept(model, path, make, pte)


def _kept(model: Any, path: Path, make: Callable[[], Any], pte: Path) -> Any:
    if path.exists() and pte.exists():
        return load(model, path)
    value = make()
    save(value, path)
    return value


def export(checkpoint: Any, job: Job, progress: Progress) -> Exported:
    """Load, quantize, lower and write one cell. Raises ExportError where the context exceeds the model's."""
    import torch

    from hubpub.export.lower import export as lower
    from hubpub.export.quantize import quantize, register_operators
    from hubpub.export.write import write
    from hubpub.measure.model_facts import layers, parameters
    from hubpub.measure.parity import stop_tokens
    from hubpub.model import loader
    from hubpub.model.decoder import CachedDecoder, WindowDecoder, cached_attention
    from hubpub.model.patches import applied, check_version

    for package, allowed in (("executorch", ">=1.4,<1.5"), ("torch", ">=2.13,<2.14"), ("torchao", ">=0.18,<0.19")):
        check_version(package, allowed, "exporting")
    started = time.monotonic()
    progress("load", 0.0)
    dtype = loader.DTYPES[job.recipe.dtype]
    model = loader.load_mapped(checkpoint, dtype=dtype)
    family, config = checkpoint.family, model.config
    shape = family.shape(config)
    window = job.recipe.window
    longest = window or exported_context(job, shape.max_context)
    context = Context(
        exported=longest,
        max_prefill=window or min(job.prefill, longest - 1),
        sliding_window=shape.sliding_window,
        source=shape.max_context,
    )
    counted = parameters(model, family)
    loaded = time.monotonic()
    progress("quantize", 0.0)
    register_operators()
    quantize(model, job.recipe, family)
    quantized = time.monotonic()
    progress("lower", 0.0)
    metadata: dict[str, int | bool | list[int]] = {
        "get_max_seq_len": context.max_prefill,
        "get_max_context_len": context.exported,
        "get_bos_id": int(config.bos_token_id),
        "get_eos_ids": stop_tokens(checkpoint.folder),
        "get_vocab_size": shape.vocabulary,
        "get_n_layers": len(shape.layer_kinds),
        "use_kv_cache": window is None,
        "use_sdpa_with_kv_cache": window is None,
        "enable_dynamic_shape": window is None,
    }
    with ExitStack() as stack, torch.no_grad():
        patches = stack.enter_context(applied(family.patches()))
        stack.enter_context(family.cheaper(model))
        if window is None:
            stack.enter_context(cached_attention(model))
            stack.enter_context(family.last_token_only(model))
            decoder: torch.nn.Module = CachedDecoder(model, shape, context.exported, context.max_prefill, dtype)
        else:
            decoder = WindowDecoder(model, shape, window)
        lowered = lower(decoder, job.recipe.name, metadata)
    writing = time.monotonic()
    progress("write", 0.0)
    file = write(lowered.program, job.pte, lambda fraction: progress("write", fraction))
    done = time.monotonic()
    return Exported(
        file=file,
        parameters=counted,
        layers=layers(shape),
        context=context,
        vocabulary=shape.vocabulary,
        patches=patches,
        toolchain={
            "hubpub": hubpub.__version__,
            "python": platform.python_version(),
            **versions(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        stages=Stages(
            load=round(loaded - started, 2),
            quantize=round(quantized - loaded, 2),
            export=round(lowered.export_seconds, 2),
            lower=round(lowered.lower_seconds, 2),
            write=round(done - writing, 2),
            peak_resident_bytes=peak_resident_bytes(),
        ),
    )


def exported_context(job: Job, model_context: int) -> int:
    """The context to export with. A scale model may be shorter than the card asks for; a real model may not."""
    if job.context > model_context and not job.scale_model:
        raise ExportError(
            f"{job.cell}: a context of {job.context} is longer than the model's {model_context}",
            f"set export.context to {model_context} or less in card.toml",
        )
    return min(job.context, model_context)


def _validate(checkpoint: Any, job: Job, context: Context, progress: Progress) -> Parity:
    from hubpub.measure.parity import SCALE_TOKENS, measure, text_length

    # A window is shorter than the text: several are compared, one after the other.
    window = job.recipe.window
    length = SCALE_TOKENS if window else text_length(context.exported, scale_model=job.scale_model)
    return measure(job.pte, checkpoint, job.recipe, length, job.references, progress)


def _bench(job: Job, context: Context, progress: Progress) -> Speed:
    from hubpub.measure.bench import speed

    progress("bench", 0.0)
    tokenizer = job.checkpoint / "tokenizer.json"
    return speed(job.pte, context.exported, tokenizer if job.recipe.layout == "cache" else None)
