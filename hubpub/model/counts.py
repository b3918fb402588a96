"""What is counted on the loaded model itself: parameters and layers."""

from __future__ import annotations

from typing import Any

from hubpub.facts import Layers, Parameters
from hubpub.model.families import Family
from hubpub.model.shape import FULL, SLIDING, Shape


def parameters(model: Any, family: Family) -> Parameters:
    """Parameters the text model uses, each tensor once: the head tied to the embedding counts as one table."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_submodule(family.embedding).weight.numel()
    table = family.per_layer_embedding
    per_layer = model.get_submodule(table).weight.numel() if table else 0
    return Parameters(
        total=total, embedding=embedding, per_layer_embedding=per_layer, other=total - embedding - per_layer
    )


def layers(shape: Shape) -> Layers:
    """Layers by kind of attention, and how many of each have no keys and values of their own."""
    owners = {owner.index for owner in shape.owners}
    kinds = list(enumerate(shape.layer_kinds))
    return Layers(
        total=len(kinds),
        sliding=sum(kind == SLIDING for _, kind in kinds),
        full=sum(kind == FULL for _, kind in kinds),
        sliding_sharing_kv=sum(kind == SLIDING and index not in owners for index, kind in kinds),
        full_sharing_kv=sum(kind == FULL and index not in owners for index, kind in kinds),
    )
