"""Slices of Gemma 3n E4B: the models between E2B and E4B that its weights hold, and what makes one of them work.

A slice leaves out whole layers, and of the feed-forward of each layer that stays it keeps the first so many neurons.
Which slices are known to work was published; the table is slices.toml. Pure: neither torch nor a checkpoint is needed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# Quantized weights share a scale in groups; a feed-forward that ends inside of one fits no recipe.
MULTIPLE = 32


class Slice(BaseModel):
    """`widths` of the feed-forward of the layers that stay, in their order, and the layers to `skip`, numbered from 0.

    `name` is that of a published slice, "" for one that was written out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] = Field(min_length=1)
    skip: tuple[int, ...] = ()
    name: str = ""

    @property
    def key(self) -> str:
        """What tells it from other slices of the same model, whatever they are called."""
        return f"{list(self.widths)}-{sorted(self.skip)}"


@dataclass(frozen=True)
class Published:
    """A slice as it was published: billions of `effective` parameters, and MMLU (0 to 1) of the pretrained model."""

    slice: Slice
    effective: float
    mmlu: float


@dataclass(frozen=True)
class Whole:
    """What the rules ask of the model that is sliced: for each layer its kind of attention and its width.

    The last `shared` layers have no keys and values of their own.
    """

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    shared: int

    @classmethod
    def of(cls, text: Mapping[str, Any]) -> Whole:
        """Of the text part of a config.json. Raises ValueError naming the key that is missing or no good."""
        layers, shared = text.get("num_hidden_layers"), text.get("num_kv_shared_layers")
        widths, kinds = text.get("intermediate_size"), text.get("layer_types")
        if not isinstance(layers, int) or not isinstance(shared, int) or not 0 <= shared < layers:
            raise ValueError("config.json: text_config.num_hidden_layers and num_kv_shared_layers fit no model")
        if isinstance(widths, int):
            widths = [widths] * layers
        for key, values in (("intermediate_size", widths), ("layer_types", kinds)):
            if not isinstance(values, list) or len(values) != layers:
                raise ValueError(f"config.json: text_config.{key} is no list of one entry per layer")
        return cls(tuple(kinds or ()), tuple(widths or ()), shared)

    @property
    def readers(self) -> dict[int, list[int]]:
        """Layers whose keys and values others read, each with those that do: the last of its kind that has its own."""
        first = len(self.kinds) - self.shared
        found: dict[int, list[int]] = {}
        for layer in range(first, len(self.kinds)):
            owners = [owner for owner in range(first) if self.kinds[owner] == self.kinds[layer]]
            if owners:
                found.setdefault(owners[-1], []).append(layer)
        return found

    def kept(self, part: Slice) -> list[int]:
        """Layers that stay in a slice, by their number in the whole."""
        return [layer for layer in range(len(self.kinds)) if layer not in part.skip]

    def check(self, part: Slice) -> None:
        """Raise ValueError naming the rule that `part` breaks."""
        layers = len(self.kinds)
        if lost := [layer for layer in part.skip if not 0 <= layer < layers]:
            raise ValueError(f"skip: there is no layer {lost[0]}: the model has layers 0 to {layers - 1}")
        if len(set(part.skip)) != len(part.skip):
            raise ValueError("skip: a layer is named twice")
        for layer, readers in self.readers.items():
            if layer in part.skip:
                raise ValueError(
                    f"skip: layer {layer} must stay: layers {', '.join(map(str, readers))} read its keys and values"
                )
        kept = self.kept(part)
        if len(part.widths) != len(kept):
            raise ValueError(f"widths: {len(part.widths)} of them for the {len(kept)} layers that stay: write one each")
        for layer, width in zip(kept, part.widths, strict=True):
            if not 0 < width <= self.widths[layer]:
                raise ValueError(
                    f"widths: layer {layer} has a feed-forward of {self.widths[layer]}, of which no {width} can be kept"
                )
            if width % MULTIPLE and width != self.widths[layer]:
                raise ValueError(
                    f"widths: layer {layer}: {width} is no multiple of {MULTIPLE}, the group that weights share a "
                    "scale in"
                )


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "slices.toml").read_text("utf-8"))


FAMILY = str(_table()["family"])


@cache
def published() -> Mapping[str, Published]:
    """The published slices by name, from the smallest to the whole model."""
    unit = _table()["whole"]["unit"]
    found = {}
    for row in _table()["slice"]:
        widths, skip = tuple(unit * width for width in row["widths"]), tuple(row.get("skip", ()))
        part = Slice(widths=widths, skip=skip, name=row["name"])
        found[part.name] = Published(part, row["effective"], row["mmlu"])
    return found


def source() -> str:
    """Where the table was published."""
    return str(_table()["source"])


@cache
def whole() -> Whole:
    """Gemma 3n E4B, as the published slices number its layers."""
    about = _table()["whole"]
    every = about["full_every"]
    kinds = [
        "full_attention" if layer % every == every - 1 else "sliding_attention" for layer in range(about["layers"])
    ]
    return Whole(tuple(kinds), (about["width"],) * about["layers"], about["shared"])


def refuse_family(family: str) -> None:
    """Raise ValueError for a family whose sizes do not lie inside of one another."""
    if family != FAMILY:
        raise ValueError(f"only {FAMILY} has slices: the sizes of {family} do not lie in one another")


def named(name: str) -> Slice:
    """The published slice `name`. Raises ValueError naming those there are."""
    if name not in published():
        raise ValueError(f"there is no slice '{name}'; published slices: {', '.join(published())}")
    return published()[name].slice


def chosen(value: object) -> object:
    """What `slice = ` may be, a name or a table, as what a Slice is made of."""
    return named(value) if isinstance(value, str) else value


def stand_in(part: Slice, groups: Sequence[Sequence[int]], widths: Sequence[int], must_stay: Sequence[int]) -> Slice:
    """`part` of E4B brought down to a model of fewer layers, each of which stands for a group of E4B's.

    A layer is skipped where most of its group is, unless it `must_stay`; it is as wide, of its own `widths`, as its
    group on average is of E4B's. A slice that is larger stays larger.
    """
    kept = dict(zip(whole().kept(part), part.widths, strict=True))
    made, skip = [], []
    for layer, group in enumerate(groups):
        here = [kept[one] / whole().widths[one] for one in group if one in kept]
        if 2 * len(here) < len(group) and layer not in must_stay:
            skip.append(layer)
        else:
            share = sum(here) / len(here) if here else 1.0
            made.append(max(MULTIPLE, round(share * widths[layer] / MULTIPLE) * MULTIPLE))
    return Slice(widths=tuple(made), skip=tuple(skip), name=part.name)
