"""A small tokenizer with the structure of Gemma's: the same pipeline and special ids, a vocabulary of its own.

Byte-pair encoding with byte fallback over text whose spaces became "▁"; ids below 494 are laid out as Gemma's are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BYTES = range(238, 494)
NEWLINES = range(107, 138)
# Scripts that stay out of the vocabulary, so that byte fallback has something to do.
_FIRST_RARE = "\u2e80"


@dataclass(frozen=True)
class GemmaTokenizer:
    """Where a family keeps its special tokens: `special` and `multimodal` map ids to text.

    Ids from 494 to `vocabulary` are learned; multimodal ids may lie inside of that range or beyond it. Where `adds_bos`
    is false, who encodes a text puts <bos> in front of it.
    """

    vocabulary: int
    special: dict[int, str]
    multimodal: dict[int, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    adds_bos: bool = True

    def write(self, folder: Path, text: str, chat_template: str | None, context: int) -> None:
        """Learn from `text` and write tokenizer.json and what lies beside it on the Hub. `context` is in tokens."""
        _write(folder, _train(text, self), self, chat_template, context)


def _train(text: str, layout: GemmaTokenizer) -> dict[str, Any]:
    """tokenizer.json as an object; the same text and layout give the same result."""
    fixed = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", **layout.special, **layout.multimodal}
    fixed |= {start: "\n" * (start - NEWLINES[0] + 1) for start in NEWLINES}
    fixed |= {first: f"<0x{first - BYTES[0]:02X}>" for first in BYTES}
    filler = (index for index in range(BYTES[0]) if index not in fixed)
    fixed |= {index: f"<unused{n}>" for n, index in enumerate(list(filler))}
    room = [index for index in range(BYTES[-1] + 1, layout.vocabulary) if index not in fixed]
    pieces, merges = _learned(text, len(room))
    vocab = {token: index for index, token in fixed.items()} | dict(zip(pieces, room, strict=False))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": index < 5 or index in layout.special or index in layout.multimodal,
            }
            for index, token in sorted(fixed.items())
            if index not in BYTES
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _post_processor(layout.adds_bos),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": merges,
        },
    }


def _learned(text: str, size: int) -> tuple[list[str], Any]:
    """At most `size` pieces of `text` in the order they were learned, and the merges that make them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    # Merges are learned inside of words; the finished tokenizer, as Gemma's, splits nothing and needs no such rule.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"▁+(?=▁[^▁])|▁?[^▁\n]+|▁+|\n"), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{N}|[^\p{L}\p{N}▁]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False)
    common = "".join(character for character in text if character < _FIRST_RARE)
    learner.train_from_iterator(common.splitlines(), trainer)
    learned = json.loads(learner.to_str())["model"]
    return sorted(learned["vocab"], key=learned["vocab"].__getitem__), learned["merges"]


def _post_processor(adds_bos: bool) -> dict[str, Any]:
    bos: list[list[dict[str, Any]]] = [[], []]
    if adds_bos:
        bos = [[{"SpecialToken": {"id": "<bos>", "type_id": number}}] for number in range(2)]
    return {
        "type": "TemplateProcessing",
        "single": [*bos[0], {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            *bos[0],
            {"Sequence": {"id": "A", "type_id": 0}},
            *bos[1],
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}} if adds_bos else {},
    }


def _write(
    folder: Path, tokenizer: dict[str, Any], layout: GemmaTokenizer, chat_template: str | None, context: int
) -> None:
    names = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        **layout.names,
    }
    decoder = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in tokenizer["added_tokens"]
    }
    config = {
        "add_bos_token": layout.adds_bos,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        **names,
        "model_max_length": context,
        "padding_side": "left",
        "tokenizer_class": "GemmaTokenizer",
    }
    whole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {key: {"content": names[key], **whole} for key in sorted(names) if key != "mask_token"}
    _json(folder / "tokenizer.json", tokenizer)
    _json(folder / "tokenizer_config.json", config)
    _json(folder / "special_tokens_map.json", special)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, "utf-8")


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


def chat_template(start: str, end: str) -> str:
    """Gemma's turn format. There is no system turn: a system message opens the first user turn."""
    return (
        "{%- macro text(content) -%}"
        "{%- if content is string -%}{{ content | trim }}"
        "{%- else -%}{%- for item in content -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{%- endmacro -%}\n"
        "{{ bos_token }}"
        "{%- set lead = namespace(text='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' and loop.first -%}"
        "{%- set lead.text = text(message['content']) + '\\n\\n' -%}"
        "{%- else -%}"
        "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
        f"{{{{ '{start}' + role + '\\n' + lead.text + text(message['content']) + '{end}\\n' }}}}"
        "{%- set lead.text = '' -%}"
        "{%- endif -%}{%- endfor -%}\n"
        f"{{%- if add_generation_prompt -%}}{{{{ '{start}model\\n' }}}}{{%- endif -%}}\n"
    )
