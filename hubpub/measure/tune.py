"""Which layers are worth eight bits: what four cost the model's output in each, for every byte that eight take more.

Small errors of a layer's output move the shares of the next token by their product with the slopes of the logits, and
KL divergence is half of what moves, squared and weighed by the shares themselves: d^T F d / 2 with Fisher's information
F of the output (Amari, 1998). One walk back through the model gives all slopes: from the logits goes a random vector
whose covariance is F, so that the mean square of its product with an error is that cost. The errors are those of the
very rounding of an export, calibrated and balanced, layer by layer. A layer in int8 costs a hundredth of that.

Costs are to be compared with one another. Of SmolLM2 135M, each of 30 groups of layers put in int4 alone lost a half to
a third of them, while what the groups lost adds up to what all do together (0.076 and 0.075 nats).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hubpub.config import Recipe, Scheme, Tuned
from hubpub.errors import UsageError
from hubpub.measure.reference_model import mapped
from hubpub.model.checkpoint import Checkpoint
from hubpub.progress import Progress
from hubpub.sizing import bytes_each

# Readings of the calibration text that slopes are taken of, evenly spread over it, and tokens of each.
READINGS, TOKENS = 8, 256
# Nats that one token counts for at most. Far out, where other things give way, the square says too much: with this
# limit the ratio of a group's cost to its measured loss varies by 12 % from group to group (SmolLM2 135M), and by 19 %
# without.
MOST = 0.125
# Share of the time that slopes take; the rest is calibration.
_SLOPES = 0.2


@dataclass(frozen=True)
class Part:
    """One layer of one kind, e.g. mlp.down_proj. `bytes` is what int8 takes more than int4, `kl` the nats of KL
    divergence that int4 costs."""

    kind: str
    layer: int
    bytes: int
    kl: float

    @property
    def per_byte(self) -> float:
        return self.kl / self.bytes


@dataclass(frozen=True)
class Costs:
    """What was measured: `bytes` of all weights by the recipe as it is, and its parts in int4, dearest first."""

    bytes: int
    parts: tuple[Part, ...]


def costs(checkpoint: Checkpoint, recipe: Recipe, budget: int, progress: Progress) -> Costs:
    """Measure every layer of the model that `recipe` stores in int4. Takes as long as a calibration, and a quarter.

    Raises UsageError where it stores nothing so, all that it does lies on the grid that it was trained for, or even so
    it takes more than `budget` bytes; SourceError where the checkpoint has no tokenizer.
    """
    import torch

    from hubpub.export.calibrate import Balance, calibrate, readings
    from hubpub.export.grid import keep_grids
    from hubpub.export.quantize import DynamicLinear, layer_schemes, register_operators, to_int8_and_back

    register_operators()
    model = mapped(checkpoint)
    size = _bytes(model, recipe, checkpoint)
    if not _in_four(layer_schemes(model, recipe)):
        raise UsageError(f"{recipe.name} stores no layer in int4", "tune a recipe that does, e.g. 8da4w")
    if budget < size:
        raise UsageError(
            f"the weights take {size:,} bytes as they are, more than the {budget:,} there is room for",
            "give a larger --budget, or tune a smaller recipe, e.g. --recipe 8da4w-small",
        )
    tokens = readings(checkpoint)
    chosen = torch.arange(0, len(tokens), -(-len(tokens) // READINGS))
    if keep_grids(model, checkpoint, recipe) is not None and not _in_four(layer_schemes(model, recipe)):
        raise UsageError("every layer was trained for four bits and is exact in them", "release it as it is")
    schemes = layer_schemes(model, recipe)
    slopes = _slopes(model, list(_in_four(schemes)), tokens[chosen, :TOKENS], progress)
    found = []

    def observe(made: DynamicLinear, weight: torch.Tensor, x: torch.Tensor) -> None:
        if made.name in slopes:
            seen = x[chosen, :TOKENS]
            error = made(seen) - torch.nn.functional.linear(to_int8_and_back(seen), weight)
            lost = (error * slopes.pop(made.name)).sum(-1).square() / 2
            kind, layer = _place(made.name)
            found.append(Part(kind, layer, _more(weight, schemes[made.name]), float(lost.clamp(max=MOST).mean())))

    balance = Balance(model, recipe, checkpoint.family, schemes) if recipe.balanced else None

    def calibrating(_stage: str, fraction: float) -> None:
        progress("measure", _SLOPES + (1 - _SLOPES) * fraction)

    calibrate(model, schemes, tokens, calibrating, balance, observe)
    return Costs(size, tuple(sorted(found, key=lambda part: -part.per_byte)))


def choose(costs: Costs, budget: int) -> tuple[Part, ...]:
    """The parts that are stored in int8 within `budget` bytes: those that cost most for a byte first."""
    room, chosen = budget - costs.bytes, []
    for part in costs.parts:
        if part.bytes <= room and part.kl > 0:
            chosen.append(part)
            room -= part.bytes
    return tuple(chosen)


def as_table(parts: Iterable[Part]) -> Tuned:
    """Chosen parts as a card says them: layers by kind, those that follow one another as a range."""
    by_kind: dict[str, list[list[int]]] = {}
    for part in sorted(parts, key=lambda part: (part.kind, part.layer)):
        ranges = by_kind.setdefault(part.kind, [])
        if ranges and ranges[-1][1] + 1 == part.layer:
            ranges[-1][1] = part.layer
        else:
            ranges.append([part.layer, part.layer])
    return {
        kind: tuple(f"{first}-{last}" if last > first else str(first) for first, last in ranges)
        for kind, ranges in by_kind.items()
    }


def _in_four(schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
    return {name: one for name, one in schemes.items() if one.weight == "int4" and _LAYER.fullmatch(name)}


_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def _place(name: str) -> tuple[str, int]:
    """Kind and number of the layer called `name`."""
    match = _LAYER.fullmatch(name)
    assert match is not None
    return match[2], int(match[1])


def _slopes(model: Any, names: list[str], tokens: Any, progress: Progress) -> dict[str, Any]:
    """For each layer, the slopes [readings, tokens, out] (bfloat16) of what is drawn by its output.

    `tokens` int64 [readings, tokens] run through `model`, which is widened, one reading at a time.
    """
    import torch

    outputs: dict[str, torch.Tensor] = {}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    # The same vectors each time: what is chosen goes into a card.
    source = torch.Generator().manual_seed(0)

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    # Weights have no slopes here: the way back ends at what was read from the table.
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda *of: of[-1].requires_grad_()))
    try:
        for number, row in enumerate(tokens):
            progress("measure", _SLOPES * number / len(tokens))
            logits = model(input_ids=row[None], use_cache=False).logits
            back = torch.autograd.grad(logits, [outputs[name] for name in names], _drawn(logits.detach(), source))
            for name, slope in zip(names, back, strict=True):
                found[name].append(slope[0].bfloat16())
            outputs.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(slopes) for name, slopes in found.items()}


def _drawn(logits: Any, source: Any) -> Any:
    """Random vectors [..., vocabulary] whose covariance is that of one next token: diag(p) - p p^T, p their softmax."""
    import torch

    shares = logits.float().softmax(-1)
    drawn = torch.randn(shares.shape, generator=source) * shares.sqrt()
    return (drawn - shares * (drawn * shares.sqrt()).sum(-1, keepdim=True)).to(logits.dtype)


def _more(weight: Any, scheme: Scheme) -> int:
    """How many bytes more `weight` [out, in] takes in int8 than in the int4 of `scheme`."""
    shape = tuple(weight.shape)
    return _stored(shape, Scheme(weight="int8"), 0) - _stored(shape, scheme, 0)


def _bytes(model: Any, recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Bytes of all weights as `recipe` stores them; a head that is the same integers as its table does not count."""
    from torch import nn

    from hubpub.export.quantize import layer_schemes

    family, plain = checkpoint.family, 4 if recipe.dtype == "fp32" else 2
    tables = {family.embedding: recipe.embedding, family.per_layer_embedding: recipe.per_layer_embedding}
    schemes: dict[str, Scheme | None] = {**layer_schemes(model, recipe), "lm_head": recipe.head}
    once = recipe.head is not None and recipe.head.holds_as_table(recipe.embedding)
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
    """Bytes of one tensor, with its scales."""
    per_channel = 4 * shape[0] if scheme is not None and scheme.weight in ("int16", "int8") else 0
    return int(math.prod(shape) * bytes_each(scheme, plain)) + per_channel
