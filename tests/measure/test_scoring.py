"""Texts scored with what they share read once: the same figures as of every text read from its beginning."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.errors import UsageError
from hubpub.measure.scoring import Scorer
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.decoder import CachedDecoder, cached_attention
from hubpub.model.families import family
from hubpub.model.loader import load

CONTEXT, PREFILL = 96, 9


class Decoder:
    """The decoder that is exported, run eagerly. `calls` are the positions and lengths it was asked for."""

    window: int | None = None
    longest: int = PREFILL

    def __init__(self, decoder: CachedDecoder) -> None:
        self.decoder = decoder
        self.calls: list[tuple[int, int]] = []

    def step(self, tokens: Sequence[int], position: int) -> Any:
        self.calls.append((position, len(tokens)))
        for first in range(0, len(tokens), PREFILL):
            piece = torch.tensor([tokens[first : first + PREFILL]])
            logits = self.decoder(piece, torch.tensor([position + first]))
        return logits.reshape(-1).clone()

    def score(self, tokens: Sequence[int]) -> Any:
        raise AssertionError("it has a cache")


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def model(request: pytest.FixtureRequest, scale_cache: Path) -> Any:
    """A scale model with rings for its sliding layers, and one whose cache forgets nothing."""
    made = scale_model(OF_FAMILY[request.param], scale_cache)
    return load(Checkpoint.open(made), dtype=torch.float32)


@pytest.fixture(scope="module")
def wanted(model: Any) -> list[tuple[float, bool]]:
    """What the model says of `texts`, each read whole and with its own attention."""
    found = []
    for text, continuation in texts():
        with torch.no_grad():
            logits = model(torch.tensor([[*text, *continuation]])).logits[0]
        rows = logits.log_softmax(-1)[len(text) - 1 : -1]
        value = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
        found.append((value, rows.argmax(-1).tolist() == continuation))
    return found


@pytest.fixture
def decoder(model: Any, wanted: object) -> Iterator[Decoder]:
    of = family(model.config.model_type.removesuffix("_text"))
    with cached_attention(model), of.last_token_only(model), of.cheap_operators(model), torch.no_grad():
        yield Decoder(CachedDecoder(model, of.shape(model.config), CONTEXT, PREFILL, torch.float32))


def scorer(decoder: Decoder) -> Scorer:
    return Scorer(decoder, CONTEXT, PREFILL if decoder.decoder.windowed else None)


def texts() -> list[tuple[list[int], list[int]]]:
    """Questions that share their beginning, each with four continuations that share theirs."""
    draw = random.Random(3)
    shared = [draw.randrange(200, 260) for _ in range(40)]
    found = []
    for _ in range(3):
        question = shared + [draw.randrange(200, 260) for _ in range(draw.randrange(5, 20))]
        stem = [draw.randrange(200, 260) for _ in range(2)]
        found += [(question, [*stem, draw.randrange(200, 260)]) for _ in range(3)] + [(question, stem[:1])]
    return found


def test_what_texts_share_changes_no_figure(decoder: Decoder, wanted: list[tuple[float, bool]]) -> None:
    asked = scorer(decoder)
    for (text, continuation), (value, greedy) in zip(texts(), wanted, strict=True):
        found, likeliest = asked.score(text, continuation)
        assert found == pytest.approx(value, abs=1e-3)
        assert likeliest == greedy


def test_what_texts_share_is_read_once_where_the_cache_holds_it(decoder: Decoder) -> None:
    asked = scorer(decoder)
    text = list(range(200, 240))
    asked.score(text, [201])
    asked.score(text, [202])
    assert decoder.calls == [(0, 40)]
    asked.score([*text, 241], [202, 203])
    assert decoder.calls[1:] == [(40, 1), (41, 1)]
    # Far back, a ring has forgotten what its window would need.
    asked.score([*text[:20], 199], [201])
    assert decoder.calls[3:] == ([(0, 21)] if decoder.decoder.windowed else [(20, 1)])


def test_an_answer_is_what_greedy_decoding_gives_and_ends_where_it_is_told(decoder: Decoder) -> None:
    asked = scorer(decoder)
    text = [200, 210, 220, 230]
    made = asked.write(text, 6, lambda _: False)
    assert len(made) == 6
    assert asked.score(text, made)[1]
    assert asked.write(text, 6, lambda so_far: so_far[-1] == made[2]) == made[: made.index(made[2]) + 1]
    # Where the context is full, it ends as well; what leaves no room loses its beginning.
    assert len(asked.write([210] * 200, 10, lambda _: False)) == 10


def test_what_does_not_fit_loses_its_beginning_or_is_refused(decoder: Decoder) -> None:
    asked = scorer(decoder)
    assert asked.fitting(list(range(100)), [7, 8]) == [*range(5, 100), 7]
    for text, continuation in (([], [1]), ([1], []), ([1], [2] * (CONTEXT + 1))):
        with pytest.raises(UsageError):
            asked.score(text, continuation)
