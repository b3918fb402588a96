"""Text to token ids as a model reads it: what its tokenizer does, and the first token that some leave to others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubpub.errors import SourceError


class Reader:
    """A tokenizer that begins every text as the model wants it: with <bos>, whether or not it puts that there itself.

    `begins_with_bos` is what the model's family says; None leaves it to the tokenizer. `bos` are the ids (none or one)
    that come first.
    """

    def __init__(self, folder: Path, begins_with_bos: bool | None) -> None:
        """Raises SourceError where `folder` holds no tokenizer that can be read, or one that lacks <bos>."""
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise SourceError(f"the tokenizer in {folder} cannot be read: {error}", "ship that of the source") from None
        first = self.tokenizer.bos_token_id
        puts = first is not None and self.tokenizer("a").input_ids[:1] == [first]
        if begins_with_bos and first is None:
            raise SourceError(f"the tokenizer in {folder} names no bos_token", "ship that of the source")
        self.adds_bos = puts
        self.bos: tuple[int, ...] = (first,) if (puts if begins_with_bos is None else begins_with_bos) else ()

    @property
    def bos_text(self) -> str:
        """The token a text begins with, "" for none."""
        return str(self.tokenizer.bos_token) if self.bos else ""

    @property
    def num_bos(self) -> int:
        """What the LLM runner is told to put before a text; it can only where the tokenizer does so by itself."""
        return len(self.bos) if self.adds_bos else 0

    @property
    def written_bos(self) -> str:
        """What a text for the LLM runner must begin with, since the runner cannot put it there; else ""."""
        return "" if self.adds_bos else self.bos_text

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, from its first token on."""
        return [*self.bos, *self.tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
