"""The text that scale models are trained and judged on. All of it was written for this project (Apache-2.0).

`corpus.txt` is what they learn, `prompts.json` what they are asked, `passage.txt` what their perplexity is taken on.
`calibration.txt` is what weights are rounded for: prose, dialogues, code and languages, none of it in the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Prompt:
    """One thing to ask a model: `text` is plain, without special tokens or a chat template.

    `kind` is continuation, question, list, code, numbers, non-ascii, letter, story or long.
    """

    name: str
    kind: str
    text: str


@cache
def corpus() -> str:
    """The training text: passages separated by one empty line, questions and answers as "Q: ...\\nA: ..."."""
    return _read("corpus.txt")


@cache
def passage() -> str:
    """A text of 3,000 to 4,000 scale-model tokens in the corpus's vocabulary that is not part of the corpus."""
    return _read("passage.txt")


@cache
def calibration() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The text that weights are rounded for: plain texts, and dialogues of a question and its answer."""
    found = _read("calibration.txt").strip().split("\n\nQ: ")
    texts = [found[0]]
    dialogues = []
    for part in found[1:]:
        question, _, answer = part.partition("\nA: ")
        dialogues.append((question, answer))
    # What follows the last dialogue is plain text again, behind two empty lines.
    last, _, rest = dialogues[-1][1].partition("\n\n\n")
    dialogues[-1] = (dialogues[-1][0], last)
    return (*texts, rest), tuple(dialogues)


@cache
def prompts(*, chat: bool = False) -> tuple[Prompt, ...]:
    """Prompts to continue or, with `chat`, prompts for a user's turn; the first ones are the shortest to run."""
    entries = json.loads(_read("prompts.json"))["chat" if chat else "continue"]
    return tuple(Prompt(**entry) for entry in entries)


def _read(name: str) -> str:
    return (files(__name__) / name).read_text("utf-8")
