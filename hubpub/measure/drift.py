"""Where a program drifts from the reference model: which of its weights are wrong, and the first layer that drifts.

A `.pte` does not show its residual stream. So the weights are read back from the file into the eager model, which runs
in the decoder that was exported, and its residual streams are compared layer by layer: with the reference model for
what quantization did, and with the same recipe applied to the source for what happened after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubpub.config import Recipe
from hubpub.errors import UsageError
from hubpub.measure.pte import opened
from hubpub.measure.weights import holds, stored_weights
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.patches import applied
from hubpub.workspace import integers_of

# What the order of additions may change of a residual stream, as a share of its norm; where values are rounded to
# bfloat16 or int8 on the way, a difference in the last bit becomes a whole step.
EXACT, ROUNDED = 1e-3, 5e-2


@dataclass(frozen=True)
class Weight:
    """A weight of the file that is not what the recipe makes of the source, and how it differs."""

    name: str
    how: str


@dataclass(frozen=True)
class Layer:
    """Relative errors of the residual stream after a layer: the recipe against the reference, the file against the
    recipe."""

    name: str
    quantization: float
    file: float


@dataclass(frozen=True)
class Drift:
    """What was found. `first` is the first layer whose `file` error exceeds `limit`; None where none does.

    `found` of `weights` tensors of the model were found in the file; the others are stored in another form.
    """

    weights: int
    found: int
    differing: tuple[Weight, ...]
    layers: tuple[Layer, ...]
    limit: float
    first: str | None

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if self.first and self.differing:
            return f"{self.first} drifts first; of its weights, the file differs in {self._of_first()}"
        if self.first:
            return (
                f"{self.first} drifts first, with the right weights: look at the decoder's attention, cache and masks"
            )
        if self.differing:
            return f"the file holds other weights than the source ({self.differing[0].name}), which no layer shows"
        return "no layer drifts: weights and decoder are right, so look at lowering, the runtime and the metadata"

    def _of_first(self) -> str:
        own = [one for one in self.differing if one.name.startswith(f"model.{self.first}.")] or self.differing
        return ", ".join(f"{one.name} ({one.how})" for one in own[:3])

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def locate_drift(pte: Path, checkpoint: Checkpoint, recipe: Recipe, tokens: Sequence[int]) -> Drift:
    """Compare the weights of `pte` and the residual streams they give over `tokens` with those of `checkpoint`."""
    import torch

    from hubpub.model import loader

    with torch.no_grad():
        reference = _residuals(loader.load(checkpoint, dtype=torch.float32), tokens)
        model = _quantized(checkpoint, recipe, integers_of(pte))
        healthy = _residuals(model, tokens)
        total, found, differing = _read_back(pte, model)
        suspect = _exported_residuals(model, checkpoint, recipe, tokens)
    layers = tuple(
        Layer(name, _error(reference[name], healthy[name]), _error(healthy[name], suspect[name])) for name in reference
    )
    schemes = [one for one in (recipe.linear, recipe.head) if one and one.activation]
    limit = ROUNDED if recipe.dtype == "bf16" or schemes else EXACT
    first = next((layer.name for layer in layers if not layer.file <= limit), None)
    return Drift(total, found, tuple(differing), layers, limit, first)


def _quantized(checkpoint: Checkpoint, recipe: Recipe, kept: Path) -> Any:
    from hubpub.export.calibrate import apply_recipe
    from hubpub.model import loader

    model = loader.load_mapped(checkpoint, dtype=loader.DTYPES[recipe.dtype])
    apply_recipe(model, checkpoint, recipe, kept=kept)
    return model


def _residuals(model: Any, tokens: Sequence[int]) -> dict[str, Any]:
    """The residual stream after the embedding and after every layer, in float32, of one forward pass."""
    import torch

    return _captured(model, lambda: model(torch.tensor([list(tokens)]), use_cache=False))


def _exported_residuals(model: Any, checkpoint: Checkpoint, recipe: Recipe, tokens: Sequence[int]) -> dict[str, Any]:
    """The same in the decoder that is exported; every row of every layer is computed."""
    import torch

    from hubpub.model.decoder import CachedDecoder, WindowDecoder, cached_attention
    from hubpub.model.loader import DTYPES

    shape = checkpoint.family.shape(model.config)
    ids = torch.tensor([list(tokens)])
    with applied(checkpoint.family.patches), checkpoint.family.cheap_operators(model):
        if recipe.layout == "window":
            decoder: Any = WindowDecoder(model, shape, len(tokens))
            return _captured(model, lambda: decoder(ids))
        with cached_attention(model):
            decoder = CachedDecoder(model, shape, len(tokens) + 1, len(tokens), DTYPES[recipe.dtype])
            return _captured(model, lambda: decoder(ids, torch.tensor([0])))


def _captured(model: Any, run: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            seen[name] = value.detach().float().reshape(-1, value.shape[-1])

        return hook

    text = model.model
    handles = [text.embed_tokens.register_forward_hook(keep("embed_tokens"))]
    handles += [layer.register_forward_hook(keep(f"layers.{number}")) for number, layer in enumerate(text.layers)]
    handles.append(text.norm.register_forward_hook(keep("norm")))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _error(wanted: Any, found: Any) -> float:
    # Only the last rows where one of the two computed no others, as the last norm does.
    rows = min(wanted.shape[0], found.shape[0])
    return float((wanted[-rows:] - found[-rows:]).norm() / wanted[-rows:].norm())


def _read_back(pte: Path, model: Any) -> tuple[int, int, list[Weight]]:
    """Put the file's weights into `model`; returns how many there are, how many were found, and those that differ."""
    count, found, differing = 0, 0, []
    with opened(pte) as (file, plans):
        for name, tensor, extent in stored_weights(file, plans, model):
            count += 1
            found += extent is not None
            if extent is not None and not holds(file, extent, tensor):
                differing.append(Weight(name, _replace(tensor, bytes(file.data[slice(*extent)]))))
    return count, found, differing


def _replace(tensor: Any, stored: bytes) -> str:
    """Put `stored` into `tensor` and say in words how the two differed."""
    import torch

    if len(stored) != tensor.nbytes:
        raise UsageError("the file's weights have other sizes than the source's", "is it the source of this file?")
    old = tensor.detach().clone()
    new = torch.frombuffer(bytearray(stored), dtype=tensor.dtype).reshape(tensor.shape)
    # Mapped weights are read-only: the model gets the memory that was read.
    tensor.data = new
    if new.is_floating_point() and not torch.isfinite(new).all():
        return f"{int((~torch.isfinite(new)).sum())} values are not finite"
    if not new.any():
        return "all zeros"
    if old.ndim == 2 and torch.equal(new.flatten(), old.T.flatten()):
        return "transposed"
    changed = new != old
    if new.is_floating_point():
        ratio = (new.float() / old.float())[changed]
        if (ratio - ratio[0]).abs().max() < 1e-3:
            return f"{int(changed.sum())} of {new.numel()} values times {float(ratio[0]):.3g}"
    return f"{int(changed.sum())} of {new.numel()} values differ"
