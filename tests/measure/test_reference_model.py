"""The reference model in float32 without a float32 copy: the same numbers, and no wide weights in memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.measure.reference_model import mapped, reference_model
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import FAMILIES
from hubpub.model.loader import load


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, scale_cache: Path) -> Checkpoint:
    return Checkpoint.open(scale_model(OF_FAMILY[request.param], scale_cache))


def test_mapped_weights_compute_what_wide_ones_compute(checkpoint: Checkpoint) -> None:
    tokens = torch.arange(200, 280).unsqueeze(0)
    wide, narrow = load(checkpoint, dtype=torch.float32), mapped(checkpoint)
    matrices = [p for p in narrow.parameters() if p.ndim > 1]
    assert {p.dtype for p in matrices} == {torch.bfloat16}
    with torch.no_grad():
        a, b = wide(tokens).logits, narrow(tokens).logits
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-4)
        again = narrow(tokens[:, :1], past_key_values=narrow(tokens, use_cache=True).past_key_values, use_cache=True)
    assert again.logits.shape == (1, 1, a.shape[-1])


def test_where_memory_is_short_the_weights_stay_mapped(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {p.dtype for p in reference_model(checkpoint).parameters()} == {torch.float32}
    little = psutil.virtual_memory()._replace(available=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert torch.bfloat16 in {p.dtype for p in reference_model(checkpoint).parameters()}
