"""How large source models are: from the headers of checkpoints in the local cache, or a few kilobytes over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from hubpub.config import Variant
from hubpub.errors import HubpubError, SourceError
from hubpub.hub.client import Client
from hubpub.hub.sources import cached_source
from hubpub.matrix import Cell
from hubpub.model import checkpoint, families
from hubpub.model.checkpoint import Checkpoint, Stored, of_packed, width
from hubpub.model.packed import unpacked
from hubpub.plan import Step
from hubpub.sizing import Size, Tensors
from hubpub.slices import Slice, whole


def size_of(tensors: Tensors, family: str) -> Size:
    """The size of a checkpoint of `family` from its headers alone.

    Raises SourceError where it holds no text model, or tensors that no export can read.
    """
    known = families.family(family)
    counts = {"embedding": 0, "per_layer_embedding": 0, "matrices": 0, "vectors": 0}
    prefix, widths, vocabulary = known.text_prefix, [], 0
    tables = {f"{known.embedding}.weight": "embedding"}
    if known.per_layer_embedding is not None:
        tables[f"{known.per_layer_embedding}.weight"] = "per_layer_embedding"
    try:
        weights = unpacked({name: Stored("", *value) for name, value in tensors.items()}, of_packed)
    except ValueError as error:
        raise SourceError(f"the checkpoint cannot be read: {error}") from None
    for name, one in weights.items():
        dtype, shape = one.dtype, one.shape
        if name.startswith(prefix):
            below = "model." + name.removeprefix(prefix)
            kind = tables.get(below, "matrices" if len(shape) > 1 else "vectors")
            counts[kind] += prod(shape)
            if kind == "embedding":
                vocabulary = shape[0] if shape else 0
            widths.append(width(dtype))
    if not counts["embedding"]:
        raise SourceError(
            f"the checkpoint holds no {prefix}*: it is no {family} checkpoint", "look at variant.family in card.toml"
        )
    stored = sum(prod(shape) * width(dtype) for dtype, shape in tensors.values())
    return Size(stored, vocabulary, **counts, width=max(widths))


def sizes(steps: Sequence[Step], client: Client | None) -> dict[str, Size | HubpubError]:
    """The size of every planned variant's source by variant, or why it is not known."""
    found: dict[str, Size | HubpubError] = {}
    for cell in {step.cell.variant.name: step.cell for step in steps if step.action != "skip"}.values():
        try:
            found[cell.variant.name] = _size(cell.variant, _tensors(cell, client))
        except HubpubError as error:
            found[cell.variant.name] = error
    return found


def _size(variant: Variant, tensors: Tensors) -> Size:
    """A slice is downloaded with all that it is a slice of, and needs memory for itself alone."""
    size = size_of(tensors, variant.family)
    if variant.slice is None:
        return size
    try:
        own = sliced(tensors, variant.slice, variant.family)
    except (ValueError, IndexError) as error:
        raise SourceError(f"{variant.source} cannot be sliced: {error}") from None
    return replace(size_of(own, variant.family), checkpoint=size.checkpoint)


def sliced(tensors: Tensors, part: Slice, family: str) -> Tensors:
    """What is left of the tensors of E4B in the slice `part`."""
    stored = {name: Stored("", *value) for name, value in tensors.items()}
    left = checkpoint.sliced(stored, part, whole(), families.family(family).text_prefix)
    return {name: (one.dtype, one.shape) for name, one in left.items()}


def _tensors(cell: Cell, client: Client | None) -> Tensors:
    variant = cell.variant
    folder = cached_source(variant.source, variant.revision)
    if folder is not None:
        try:
            return {name: (one.dtype, one.shape) for name, one in Checkpoint.open(folder).headers.items()}
        except SourceError:
            if client is None:
                raise
    if client is None:
        raise SourceError(f"{variant.source} is not in the local cache", "run without --offline")
    return client.stored_tensors(variant.source, variant.revision or "main")
