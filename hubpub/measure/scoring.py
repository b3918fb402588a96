"""What a `.pte` thinks of given texts: log-probabilities of continuations, and greedy answers.

Programs give the logits of the last token alone, so a continuation costs a call for each of its tokens but the first.
What two texts have in common is read once: the cache keeps it, and reading goes on where they part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from hubpub.errors import UsageError
from hubpub.measure.inspect import inspect
from hubpub.measure.runtime import Session

# Log-probabilities kept of texts that begin like the next one; each is a vocabulary of floats.
_KEPT = 32


class Steps(Protocol):
    """What is asked: a loaded program, see `hubpub.measure.runtime.Session`."""

    window: int | None
    longest: int

    def step(self, tokens: Sequence[int], position: int) -> Any: ...

    def score(self, tokens: Sequence[int]) -> Any: ...


class Scorer:
    """A loaded program that is asked about one text after another.

    `context` is the longest text, in tokens. `back` is how far the cache can go back without being filled anew; None:
    as far as it likes.
    """

    def __init__(self, session: Steps, context: int, back: int | None) -> None:
        self.session, self.context, self._back = session, context, back
        self._read: list[int] = []
        self._high = 0
        self._known: dict[int, Any] = {}
        self.tokens_read = 0

    @classmethod
    def of(cls, pte: Path, session: Session) -> Scorer:
        """One for the program at `pte`, loaded as `session`. Raises UsageError where it names no context."""
        program = inspect(pte)
        context = session.window or program.context
        if context is None:
            raise UsageError(f"{pte.name} does not say how long its context is", "export it with get_max_context_len")
        # A cache that is as long as the context forgets nothing. A ring keeps what its window needs after as many new
        # tokens as one call takes, and no more: going back further means reading anew.
        positions = {int(shape.split("x")[1]) for shape in program.kv_cache.shapes if shape.count("x") > 1}
        return cls(session, context, None if positions <= {context} else session.longest)

    def score(self, text: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability (nats) of `continuation` after `text`, and whether it is what greedy decoding gives.

        Of what is longer than the context the beginning of `text` is left out. Raises UsageError where a continuation
        alone is too long, or where there is nothing before it.
        """
        whole = self.fitting(text, continuation)
        first = len(whole) - len(continuation) + 1
        total, greedy = 0.0, True
        if self.session.window is not None:
            rows = self.session.score(whole).log_softmax(-1)[first - 1 :]
            self.tokens_read += len(whole)
        else:
            rows = (self.after(whole[:end]) for end in range(first, len(whole) + 1))
        for token, row in zip(continuation, rows, strict=True):
            total += float(row[token])
            greedy = greedy and int(row.argmax()) == token
        return total, greedy

    def fitting(self, text: Sequence[int], continuation: Sequence[int]) -> list[int]:
        """What is read to score `continuation` after `text`: the last token of it is only looked up."""
        if not text or not continuation:
            raise UsageError("a continuation of nothing cannot be scored", "give a text before it, and one after it")
        if len(continuation) > self.context:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self.context}",
                "choose another task, or export with a longer --context",
            )
        return [*text, *continuation][-self.context - 1 :][:-1]

    def write(self, text: Sequence[int], new_tokens: int, ends: Callable[[list[int]], bool]) -> list[int]:
        """Greedy continuation of `text` by at most `new_tokens`, cut short where `ends` says so of it, or where the
        context is full. Of a text that leaves no room for them, the beginning is left out."""
        room = max(1, self.context - new_tokens)
        text = list(text)[-room:]
        made: list[int] = []
        while len(made) < new_tokens and len(text) + len(made) <= self.context:
            made.append(int(self.after([*text, *made]).argmax()))
            if ends(made):
                break
        return made

    def after(self, tokens: Sequence[int]) -> Any:
        """Log-probabilities [vocabulary] float32 of the token after `tokens`, a text from its first token on."""
        if self.session.window is not None:
            self.tokens_read += len(tokens)
            return self.session.score(tokens)[-1].log_softmax(-1)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, self._read, strict=False)))
        self._known = {length: row for length, row in self._known.items() if length <= common}
        if len(tokens) in self._known:
            return self._known[len(tokens)]
        begin = min(common, len(tokens) - 1)
        if self._back is not None and self._high - begin > self._back:
            begin = 0
        if begin == 0:
            self._high = 0
        logits = self.session.step(tokens[begin:], begin)
        self.tokens_read += len(tokens) - begin
        self._read = list(tokens)
        self._high = max(self._high, len(tokens))
        row = logits.log_softmax(-1)
        if len(self._known) < _KEPT:
            self._known[len(tokens)] = row
        return row
