"""The text decoder of a model, whether it is a folder here or a repo on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.errors import SourceError
from hubpub.hub.sources import download_source
from hubpub.model.checkpoint import Checkpoint
from hubpub.slices import Slice, named

if TYPE_CHECKING:
    import torch


def load_text_decoder(
    path_or_repo_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    slice: str | Slice | None = None,
) -> Any:
    """The text decoder of a multimodal checkpoint as a Hugging Face model with its language-modelling head.

    `path_or_repo_id` is a folder, or a Hub repo (downloaded at `revision`). `dtype` defaults to the stored one; then
    the weights stay memory-mapped and cost no memory until they are used. Neither timm nor torchvision is needed.

    `slice` takes a smaller model out of Gemma 3n E4B: the name of a published slice, e.g. "E2.69B", or a Slice. What of
    it cannot be mapped (feed-forward matrices that lose columns, the per-layer table where layers are left out) is
    gathered in a temporary file, which is mapped and goes away with the process.

    The result is an ordinary `transformers` model in eval mode, so hooks, `generate` and interpretability tools work:

        model = hubpub.load_text_decoder("google/gemma-3n-E2B-it", dtype=torch.float32)
        model.model.layers[3].register_forward_hook(lambda module, args, output: print(output.shape))

        from hubpub.model.lens import bridge
        logits, cache = bridge(model, tokenizer).run_with_cache("The sun warms the sea")
        print(cache["blocks.3.hook_resid_post"].shape)

    Raises SourceError for a truncated shard, a missing tensor, a wrong shape or an unknown architecture or a slice that
    breaks a rule, before any weight is read; ToolchainError where the installed transformers is outside of the tested
    range.
    """
    from hubpub.model import loader

    try:
        part = named(slice) if isinstance(slice, str) else slice
    except ValueError as error:
        raise SourceError(str(error)) from None
    folder = Path(path_or_repo_id)
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_repo_id)):
        folder = download_source(str(path_or_repo_id), revision=revision)
    return loader.load(Checkpoint.open(folder, part), dtype=dtype)
