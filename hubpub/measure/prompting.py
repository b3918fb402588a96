"""How a model is spoken to: the texts its own tokenizer and chat template put around a prompt and between turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubpub.errors import SourceError
from hubpub.facts import PromptFormat, Turns

# Private-use characters: no template and no tokenizer has them, so that what stands around them is the template's.
_SYSTEM, _FIRST, _ANSWER, _SECOND = "\ue000", "\ue001", "\ue002", "\ue003"


def prompt_format(folder: Path) -> PromptFormat:
    """What the tokenizer in `folder` puts around a text. Raises SourceError where there is no tokenizer to read."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise SourceError(f"the tokenizer in {folder} cannot be read: {error}", "ship that of the source") from None
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    bos = str(tokenizer.bos_token) if begins and tokenizer.bos_token else ""
    return PromptFormat(bos=bos, turns=_turns(tokenizer, bos) if tokenizer.chat_template else None)


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


def _written(tokenizer: Any, bos: str, messages: list[tuple[str, str]]) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(bos)
