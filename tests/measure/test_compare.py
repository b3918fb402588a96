"""Two releases side by side: what counts as better, worse, a regression, or nothing that can be compared."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from toy import card, cell

from hubpub import facts
from hubpub.cli import tables
from hubpub.errors import UsageError
from hubpub.gates import METRICS
from hubpub.measure.compare import compare, compare_cells, regressions


@pytest.mark.parametrize(
    ("path", "value", "regressed"),
    [
        ("file__bytes", 4_040_000_000, []),
        ("file__bytes", 4_040_000_001, []),
        ("file__bytes", 4_041_000_000, ["file size"]),
        ("file__bytes", 3_000_000_000, []),
        ("parity__logits__kl_mean", 0.0219, []),
        ("parity__logits__kl_mean", 0.022, []),
        ("parity__logits__kl_mean", 0.0225, ["KL mean"]),
        ("parity__logits__top1_agreement", 0.945, []),
        ("parity__logits__top1_agreement", 0.944, ["top-1 agreement"]),
        ("speed__decode_tokens_per_second", 12.6, []),
        ("speed__decode_tokens_per_second", 12.5, ["decode"]),
        ("speed__prefill_tokens_per_second", 80, []),
        ("speed__peak_resident_bytes", 6_000_000_000, ["peak memory"]),
        ("parity__logits__perplexity", 99, []),
        ("parameters__total", 11, []),
    ],
)
def test_tolerances(path: str, value: float, regressed: list[str]) -> None:
    found = regressions(card(cell()), card(cell(**{path: value})))
    assert [regression.name for regression in found] == regressed


def test_a_small_kl_may_grow_by_more_than_a_tenth() -> None:
    assert not regressions(card(cell(parity__logits__kl_mean=0.0005)), card(cell(parity__logits__kl_mean=0.0015)))
    assert regressions(card(cell(parity__logits__kl_mean=0.0)), card(cell(parity__logits__kl_mean=0.0021)))


@pytest.mark.parametrize("other", [{"speed__host": "two"}, {"speed__threads": 4}])
def test_speed_of_another_host_is_not_compared(other: dict[str, Any]) -> None:
    slow = cell(speed__decode_tokens_per_second=1, **other)
    assert not regressions(card(cell()), card(slow))
    verdicts = {change.name: change.verdict for change in compare_cells(cell(), slow).changes}
    assert {name for name, verdict in verdicts.items() if verdict == "not comparable"} == {
        metric.name for metric in METRICS if metric.per_host
    }


def test_verdicts() -> None:
    new = cell(file__bytes=3_000_000_000, parity__logits__kl_mean=0.0201, parameters__total=9)
    verdicts = {change.name: change.verdict for change in compare_cells(cell(), new).changes}
    assert verdicts["file size"] == "better"
    assert verdicts["KL mean"] == "worse"
    assert verdicts["parameters"] == "changed"
    assert verdicts["decode"] == "same"


def test_what_an_app_would_notice() -> None:
    old = cell()
    program = old.program.model_copy(
        update={
            "metadata": {"get_max_seq_len": 1023, "get_bos_id": 2},
            "backends": {},
            "operators": facts.Operators(delegated={}, kernels={"llama::custom_sdpa.out": 1}),
            "methods": (
                old.program.methods[0].model_copy(
                    update={"outputs": (facts.Tensor(name="output0", dtype="bfloat16", shape=(1, 262144)),)}
                ),
            ),
        }
    )
    found = compare_cells(old, old.model_copy(update={"program": program}))
    assert found.kernels_added == ("llama::custom_sdpa.out",)
    assert found.kernels_removed == ("aten::add.out",)
    before, after = "(int64 [1, 1..2047]) -> (float32 [1, 262144])", "(int64 [1, 1..2047]) -> (bfloat16 [1, 262144])"
    assert found.interface == (
        f"method forward: {before} -> {after}",
        "metadata get_bos_id is new: 2",
        "metadata get_max_seq_len: 2047 -> 1023",
        "backend XnnpackBackend is gone",
    )


def test_cells_and_gates_that_are_lost() -> None:
    gate = {"name": "kl_mean", "kind": "max", "limit": 0.01, "measured": 0.02, "passed": False}
    old = card(cell(), cell(cell="toy/int8", recipe="int8"))
    new = card(cell(gates=[gate]), cell(cell="toy/bf16", recipe="bf16"), version="1.1.0")
    found = compare(old, new)
    assert (found.added, found.removed) == (("toy/bf16",), ("toy/int8",))
    assert [str(regression) for regression in regressions(old, new)] == [
        "toy/int8: the cell is gone",
        "toy/8da4w: gate kl_mean no longer passes",
    ]


def test_a_rehearsal_is_not_compared_with_a_release() -> None:
    with pytest.raises(UsageError, match="scale models") as caught:
        compare(card(cell(source__scale_model=True)), card(cell()))
    assert caught.value.hint


def test_forms() -> None:
    new = cell(file__bytes=5_000_000_000, speed__host="two")
    found = compare(card(cell()), card(new, version="1.1.0"))
    again = json.loads(json.dumps(found.as_json()))
    assert again["new_version"] == "1.1.0"
    assert again["cells"][0]["changes"][0]["regression"] is True
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(tables.difference(found))
    text = console.export_text()
    for expected in ("toy-pte: 1.0.0 -> 1.1.0", "4.00 GB", "5.00 GB", "+25.0%", "REGRESSION", "+1%", "not comparable"):
        assert expected in text
    (regression,) = regressions(card(cell()), card(new))
    assert str(regression) == "toy/8da4w: file size 4e+09 -> 5e+09 (allowed: +1%)"


@pytest.mark.parametrize(
    "changed", [{"speed__representative": False, "speed__reason": "busy"}, {"speed__through": "LLM runner"}]
)
def test_speed_of_a_busy_machine_or_of_another_way_is_not_compared(changed: dict[str, Any]) -> None:
    slow = cell(speed__decode_tokens_per_second=1, **changed)
    assert not regressions(card(cell()), card(slow))
