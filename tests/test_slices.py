"""The published slices of Gemma 3n E4B, and the rules that a slice must keep."""

from __future__ import annotations

import pytest

from hubpub.config import Variant
from hubpub.model.slicing import sliced_config
from hubpub.slices import Slice, Whole, published, whole

NARROW = (8192,) * 35


def test_the_table_holds_what_was_published() -> None:
    rows = published()
    assert len(rows) == 16
    for name, row in rows.items():
        whole().check(row.slice)
        # A wide layer has 8,192 more neurons with three weights of 2,048 each; what the table counts follows from that.
        wide = row.slice.widths.count(16384)
        assert len(row.slice.widths) == (30 if name in {"E2B", "E1.96B"} else 35)
        assert row.effective == pytest.approx(
            (1.91 if row.slice.skip else 2.24) + wide * 3 * 2048 * 8192 / 1e9, abs=0.03
        )
    assert rows["E3.39B"].mmlu > rows["E4B"].mmlu == 0.623
    assert [index for index, width in enumerate(rows["E2.69B"].slice.widths) if width == 16384] == [
        4, 9, 14, 19, 20, 21, 22, 23, 24
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        (Slice(widths=NARROW[:34], skip=(19,)), "layer 19 must stay: layers 24, 29, 34 read its keys and values"),
        (Slice(widths=NARROW[:34], skip=(18,)), "layer 18 must stay: layers 20, 21, 22"),
        (Slice(widths=NARROW[:34], skip=(35,)), "there is no layer 35: the model has layers 0 to 34"),
        (Slice(widths=NARROW[:34], skip=(-1,)), "there is no layer -1"),
        (Slice(widths=NARROW[:33], skip=(20, 20)), "named twice"),
        (Slice(widths=NARROW[:30]), "30 of them for the 35 layers that stay"),
        (Slice(widths=(16416, *NARROW[1:])), "layer 0 has a feed-forward of 16384, of which no 16416 can be kept"),
        (Slice(widths=(0, *NARROW[1:])), "of which no 0 can be kept"),
        (Slice(widths=(8200, *NARROW[1:])), "8200 is no multiple of 32"),
    ],
)
def test_a_slice_that_breaks_a_rule_is_refused_with_the_rule(part: Slice, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        whole().check(part)


@pytest.mark.parametrize(
    ("given", "family", "said"),
    [
        ("E2.7B", "gemma3n", "there is no slice 'E2.7B'; published slices: E2B, E1.96B"),
        ("E2.69B", "gemma4", "only gemma3n has slices"),
        ({"widths": [8192] * 34, "skip": [19]}, "gemma3n", "layer 19 must stay"),
        ({"width": [8192] * 35}, "gemma3n", "widths"),
    ],
)
def test_a_card_with_a_wrong_slice_is_refused(given: object, family: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Variant.model_validate(declared(given, family))


def test_a_slice_can_be_named_or_written_out() -> None:
    named = Variant.model_validate(declared("E2B")).slice
    written = Variant.model_validate(declared({"widths": [8192] * 30, "skip": [20, 21, 22, 23, 24]})).slice
    assert named and written and named.key == written.key and (named.name, written.name) == ("E2B", "")


def test_the_config_of_a_slice_keeps_what_belongs_to_the_layers_that_stay() -> None:
    kinds = list(whole().kinds)
    text = {
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 15,
        "intermediate_size": 16384,
        "layer_types": kinds,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
        "hidden_size": 2048,
    }
    part = Slice(widths=(8192,) * 29, skip=(3, 20, 21, 22, 23, 24))
    made = sliced_config(part, Whole.of(text), text)
    assert (made["num_hidden_layers"], made["num_kv_shared_layers"], made["hidden_size"]) == (29, 10, 2048)
    assert made["activation_sparsity_pattern"] == [0.95] * 9 + [0.0] * 20
    assert made["layer_types"] == kinds[:3] + kinds[4:20] + kinds[25:]
    assert made["intermediate_size"] == [8192] * 29
    # What the rules are about stays where it was: the last layers with keys and values of their own, of either kind.
    assert set(Whole.of(made).readers) == {17, 18}


@pytest.mark.parametrize("key", ["num_hidden_layers", "layer_types", "intermediate_size"])
def test_a_config_that_says_too_little_is_refused(key: str) -> None:
    text = {"num_hidden_layers": 2, "num_kv_shared_layers": 1, "intermediate_size": [8, 8], "layer_types": ["a", "a"]}
    with pytest.raises(ValueError, match=key):
        Whole.of({name: value for name, value in text.items() if name != key})


def declared(given: object, family: str = "gemma3n") -> dict[str, object]:
    return {"name": "a", "source": "google/a", "family": family, "license": "gemma", "slice": given}
