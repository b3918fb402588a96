"""One `.pte` from a checkpoint: all that decides its bytes is done or called here.

Metadata, context, the ids that end a text, and the order of patches are part of the file as the weights are. What is
measured of a file is elsewhere; a change here changes fingerprints, and cells are exported again.
"""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import hubpub
from hubpub.config import Recipe
from hubpub.errors import ExportError
from hubpub.export.calibrate import apply_recipe
from hubpub.export.lower import Lowered, Metadata
from hubpub.export.lower import export as lower
from hubpub.export.write import write
from hubpub.facts import Context, Exported, Patch, Stages
from hubpub.machine import peak_resident_bytes, system, versions
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.counts import layers, parameters
from hubpub.model.decoder import CachedDecoder, WindowDecoder, cached_attention
from hubpub.model.patches import applied, check_version, edge_passes, emitted_constants, graph_modules, symbolic_sizes
from hubpub.model.shape import Shape
from hubpub.progress import Progress

# Of the export stack, whatever the family.
PATCHES = (edge_passes.PATCH, emitted_constants.PATCH, graph_modules.PATCH, symbolic_sizes.PATCH)
# The set that was tested together: an executorch release pairs with exactly one torch minor release.
TESTED = (("executorch", ">=1.4,<1.5"), ("torch", ">=2.13,<2.14"), ("torchao", ">=0.18,<0.19"))


def export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    path: Path,
    *,
    context: int,
    prefill: int,
    progress: Progress,
    shorten: bool = False,
    kept: Path | None = None,
) -> Exported:
    """Load, quantize, lower and write one cell to `path`.

    `context` and `prefill` are tokens: of the longest text, and of the longest piece of a prompt that one call takes.
    With `shorten`, a model of a shorter context than that is exported with its own. `kept` is where the integers of a
    calibration are kept, or are already. Raises ExportError where the context exceeds the model's, ToolchainError where
    this machine has other versions than those tested.
    """
    for package, allowed in TESTED:
        check_version(package, allowed, "exporting")
    started = time.monotonic()
    progress("load", 0.0)
    model = loader.load_mapped(checkpoint, dtype=loader.DTYPES[recipe.dtype])
    family = checkpoint.family
    shape, window = family.shape(model.config), recipe.window
    longest = window or _context(path.name, context, shape.max_context, shorten=shorten)
    lengths = Context(
        exported=longest,
        max_prefill=window or min(prefill, longest - 1),
        sliding_window=shape.sliding_window,
        source=shape.max_context,
    )
    counted = parameters(model, family)
    loaded = time.monotonic()
    progress("quantize", 0.0)
    apply_recipe(model, checkpoint, recipe, kept=kept, keep=True, progress=progress)
    quantized = time.monotonic()
    progress("lower", 0.0)
    lowered, patches = _lowered(model, checkpoint, recipe, shape, lengths)
    writing = time.monotonic()
    progress("write", 0.0)
    file = write(lowered.program, path, progress)
    done = time.monotonic()
    return Exported(
        file=file,
        parameters=counted,
        layers=layers(shape),
        context=lengths,
        vocabulary=shape.vocabulary,
        patches=patches,
        toolchain=_toolchain(),
        stages=Stages(
            load=round(loaded - started, 2),
            quantize=round(quantized - loaded, 2),
            export=round(lowered.export_seconds, 2),
            lower=round(lowered.lower_seconds, 2),
            write=round(done - writing, 2),
            peak_resident_bytes=peak_resident_bytes(),
        ),
    )


def _lowered(
    model: Any, checkpoint: Checkpoint, recipe: Recipe, shape: Shape, lengths: Context
) -> tuple[Lowered, tuple[Patch, ...]]:
    """The quantized `model` as a program, and the patches it was lowered under."""
    family, window = checkpoint.family, recipe.window
    with ExitStack() as stack, torch.no_grad():
        patches = stack.enter_context(applied((*family.patches, *PATCHES)))
        stack.enter_context(family.cheap_operators(model))
        if window is None:
            stack.enter_context(cached_attention(model))
            stack.enter_context(family.last_token_only(model))
            dtype = loader.DTYPES[recipe.dtype]
            decoder: torch.nn.Module = CachedDecoder(model, shape, lengths.exported, lengths.max_prefill, dtype)
        else:
            decoder = WindowDecoder(model, shape, window)
        metadata = _metadata(checkpoint, model.config.bos_token_id, shape, lengths, window)
        return lower(decoder, recipe.name, metadata), patches


def _toolchain() -> dict[str, str]:
    return {
        "hubpub": hubpub.__version__,
        "python": platform.python_version(),
        **versions(),
        "platform": system(),
    }


def _metadata(checkpoint: Checkpoint, first_token: int, shape: Shape, lengths: Context, window: int | None) -> Metadata:
    """The constant methods of a program: what the LLM runner reads before it runs anything."""
    cached = window is None
    return {
        "get_max_seq_len": lengths.max_prefill,
        "get_max_context_len": lengths.exported,
        "get_bos_id": int(first_token),
        "get_eos_ids": checkpoint.stop_tokens(),
        "get_vocab_size": shape.vocabulary,
        "get_n_layers": len(shape.layer_kinds),
        "use_kv_cache": cached,
        "use_sdpa_with_kv_cache": cached,
        "enable_dynamic_shape": cached,
    }


def _context(name: str, asked: int, longest: int, *, shorten: bool) -> int:
    if asked > longest and not shorten:
        raise ExportError(
            f"{name}: a context of {asked} is longer than the model's {longest}",
            f"set export.context to {longest} or less in card.toml",
        )
    return min(asked, longest)
