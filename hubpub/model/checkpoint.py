"""A source checkpoint on disk, read without torch: its config, its safetensors headers and its hashes.

Everything that can be wrong with a checkpoint is found here, in milliseconds, before a model is built.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from hubpub.errors import SourceError
from hubpub.facts import FileFact
from hubpub.model.families import FAMILIES, Family, family
from hubpub.model.packed import Packed, form_error, unpacked
from hubpub.model.slicing import Part, parts, sliced_config
from hubpub.slices import Slice, Whole, refuse_family

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Far above the headers of the largest models, which take some 150 bytes for each tensor; what JSON of this length can
# unpack to still fits any machine.
_MAX_HEADER = 16 << 20
_MAX_RANK = 16


def width(dtype: str) -> int:
    """Bytes of one value of `dtype`, as safetensors names it. Raises SourceError for one that is not known."""
    try:
        return _BYTES[dtype]
    except KeyError:
        raise SourceError(f"a checkpoint with the unknown dtype {dtype!r}", f"known: {', '.join(_BYTES)}") from None


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: which shard holds it, its dtype as safetensors names it, and its shape.

    In a slice: `name` is what the shard calls it, and `part` what is kept of it (None: all). `packed` is where the
    integers lie of a matrix that is stored in four bits; `dtype` and `shape` are then those of what they stand for.
    """

    shard: str
    dtype: str
    shape: tuple[int, ...]
    name: str = ""
    part: Part | None = None
    packed: Packed | None = None


def sliced(tensors: Mapping[str, Stored], part: Slice, whole: Whole, prefix: str) -> dict[str, Stored]:
    """The tensors of the slice `part` among those of the `whole`, whose text model has names that begin with `prefix`.

    What is no text stays as it is. Raises ValueError for a table whose width does not divide into layers.
    """
    text = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    found = {name: one for name, one in tensors.items() if not name.startswith(prefix)}
    for new, cut, name in parts(part, whole, {name: one.shape for name, one in text.items()}):
        one = text[name]
        shape = cut.of(one.shape) if cut else one.shape
        found[prefix + new] = replace(one, shape=shape, name=prefix + name, part=cut)
    return found


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards, as published on the Hub, or a slice of one.

    A slice has the config and the tensors of the smaller model, which are read from the files of the `whole`.
    """

    folder: Path
    config: dict[str, Any]
    family: Family
    slice: Slice | None = None
    whole: Checkpoint | None = None

    @classmethod
    def open(cls, folder: Path, part: Slice | None = None) -> Checkpoint:
        """Read and check `folder`, or the `part` of it. Raises SourceError for what is missing, damaged or of an
        unknown architecture, and for a slice that breaks a rule.
        """
        if not folder.is_dir():
            raise SourceError(f"no checkpoint at {folder}", "pass a folder with config.json and *.safetensors")
        path = folder / "config.json"
        if not path.exists():
            raise SourceError(f"{path} is missing", "a checkpoint folder holds config.json")
        config = _object(path)
        names = config.get("architectures")
        known = {found.architecture: found for found in map(family, FAMILIES)}
        named = names if isinstance(names, list) else []
        match = next((known[name] for name in named if isinstance(name, str) and name in known), None)
        if match is None:
            raise SourceError(
                f"{path}: architecture {names or 'is not named'} is not one hubpub can export",
                f"known architectures: {', '.join(known)}",
            )
        if unread := form_error(config):
            raise SourceError(
                f"{path}: {unread}: these quantized weights are not read",
                "use a checkpoint in bf16, or one in the pack-quantized form of compressed-tensors: four bits, "
                "symmetric, groups of 32",
            )
        checkpoint = cls(folder, config, match)
        _ = checkpoint.tensors
        return checkpoint if part is None else checkpoint.sliced(part)

    def sliced(self, part: Slice) -> Checkpoint:
        """The slice `part` of this checkpoint. Raises SourceError naming the rule that it breaks."""
        text = self.config.get("text_config")
        try:
            refuse_family(self.family.name)
            whole = Whole.of(text if isinstance(text, dict) else {})
            whole.check(part)
            config = {**self.config, "text_config": sliced_config(part, whole, text or {})}
            found = Checkpoint(self.folder, config, self.family, part, self)
            _ = found.tensors
        except ValueError as error:
            raise SourceError(f"{self.folder} cannot be sliced: {error}") from None
        return found

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """Names of the safetensors files, in order. Raises SourceError where there are none or one is missing."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                names = sorted(set(_object(index)["weight_map"].values()))
            except (KeyError, AttributeError, TypeError) as error:
                raise SourceError(f"{index} cannot be read: {error!r}", "download the file again") from None
            for name in names:
                if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                    raise SourceError(f"{index}: {name!r} is not a safetensors file in the same folder")
        else:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not names:
            pickled = sorted(p.name for p in self.folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
            hint = f"{pickled[0]} is a pickle, which hubpub does not read; " if pickled else ""
            raise SourceError(f"{self.folder} holds no safetensors files", hint + "use a safetensors checkpoint")
        for name in names:
            if not (self.folder / name).is_file():
                raise SourceError(f"{self.folder / name} is missing", "download the checkpoint again")
        return tuple(names)

    @cached_property
    def headers(self) -> dict[str, Stored]:
        """Every tensor of the shards as it is stored; each shard's size is checked against its header."""
        found: dict[str, Stored] = {}
        for name in self.shards:
            found.update(_header(self.folder / name))
        return found

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by name, from the shards' headers: of a slice, its own; of integers, what they stand for."""
        if self.whole is not None and self.slice is not None:
            numbered = Whole.of(self.whole.config["text_config"])
            return sliced(self.whole.tensors, self.slice, numbered, self.family.text_prefix)
        found = self.headers
        if "quantization_config" not in self.config:
            return found
        try:
            return unpacked(found, of_packed)
        except ValueError as error:
            raise SourceError(f"{self.folder}: {error}", "download the checkpoint again") from None

    @property
    def packed(self) -> dict[str, Packed]:
        """The text matrices that are stored in four bits, by their name below the text model."""
        return {name: stored.packed for name, stored in self.text_tensors.items() if stored.packed is not None}

    @cached_property
    def text_tensors(self) -> dict[str, Stored]:
        """The text decoder's tensors, by their name below the text model."""
        prefix = self.family.text_prefix
        return {name.removeprefix(prefix): s for name, s in self.tensors.items() if name.startswith(prefix)}

    def stop_tokens(self) -> list[int]:
        """The ids that end a generation, from generation_config.json, else config.json.

        Raises SourceError where they are no ids.
        """
        for name in ("generation_config.json", "config.json"):
            path = self.folder / name
            ids = _object(path).get("eos_token_id") if path.exists() else None
            if ids is not None:
                listed = ids if isinstance(ids, list) else [ids]
                if not all(type(one) is int and one >= 0 for one in listed):
                    raise SourceError(f"{path}: eos_token_id is no list of token ids", "download the file again")
                return listed
        return []

    def files(self) -> tuple[FileFact, ...]:
        """The files an export depends on, with their hashes (each hashed once; see `digest`)."""
        names = ["config.json", *(n for n in TOKENIZER_FILES if (self.folder / n).is_file()), *self.shards]
        return tuple(digest(self.folder / name) for name in names)


def of_packed(integers: Stored, shape: tuple[int, ...], dtype: str, packed: Packed) -> Stored:
    """A matrix in four bits as what it stands for."""
    return Stored(integers.shard, dtype, shape, packed=packed)


def digest(path: Path) -> FileFact:
    """Name, size and SHA-256 of a file.

    A file in a Hugging Face cache is a link to a blob named by its SHA-256: then nothing is read.
    """
    target = path.resolve()
    size = target.stat().st_size
    if path.is_symlink():
        # One step: the blob of a repo may itself be a link, to one that is named otherwise.
        blob = path.readlink()
        if len(blob.name) == 64 and blob.parent.name == "blobs":
            return FileFact(name=path.name, bytes=size, sha256=blob.name)
    with target.open("rb") as file:
        return FileFact(name=path.name, bytes=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises SourceError where it is none."""
    try:
        if path.stat().st_size > _MAX_HEADER:
            raise SourceError(f"{path} is larger than any file of its name", "download the file again")
        found = json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise SourceError(f"{path} is nested too deep", "download the file again") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}", "download the file again") from None
    if not isinstance(found, dict):
        raise SourceError(f"{path} holds no JSON object", "download the file again")
    return found


def _header(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise SourceError(f"{path} is truncated or not a safetensors file", "download the file again")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length
        found = {}
        for name, entry in header.items():
            shape, (first, last) = _integers(entry["shape"]), _integers(entry["data_offsets"])
            width = _BYTES.get(entry["dtype"])
            if width is None:
                raise SourceError(f"{path}: tensor {name} is of the unknown dtype {entry['dtype']!r}")
            if len(shape) > _MAX_RANK:
                raise SourceError(f"{path}: tensor {name} has {len(shape)} dimensions")
            expected = width * prod(shape)
            if last - first != expected:
                raise SourceError(f"{path}: tensor {name} has {last - first} bytes where its shape needs {expected}")
            end = max(end, 8 + length + last)
            found[name] = Stored(path.name, entry["dtype"], shape)
    except RecursionError:
        raise SourceError(f"{path} is not a safetensors file: its header is nested too deep") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SourceError(f"{path} is not a safetensors file: {error}", "download the file again") from None
    if size < end:
        raise SourceError(
            f"{path} is truncated: {size:,} bytes where its header promises {end:,}", "download the file again"
        )
    return found


def _integers(values: list[object]) -> tuple[int, ...]:
    """`values` as whole numbers from 0 up. Raises ValueError for anything else."""
    found = tuple(value for value in values if type(value) is int and 0 <= value < 1 << 63)
    if len(found) != len(values):
        raise ValueError("a number is none")
    return found
