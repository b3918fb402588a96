"""How far two models' next-token probabilities are apart: exact where they are close, finite where they are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hubpub.measure.parity import _agreements

ROWS, VOCABULARY = 300, 50


def rows(logits: torch.Tensor) -> Any:
    return lambda begin, end: logits[begin:end]


def exactly(a: torch.Tensor, b: torch.Tensor) -> float:
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("apart", [1e-4, 0.1, 5.0, 30.0, 1e3, 1e6, 1e30])
def test_a_divergence_is_finite_and_right_however_large(apart: float) -> None:
    """The exponential of a difference of a hundred nats is more than a float32 holds."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(ROWS, VOCABULARY, generator=generator)
    b = a + apart * torch.randn(ROWS, VOCABULARY, generator=generator)
    tokens = list(range(VOCABULARY)) * (ROWS // VOCABULARY)
    told: list[float] = []
    found, same = _agreements(rows(a), [rows(b), rows(a)], tokens, 1, told.append)
    assert found.kl_mean == pytest.approx(exactly(a, b), rel=1e-3)
    assert all(math.isfinite(value) for value in vars(found).values())
    assert (same.kl_mean, same.top1, same.error_max) == (0.0, 1.0, 0.0)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_what_is_no_number_is_seen_in_every_figure_of_the_text() -> None:
    a = torch.zeros(ROWS, VOCABULARY)
    b = a.clone()
    b[7, 3] = float("nan")
    (found,) = _agreements(rows(a), [rows(b)], [0] * ROWS, 1)
    assert math.isnan(found.kl_mean)
    assert math.isnan(found.perplexity)
