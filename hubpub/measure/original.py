"""The original model in float32, on machines that could not hold it so.

A float32 copy of a bfloat16 checkpoint is twice its size and says nothing new: every bfloat16 value is a float32 value.
Where memory is short, the weights stay mapped as they are stored and each layer widens a slice of them at a time, which
takes longer and gives the same numbers.
"""

from __future__ import annotations

from typing import Any

ROOM = 4_000_000_000
SLICE = 1 << 22


def original(checkpoint: Any) -> Any:
    """The eager model of `checkpoint` that computes in float32: in memory where it fits, else `mapped`."""
    from math import prod

    import psutil
    import torch

    from hubpub.model.loader import load

    needed = 4 * sum(prod(stored.shape) for stored in checkpoint.text_tensors.values())
    if needed + ROOM > psutil.virtual_memory().available:
        return mapped(checkpoint)
    return load(checkpoint, dtype=torch.float32)


def mapped(checkpoint: Any) -> Any:
    """The eager model of `checkpoint` in float32, its matrices and tables widened while they are used."""
    import torch
    from torch import nn

    from hubpub.model.loader import load_mapped

    model = load_mapped(checkpoint, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = _Product(module)
        elif isinstance(module, nn.Embedding):
            module.forward = _Table(module)
        else:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(parameter.detach().float(), requires_grad=False)
            for key, buffer in module._buffers.items():
                if buffer is not None and key not in module._non_persistent_buffers_set and buffer.is_floating_point():
                    module._buffers[key] = buffer.float()
    return model


class _Product:
    """A linear layer whose weight is widened some rows at a time."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear

    def __call__(self, x: Any) -> Any:
        """x [..., in] float32 -> [..., out] float32."""
        import torch

        weight, bias = self.linear.weight, self.linear.bias
        rows = max(1, SLICE // weight.shape[1])
        parts = [
            torch.nn.functional.linear(x, weight[first : first + rows].float())
            for first in range(0, weight.shape[0], rows)
        ]
        out = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return out if bias is None else out + bias.float()


class _Table:
    """An embedding whose rows are widened as they are read, then scaled as the original scales them."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __call__(self, indices: Any) -> Any:
        """Indices [...] int64 -> rows [..., width] float32."""
        import torch

        rows = torch.nn.functional.embedding(indices, self.table.weight).float()
        factor = getattr(self.table, "embed_scale", None)
        return rows if factor is None else rows * factor.float()
