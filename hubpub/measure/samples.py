"""What a file says, for people to read: answers to a few questions, or texts that a base model goes on with."""

from __future__ import annotations

from collections.abc import Sequence

from hubpub import data
from hubpub.facts import Sample, Turns
from hubpub.measure.runtime import Session
from hubpub.model.reader import Reader

NEW_TOKENS = 48
_QUESTIONS, _BEGINNINGS = ("capital", "tea", "python"), ("science", "recipe", "letter")


def samples(
    session: Session, reader: Reader, turns: Turns | None, stop: Sequence[int], room: int
) -> tuple[Sample, ...]:
    """Greedy answers of a program with a KV cache; with `turns` to questions of a user, else to texts as they are.

    `room` is how many tokens prompt and answer may have together; a prompt that leaves none is passed over.
    """
    chosen = _QUESTIONS if turns else _BEGINNINGS
    known = {one.name: one.text for one in data.prompts(chat=turns is not None)}
    found = []
    for text in map(known.__getitem__, chosen):
        prompt = reader.encode(turns.conversation([("user", text)]) if turns else text)
        if (limit := min(NEW_TOKENS, room - len(prompt))) < 1:
            continue
        made = session.generate(prompt, limit, stop)
        ended = made[-1] in stop
        found.append(Sample(prompt=text, text=reader.decode(made[:-1] if ended else made).strip("\n"), ended=ended))
    return tuple(found)
