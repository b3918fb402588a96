"""What is written around prompts: read out of the shipped tokenizer and its chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubpub.errors import SourceError
from hubpub.facts import Sampling, Turns
from hubpub.measure.prompting import chat_template_fits, prompt_format, sampling
from hubpub.model.reader import Reader
from hubpub.model.scale.gemma4 import CHAT_TEMPLATE, ENDS, TOKENIZER

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def written(folder: Path, template: str | None, *, adds_bos: bool) -> Path:
    """A tokenizer in `folder` that begins a text with <s> where `adds_bos`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    specials = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {text: number for number, text in enumerate([*specials, "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"additional_special_tokens": specials}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_turns_are_read_out_of_the_template(tmp_path: Path) -> None:
    found = prompt_format(written(tmp_path, CHATML, adds_bos=False))
    assert found.bos == ""
    assert found.turns is not None
    assert found.turns.opening == "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n"
    assert found.turns.reply == "<|im_end|>\n<|im_start|>assistant\n"
    assert (found.turns.again, found.turns.end) == ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>")
    assert found.turns.system == ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n")


def test_the_first_token_is_no_part_of_the_turns(tmp_path: Path) -> None:
    found = prompt_format(written(tmp_path, NO_SYSTEM, adds_bos=True))
    assert found.bos == "<s>"
    assert found.turns is not None
    assert found.turns.opening == "<|im_start|>user\n"
    assert found.turns.system is None


def test_a_model_that_wants_a_first_token_gets_it_from_who_encodes(tmp_path: Path) -> None:
    folder = written(tmp_path, CHATML, adds_bos=False)
    assert [Reader(folder, wants).encode("a") for wants in (True, None, False)] == [[0, 5], [5], [5]]
    assert prompt_format(folder, begins_with_bos=True).bos == "<s>"
    twice = written(tmp_path, CHATML, adds_bos=True)
    assert [Reader(twice, wants).encode("a") for wants in (True, None, False)] == [[0, 5], [0, 5], [5]]


def gemma4(folder: Path, template: str) -> tuple[Turns, Reader]:
    TOKENIZER.write(folder, "What is the weather in a city?\nIt is sunny in Paris.\n" * 4, template, 2048)
    turns = prompt_format(folder, begins_with_bos=True).turns
    assert turns is not None
    return turns, Reader(folder, begins_with_bos=True)


def test_thinking_and_functions_are_read_out_of_the_template(tmp_path: Path) -> None:
    turns, reader = gemma4(tmp_path, CHAT_TEMPLATE)
    assert turns.thinking is not None
    assert turns.thinking.opening == "<|turn>system\n<|think|>\n<turn|>\n<|turn>user\n"
    assert turns.thinking.system == ("<|turn>system\n<|think|>\n", "<turn|>\n<|turn>user\n")
    assert turns.thinking.thoughts == ("<|channel>thought\n", "\n<channel|>")
    assert turns.tools is not None
    assert turns.tools.opening.startswith(
        '<|turn>system\n<|tool>declaration:get_weather{description:<|"|>The weather in'
    )
    assert turns.tools.call == '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
    assert turns.tools.response == '<|tool_response>response:get_weather{value:<|"|>sunny<|"|>}<tool_response|>'
    assert chat_template_fits(reader, tmp_path / "tokenizer.json", ENDS)
    # A program that does not stop at <|tool_response> would make up what the function gives back.
    assert not chat_template_fits(reader, tmp_path / "tokenizer.json", [1, 106])


def test_what_stands_before_a_new_answer_need_not_stand_before_an_old_one(tmp_path: Path) -> None:
    """The larger ones of Gemma 4 are asked not to think by thoughts that are empty, in the last turn alone."""
    asked = (
        "{%- if add_generation_prompt and not enable_thinking -%}{{- '<|channel>thought\n<channel|>' -}}{%- endif -%}"
    )
    turns, reader = gemma4(tmp_path, CHAT_TEMPLATE + asked)
    assert (turns.reply, turns.answered) == (
        "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
        "<turn|>\n<|turn>model\n",
    )
    said = turns.conversation([("user", "a"), ("assistant", "b"), ("user", "c")])
    assert said.count("thought") == 1
    assert said.endswith("<channel|>")
    assert chat_template_fits(reader, tmp_path / "tokenizer.json", ENDS)


def test_a_base_model_has_no_turns(tmp_path: Path) -> None:
    found = prompt_format(written(tmp_path, None, adds_bos=True))
    assert (found.bos, found.turns) == ("<s>", None)


def test_no_tokenizer_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        prompt_format(tmp_path)


def test_a_template_that_thinks_unless_it_is_told_not_to(tmp_path: Path) -> None:
    plain = prompt_format(written(tmp_path, CHATML, adds_bos=False)).turns
    assert plain is not None
    assert (plain.tools, plain.thinking) == (None, None)
    template = CHATML.replace(
        "{{ '<|im_start|>assistant\n' }}",
        "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}",
    )
    found = prompt_format(written(tmp_path, template, adds_bos=True)).turns
    assert found is not None
    assert found.thinking is not None
    assert found.reply == found.thinking.reply + "<think></think>"
    assert found.answered == found.thinking.reply


def test_a_template_that_refuses_tools_has_none(tmp_path: Path) -> None:
    refuses = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
    found = prompt_format(written(tmp_path, refuses + CHATML, adds_bos=False))
    assert found.turns is not None
    assert found.turns.tools is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"do_sample": true, "top_k": 64, "top_p": 0.95}', Sampling(top_k=64, top_p=0.95)),
        ('{"do_sample": true, "temperature": 0.2}', Sampling(temperature=0.2)),
        ('{"do_sample": true}', None),
        ('{"top_k": 64}', None),
        ('{"do_sample": true, "top_k": "many"}', None),
        ("[]", None),
        ("{", None),
        (None, None),
    ],
)
def test_sampling_is_what_the_makers_say(tmp_path: Path, text: str | None, expected: Sampling | None) -> None:
    if text is not None:
        (tmp_path / "generation_config.json").write_text(text)
    assert sampling(tmp_path) == expected
