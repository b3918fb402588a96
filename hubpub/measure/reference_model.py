"""The reference model: the source checkpoint in float32, on machines that could not hold it so.

A float32 copy of a bfloat16 checkpoint is twice its size and says nothing new: every bfloat16 value is a float32 value.
Where memory is short, the weights stay mapped as they are stored and are widened while they are used (see
hubpub.model.widened), which takes longer and gives the same numbers.
"""

from __future__ import annotations

from math import prod
from typing import Any

import psutil

from hubpub.model.checkpoint import Checkpoint

ROOM = 4_000_000_000


def reference_model(checkpoint: Checkpoint) -> Any:
    """The eager model of `checkpoint` that computes in float32: in memory where it fits, else `mapped`."""
    import torch

    from hubpub.model.loader import load

    needed = 4 * sum(prod(stored.shape) for stored in checkpoint.text_tensors.values())
    if needed + ROOM > psutil.virtual_memory().available:
        return mapped(checkpoint)
    return load(checkpoint, dtype=torch.float32)


def mapped(checkpoint: Checkpoint) -> Any:
    """The eager model of `checkpoint` in float32, its matrices and tables widened while they are used."""
    import torch

    from hubpub.model.loader import load_mapped
    from hubpub.model.widened import widen

    model = load_mapped(checkpoint, dtype=torch.float32)
    widen(model)
    return model
