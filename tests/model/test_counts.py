"""Weights and layers are counted as the program uses them."""

from __future__ import annotations

import pytest
import torch

from hubpub.model.counts import parameters
from hubpub.model.families import family


@pytest.mark.parametrize(("name", "total"), [("E2B", 4_435_182_688), ("E4B", 6_835_235_568)])
def test_parameters_of_the_real_shapes(name: str, total: int) -> None:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    count = {"E2B": 30, "E4B": 35}[name]
    config = Gemma3nTextConfig(
        num_hidden_layers=count,
        intermediate_size=[8192 if name == "E2B" else 16384] * count,
        num_kv_shared_layers={"E2B": 10, "E4B": 15}[name],
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * (count - 10),
        layer_types=["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(count)],
    )
    with torch.device("meta"):
        counted = parameters(Gemma3nForCausalLM(config), family("gemma3n"))
    assert counted.total == total
