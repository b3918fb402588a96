"""Gemma 3n computes the inverse normal CDF of a constant in every forward pass.

That leaves `aten.erfinv` in the exported graph, which is not in the Core ATen opset, so lowering fails. The value is a
constant per layer: it is computed here, once, in Python.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from statistics import NormalDist
from typing import Any

from hubpub.model.patches import Patch, expect, replaced

NAME = "gemma3n-gaussian-topk"


def _defective() -> bool:
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    target = Gemma3nTextMLP._gaussian_topk
    expect(NAME, target, parameters=["self", "inputs"], source=["self.activation_sparsity", "relu(inputs - cutoff_x)"])
    return "icdf" in target.__code__.co_names


def _gaussian_topk(self: Any, inputs: Any) -> Any:
    import torch

    cutoff = NormalDist().inv_cdf(self.activation_sparsity)
    mean = torch.mean(inputs, dim=-1, keepdim=True)
    deviation = torch.std(inputs, dim=-1, keepdim=True, unbiased=False)
    return torch.relu(inputs - (mean + deviation * cutoff))


def _apply() -> AbstractContextManager[None]:
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

    return replaced(Gemma3nTextMLP, "_gaussian_topk", _gaussian_topk)


PATCH = Patch(
    name=NAME,
    defect="Gemma3nTextMLP._gaussian_topk leaves aten.erfinv in the graph, which cannot be lowered",
    url="https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/gemma3n/modeling_gemma3n.py",
    package="transformers",
    versions=">=5.23,<5.24",
    defective=_defective,
    apply=_apply,
)
