"""What a file says, kept for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hubpub.facts import Turns
from hubpub.measure.samples import samples
from hubpub.model.reader import Reader

from .test_prompting import written

TURNS = Turns(opening="<|im_start|>", reply="<|im_end|>", again="<|im_end|><|im_start|>", end="<|im_end|>")


class Speaker:
    """Says "a b a b ..." to anything, and ends where it is told to."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[list[int]] = []

    def generate(self, prompt: Sequence[int], new_tokens: int, stop: Sequence[int]) -> list[int]:
        self.asked.append(list(prompt))
        made = [5 + number % 2 for number in range(self.length)] + list(stop[:1])
        return made[:new_tokens]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(written(tmp_path, None, adds_bos=True), None)


def test_an_answer_is_kept_without_what_ends_it(reader: Reader) -> None:
    speaker = Speaker(4)
    found = samples(speaker, reader, TURNS, (4,), 2000)  # type: ignore[arg-type]
    assert len(found) == 3
    assert {(one.text, one.ended) for one in found} == {("a b a b", True)}
    assert found[0].prompt == "What is the capital of France?"
    # It was asked as a user asks, and what is shown is the question alone.
    assert all(asked[0] == 0 and asked[1] == 3 and asked[-1] == 4 for asked in speaker.asked)


def test_an_answer_that_is_cut_is_marked_and_one_without_room_is_left_out(reader: Reader) -> None:
    (first, *_) = samples(Speaker(100), reader, TURNS, (4,), 2000)  # type: ignore[arg-type]
    assert not first.ended
    short = samples(Speaker(100), reader, None, (4,), 12)  # type: ignore[arg-type]
    assert all(len(reader.encode(one.prompt)) + len(one.text.split()) <= 12 for one in short)
    assert samples(Speaker(100), reader, None, (4,), 2) == ()  # type: ignore[arg-type]
