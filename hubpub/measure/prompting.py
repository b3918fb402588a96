"""How a model is spoken to: the texts its own tokenizer and chat template put around a prompt and between turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubpub.facts import PromptFormat, Sampling, Thinking, ToolTurns, Turns
from hubpub.model.reader import Reader

# Private-use characters: no template and no tokenizer has them, so that what stands around them is the template's.
_SYSTEM, _FIRST, _ANSWER, _SECOND, _THOUGHT = "\ue000", "\ue001", "\ue002", "\ue003", "\ue004"

# The function that a model is told of, its call and what it gave back, as transformers' templates take them.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
_CALL: dict[str, Any] = {
    "id": "1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
}
_CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": _FIRST},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
]
_GIVEN = {"role": "tool", "tool_call_id": "1", "name": "get_weather", "content": "sunny"}


def prompt_format(folder: Path, begins_with_bos: bool | None = None) -> PromptFormat:
    """What is put around a text for the model in `folder`. Raises SourceError where there is no tokenizer to read."""
    reader = Reader(folder, begins_with_bos)
    turns = turns_of(reader)
    return PromptFormat(bos=reader.bos_text, turns=turns, adds_bos=reader.adds_bos)


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

    def same(text: str, messages: list[dict[str, Any]], **how: Any) -> bool:
        said = own.encode(text, add_special_tokens=False).ids
        how = {"enable_thinking": False, **how}
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **how)
        return [*reader.bos, *said] == list(ids)

    talk = [("user", "What is 2 + 3?"), ("assistant", "It is 5."), ("user", "And twice that?\nIn words.")]
    for think in (False, True) if turns.thinking else (False,):
        talks = [talk[:1], talk]
        if (turns.thinking or turns if think else turns).system is not None:
            talks += [[("system", "Answer briefly."), *some] for some in (talk[:1], talk)]
        for messages in talks:
            asked = [{"role": role, "content": content} for role, content in messages]
            if not same(
                turns.conversation(messages, think=think), asked, **({"enable_thinking": True} if think else {})
            ):
                return False
    if turns.tools is not None:
        text = turns.tools.opening + "Is it sunny in Paris?"
        asked = [{"role": "user", "content": "Is it sunny in Paris?"}]
        if not same(text + turns.reply, asked, tools=[WEATHER]):
            return False
        text += (turns.answered or turns.reply) + turns.tools.call + turns.tools.response
        if not same(text, [*asked, *_CALLED[1:], _GIVEN], tools=[WEATHER]):
            return False
        # A call is over where a generation ends: else the model would answer in the function's place.
        if own.encode(turns.tools.response, add_special_tokens=False).ids[0] not in stop:
            return False
    end = own.encode(turns.end, add_special_tokens=False).ids
    return len(end) == 1 and end[0] in stop


def _turns(tokenizer: Any, bos: str) -> Turns:
    """Read out of a few conversations, each written by the chat template with characters in place of messages."""
    opening, reply = _written(tokenizer, bos, _asked(_FIRST)).split(_FIRST)
    longer = _written(tokenizer, bos, [*_asked(_FIRST), {"role": "assistant", "content": _ANSWER}, *_asked(_SECOND)])
    before, _, after = longer.partition(_ANSWER)
    answered, again = before.partition(_FIRST)[2], after.partition(_SECOND)[0]
    end = next((text for text in _specials(tokenizer) if again.startswith(text)), "")
    return Turns(
        opening=opening,
        reply=reply,
        again=again,
        end=end or again.strip().split("\n")[0],
        system=_system(tokenizer, bos),
        answered="" if answered == reply else answered,
        thinking=_thinking(tokenizer, bos, opening, reply, answered),
        tools=_tools(tokenizer, bos, opening, answered),
    )


def _system(tokenizer: Any, bos: str, **how: Any) -> tuple[str, str] | None:
    """What stands around a message of the system; None where the template has no such role."""
    said = _attempt(tokenizer, bos, [{"role": "system", "content": _SYSTEM}, *_asked(_FIRST)], **how)
    before, found, rest = said.partition(_SYSTEM)
    return (before, rest.partition(_FIRST)[0]) if found else None


def _thinking(tokenizer: Any, bos: str, opening: str, reply: str, answered: str) -> Thinking | None:
    """How the model is asked to think; None where `enable_thinking`, transformers' name for it, changes nothing."""
    said = _attempt(tokenizer, bos, _asked(_FIRST), enable_thinking=True).split(_FIRST)
    if said == [opening, reply] or len(said) != 2:
        return None
    # Templates write the thoughts of the turn that is not over yet: one that calls a tool.
    answer = {**_CALLED[1], "reasoning": _THOUGHT, "reasoning_content": _THOUGHT}
    shown = _attempt(tokenizer, bos, [*_asked(_FIRST), answer], tools=[WEATHER], enable_thinking=True)
    plain = _attempt(tokenizer, bos, _CALLED, tools=[WEATHER], enable_thinking=True)
    before, found, after = shown.partition(_THOUGHT)
    call = plain.partition(_FIRST)[2].removeprefix(answered)
    return Thinking(
        opening=said[0],
        reply=said[1],
        system=_system(tokenizer, bos, enable_thinking=True),
        thoughts=(before.partition(_FIRST)[2].removeprefix(answered), after.removesuffix(call)) if found else None,
    )


def _tools(tokenizer: Any, bos: str, opening: str, answered: str) -> ToolTurns | None:
    """How the model is told of a function, and calls it; None where the template knows no functions."""
    declared = _attempt(tokenizer, bos, _asked(_FIRST), tools=[WEATHER]).partition(_FIRST)[0]
    whole = _attempt(tokenizer, bos, [*_CALLED, _GIVEN], tools=[WEATHER])
    if not declared or declared == opening or "sunny" not in whole:
        return None
    turn = whole.partition(_FIRST)[2].removeprefix(answered)
    # What the model says itself ends with the last special token that the template writes before it has the response.
    waiting = _attempt(tokenizer, bos, _CALLED, prompted=False, tools=[WEATHER]).partition(_FIRST)[2]
    pairs = zip(turn, waiting.removeprefix(answered), strict=False)
    said = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = max((said.rfind(token) for token in _specials(tokenizer)), default=-1)
    return ToolTurns(opening=declared, call=said[:end], response=turn[end:]) if end > 0 else None


def _specials(tokenizer: Any) -> list[str]:
    """Every special token, those without a name too."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _attempt(tokenizer: Any, bos: str, messages: list[dict[str, Any]], **how: Any) -> str:
    """What the template makes of `messages`, "" where it refuses them."""
    try:
        return _written(tokenizer, bos, messages, **how)
    except Exception:  # a template refuses what it does not know by any error it likes
        return ""


def _written(tokenizer: Any, bos: str, messages: list[dict[str, Any]], prompted: bool = True, **how: Any) -> str:
    how = {"enable_thinking": False, **how}
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted, **how))
    return text.removeprefix(bos)
