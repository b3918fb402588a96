"""How far two models' next-token probabilities are apart: exact where they are close, finite where they are not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubpub.measure.parity import EagerLogits, _agreements, _beside, _parts

ROWS, VOCABULARY = 300, 50


def blocks(*logits: torch.Tensor) -> Any:
    return lambda begin, end: [one[begin:end] for one in logits]


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
    found, same = _agreements(blocks(a, b, a), tokens, 1, told.append)
    assert found.kl_mean == pytest.approx(exactly(a, b), rel=1e-3)
    assert all(math.isfinite(value) for value in vars(found).values())
    assert (same.kl_mean, same.top1, same.error_max) == (0.0, 1.0, 0.0)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_what_is_no_number_is_seen_in_every_figure_of_the_text() -> None:
    a = torch.zeros(ROWS, VOCABULARY)
    b = a.clone()
    b[7, 3] = float("nan")
    (found,) = _agreements(blocks(a, b), [0] * ROWS, 1)
    assert math.isnan(found.kl_mean)
    assert math.isnan(found.perplexity)


class _Tiny(torch.nn.Module):
    """Four layers of 8 x 8 and a head: as much of a language model as reading a text with it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(4))
        self.model.forward = self._states
        self.lm_head = torch.nn.Linear(8, VOCABULARY, bias=False)
        self.config = SimpleNamespace(vocab_size=VOCABULARY, final_logit_softcapping=None)

    def _states(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        states = input_ids.unsqueeze(-1).float().expand(*input_ids.shape, 8) / VOCABULARY
        for layer in self.model.layers:
            states = layer(states)
        return SimpleNamespace(last_hidden_state=states)


def test_a_stage_says_how_far_it_is_by_what_it_multiplies() -> None:
    """Half of it is over when half of its products are, layers and head alike: so its end can be told from its pace."""
    told: list[float] = []
    model = _Tiny()
    tokens = list(range(VOCABULARY)) * (ROWS // VOCABULARY)
    bodies_and_head = _parts(told.append, model, len(tokens), 2, times=2)
    with torch.no_grad():
        first, second = (EagerLogits(model, tokens, None, 2, part) for part in bodies_and_head[:2])
        read = told[-1]
        _agreements(_beside([first, second], first(0, ROWS // 2)), tokens, 2, bodies_and_head[2])
    body, head = ROWS * 4 * 8 * 8, ROWS // 2 * (8 * VOCABULARY + 300 * VOCABULARY)
    assert told[:4] == pytest.approx([n / 4 * body / (2 * body + 2 * head) for n in range(1, 5)])
    assert read == pytest.approx(body / (body + head))
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_texts_that_share_a_head_have_the_logits_they_have_alone() -> None:
    model = _Tiny()
    with torch.no_grad():
        one, other = (EagerLogits(model, tokens, None) for tokens in ([3, 4, 5, 6], [9, 8, 7, 6]))
        first, ours, second = _beside([one, other], torch.zeros(4, VOCABULARY))(1, 3)
        assert torch.allclose(first, one(1, 3))
        assert torch.allclose(second, other(1, 3))
    assert ours.shape == (2, VOCABULARY)
