"""Which layers are worth eight bits: what four cost the output of each, for every byte that eight would take more.

The model runs over a part of the calibration text with the weights of one part of it in int4 (a kind of layer, such as
mlp.down_proj, in a block of layers), and everything else as it is. Costs of small errors add up: the sum over all parts
says how they compare, not what a calibrated file will lose, which is less. A part in int8 costs a hundredth of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubpub.config import Recipe, Scheme, Tuned
from hubpub.errors import UsageError
from hubpub.measure.reference_model import reference_model
from hubpub.model.checkpoint import Checkpoint
from hubpub.progress import Progress

# Tokens of each reading, and into how many blocks the layers are divided.
TOKENS, BLOCKS = 256, 6


@dataclass(frozen=True)
class Part:
    """Layers of one kind in one block, both ends included. `bytes` is what int8 takes more than int4, `kl` the nats of
    KL divergence that int4 costs."""

    kind: str
    first: int
    last: int
    bytes: int
    kl: float

    @property
    def per_byte(self) -> float:
        return self.kl / self.bytes

    @property
    def layers(self) -> str:
        return f"{self.first}-{self.last}" if self.last > self.first else str(self.first)


@dataclass(frozen=True)
class Costs:
    """What was measured: `bytes` of all weights by the recipe as it is, and its parts in int4, dearest first."""

    bytes: int
    parts: tuple[Part, ...]


def costs(checkpoint: Checkpoint, recipe: Recipe, progress: Progress, blocks: int = BLOCKS) -> Costs:
    """Measure every part of the model that `recipe` stores in int4.

    Raises UsageError where it stores nothing so, SourceError where the checkpoint has no tokenizer.
    """
    import torch

    from hubpub.export.calibrate import readings
    from hubpub.export.quantize import layer_schemes

    model = reference_model(checkpoint)
    schemes = {name: one for name, one in layer_schemes(model, recipe).items() if one.weight == "int4"}
    members = _parts(schemes, len(model.model.layers), blocks)
    if not members:
        raise UsageError(f"{recipe.name} stores no layer in int4", "tune a recipe that does, e.g. 8da4w")
    tokens = readings(checkpoint)
    # The first reading is prose, the last one the end of the text: code and languages.
    tokens = tokens[sorted({0, len(tokens) - 1}), :TOKENS]
    with torch.no_grad():
        wanted = _logits(model, tokens)
        found = []
        for number, ((kind, first, last), names) in enumerate(members.items()):
            progress("measure", number / len(members))
            kl, more = _cost(model, {name: schemes[name] for name in names}, tokens, wanted)
            found.append(Part(kind, first, last, more, kl))
    size = _bytes(model, recipe, checkpoint)
    return Costs(size, tuple(sorted(found, key=lambda part: -part.per_byte)))


def choose(costs: Costs, budget: int) -> tuple[Part, ...]:
    """The parts that are stored in int8 within `budget` bytes: those that cost most for a byte first.

    Raises UsageError where the file does not fit as it is.
    """
    room = budget - costs.bytes
    if room < 0:
        raise UsageError(
            f"the weights take {costs.bytes:,} bytes as they are, more than the {budget:,} there is room for",
            "give a larger --budget, or tune a smaller recipe, e.g. --recipe 8da4w-small",
        )
    chosen = []
    for part in costs.parts:
        if part.bytes <= room and part.kl > 0:
            chosen.append(part)
            room -= part.bytes
    return tuple(chosen)


def as_table(parts: Iterable[Part]) -> Tuned:
    """Chosen parts as a card says them: layers by kind, blocks that meet joined."""
    by_kind: dict[str, list[list[int]]] = {}
    for part in sorted(parts, key=lambda part: (part.kind, part.first)):
        ranges = by_kind.setdefault(part.kind, [])
        if ranges and ranges[-1][1] + 1 == part.first:
            ranges[-1][1] = part.last
        else:
            ranges.append([part.first, part.last])
    return {
        kind: tuple(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
        for kind, ranges in by_kind.items()
    }


def _parts(schemes: Mapping[str, Scheme], layers: int, blocks: int) -> dict[tuple[str, int, int], list[str]]:
    """Names of the layers of each part: kind, first and last layer of the block."""
    each = -(-layers // blocks)
    found: dict[tuple[str, int, int], list[str]] = {}
    for name in schemes:
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            first = int(match[1]) // each * each
            found.setdefault((match[2], first, min(first + each, layers) - 1), []).append(name)
    return found


def _cost(model: Any, schemes: Mapping[str, Scheme], tokens: Any, wanted: Sequence[Any]) -> tuple[float, int]:
    """KL divergence in nats with these layers in int4, and how many bytes more they take in int8."""
    import torch

    from hubpub.export.quantize import symmetric

    before, more = {}, 0
    for name, scheme in schemes.items():
        linear = model.get_submodule(name)
        before[name] = linear.weight
        values, scales = symmetric(linear.weight, 4, scheme.group, torch.bfloat16)
        rounded = values.unflatten(1, (scales.shape[1], -1)) * scales.float().unsqueeze(-1)
        linear.weight = torch.nn.Parameter(rounded.flatten(1), requires_grad=False)
        rows, columns = linear.weight.shape
        more += rows * columns + 4 * rows - (rows * columns // 2 + 2 * scales.numel())
    total = 0.0
    for exact, got in zip(wanted, _logits(model, tokens), strict=True):
        total += float((exact.exp() * (exact - got)).sum(-1).mean())
    for name, weight in before.items():
        model.get_submodule(name).weight = weight
    return total / len(wanted), more


def _logits(model: Any, tokens: Any) -> list[Any]:
    """Logarithms of the shares of the next token, of the second half of each reading."""
    return [
        model(input_ids=row[None], use_cache=False, logits_to_keep=len(row) // 2).logits[0].float().log_softmax(-1)
        for row in tokens
    ]


def _bytes(model: Any, recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Bytes of all weights as `recipe` stores them; a table that is also the head counts once where both are int8."""
    from torch import nn

    from hubpub.export.quantize import layer_schemes

    family, plain = checkpoint.family, 4 if recipe.dtype == "fp32" else 2
    tables = {family.embedding: recipe.embedding, family.per_layer_embedding: recipe.per_layer_embedding}
    schemes: dict[str, Scheme | None] = {**layer_schemes(model, recipe), "lm_head": recipe.head}
    once = recipe.head and recipe.embedding and {recipe.head.weight, recipe.embedding.weight} == {"int8"}
    total = 0
    for name, module in model.named_modules():
        for key, weight in module._parameters.items():
            if weight is None or (name == "lm_head" and once):
                continue
            matrix = key == "weight" and isinstance(module, (nn.Linear, nn.Embedding))
            scheme = (tables.get(name) or schemes.get(name)) if matrix else None
            total += _stored(tuple(weight.shape), scheme, plain)
    return total


def _stored(shape: tuple[int, ...], scheme: Scheme | None, plain: int) -> int:
    count = 1
    for length in shape:
        count *= length
    if scheme is None:
        return plain * count
    if scheme.weight == "int8":
        return count + 4 * shape[0]
    return count // 2 + 2 * count // (scheme.group or shape[1])
