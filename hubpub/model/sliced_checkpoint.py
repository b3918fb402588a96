"""A slice written as a checkpoint of its own, in the layout of the one it is taken from: towers and tokenizer included.

Tensors go from the mapped source to the new files some rows at a time.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.errors import ToolchainError, UsageError
from hubpub.model.checkpoint import TOKENIZER_FILES, Checkpoint, Stored, width
from hubpub.progress import Progress

if TYPE_CHECKING:
    import torch

SHARD = 4 << 30
_PIECE = 64 << 20
# What else lies beside a published checkpoint and says how to read texts, images and sounds, and its terms.
_BESIDE = ("preprocessor_config.json", "processor_config.json", "tokenizer.model", "added_tokens.json")


def write(checkpoint: Checkpoint, out: Path, progress: Progress) -> int:
    """Write the sliced `checkpoint` to the new folder `out`; returns the bytes of its shards.

    Raises UsageError where `out` is there already, ToolchainError where the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "name a folder that is not")
    tensors = checkpoint.tensors
    shards = _shards(tensors)
    total = sum(_bytes(one) for one in tensors.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if total > free:
        raise ToolchainError(
            f"{out} needs {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free", "free some disk space"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp", dir=out.parent))
    try:
        (work / "config.json").write_text(json.dumps(checkpoint.config, indent=2) + "\n", "utf-8")
        for name in (*TOKENIZER_FILES, *_BESIDE):
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, work / name)
        for path in checkpoint.folder.glob("LICENSE*"):
            shutil.copyfile(path, work / path.name)
        done, where = 0, dict[str, str]()
        for number, names in enumerate(shards, 1):
            shard = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            where |= dict.fromkeys(names, shard)
            with (work / shard).open("wb") as file:
                file.write(_header(tensors, names))
                for name in names:
                    for piece in _pieces(checkpoint, name):
                        done += file.write(piece)
                        progress("write", done / total)
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        work.chmod(0o755)
        if out.exists():
            out.rmdir()
        work.rename(out)
    except OSError as error:
        raise ToolchainError(f"{out} cannot be written: {error.strerror}", "free some disk space") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return total


def _shards(tensors: dict[str, Stored]) -> list[list[str]]:
    """Names by file: as they follow one another in the source, until a file is full."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, stored in tensors.items():
        if shards[-1] and size + _bytes(stored) > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(stored)
    return shards


def _bytes(stored: Stored) -> int:
    return width(stored.dtype) * prod(stored.shape)


def _header(tensors: dict[str, Stored], names: list[str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        end = place + _bytes(tensors[name])
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [place, end],
        }
        place = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
    """The bytes of one tensor of the slice, some rows at a time."""
    import torch
    from safetensors import safe_open

    stored = checkpoint.tensors[name]
    with safe_open(checkpoint.folder / stored.shard, "pt") as file:
        tensor = file.get_tensor(stored.name or name)
        for rows in _rows(tensor, stored):
            yield memoryview(rows.contiguous().reshape(-1).view(torch.uint8).numpy())


def _rows(tensor: torch.Tensor, stored: Stored) -> Iterator[torch.Tensor]:
    import torch

    part = stored.part
    if not tensor.ndim:
        yield tensor
        return
    at_once = max(1, _PIECE // max(1, tensor[:1].nbytes))
    for first, end in part.ranges if part and part.axis == 0 else ((0, tensor.shape[0]),):
        for row in range(first, end, at_once):
            rows = tensor[row : min(row + at_once, end)]
            yield torch.cat([rows[:, a:b] for a, b in part.ranges], 1) if part and part.axis == 1 else rows
