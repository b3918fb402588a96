"""What a cell needs: bytes of its file, of disk and of memory, worked out from the size of its source and its recipe.

Sizes come from the headers of the source checkpoint (a few kilobytes, read from the local cache or over HTTP), or, for
models that are known, from a table.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from hubpub.config import PACKAGE, Recipe, Scheme, Variant

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensors of a checkpoint by name: dtype as safetensors names it, and shape."""


GB = 1_000_000_000


# Python, torch and the exported graph, and the widest table in float32 while it is worked on. Measured at real size, it
# is what exporting took beyond the integers it holds: 1.2 to 1.5 GB (benchmarks/README.md, "Exporting at real size").
EXPORT_BASE = 2 * GB


# Python, torch and what a model's layers make of the passage. The program is let go before its quantized weights are
# run eagerly, and the reference model stays mapped where its float32 copy does not fit.
VALIDATE_BASE = 2 * GB
# Tables of logits in float32: the program's over the whole passage, beside those of the reference.
PASSAGE, TABLES = 2048, 2


@dataclass(frozen=True)
class Size:
    """A source checkpoint: bytes of all its shards, and text weights (each counted once) by what a recipe tells apart.

    `vocabulary` counts tokens, `width` the bytes of one stored weight.
    """

    checkpoint: int
    vocabulary: int
    embedding: int
    per_layer_embedding: int
    matrices: int
    vectors: int
    width: int

    @property
    def text(self) -> int:
        return self.embedding + self.per_layer_embedding + self.matrices + self.vectors


@dataclass(frozen=True)
class Need:
    """Bytes one cell needs: of its file, of disk (source and file), of memory while exporting and while validating.

    Memory is anonymous memory: the mapped source comes on top, but the system takes those pages back when it must.
    """

    file: int
    disk: int
    export_memory: int
    validate_memory: int

    @property
    def memory(self) -> int:
        return max(self.export_memory, self.validate_memory)


def need_of(size: Size, recipe: Recipe) -> Need:
    """What a cell of `recipe` needs.

    The file holds every weight in its recipe's form; the head is stored beside the embedding where the two differ, and
    else lies there once. Weights whose form is the source's stream from the mapped source to the file and are never
    held; the others are held from quantization until they are written. Validation holds the quantized weights once
    more, its head in float32 while that is used, and logits of the passage for every token of the vocabulary.
    """
    plain = {"fp32": 4, "bf16": 2}[recipe.dtype]
    parts = [
        (size.embedding, recipe.embedding),
        (size.per_layer_embedding, recipe.per_layer_embedding),
        (size.matrices, recipe.linear),
        (size.vectors, None),
    ]
    once = recipe.head is not None and recipe.head.holds_as_table(recipe.embedding)
    if (recipe.head is not None or recipe.embedding is not None) and not once:
        parts.append((size.embedding, recipe.head))
    stored = [(int(count * bytes_each(scheme, plain)), scheme) for count, scheme in parts]
    file = sum(size for size, _ in stored)
    held = sum(bytes_ for bytes_, scheme in stored if _width(scheme, plain) != size.width)
    logits = TABLES * 4 * PASSAGE * size.vocabulary
    head = 4 * size.embedding if recipe.head is not None else 0
    return Need(file, size.checkpoint + file, EXPORT_BASE + held, VALIDATE_BASE + held + head + logits)


def _width(scheme: Scheme | None, plain: int) -> int | None:
    """Bytes of a floating-point weight; None of an integer."""
    if scheme is None:
        return plain
    return 2 if scheme.weight == "bf16" else None


def bytes_each(scheme: Scheme | None, plain: int) -> float:
    """Bytes of one weight, with its share of a group's two-byte scale; scales per channel do not show."""
    if scheme is None:
        return plain
    width = {"bf16": 2.0, "int16": 2.0, "int8": 1.0, "int4": 0.5}[scheme.weight]
    return width + (2 / scheme.group if scheme.group else 0)


@cache
def known_sizes() -> Mapping[str, Size]:
    """Sizes of published source models by their id on the Hub, from sizes.toml: asked of nobody.

    A slice of one is called "id[slice]".
    """
    rows = tomllib.loads((PACKAGE / "sizes.toml").read_text("utf-8"))["source"]
    found: dict[str, Size] = {}
    for row in rows:
        repos, part = row.pop("repos"), row.pop("slice", "")
        found |= {f"{repo}[{part}]" if part else repo: Size(**row) for repo in repos}
    return found


def known_as(variant: Variant) -> str:
    """What `known_sizes` calls the source of `variant`, or the slice of it."""
    return f"{variant.source}[{variant.slice.name}]" if variant.slice else variant.source


def agrees(size: Size, source: str) -> bool:
    """Whether what was read of a checkpoint is what the table says of it, if it says anything, within 3 %.

    A checkpoint may store keys and values that its model shares and does not use; tables are never larger or smaller.
    """
    known = known_sizes().get(source)
    return known is None or (abs(size.text - known.text) < 0.03 * known.text and size.checkpoint <= known.checkpoint)
