"""A plain Hugging Face text decoder out of a multimodal checkpoint; the vision and audio towers are never built."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hubpub.errors import SourceError, ToolchainError
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.packed import fill
from hubpub.model.patches import check_version
from hubpub.model.slicing import take

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> Any:
    """The text decoder of `checkpoint`, as `hubpub.load_text_decoder` says."""
    check_version("transformers", ">=5.23,<5.24", "loading a text decoder")
    import transformers

    # A text-only class in front of a multimodal checkpoint reports every tower tensor as unexpected: that is the point.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, checkpoint.family.text_class)
    config = text_config(checkpoint)
    # What weights were stored in is not what they are here: transformers would pack them again.
    vars(config).pop("quantization_config", None)
    verify(checkpoint, config, model_class)
    if checkpoint.slice is None and not checkpoint.packed:
        read: dict[str, Any] = {
            # Not every text class knows by itself where the multimodal one keeps its weights.
            "key_mapping": {"^" + re.escape(checkpoint.family.text_prefix): "model."},
            "local_files_only": True,
        }
        model, report = model_class.from_pretrained(
            checkpoint.folder, config=config, dtype=dtype or "auto", output_loading_info=True, **read
        )
    else:
        model, report = model_class.from_pretrained(
            None, config=config, dtype=dtype or "auto", output_loading_info=True, state_dict=_state(checkpoint)
        )
        model.config.name_or_path = str(checkpoint.folder)
    # transformers fills what it did not find with random numbers, and says so only in its log.
    if lost := sorted(set(report["missing_keys"]) - _tied(config)):
        raise ToolchainError(
            f"transformers did not read {len(lost)} tensors that {checkpoint.folder} holds, e.g. {lost[0]}",
            "this hubpub does not know the layout of this checkpoint; report its repo and revision",
        )
    # What reads a model's config is told what it is, and not what it was taken out of.
    model.config.architectures = [checkpoint.family.text_class]
    return model.eval().requires_grad_(False)


def _state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The text tensors of a slice, or of a checkpoint in four bits, as the text class names them, mapped."""
    from safetensors import safe_open

    gathered = _Gathered()
    found = {f"model.{name}": value for name, value in read_text(checkpoint, gathered)}
    # Beside the text model, not in it.
    if (head := checkpoint.tensors.get("lm_head.weight")) is not None and head.packed is None:
        with safe_open(checkpoint.folder / head.shard, "pt") as file:
            found["lm_head.weight"] = file.get_tensor("lm_head.weight")
    return found


def read_text(checkpoint: Checkpoint, make: Callable[[tuple[int, ...], torch.dtype], torch.Tensor]) -> Iterator[Any]:
    """Name below the text model and value of every text tensor; `make` is where one is gathered that lies in pieces or
    in four bits."""
    from safetensors import safe_open

    for shard in checkpoint.shards:
        own = [(name, stored) for name, stored in checkpoint.text_tensors.items() if stored.shard == shard]
        with safe_open(checkpoint.folder / shard, "pt") as file:
            for name, stored in own:
                if stored.packed is not None:
                    words, scales = stored.packed.read(checkpoint.folder)
                    value = make(stored.shape, scales.dtype)
                    fill(value, words, scales)
                    yield name, value
                    continue
                value = file.get_tensor(stored.name or checkpoint.family.text_prefix + name)
                yield name, value if stored.part is None else take(value, stored.part, make)


class _Gathered:
    """Tensors in temporary files without a name: what is written to them is the system's to keep, not the process's."""

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # Where /tmp is memory, /var/tmp is not.
        folder = "/var/tmp" if "TMPDIR" not in os.environ and Path("/var/tmp").is_dir() else None  # noqa: S108
        size = math.prod(shape) * dtype.itemsize
        with tempfile.NamedTemporaryFile(dir=folder, prefix="hubpub-slice-") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except AttributeError:
                file.truncate(size)
            except OSError as error:
                raise ToolchainError(
                    f"{size:,} bytes of a slice do not fit in {Path(file.name).parent}: {error.strerror}",
                    "free some disk space, or set TMPDIR to a folder on a larger disk",
                ) from None
            return torch.from_file(file.name, shared=True, size=size // dtype.itemsize, dtype=dtype).view(shape)


def load_mapped(checkpoint: Checkpoint, *, dtype: torch.dtype) -> Any:
    """The text decoder with its weights memory-mapped as they are stored, to be converted one module at a time.

    Buffers that a checkpoint does not hold (embedding scales, rotary frequencies) are what a model of `dtype` has.
    """
    model = load(checkpoint)
    if next(model.parameters()).dtype == dtype:
        return model
    with _parameters_on_meta():
        like = type(model)(model.config)
    for name, module in like.named_modules():
        for key in module._non_persistent_buffers_set:
            model.get_submodule(name)._buffers[key] = module._buffers[key]
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside have buffers as always, and parameters without memory."""

    def on_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        handle.remove()


def verify(checkpoint: Checkpoint, config: Any, model_class: Any) -> None:
    """Raise SourceError unless the checkpoint holds every tensor of the text model, in the right shape."""
    with torch.device("meta"):
        wanted = {
            name: tuple(value.shape)
            for name, value in model_class(config).state_dict().items()
            if name not in _tied(config)
        }
    prefix = checkpoint.family.text_prefix
    # The head lies beside the text model, not in it.
    names = {name: prefix + name.removeprefix("model.") if name.startswith("model.") else name for name in wanted}
    stored = checkpoint.tensors
    missing = sorted(names[name] for name in wanted if names[name] not in stored)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            f"{checkpoint.folder}: tensor {missing[0]} is missing{more}",
            "download the checkpoint again; a fine-tune must be merged into full weights first",
        )
    for name, shape in wanted.items():
        found = stored[names[name]]
        if found.shape != shape:
            raise SourceError(
                f"{checkpoint.folder / found.shard}: tensor {names[name]} is {list(found.shape)} where "
                f"config.json asks for {list(shape)}"
            )


def _tied(config: Any) -> set[str]:
    """Tensors that a model has and its checkpoint need not hold: a head that is the embedding."""
    return {"lm_head.weight"} if config.tie_word_embeddings else set()


def text_config(checkpoint: Checkpoint) -> Any:
    """The config of the text model, as transformers reads it. Raises SourceError where it cannot."""
    import transformers

    try:
        if checkpoint.slice is not None:
            known = transformers.CONFIG_MAPPING[checkpoint.config["model_type"]]
            return known.from_dict(checkpoint.config).get_text_config()
        return transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True).get_text_config()
    except Exception as error:
        raise SourceError(f"{checkpoint.folder / 'config.json'}: {error}") from None
