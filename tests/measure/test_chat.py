"""A conversation with a real program: what was said stays, what no longer fits goes, and text comes out whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from hubpub.errors import ExportError, SourceError, UsageError
from hubpub.measure.chat import Conversation, _Answer, run

CONTEXT = 160
ASKED = ("What is the capital of France?", "What is the capital of Norway?")


@pytest.fixture
def conversation(program: Path) -> Iterator[Conversation]:
    with Conversation(program) as opened:
        yield opened


def test_a_second_message_is_answered_as_if_all_was_read_at_once(conversation: Conversation, program: Path) -> None:
    first, second = (conversation.say(message, 12, stream=False) for message in ASKED)
    assert first.text.startswith("The capital of")
    assert second.prompt_tokens < first.prompt_tokens
    whole = (
        f"<|im_start|>system\nYou answer questions.<|im_end|>\n<|im_start|>user\n{ASKED[0]}<|im_end|>\n"
        f"<|im_start|>assistant\n{first.text}<|im_end|>\n<|im_start|>user\n{ASKED[1]}<|im_end|>\n<|im_start|>assistant\n"
    )
    at_once = run(program, whole, tokenizer=None, new_tokens=12, temperature=0.0, chat=False, stream=False)
    assert at_once.text == second.text
    assert at_once.prompt_tokens > second.prompt_tokens


def test_after_a_reset_nothing_was_said(conversation: Conversation) -> None:
    first = conversation.say(ASKED[0], 12, stream=False)
    conversation.say(ASKED[1], 12, stream=False)
    conversation.reset()
    again = conversation.say(ASKED[0], 12, stream=False)
    assert (again.text, again.prompt_tokens) == (first.text, first.prompt_tokens)


def test_when_the_context_is_full_the_oldest_exchanges_go(conversation: Conversation) -> None:
    replies = [conversation.say(ASKED[number % 2], 12, stream=False) for number in range(8)]
    assert any(reply.dropped for reply in replies)
    assert all(reply.text for reply in replies)


def test_a_message_that_fits_no_context_is_refused_and_the_conversation_goes_on(conversation: Conversation) -> None:
    first = conversation.say(ASKED[0], 12, stream=False)
    with pytest.raises(UsageError, match=f"the context holds {CONTEXT}"):
        conversation.say("many words " * 200, 12, stream=False)
    assert conversation.say(ASKED[1], 12, stream=False).prompt_tokens < first.prompt_tokens


def test_a_model_without_turns_cannot_chat(program: Path, tmp_path: Path) -> None:
    shutil.copytree(program.parent, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        Conversation(tmp_path / "base" / program.name)


def test_a_runner_that_fails_says_why(program: Path, tmp_path: Path) -> None:
    shutil.copytree(program.parent, tmp_path / "broken")
    pte = tmp_path / "broken" / program.name
    pte.write_bytes(pte.read_bytes()[:4096])
    with pytest.raises((ExportError, SourceError), match=r"model\.pte"):
        run(pte, "a", tokenizer=None, new_tokens=2, temperature=0.0, chat=False, stream=False)


def test_what_is_no_program_is_not_run(program: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.gguf"
    other.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(SourceError, match=r"model\.gguf is a GGUF file"):
        run(other, "a", tokenizer=program.parent, new_tokens=2, temperature=0.0, chat=False, stream=False)
    with pytest.raises(SourceError, match=r"model\.gguf is a GGUF file"):
        Conversation(other, tokenizer=program.parent)


def test_a_prompt_of_nothing_is_refused_where_nothing_comes_before_it(program: Path) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        run(program, "", tokenizer=None, new_tokens=2, temperature=0.0, chat=False, stream=False)


def test_a_first_token_that_the_tokenizer_leaves_out_is_written(program: Path, tmp_path: Path) -> None:
    """The runner puts it there only where the tokenizer does so by itself."""
    shutil.copytree(program.parent, tmp_path / "bos")
    (tmp_path / "bos" / "config.json").write_text('{"num_bos": 1}')
    bare, begun = (
        run(path, "A sentence.", tokenizer=None, new_tokens=2, temperature=0.0, chat=False, stream=False)
        for path in (program, tmp_path / "bos" / program.name)
    )
    assert begun.prompt_tokens == bare.prompt_tokens + 1


def test_characters_come_out_whole_and_special_tokens_not_at_all() -> None:
    answer, shown = _Answer(["<|im_end|>"]), []
    for byte in "é 海港 🌊<|im_end|>\n".encode() + b'\nPyTorchObserver {"a": 1}':
        shown.append(answer.take(bytes([byte])))
    assert "".join(shown) == answer.said == "é 海港 🌊"
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in shown)


def test_the_command_keeps_a_conversation(program: Path) -> None:
    lines = f"{ASKED[0]}\n/reset\n{ASKED[0]}\n/help\n/exit\nnever read\n"
    done = subprocess.run(
        [sys.executable, "-m", "hubpub", "chat", str(program), "--max-new-tokens", "12"],
        cwd=ROOT, input=lines, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("The capital of")
    assert "nothing was said yet" in done.stderr
    assert "/exit ends" in done.stderr
