"""The text decoder of a model, whether it is a folder here or a repo on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.hub.sources import download_source
from hubpub.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


def load_text_decoder(
    path_or_repo_id: str | os.PathLike[str], *, dtype: torch.dtype | None = None, revision: str | None = None
) -> Any:
    """The text decoder of a multimodal checkpoint as a Hugging Face model with its language-modelling head.

    `path_or_repo_id` is a folder, or a Hub repo (downloaded at `revision`). `dtype` defaults to the stored one; then
    the weights stay memory-mapped and cost no memory until they are used. Neither timm nor torchvision is needed.

    The result is an ordinary `transformers` model in eval mode, so hooks, `generate` and interpretability tools work:

        model = hubpub.load_text_decoder("google/gemma-3n-E2B-it", dtype=torch.float32)
        model.model.layers[3].register_forward_hook(lambda module, args, output: print(output.shape))

        from hubpub.model.lens import bridge
        logits, cache = bridge(model, tokenizer).run_with_cache("The sun warms the sea")
        print(cache["blocks.3.hook_resid_post"].shape)

    Raises SourceError for a truncated shard, a missing tensor, a wrong shape or an unknown architecture, before any
    weight is read; ToolchainError where the installed transformers is outside of the tested range.
    """
    from hubpub.model import loader

    folder = Path(path_or_repo_id)
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_repo_id)):
        folder = download_source(str(path_or_repo_id), revision=revision)
    return loader.load(Checkpoint.open(folder), dtype=dtype)
