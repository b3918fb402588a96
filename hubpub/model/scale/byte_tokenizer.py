"""A small tokenizer with the structure of SmolLM2's: byte-level pieces, digits one by one, nothing before a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ByteTokenizer:
    """`special` are the first ids in order; the 256 bytes follow, and what is learned, up to `vocabulary` ids.

    `names` says which special token is which, e.g. {"eos_token": "<|im_end|>"}.
    """

    vocabulary: int
    special: tuple[str, ...]
    names: dict[str, str]

    def write(self, folder: Path, text: str, chat_template: str | None, context: int) -> None:
        """Learn from `text` and write tokenizer.json and what lies beside it on the Hub. `context` is in tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            min_frequency=2,
            special_tokens=list(self.special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", "utf-8")
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(index): {"content": token, **_WHOLE, "special": True} for index, token in enumerate(self.special)
            },
            "clean_up_tokenization_spaces": False,
            **self.names,
            "model_max_length": context,
            "tokenizer_class": "GPT2Tokenizer",
            "vocab_size": self.vocabulary,
        }
        special = {key: {"content": token, **_WHOLE} for key, token in sorted(self.names.items())}
        for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, "utf-8")


_WHOLE = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
