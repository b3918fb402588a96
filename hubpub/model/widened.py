"""A model that computes in float32 while its matrices and tables stay as they are stored: mapped, and half as large."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Weights that are float32 at a time: 16 MB of them.
SLICE = 1 << 22


def widen(model: Any) -> None:
    """Linear layers and tables of `model` widen a slice of their weights at a time; the rest becomes float32."""
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


def narrow(model: Any) -> None:
    """Give linear layers and tables the forward of their class back."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            vars(module).pop("forward", None)


class _Product:
    """A linear layer whose weight is widened some rows at a time."""

    def __init__(self, linear: Any) -> None:
        self.linear = linear

    def __call__(self, x: Any) -> Any:
        """x [..., in] float32 -> [..., out] float32."""
        weight, bias = self.linear.weight, self.linear.bias
        out = _Times.apply(x, weight) if torch.is_grad_enabled() and x.requires_grad else _times(x, weight)
        return out if bias is None else out + bias.float()


def _times(x: Any, weight: Any) -> Any:
    parts = [nn.functional.linear(x, part.float()) for part in _slices(weight)]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _slices(weight: Any) -> Any:
    return weight.split(max(1, SLICE // weight.shape[1]))


class _Times(torch.autograd.Function):
    """The product as a function of x alone: what is widened is not kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.weight = weight
        return _times(x, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        slices = _slices(ctx.weight)
        back, first = 0.0, 0
        for part in slices:
            back = back + slopes[0][..., first : first + len(part)] @ part.float()
            first += len(part)
        return back, None


class _Table:
    """An embedding whose rows are widened as they are read, then scaled as the original scales them."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __call__(self, indices: Any) -> Any:
        """Indices [...] int64 -> rows [..., width] float32."""
        rows = torch.nn.functional.embedding(indices, self.table.weight).float()
        factor = getattr(self.table, "embed_scale", None)
        return rows if factor is None else rows * factor.float()
