"""A source checkpoint on disk, read without torch: its config, its safetensors headers and its hashes.

Everything that can be wrong with a checkpoint is found here, in milliseconds, before a model is built.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubpub.errors import SourceError
from hubpub.facts import FileFact
from hubpub.model.families import FAMILIES, Family, family

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: which shard holds it, its dtype as safetensors names it, and its shape."""

    shard: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards, as published on the Hub."""

    folder: Path
    config: dict[str, Any]
    family: Family

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check `folder`. Raises SourceError for what is missing, damaged or of an unknown architecture."""
        if not folder.is_dir():
            raise SourceError(f"no checkpoint at {folder}", "pass a folder with config.json and *.safetensors")
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise SourceError(f"{path} is missing", "a checkpoint folder holds config.json") from None
        except (OSError, ValueError) as error:
            raise SourceError(f"{path} cannot be read: {error}") from None
        names = config.get("architectures") if isinstance(config, dict) else None
        known = {found.architecture: found for found in map(family, FAMILIES)}
        match = next((known[name] for name in names or () if name in known), None)
        if match is None:
            raise SourceError(
                f"{path}: architecture {names or 'is not named'} is not one hubpub can export",
                f"known architectures: {', '.join(known)}",
            )
        checkpoint = cls(folder, config, match)
        _ = checkpoint.tensors
        return checkpoint

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """Names of the safetensors files, in order. Raises SourceError where there are none or one is missing."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise SourceError(f"{index} cannot be read: {error!r}") from None
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
    def tensors(self) -> dict[str, Stored]:
        """Every stored tensor by name, from the shards' headers; each shard's size is checked against its header."""
        found: dict[str, Stored] = {}
        for name in self.shards:
            found.update(_header(self.folder / name))
        return found

    @cached_property
    def text_tensors(self) -> dict[str, Stored]:
        """The text decoder's tensors, by their name below the text model."""
        prefix = self.family.text_prefix
        return {name.removeprefix(prefix): s for name, s in self.tensors.items() if name.startswith(prefix)}

    def stop_tokens(self) -> list[int]:
        """The ids that end a generation, from generation_config.json, else config.json."""
        for name in ("generation_config.json", "config.json"):
            path = self.folder / name
            ids = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.exists() else None
            if ids is not None:
                return [ids] if isinstance(ids, int) else list(ids)
        return []

    def files(self) -> tuple[FileFact, ...]:
        """The files an export depends on, with their hashes (each hashed once; see `digest`)."""
        names = ["config.json", *(n for n in TOKENIZER_FILES if (self.folder / n).is_file()), *self.shards]
        return tuple(digest(self.folder / name) for name in names)


def digest(path: Path) -> FileFact:
    """Name, size and SHA-256 of a file.

    A file in a Hugging Face cache is a link to a blob named by its SHA-256: then nothing is read.
    """
    target = path.resolve()
    size = target.stat().st_size
    if path.is_symlink() and len(target.name) == 64 and target.parent.name == "blobs":
        return FileFact(name=path.name, bytes=size, sha256=target.name)
    with target.open("rb") as file:
        return FileFact(name=path.name, bytes=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


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
            shape = tuple(int(n) for n in entry["shape"])
            first, last = (int(n) for n in entry["data_offsets"])
            expected = _BYTES.get(entry["dtype"], 0)
            for dimension in shape:
                expected *= dimension
            if last - first != expected or first < 0:
                raise SourceError(f"{path}: tensor {name} has {last - first} bytes where its shape needs {expected}")
            end = max(end, 8 + length + last)
            found[name] = Stored(path.name, entry["dtype"], shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SourceError(f"{path} is not a safetensors file: {error}", "download the file again") from None
    if size < end:
        raise SourceError(
            f"{path} is truncated: {size:,} bytes where its header promises {end:,}", "download the file again"
        )
    return found
