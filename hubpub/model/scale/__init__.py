"""Scale models: small checkpoints with the architecture, layer pattern and file layout of the real ones.

A rehearsal exports these in place of gigabytes of weights. Each is trained on the spot for less than a minute, so that
its greedy answers are decided and a wrong program shows in its text; the result is cached and the same on every run.
Which stand-ins a family has is known by the module that is called as the family is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hubpub.config import Variant
from hubpub.data import corpus
from hubpub.model.families import FAMILIES, family
from hubpub.model.scale import on_grid
from hubpub.model.scale.stand_in import CONTEXT, StandIn
from hubpub.model.scale.training import repeatable, trained
from hubpub.progress import Progress, unseen
from hubpub.slices import Slice


def build(variant: Variant, cache: Path, *, progress: Progress = unseen) -> Path:
    """The checkpoint folder that stands in for `variant`, made below `cache` unless it is there already.

    `progress` gets the stages "train" and "write". Building is safe against being
    killed and against another process that builds the same model at the same time.
    """
    made = _build(variant.family, variant.size, variant.chat, cache, progress)
    return made if variant.qat is None else _on_grid(made, variant.family, variant.qat.form, cache)


def scale_key(variant: Variant) -> str:
    """A key that changes whenever the bytes of the scale model would: 12 hex digits, and how it was put on a grid."""
    key = _key(variant.family, variant.size, variant.chat)
    return key if variant.qat is None else f"{key}-{variant.qat.form}"


def slice_of(variant: Variant, *, rehearsal: bool) -> Slice | None:
    """The slice of its source that `variant` is, None for a whole model; in a rehearsal, that of what stands in."""
    if variant.slice is None or not rehearsal:
        return variant.slice
    found = import_module(f"{__name__}.{variant.family}").sliced(variant.slice, variant.size)
    assert isinstance(found, Slice)
    return found


@cache
def stand_in(family: str, size: str | None, *, chat: bool) -> StandIn:
    """What stands in for a model of that `family` and `size`; a size the family has none for gets its smallest."""
    found = import_module(f"{__name__}.{family}").stand_in(size, chat=chat)
    assert isinstance(found, StandIn)
    return found


@cache
def _key(family: str, size: str | None, chat: bool) -> str:
    text = json.dumps([asdict(stand_in(family, size, chat=chat)), _making()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def making_code() -> tuple[Path, ...]:
    """The modules that make a checkpoint of what describes it, or put one on a grid; a family's own shows in what it
    describes."""
    here = Path(__file__).parent
    own = [path for path in sorted(here.glob("*.py")) if path.stem not in FAMILIES]
    return (*own, here.parent / "packed.py", *sorted((here.parent / "families").glob("*.py")))


@cache
def _making() -> str:
    """What every checkpoint is made by: text, libraries, and code."""
    code = [path.read_text("utf-8") for path in making_code()]
    libraries = [version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")]
    return hashlib.sha256("\0".join([*code, *libraries, corpus()]).encode()).hexdigest()


def _build(family: str, size: str | None, chat: bool, cache: Path, progress: Progress) -> Path:
    plan = stand_in(family, size, chat=chat)
    target = cache / f"{plan.name}{'-chat' if chat else ''}-{_key(family, size, chat)}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f".{target.name}.lock"):
        if target.is_dir():
            return target
        for stale in cache.glob(f".{target.name}.tmp*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp", dir=cache))
        try:
            tuned = None if chat else _build(family, size, True, cache, progress)
            _make(plan, work, progress, tuned)
            work.chmod(0o755)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _on_grid(made: Path, name: str, form: on_grid.Form, cache: Path) -> Path:
    target = cache / f"{made.name}-{form}"
    with _lock(cache / f".{target.name}.lock"):
        if target.is_dir():
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp", dir=cache))
        try:
            on_grid.put_on_grid(made, work, family(name), form)
            work.chmod(0o755)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _publish(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        # Where no lock is to be had, another process may have been faster: its folder holds the same.
        if not target.is_dir():
            raise


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock goes away with its process. Without fcntl, both build and the rename decides."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(plan: StandIn, folder: Path, progress: Progress, tuned: Path | None) -> None:
    """Every file of the checkpoint; a base model has the weights of its `tuned` sibling and its own settings."""
    plan.tokenizer.write(folder, corpus(), plan.chat_template, CONTEXT)
    _json(folder / "config.json", plan.config)
    _json(folder / "generation_config.json", plan.generation)
    if tuned is not None:
        for path in tuned.glob("model*"):
            shutil.copy2(path, folder)
        return
    with repeatable(plan.name):
        model = trained(plan, folder, progress)
        progress("write", 0.0)
        _write_weights(plan, model, folder)
    progress("write", 1.0)


def _write_weights(plan: StandIn, model: Any, folder: Path) -> None:
    """bf16 shards and their index, named as in the published checkpoints; a single file has no index."""
    import torch
    from safetensors.torch import save_file

    prefix = family(plan.family).text_prefix
    tensors = {
        f"{prefix}{name.removeprefix('model.')}": tensor.bfloat16()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for name, shape in plan.unused.items():
        if name.endswith("norm.weight"):
            tensors[name] = torch.empty(shape).normal_(1.0, 0.1).bfloat16()
        else:
            tensors[name] = torch.empty(shape).normal_(0.0, 0.05).bfloat16()
    if plan.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    total = sum(sizes.values())
    weight_map: dict[str, str] = {}
    done = 0
    for name in sorted(tensors):
        shard = min(plan.shards, 1 + done * plan.shards // total)
        weight_map[name] = f"model-{shard:05}-of-{plan.shards:05}.safetensors"
        done += sizes[name]
    for shard_name in sorted(set(weight_map.values())):
        part = {name: tensors[name].contiguous() for name, where in weight_map.items() if where == shard_name}
        save_file(part, folder / shard_name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _json(folder / "model.safetensors.index.json", index)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
