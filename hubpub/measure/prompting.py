"""How a model is spoken to: the texts its own tokenizer and chat template put around a prompt and between turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubpub.facts import PromptFormat, Sampling, Turns
from hubpub.model.reader import Reader

# What a template is asked to write down for people to see; a tool in the form that all templates take.
QUESTION = "What is the weather in Paris?"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name"}},
            "required": ["city"],
        },
    },
}
# Private-use characters: no template and no tokenizer has them, so that what stands around them is the template's.
_SYSTEM, _FIRST, _ANSWER, _SECOND = "\ue000", "\ue001", "\ue002", "\ue003"


def prompt_format(folder: Path, begins_with_bos: bool | None = None) -> PromptFormat:
    """What is put around a text for the model in `folder`. Raises SourceError where there is no tokenizer to read."""
    reader = Reader(folder, begins_with_bos)
    turns = turns_of(reader)
    tool, thinking = (_with_tool(reader), _thinking(reader)) if turns else (None, None)
    return PromptFormat(bos=reader.bos_text, turns=turns, adds_bos=reader.adds_bos, tool=tool, thinking=thinking)


def turns_of(reader: Reader) -> Turns | None:
    """What the chat template puts around messages; None where there is none."""
    return _turns(reader.tokenizer, reader.bos_text) if reader.tokenizer.chat_template else None


def sampling(folder: Path) -> Sampling | None:
    """What generation_config.json in `folder` says of drawing tokens; None where it draws none."""
    try:
        found = json.loads((folder / "generation_config.json").read_bytes())
        kept = {name: found[name] for name in Sampling.model_fields if found.get(name) is not None}
        return Sampling(**kept) if kept and found.get("do_sample") is True else None
    except (OSError, ValueError, AttributeError, ValidationError):
        return None


def chat_template_fits(reader: Reader, shipped: Path, stop: Sequence[int]) -> bool | None:
    """Whether conversations put together from `Turns` are, token for token, what the chat template makes of them.

    `shipped` is the tokenizer.json an app has, which knows no template; `stop` are the ids that end a generation, of
    which the end of a turn must be one. None where there is no template.
    """
    from tokenizers import Tokenizer

    tokenizer = reader.tokenizer
    if not tokenizer.chat_template:
        return None
    turns = _turns(tokenizer, reader.bos_text)
    own = Tokenizer.from_file(str(shipped))
    talk = [("user", "What is 2 + 3?"), ("assistant", "It is 5."), ("user", "And twice that?\nIn words.")]
    talks = [talk[:1], talk]
    if turns.system is not None:
        talks += [[("system", "Answer briefly."), *some] for some in (talk[:1], talk)]
    for messages in talks:
        ids = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
            return_dict=False,
        )
        said = own.encode(turns.conversation(messages), add_special_tokens=False).ids
        if [*reader.bos, *said] != list(ids):
            return False
    end = own.encode(turns.end, add_special_tokens=False).ids
    return len(end) == 1 and end[0] in stop


def _turns(tokenizer: Any, bos: str) -> Turns:
    """Read out of three conversations, each written by the chat template with characters in place of messages."""
    opening, reply = _written(tokenizer, bos, [("user", _FIRST)]).split(_FIRST)
    longer = _written(tokenizer, bos, [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)])
    again = longer.partition(_ANSWER)[2].partition(_SECOND)[0]
    end = next((text for text in tokenizer.all_special_tokens if again.startswith(text)), "")
    system: tuple[str, str] | None = None
    try:
        before, _, rest = _written(tokenizer, bos, [("system", _SYSTEM), ("user", _FIRST)]).partition(_SYSTEM)
        system = (before, rest.partition(_FIRST)[0]) if rest else None
    except Exception:  # a template refuses a role it does not know by any error it likes
        system = None
    return Turns(opening=opening, reply=reply, again=again, end=end or again.strip().split("\n")[0], system=system)


def _with_tool(reader: Reader) -> str | None:
    """A question with a tool declared; None where the template leaves tools out."""
    text = _optional(reader, tools=[TOOL])
    return text if text and TOOL["function"]["name"] in text else None


def _thinking(reader: Reader) -> tuple[str, str] | None:
    """A question with thinking on, and off; None where the template makes no difference."""
    on, off = (_optional(reader, enable_thinking=enable) for enable in (True, False))
    return (on, off) if on is not None and off is not None and on != off else None


def _written(tokenizer: Any, bos: str, messages: list[tuple[str, str]], **more: Any) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **more))
    return text.removeprefix(bos)


def _optional(reader: Reader, **more: Any) -> str | None:
    """A question with something that a template may know; None where it refuses."""
    try:
        return _written(reader.tokenizer, reader.bos_text, [("user", QUESTION)], **more)
    except Exception:  # a template refuses what it does not know by any error it likes
        return None
