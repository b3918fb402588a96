"""What people wrote on a published card survives; what they changed inside a generated block is never lost silently."""

from __future__ import annotations

import pytest
import yaml

from hubpub.cards.blocks import block, chips, front, merge, metadata

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
    assert merged.conflicts[0].diff == "the YAML at the top cannot be read:\n---\nlicense: [\n---\n"


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


def test_access_that_an_owner_set_up_stays_on_the_card() -> None:
    form = {"extra_gated_heading": "Access", "extra_gated_fields": {"Name": "text"}, "gated": True}
    theirs = front({"license": "gemma", **form}) + "\n" + block("files", "old table") + "\n"
    assert metadata(merge(theirs, RENDERED).text) == {"license": "gemma", "tags": ["a"], **form}


def test_what_the_hub_shows_under_the_name() -> None:
    assert chips({}) == []
    values = {"pipeline_tag": "text-generation", "license": "gemma", "tags": ["a", "gemma", 1], "language": "en"}
    assert chips(values) == [("", "text-generation"), ("License:", "gemma"), ("", "a"), ("", "1")]
    assert chips({"language": ["en", "de"], "tags": ["de"]}) == [("", "en"), ("", "de")]


def test_metadata_is_written_in_our_order_on_one_line_each_and_as_it_is() -> None:
    assert front({"b": "ü " * 200 + "end", "a": 1}) == "---\nb: " + "ü " * 200 + "end\na: 1\n---\n"
    assert metadata("no front matter") == {} and metadata("---\n- a list\n---\n") == {}


def test_the_mark_that_lost_its_other_half_is_shown() -> None:
    mark = "<!-- hubpub:end lost -->"
    (conflict,) = merge(published() + mark + "\n", RENDERED).conflicts
    assert conflict.block == "lost" and conflict.diff.endswith(f":\n-{mark}")


def test_a_block_that_goes_leaves_no_hole_and_takes_no_line() -> None:
    gone = block("gone", "of yesterday")
    for before, after, left in [
        ("one\n\n", "\n\ntwo\n", "one\n\ntwo\n"),
        ("one\n", "\n\ntwo\n", "one\n\n\ntwo\n"),
        ("one\n\n", "\ntwo\n", "one\n\n\ntwo\n"),
    ]:
        text = published("new table") + before + gone + after
        assert merge(text, RENDERED).text == published("new table") + left


def test_new_blocks_are_placed_where_the_rendered_card_has_them() -> None:
    head, middle, tail = block("head", "h"), block("files", "new table"), block("tail", "t")
    rendered = front({"license": "gemma"}) + f"{head}\n\n{middle}\n\n{tail}\n\n{block('last', 'l')}\n"
    old = front({"license": "gemma"}) + "words\n\n" + block("files", "old table") + "\n\nmore\n"
    text = merge(old, rendered).text
    expected = f"words\n\n{head}\n\n{middle}\n\n{tail}\n\n{block('last', 'l')}\n\nmore\n"
    assert text == front({"license": "gemma"}) + expected
    # Where the only block went, what is new goes to the end.
    alone = front({"license": "gemma"}) + "words\n\n" + block("gone", "x") + "\n"
    assert merge(alone, rendered).text.startswith(front({"license": "gemma"}) + "words\n\n\n" + head)


def test_a_quoted_end_of_a_block_moves_nothing() -> None:
    end = "<!-- hubpub:end files -->"
    rendered = RENDERED.replace("\n\nold prose", "\n\n" + block("usage", "how") + "\n\nold prose")
    text = merge(published() + f"Quoted: `{end}`\n", rendered).text
    assert text.count(block("usage", "how")) == 1 and text.rstrip().endswith(f"Quoted: `{end}`")
