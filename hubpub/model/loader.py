"""A plain Hugging Face text decoder out of a multimodal checkpoint; the vision and audio towers are never built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hubpub.errors import SourceError, ToolchainError
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.patches import check_version

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> Any:
    """The text decoder of `checkpoint`, as `hubpub.load_text_decoder` says."""
    check_version("transformers", ">=5.23,<5.24", "loading a text decoder")
    import transformers

    # A text-only class in front of a multimodal checkpoint reports every tower tensor as unexpected: that is the point.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, checkpoint.family.text_class)
    config = _text_config(checkpoint)
    verify(checkpoint, config, model_class)
    model, report = model_class.from_pretrained(
        checkpoint.folder,
        config=config,
        dtype=dtype or "auto",
        local_files_only=True,
        # Not every text class knows by itself where the multimodal one keeps its weights.
        key_mapping={"^" + re.escape(checkpoint.family.text_prefix): "model."},
        output_loading_info=True,
    )
    # transformers fills what it did not find with random numbers, and says so only in its log.
    if lost := sorted(set(report["missing_keys"]) - _tied(config)):
        raise ToolchainError(
            f"transformers did not read {len(lost)} tensors that {checkpoint.folder} holds, e.g. {lost[0]}",
            "this hubpub does not know the layout of this checkpoint; report its repo and revision",
        )
    # What reads a model's config is told what it is, and not what it was taken out of.
    model.config.architectures = [checkpoint.family.text_class]
    return model.eval().requires_grad_(False)


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


def _text_config(checkpoint: Checkpoint) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True).get_text_config()
    except Exception as error:
        raise SourceError(f"{checkpoint.folder / 'config.json'}: {error}") from None
