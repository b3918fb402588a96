"""What people declare: cards (`cards/*/card.toml`) and the recipe table, as validated, frozen models.

Every error names the file, the key, the line where it can be found, and what would be right.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hubpub.errors import ConfigError
from hubpub.slices import Slice, chosen, refuse_family, whole

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
PACKAGE = Path(__file__).parent
T = TypeVar("T", bound=BaseModel)


def _name(value: str) -> str:
    if not NAME.fullmatch(value) or ".." in value or "--" in value:
        raise ValueError(
            "must be 1 to 96 letters, digits, '.', '_' or '-', without '..' or '--', and not begin or end with a mark"
        )
    return value


def _repo_id(value: str) -> str:
    owner, slash, name = value.partition("/")
    if not slash:
        raise ValueError("must be 'owner/name'")
    return f"{_name(owner)}/{_name(name)}"


def _revision(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", value):
        raise ValueError("must be a commit id of 40 hex digits: a branch or tag can move")
    return value


def _family(value: str) -> str:
    folder = PACKAGE / "model" / "families"
    if not re.fullmatch(r"[a-z]\w*", value) or not (folder / f"{value}.py").is_file():
        raise ValueError(f"must be one of {', '.join(sorted(path.stem for path in folder.glob('[a-z]*.py')))}")
    return value


Name = Annotated[str, AfterValidator(_name)]
RepoId = Annotated[str, AfterValidator(_repo_id)]
Revision = Annotated[str, AfterValidator(_revision)]
Family = Annotated[str, AfterValidator(_family)]
License = Literal["gemma", "apache-2.0"]


class Frozen(BaseModel):
    """A value that came from a file: unknown keys are errors and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scheme(Frozen):
    """How one kind of weight is stored: symmetric integers with one scale per `group` weights or per channel.

    Those of 16 bits are for weights published in bfloat16: see hubpub.export.quantize. A table may also be bfloat16.
    """

    weight: Literal["bf16", "int16", "int8", "int4"]
    group: int | None = Field(default=None, ge=32, multiple_of=32)
    activation: Literal["int8"] | None = None

    @model_validator(mode="after")
    def _int4_is_grouped(self) -> Scheme:
        if self.weight == "int4" and self.group is None:
            raise ValueError("int4 weights need a group size, e.g. group = 32")
        if self.weight in ("bf16", "int16") and (self.group or self.activation):
            raise ValueError(f"{self.weight} weights have neither groups nor quantized activations")
        return self

    @property
    def multiplies(self) -> bool:
        """Whether XNNPACK multiplies with such weights; those of other schemes are for other kernels."""
        return self.activation is not None or self.weight == "int16"

    def holds_as_table(self, table: Scheme | None) -> bool:
        """Whether a head of this scheme is, row by row, the same integers as the `table` that it is tied to."""
        if table is None or table.weight != self.weight or table.group or self.group:
            return False
        return self.weight in ("int16", "int8") and self.multiplies

    def __str__(self) -> str:
        if self.weight == "bf16":
            return self.weight
        grain = f"g{self.group}" if self.group else "per channel"
        return f"{self.weight} {grain}" + (f", {self.activation} activations" if self.activation else "")


class Gates(Frozen):
    """Limits a cell must meet to be published. KL in nats, errors in logits, the others as fractions of 1.

    With `baseline_max`, KL and disagreement on the next token may be so many times those of the baseline: the source
    with what the recipe cannot avoid (int8 activations, else bfloat16). They may always be what `kl_mean_max` and
    `top1_min` say.

    The `lowering` limits are on what the file does that its own quantized weights, run eagerly, do not: mean KL, and
    the relative difference of perplexity. `prefill_kl_mean_max` is on a text read in pieces against token by token. Of
    a model that differs from itself when its input changes in the last bits, these two may be `noise_max` and
    `prefill_noise_max` times that noise.

    `slice_kl_mean_max` is on a slice against the model it is a slice of: one that takes other weights than those that
    were trained to work alone is no model at all.
    Of a source that was trained for four bits, `grid_exact_min` is the share of groups of weights that the file holds
    exactly (all of them where the source holds integers), and `grid_weights_min` the share of the weights of linear
    layers that are in such groups.
    `anonymous_per_weight_max` is bytes of memory that the system cannot take back, for each weight, beyond the arena.
    """

    logit_error_max: float | None = Field(default=None, gt=0)
    kl_mean_max: float = Field(gt=0)
    top1_min: float = Field(ge=0, le=1)
    baseline_max: float | None = Field(default=None, ge=1)
    prefill_kl_mean_max: float = Field(default=0.001, gt=0)
    prefill_noise_max: float = Field(default=2.0, ge=1)
    greedy_first_token_min: float = Field(default=0.0, ge=0, le=1)
    greedy_tokens_min: float | None = Field(default=None, ge=0, le=1)
    greedy_exact_min: float = Field(default=0.0, ge=0, le=1)
    lowering_kl_mean_max: float = Field(default=0.0005, gt=0)
    noise_max: float = Field(default=1.5, ge=1)
    lowering_perplexity_max: float = Field(default=0.01, gt=0)
    slice_kl_mean_max: float = Field(default=0.4, gt=0)
    grid_exact_min: float = Field(default=0.999, ge=0, le=1)
    grid_weights_min: float = Field(default=0.9, ge=0, le=1)
    anonymous_per_weight_max: float | None = Field(default=None, gt=0)


class Override(Frozen):
    """Another scheme for the linear layers whose module path matches the glob `pattern`."""

    pattern: str = Field(min_length=1)
    scheme: Scheme | None = None


def _layers(value: str) -> str:
    first, _, last = value.partition("-")
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?", value) or int(last or first) < int(first):
        raise ValueError("must be a layer or a range of layers, e.g. '3' or '0-7'")
    return value


Tuned = dict[str, tuple[Annotated[str, AfterValidator(_layers)], ...]]
"""Kinds of linear layers that get int8 weights, e.g. "mlp.down_proj", and in which layers: "0-7", both ends with it."""


class Recipe(Frozen):
    """What is done to a variant's weights and activations, and what the result must pass."""

    name: Name
    summary: str = Field(min_length=1, max_length=200)
    dtype: Literal["fp32", "bf16"]
    backend: Literal["xnnpack", "portable"]
    layout: Literal["cache", "window"] = "cache"
    window: int | None = Field(default=None, ge=2, le=4096)
    linear: Scheme | None = None
    embedding: Scheme | None = None
    per_layer_embedding: Scheme | None = None
    head: Scheme | None = None
    override: tuple[Override, ...] = ()
    tuned: Tuned = Field(default_factory=dict)
    calibrated: bool = False
    """Whether the integers of linear layers are chosen for what a calibration text puts into them, or to nearest."""
    balanced: bool = False
    """Whether scales move from activations to the weights that read them, as the calibration text asks for."""
    gates: Gates

    @property
    def in_four_bits(self) -> bool:
        """Whether linear layers get four bits: then those that were trained for that keep their integers."""
        return self.linear is not None and self.linear.weight == "int4" and self.linear.activation is not None

    @model_validator(mode="after")
    def _can_run(self) -> Recipe:
        if (self.layout == "window") != (self.window is not None):
            raise ValueError('window: a number of tokens, for layout = "window" and for no other')
        for key in ("linear", "head"):
            scheme: Scheme | None = getattr(self, key)
            if scheme and scheme.weight == "bf16":
                raise ValueError(f'{key}: no fast kernel multiplies bf16 weights on every processor; use "int16"')
            if scheme and scheme.weight == "int16":
                if self.backend != "xnnpack":
                    raise ValueError(f'{key}: int16 weights need backend = "xnnpack"')
            # What the export stack makes of such a graph for XNNPACK returns wrong values.
            elif scheme and self.backend == "xnnpack" and scheme.activation is None:
                raise ValueError(
                    f'{key}: xnnpack has no weight-only integer product; set activation or backend = "portable"'
                )
            if scheme and self.backend == "portable" and scheme.activation is not None:
                raise ValueError(f'{key}: int8 activations need backend = "xnnpack"')
            if scheme and scheme.weight == "int8" and scheme.group:
                raise ValueError(f"{key}: no kernel multiplies int8 weights in groups; leave group out")
            if scheme and scheme.activation and self.dtype != "fp32":
                raise ValueError(f'{key}: int8 activations are computed from float32; set dtype = "fp32"')
        if self.tuned and not (self.linear and self.linear.activation):
            raise ValueError("tuned: only linear layers with int8 activations are tuned")
        if self.calibrated and not (self.linear and self.linear.activation):
            raise ValueError("calibrated: only linear layers with int8 activations are calibrated")
        if self.balanced and not self.calibrated:
            raise ValueError("balanced: what is moved is chosen by the calibration text; set calibrated = true")
        for key in ("embedding", "per_layer_embedding"):
            scheme = getattr(self, key)
            if scheme and scheme.activation is not None:
                raise ValueError(f"{key}: a table has no activations to quantize")
        for key in ("linear", "head", "embedding", "per_layer_embedding"):
            scheme = getattr(self, key)
            if scheme and scheme.weight in ("bf16", "int16") and self.dtype != "fp32":
                raise ValueError(f'{key}: {scheme.weight} weights are read as float32; set dtype = "fp32"')
        return self

    @cached_property
    def overrides(self) -> tuple[Override, ...]:
        """Schemes of single layers, first match wins: those of the tuned layers, and then `override`."""
        if self.linear is None:
            return self.override
        int8 = Scheme(weight="int8", activation=self.linear.activation)
        tuned = [
            Override(pattern=f"model.layers.{layer}.{kind}", scheme=int8)
            for kind, ranges in self.tuned.items()
            for first, _, last in (one.partition("-") for one in ranges)
            for layer in range(int(first), int(last or first) + 1)
        ]
        return (*tuned, *self.override)


class Trained(Frozen):
    """That a source was trained for four bits, the model `of` which it is, and the form in which it holds them.

    "w4a16-ct": integers, packed as compressed-tensors packs them. "q4_0": bfloat16 weights on a grid of one scale for
    32 of them.
    """

    form: Literal["w4a16-ct", "q4_0"]
    of: RepoId


class Variant(Frozen):
    """One source model at one pinned revision; without one it can be rehearsed and not released.

    `chat` says that it was tuned to chat. `size` is its size as its family names it, e.g. "E2B": what stands in for it
    in a rehearsal depends on that. `qat` says that the source is the outcome of quantization-aware training: recipes of
    four bits keep its integers, and must find them. `slice` makes the variant a smaller model inside of its source: the
    name of a published slice of Gemma 3n E4B, or its widths and the layers it skips.
    """

    name: Name
    source: RepoId
    revision: Revision | None = None
    family: Family
    size: Name | None = None
    qat: Trained | None = None
    slice: Annotated[Slice | None, BeforeValidator(chosen)] = None
    chat: bool = False
    license: License

    @model_validator(mode="after")
    def _slice_keeps_the_rules(self) -> Variant:
        if self.slice is not None:
            try:
                refuse_family(self.family)
                whole().check(self.slice)
            except ValueError as error:
                raise ValueError(f"slice: {error}") from None
        return self


class Export(Frozen):
    """Which recipes a card offers, and the sizes in tokens of its programs.

    `context` is the longest text, `prefill` the longest piece of a prompt that one call takes: a runner feeds longer
    prompts piece by piece, and an app needs working memory for one piece.
    """

    recipes: tuple[Name, ...] = Field(min_length=1)
    recommended: Name
    context: int = Field(default=2048, ge=16, le=131072)
    prefill: int = Field(default=128, ge=2, le=131072)

    @model_validator(mode="after")
    def _consistent(self) -> Export:
        if len(set(self.recipes)) != len(self.recipes):
            raise ValueError("recipes: named twice")
        if self.recommended not in self.recipes:
            raise ValueError(f"recommended: '{self.recommended}' is not one of recipes")
        return self


class Exclusion(Frozen):
    """A cell that is declared but not built, and why."""

    recipe: Name
    reason: str = Field(min_length=1)


class Acceptance(Frozen):
    """A regression that is known and wanted: what got worse in `recipe`, since which release, and why that is right.

    `what` is a metric as `hubpub facts diff` names it. It holds against that one release: the next is compared anew.
    """

    recipe: Name
    what: str = Field(min_length=1)
    since: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Section(Frozen):
    """An extra section of the card, written by people."""

    title: str = Field(min_length=1, max_length=120)
    body: str = Field(min_length=1)


class Prose(Frozen):
    """What people write on a card; figures are never written here."""

    title: str = Field(min_length=1, max_length=120)
    introduction: str = ""
    intended_use: str = ""
    limits: str = ""
    language: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()
    thumbnail: str | None = None
    section: tuple[Section, ...] = ()


class Card(Frozen):
    """One Hub repo: its variant, the forms it comes in and its prose.

    `tuned` is what `hubpub tune` found of a recipe: layers of this variant that are worth int8 weights.
    """

    schema_: Literal[1] = Field(alias="schema")
    repo: Name
    variant: Variant
    export: Export
    exclude: tuple[Exclusion, ...] = ()
    accept: tuple[Acceptance, ...] = ()
    recipe: dict[Name, Recipe] = Field(default_factory=dict)
    tuned: dict[Name, Tuned] = Field(default_factory=dict)
    card: Prose

    folder: Path = Field(exclude=True)


@dataclass(frozen=True)
class Project:
    """The folder that holds `cards/` and `templates/`: a checkout, or what the installed package carries."""

    cards_dir: Path
    templates_dir: Path
    recipes_file: Path = PACKAGE / "recipes.toml"

    @property
    def root(self) -> Path:
        return self.cards_dir.parent

    @classmethod
    def find(cls, given: Path | None = None) -> Project:
        """The project at `given`, else at or above the current folder, else the one installed with hubpub.

        A project needs only `cards/`; templates it lacks are taken from hubpub. Raises ConfigError where `given`
        holds no cards.
        """
        built_in = next(p for p in (PACKAGE / "_project", PACKAGE.parent) if (p / "templates").is_dir())
        if given is not None:
            if not (given / "cards").is_dir():
                raise ConfigError(f"{given} has no folder 'cards'", "point --project at the folder that holds cards/")
            root = given
        else:
            here = Path.cwd()
            root = next((p for p in (here, *here.parents) if any((p / "cards").glob("*/card.toml"))), built_in)
        templates = root / "templates"
        return cls(root / "cards", templates if templates.is_dir() else built_in / "templates")

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The built-in recipe table by name."""
        return _recipes(self.recipes_file)

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """Every card, ordered by folder name. Raises ConfigError for the first that is wrong."""
        folders = self._folders
        if not folders:
            raise ConfigError(f"{self.cards_dir} holds no cards", "add a folder with a card.toml, one per Hub repo")
        return tuple(load_card(folder) for folder in folders)

    @property
    def _folders(self) -> list[Path]:
        return sorted(folder for folder in self.cards_dir.iterdir() if (folder / "card.toml").exists())

    @property
    def readable_cards(self) -> tuple[Card, ...]:
        """The cards as their files are now, without those that are wrong: what one card says of the others."""
        found = []
        for folder in self._folders:
            with suppress(ConfigError):
                found.append(load_card(folder))
        return tuple(found)

    def recipe(self, card: Card, name: str) -> Recipe:
        """The recipe `name` as `card` sees it. Raises ConfigError where it is unknown."""
        found = card.recipe.get(name) or self.recipes.get(name)
        if found is None:
            path = card.folder / "card.toml"
            known = ", ".join(sorted({*self.recipes, *card.recipe}))
            raise ConfigError(
                f"{_show(path)}: export.recipes: unknown recipe '{name}'",
                f"known recipes: {known}; a card may define its own under [recipe.{name}]",
                path=str(path),
                line=_line_of(path.read_text("utf-8"), ("export", "recipes")),
            )
        if name in card.tuned:
            table = {**found.model_dump(), "tuned": card.tuned[name]}
            return _validate(Recipe, table, card.folder / "card.toml", ("tuned", name))
        return found


def load_card(folder: Path) -> Card:
    """Read and check `folder/card.toml`. Raises ConfigError naming file, key and line."""
    path = folder / "card.toml"
    data = _read(path)
    for name, table in (data.get("recipe") or {}).items():
        if isinstance(table, dict):
            table.setdefault("name", name)
    data.setdefault("schema", None)
    return _validate(Card, {**data, "folder": folder}, path)


def locate(card: Card, key: str) -> tuple[Path, int | None]:
    """The file that declares `card`, and the line (1-based) of the dotted `key` in it where it can be found."""
    path = card.folder / "card.toml"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return path, None
    return path, _line_of(text, tuple(key.split(".")))


def _recipes(path: Path) -> dict[str, Recipe]:
    tables = _read(path).get("recipe", {})
    return {name: _validate(Recipe, {**table, "name": name}, path, ("recipe", name)) for name, table in tables.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 4 << 20:
            raise ConfigError(
                f"{_show(path)} is larger than 4 MiB", "a card's prose belongs in a few pages", path=str(path)
            )
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_show(path)} cannot be read: {error}", path=str(path)) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match[1]) if match else None
        raise ConfigError(f"{_show(path)}: not valid TOML: {error}", path=str(path), line=line) from None


def _validate(model: type[T], data: dict[str, Any], path: Path, prefix: tuple[str, ...] = ()) -> T:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key also leaves another one missing: the misspelling is what to show.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        keys = (*prefix, *(str(part) for part in first["loc"]))
        line = _line_of(path.read_text("utf-8"), keys)
        where = f"{_show(path)}:{line}" if line else _show(path)
        dotted = ".".join(keys) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        hint = None
        if first["type"] == "extra_forbidden":
            message, hint = "unknown key", _nearest(model, keys[len(prefix) :])
        elif first["type"] == "missing":
            message = "this key is missing"
        more = len(error.errors()) - 1
        tail = f" (and {more} more)" if more else ""
        raise ConfigError(f"{where}: {dotted}: {message}{tail}", hint, path=str(path), line=line) from None


def _nearest(model: type[BaseModel], keys: tuple[str, ...]) -> str | None:
    for key in keys[:-1]:
        field = model.model_fields.get(key)
        inner = [t for t in _types(field.annotation) if issubclass(t, BaseModel)] if field else []
        if inner:
            model = inner[0]
    names = [field.alias or name for name, field in model.model_fields.items() if not field.exclude]
    close = get_close_matches(keys[-1], names, 1)
    return f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(names)}"


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _types(part)


def _line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line (1-based) that sets the dotted key, or that opens the innermost table that is there."""
    found, table = None, ""
    names = [key for key in keys if not key.isdigit()]
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]", line):
            table = header[1].replace('"', "").replace(" ", "")
            dotted = table
        elif assign := re.match(r"\s*\"?([\w.-]+)\"?\s*=", line):
            dotted = f"{table}.{assign[1]}".lstrip(".")
        else:
            continue
        if dotted == ".".join(names):
            return number
        if ".".join(names).startswith(dotted + "."):
            found = number
    return found


def _show(path: Path) -> str:
    """`path` as a person would name it: relative to the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
