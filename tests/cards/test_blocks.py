"""What people wrote on a published card survives; what they changed inside a generated block is never lost silently."""

from __future__ import annotations

import pytest
import yaml

from hubpub.cards.blocks import block, front, merge, metadata

RENDERED = (
    front({"license": "gemma", "tags": ["a"]}) + "\n# Title\n\n" + block("files", "new table") + "\n\nold prose\n"
)


def published(files: str = "old table") -> str:
    return (
        front({"license": "gemma", "tags": ["a"]}) + "\n# My own title\n\n" + block("files", files) + "\n\nMy words. \n"
    )


def test_only_blocks_are_replaced() -> None:
    merged = merge(published(), RENDERED)
    assert merged.conflicts == ()
    assert merged.text == published("new table")


def test_merging_twice_changes_nothing_more() -> None:
    once = merge(published(), RENDERED).text
    assert merge(once, RENDERED).text == once
    assert merge(RENDERED, RENDERED).text == RENDERED


def test_an_edited_block_is_a_conflict_with_a_diff() -> None:
    edited = published().replace("old table", "my table")
    merged = merge(edited, RENDERED)
    assert [conflict.block for conflict in merged.conflicts] == ["files"]
    assert "-my table" in merged.conflicts[0].diff
    assert "+new table" in merged.conflicts[0].diff


def test_an_edit_that_is_now_rendered_is_no_conflict() -> None:
    assert merge(published().replace("old table", "new table"), RENDERED).conflicts == ()


def test_a_new_block_goes_after_the_one_before_it() -> None:
    rendered = RENDERED.replace("\n\nold prose", "\n\n" + block("usage", "how") + "\n\nold prose")
    text = merge(published(), rendered).text
    assert text.index("hubpub:end files") < text.index("hubpub:begin usage") < text.index("My words. ")


def test_a_block_that_is_no_longer_rendered_goes() -> None:
    both = published() + "\nBefore.\n\n" + block("gone", "of yesterday") + "\n\nAfter.\n"
    assert merge(both, RENDERED).text == published("new table") + "\nBefore.\n\nAfter.\n"


def test_a_block_that_was_copied_is_written_once() -> None:
    text = merge(published() + "\n" + block("files", "old table") + "\n", RENDERED).text
    assert text.count("new table") == 1


def test_line_ends_of_another_system_are_no_edit() -> None:
    merged = merge(published().replace("\n", "\r\n"), RENDERED)
    assert merged.conflicts == ()
    assert "new table" in merged.text
    assert "old table" not in merged.text
    assert "# My own title\r\n" in merged.text


@pytest.mark.parametrize("half", ["<!-- hubpub:end files -->", "begin files sha256"])
def test_half_a_block_is_a_conflict(half: str) -> None:
    assert [conflict.block for conflict in merge(published().replace(half, "-->"), RENDERED).conflicts]


def test_metadata_that_cannot_be_read_is_a_conflict() -> None:
    merged = merge("---\nlicense: [\n---\n\ntext\n", RENDERED)
    assert [conflict.block for conflict in merged.conflicts] == ["metadata"]
    assert "license: [" in merged.conflicts[0].diff


def test_metadata_of_people_is_kept_and_ours_is_updated() -> None:
    theirs = front({"license": "mit", "datasets": ["x/y"], "tags": ["a"]}) + "\n" + block("files", "old table") + "\n"
    assert metadata(merge(theirs, RENDERED).text) == {"license": "gemma", "tags": ["a"], "datasets": ["x/y"]}


def test_metadata_that_is_right_already_keeps_its_form() -> None:
    form = "---\n# ours\ntags: [a]\nlicense: gemma\n---\n"
    text = form + published().split("---\n", 2)[2]
    assert merge(text, RENDERED).text.startswith(form)


@pytest.mark.parametrize(
    "words", ["x", " \n\n\n\ty  ", "<!-- mine -->", "---\na: b\n---", "```\n<!-- hubpub -->", "\u2028ü\x0c"]
)
def test_words_anywhere_outside_of_blocks_stay_byte_for_byte(words: str) -> None:
    one, two = block("files", "old"), block("usage", "old")
    parts = [f"{words}1\n", f"\n{words}2\n", f"\n{words}3"]
    text = front({"license": "gemma"}) + parts[0] + one + parts[1] + two + parts[2]
    rendered = front({"license": "gemma"}) + block("files", "new") + "\n\n" + block("usage", "new") + "\n"
    expected = (
        front({"license": "gemma"}) + parts[0] + block("files", "new") + parts[1] + block("usage", "new") + parts[2]
    )
    assert merge(text, rendered).text == expected


def test_a_card_that_hubpub_did_not_write_keeps_every_line() -> None:
    theirs = front({"license": "gemma"}) + "\n# Hand made\n\ntext\n"
    merged = merge(theirs, RENDERED).text
    assert "# Hand made\n\ntext\n" in merged
    assert "new table" in merged


@pytest.mark.parametrize("card", ["---\nlicense: gemma\n---\n", "---\n---\n", "", "\n", "\ufeff---\nlicense: mit\n---"])
def test_an_empty_repo_card_is_replaced(card: str) -> None:
    merged = merge(card, RENDERED)
    assert merged.text == RENDERED
    assert merged.conflicts == ()


@pytest.mark.parametrize("value", ["a: b", "- x", "'", '"', "---\nlicense: mit", "{{ x }}", "é", "null"])
def test_front_matter_holds_any_text(value: str) -> None:
    text = front({"title": value}) + "\nbody\n"
    assert metadata(text) == {"title": value}
    assert len(list(yaml.safe_load_all(text.split("\n---\n")[0]))) == 1
