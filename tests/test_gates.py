"""Limits and verdicts, and what must not get worse: every gate on both sides of its limit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import card, cell, declared

from hubpub.config import Gates, Project, Recipe
from hubpub.errors import ConfigError, GateError
from hubpub.facts import CellFacts, Gate, GridFact, Lowering, Memory, Parity, Resident, RunnerCheck, TokenizerCheck
from hubpub.gates import (
    BESIDE,
    METRICS,
    Metric,
    Regression,
    _copied,
    changes,
    check_regressions,
    evaluate_gates,
    missed_gates,
    with_current_gates,
)
from hubpub.matrix import Cell

LIMITS = Gates(
    kl_mean_max=0.05,
    top1_min=0.9,
    prefill_kl_mean_max=0.001,
    greedy_first_token_min=0.75,
    greedy_exact_min=0.5,
    lowering_kl_mean_max=0.005,
    lowering_perplexity_max=0.01,
    logit_error_max=2.0,
)
VOCABULARY = 262_144
RUNNER = RunnerCheck(
    prompt="p", text="t", tokens=3, matches_decode_loop=True, prompt_tokens=4, prompt_tokens_original=4
)
FITS = TokenizerCheck(round_trips=1.0, largest_id=VOCABULARY - 1, begins_with_bos=True)
LOWERING = Lowering(kl_mean=0.001, kl_p999=0.01, top1_agreement=1.0, error_max=0.1, perplexity=10.6)


def parity(**changed: Any) -> Parity:
    """All that is measured of a program that passes every gate; `changed` by dotted path, "__" for the dots."""
    value = cell().parity.model_dump()
    value["logits"]["prefill_kl_mean"] = 0.0005
    value |= {
        "runner": RUNNER.model_dump(),
        "tokenizer": FITS.model_dump(),
        "lowering": LOWERING.model_dump(),
        "stop_tokens": (1, 106),
        "weights": {"weights": 3, "found": 3, "products": 1},
    }
    for path, new in changed.items():
        *parents, key = path.split("__")
        target = value
        for parent in parents:
            target = target[parent]
        target[key] = new
    return Parity.model_validate(value)


def evaluated(found: Parity, limits: Gates = LIMITS, **metadata: Any) -> dict[str, Gate]:
    program = cell().program.model_copy(update={"metadata": metadata or {"get_eos_ids": (106, 1)}})
    return {gate.name: gate for gate in evaluate_gates(limits, found, program, VOCABULARY)}


def missed(found: Parity, **metadata: Any) -> list[str]:
    return [name for name, gate in evaluated(found, **metadata).items() if not gate.passed]


@pytest.mark.parametrize(("copies", "passes"), [(5_000_000 + BESIDE, True), (5_100_000 + BESIDE, False)])
def test_copies_of_weights_are_limited_beyond_the_arena(copies: int, passes: bool) -> None:
    """Of 10 million weights half a byte each, and what a process takes anyway; the arena has 100 MB."""
    limits = LIMITS.model_copy(update={"anonymous_per_weight_max": 0.5})
    at = Resident(anonymous=100_000_000 + copies, mapped=1)
    memory = Memory(loaded=at, prefilled=at, generated=at, generated_tokens=256)
    program = cell().program
    found = {one.name: one for one in evaluate_gates(limits, parity(), program, VOCABULARY, memory, 10_000_000)}
    assert found["anonymous_per_weight"].passed is passes
    assert "anonymous_per_weight" not in {one.name for one in evaluate_gates(limits, parity(), program, VOCABULARY)}


def test_memory_is_judged_where_it_was_measured_and_limited() -> None:
    at, limits = Resident(anonymous=1, mapped=1), LIMITS.model_copy(update={"anonymous_per_weight_max": 0.5})
    memory, program = Memory(loaded=at, prefilled=at, generated=at, generated_tokens=256), cell().program
    for given, of, parameters in ((limits, memory, None), (limits, None, 10), (LIMITS, memory, 10)):
        judged = evaluate_gates(given, parity(), program, VOCABULARY, of, parameters)
        assert "anonymous_per_weight" not in {gate.name for gate in judged}


@pytest.mark.parametrize(("anonymous", "beside", "copied"), [(5, None, 5), (5, 3, 2), (1, 3, 0)])
def test_what_counts_as_copied_is_beyond_what_is_known(anonymous: int, beside: int | None, copied: int) -> None:
    at = Resident(anonymous=anonymous, mapped=1)
    known = None if beside is None else Resident(anonymous=beside, mapped=1)
    memory = Memory(loaded=at, prefilled=at, generated=at, generated_tokens=256, beside=known)
    assert _copied(cell().program.model_copy(update={"methods": ()}), memory) == copied


def test_a_regression_without_figures_is_its_name() -> None:
    assert str(Regression("a/b", "gone", 1, 0, "")) == "a/b: gone"


def test_a_program_that_is_well_passes_every_gate() -> None:
    gates = evaluated(parity())
    assert list(gates) == [
        "finite_logits", "kl_mean", "top1_agreement", "greedy_first_token", "greedy_exact", "prefill_kl_mean",
        "original_perplexity", "lowering_kl_mean", "lowering_perplexity", "weights_stored", "eos_ids", "tokenizer_fits",
        "llm_runner_matches", "logit_error_max",
    ]  # fmt: skip
    assert all(gate.passed for gate in gates.values())
    assert gates["original_perplexity"].limit == VOCABULARY / 2
    assert {gates[name].limit for name in ("finite_logits", "eos_ids", "tokenizer_fits", "llm_runner_matches")} == {1.0}


# A value that just passes, one that just does not, and the gate that says so.
LIMITED = [
    ("logits__kl_mean", 0.05, 0.0501, "kl_mean"),
    ("logits__top1_agreement", 0.9, 0.8999, "top1_agreement"),
    ("logits__prefill_kl_mean", 0.001, 0.00101, "prefill_kl_mean"),
    ("greedy__first_token", 0.75, 0.7499, "greedy_first_token"),
    ("greedy__exact", 0.5, 0.4999, "greedy_exact"),
    ("logits__perplexity_original", VOCABULARY / 2, VOCABULARY / 2 + 1, "original_perplexity"),
    ("lowering__kl_mean", 0.005, 0.0051, "lowering_kl_mean"),
    ("lowering__perplexity", 10.6 / 1.00999, 10.6 / 1.011, "lowering_perplexity"),
    ("lowering__perplexity", 10.6 / 0.99001, 10.6 / 0.989, "lowering_perplexity"),
    ("stop_tokens", (106, 1, 1), (1,), "eos_ids"),
    ("stop_tokens", (1, 106), (1, 106, 50), "eos_ids"),
    ("tokenizer__round_trips", 1.0, 0.9999, "tokenizer_fits"),
    ("tokenizer__largest_id", VOCABULARY - 1, VOCABULARY, "tokenizer_fits"),
    ("tokenizer__chat_template", True, False, "chat_template_fits"),
    ("runner__prompt_tokens", 4, 5, "tokenizer_fits"),
    ("runner__matches_decode_loop", True, False, "llm_runner_matches"),
    ("logits__error_max", 2.0, 2.001, "logit_error_max"),
    ("logits__finite", True, False, "finite_logits"),
]


@pytest.mark.parametrize(("path", "good", "bad", "gate"), LIMITED)
def test_each_gate_on_both_sides_of_its_limit(path: str, good: Any, bad: Any, gate: str) -> None:
    assert missed(parity(**{path: good})) == []
    assert missed(parity(**{path: bad})) == [gate]


def test_the_limits_of_what_a_model_cannot_hold_still_follow_its_noise() -> None:
    noisy = {"lowering__noise_kl_mean": 0.02, "logits__prefill_kl_mean": 0.039, "lowering__kl_mean": 0.029}
    assert missed(parity(**noisy)) == []
    assert missed(parity(**noisy | {"logits__prefill_kl_mean": 0.041})) == ["prefill_kl_mean"]
    assert missed(parity(**noisy | {"lowering__kl_mean": 0.031})) == ["lowering_kl_mean"]


def test_what_was_not_measured_widens_no_limit() -> None:
    plain = evaluated(parity())
    assert (plain["prefill_kl_mean"].limit, plain["lowering_kl_mean"].limit) == (0.001, 0.005)
    assert plain["lowering_perplexity"].limit == 0.01
    alone = evaluated(parity(lowering=None))
    assert alone["prefill_kl_mean"].limit == 0.001
    assert not alone.keys() & {"original_perplexity", "lowering_kl_mean", "lowering_perplexity"}
    assert not plain.keys() & {"slice_kl_mean", "greedy_tokens", "grid_exact"}
    assert "weights_stored" not in evaluated(parity(weights=None))


def test_perplexity_may_differ_by_what_the_noise_of_so_many_tokens_makes_of_it() -> None:
    """The standard deviation of the mean of 400 surprises, each off by 0.02 nats of KL, is 0.01."""
    noisy = {"lowering__noise_kl_mean": 0.02, "logits__tokens": 400}
    assert evaluated(parity(**noisy))["lowering_perplexity"].limit == 0.03
    assert missed(parity(**noisy, lowering__perplexity=10.6 / 1.0299)) == []
    assert missed(parity(**noisy, lowering__perplexity=10.6 / 1.0302)) == ["lowering_perplexity"]


@pytest.mark.parametrize(
    ("limit", "found", "gate"), [(0.8, 0.8, True), (0.8, 0.79, False), (None, 0.1, None), (0.8, None, None)]
)
def test_all_tokens_that_a_file_says_are_judged_where_they_were_counted(
    limit: float | None, found: float | None, gate: bool | None
) -> None:
    limits = LIMITS.model_copy(update={"greedy_tokens_min": limit})
    judged = evaluated(parity(greedy__likely_tokens=found), limits).get("greedy_tokens")
    assert (judged and judged.passed) is gate


def test_a_first_token_that_the_original_finds_as_likely_counts() -> None:
    assert missed(parity(greedy__first_token=0.5, greedy__first_token_or_tie=0.75)) == []
    assert missed(parity(greedy__first_token=1.0, greedy__first_token_or_tie=0.74)) == ["greedy_first_token"]


@pytest.mark.parametrize(("kl", "names"), [(0.4, []), (0.401, ["slice_kl_mean"])])
def test_a_slice_is_held_to_its_whole(kl: float, names: list[str]) -> None:
    whole = {"kl_mean": kl, "top1_agreement": 0.8, "perplexity": 9.0, "perplexity_whole": 8.0}
    assert missed(parity(whole=whole)) == names
    assert evaluated(parity(whole=whole))["slice_kl_mean"].limit == 0.4


def test_quality_may_be_what_the_baseline_of_the_very_model_allows() -> None:
    limits = LIMITS.model_copy(update={"baseline_max": 2.0})
    baseline = {"logits__baseline_kl_mean": 0.04, "logits__baseline_top1_agreement": 0.92}
    gates = evaluated(parity(**baseline, logits__kl_mean=0.079, logits__top1_agreement=0.85), limits)
    assert (gates["kl_mean"].limit, gates["top1_agreement"].limit) == (0.08, 0.84)
    assert all(gate.passed for gate in gates.values())
    # A model that hardly changes is held to what the recipe says, and without a baseline nothing else counts.
    assert evaluated(parity(), limits)["kl_mean"].limit == 0.05
    assert evaluated(parity(**baseline))["kl_mean"].limit == 0.05


def test_a_first_token_that_the_reference_holds_as_likely_is_no_other_answer() -> None:
    assert missed(parity(greedy__first_token=0.5, greedy__first_token_or_tie=0.75)) == []
    assert missed(parity(greedy__first_token=0.75, greedy__first_token_or_tie=0.74)) == ["greedy_first_token"]


def test_of_int8_activations_every_token_counts_and_not_the_first_alone() -> None:
    limits = LIMITS.model_copy(update={"greedy_first_token_min": 0.0, "greedy_tokens_min": 0.8})
    found = evaluated(parity(greedy__first_token=0.5, greedy__likely_tokens=0.8), limits)
    assert all(gate.passed for gate in found.values())
    found = evaluated(parity(greedy__likely_tokens=0.79), limits)
    assert [name for name, gate in found.items() if not gate.passed] == ["greedy_tokens"]
    # Facts of an older release do not say.
    assert "greedy_tokens" not in evaluated(parity(greedy__likely_tokens=None), limits)


@pytest.mark.parametrize(("window", "context", "judged"), [(512, 2048, True), (512, 512, False), (None, 2048, False)])
def test_the_window_of_the_mask_is_that_of_the_source(window: int | None, context: int, judged: bool) -> None:
    found = parity(sliding_window=window)
    for seen, fits in ((512, True), (511, False), (None, False)):
        metadata = {"get_eos_ids": (106, 1), "get_max_context_len": context}
        program = cell().program.model_copy(update={"metadata": metadata, "sliding_window": seen})
        gates = {gate.name: gate for gate in evaluate_gates(LIMITS, found, program, VOCABULARY)}
        assert ("sliding_window" in gates) == judged
        assert not judged or gates["sliding_window"].passed == fits


def test_a_layer_that_slides_and_should_not_is_refused() -> None:
    found = parity(sliding_window=512, sliding_layers=(0, 1))
    for layers, fits in (((0, 1), True), ((0, 1, 2), False), ((0,), False), (None, False)):
        metadata = {"get_eos_ids": (106, 1), "get_max_context_len": 2048}
        seen = {"metadata": metadata, "sliding_window": 512, "sliding_layers": layers}
        gates = evaluate_gates(LIMITS, found, cell().program.model_copy(update=seen), VOCABULARY)
        assert {gate.name: gate.passed for gate in gates}["sliding_window"] == fits


def test_a_program_computes_with_the_numbers_of_its_source() -> None:
    found = parity(scalars={"add 1e-06": 53, "attention 1": 5})
    for scalars, fits in (({"add 1e-06": 53, "attention 1": 5}, True), ({"add 1e-06": 52, "attention 1": 5}, False)):
        program = cell().program.model_copy(update={"scalars": scalars})
        gates = {gate.name: gate for gate in evaluate_gates(LIMITS, found, program, VOCABULARY)}
        assert gates["scalars"].passed == fits
    # Facts of an older release do not say.
    assert "scalars" not in evaluated(parity())


def test_a_file_that_holds_another_weight_is_refused() -> None:
    assert missed(parity(weights__wrong=("model.layers.3.mlp.up_proj.values",))) == ["weights_stored"]


@pytest.mark.parametrize(
    ("explicit", "exact", "share", "missed"),
    [
        (True, 10_000_000, 0.95, []),
        # One group of ten million.
        (True, 9_999_999, 0.95, ["grid_exact"]),
        (False, 9_990_000, 0.95, []),
        (False, 9_989_000, 0.95, ["grid_exact"]),
        (False, 10_000_000, 0.89, ["grid_weights"]),
        (None, 0, 0, ["grid_exact", "grid_weights"]),
    ],
)
def test_a_file_holds_what_its_source_was_trained_to(
    explicit: bool | None, exact: int, share: float, missed: list[str]
) -> None:
    grid = None
    if explicit is not None:
        grid = GridFact(
            explicit=explicit, matrices=1, groups=10_000_000, exact=exact, shifted=0, weights_share=share
        ).model_dump()
    found, program = parity(weights__grid=grid), cell().program
    program = program.model_copy(update={"metadata": {"get_eos_ids": (106, 1)}})
    judged = evaluate_gates(LIMITS, found, program, VOCABULARY, trained=True)
    assert [gate.name for gate in judged if not gate.passed] == missed
    # Of a source that nobody trained for it, nothing is asked.
    assert "grid_exact" not in evaluated(found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("path", "gates"),
    [
        ("logits__kl_mean", {"kl_mean"}),
        ("logits__top1_agreement", {"top1_agreement"}),
        ("logits__error_max", {"logit_error_max"}),
        ("logits__perplexity", {"lowering_perplexity"}),
        ("logits__perplexity_original", {"original_perplexity"}),
    ],
)
def test_what_is_not_finite_passes_no_gate(path: str, gates: set[str], value: float) -> None:
    assert set(missed(parity(**{path: value}))) == gates


def test_what_was_not_measured_is_not_evaluated() -> None:
    found = parity(
        runner=None, tokenizer=None, lowering=None, weights=None, stop_tokens=None, logits__prefill_kl_mean=None
    )
    limits = LIMITS.model_copy(update={"logit_error_max": None})
    assert list(evaluated(found, limits)) == [
        "finite_logits", "kl_mean", "top1_agreement", "greedy_first_token", "greedy_exact",
    ]  # fmt: skip
    # Without the runner nothing is known of how many tokens it made of a prompt.
    assert missed(parity(runner=None)) == []


@pytest.mark.parametrize(
    ("metadata", "passes"),
    [
        ({"get_eos_id": 1}, True),
        ({"get_eos_id": 2}, False),
        ({"get_eos_ids": (1,), "get_eos_id": 2}, True),
        ({"get_bos_id": 1}, False),
    ],
)
def test_the_ids_that_end_a_text_are_those_of_the_metadata(metadata: dict[str, Any], passes: bool) -> None:
    assert missed(parity(stop_tokens=(1,)), **metadata) == ([] if passes else ["eos_ids"])


def test_limits_of_today_are_those_that_count(tmp_path: Path) -> None:
    own = declared(tmp_path / "card")
    measured = cell(parity=parity().model_dump(), gates=[], summary="as it was")
    recipe = recipe_with(LIMITS)
    now = with_current_gates(Cell(own, recipe), measured)
    assert (now.summary, now.parity, now.file) == (recipe.summary, measured.parity, measured.file)
    assert {gate.name for gate in now.gates if not gate.passed} == {"eos_ids"}
    error = missed_gates(now)
    assert isinstance(error, GateError)
    assert error.message == "toy/8da4w did not pass: eos_ids 0 (min 1)"
    assert error.hint == "its repo is not published"
    two = now.model_copy(update={"gates": (*now.gates, *now.gates)})
    assert "eos_ids 0 (min 1), eos_ids 0 (min 1)" in str(missed_gates(two))
    assert missed_gates(cell()) is None


def recipe_with(limits: Gates) -> Recipe:
    return Project.find().recipes["8da4w"].model_copy(update={"gates": limits, "summary": "as it is"})


def nothing(found: CellFacts) -> float:
    raise AssertionError("a rule about two values reads neither")


@pytest.mark.parametrize(
    ("metric", "old", "new", "worse"),
    [
        (Metric("a", "", nothing, "less", relative=0.1), 100, 110, False),
        (Metric("a", "", nothing, "less", relative=0.1), 100, 110.1, True),
        (Metric("a", "", nothing, "less", relative=0.1), -100, -89.9, True),
        (Metric("a", "", nothing, "less", relative=0.1), 100, 0, False),
        (Metric("a", "", nothing, "more", relative=0.1), 100, 90, False),
        (Metric("a", "", nothing, "more", relative=0.1), 100, 89.9, True),
        (Metric("a", "", nothing, "more", absolute=0.5), 1, 0.5, False),
        (Metric("a", "", nothing, "more", absolute=0.5), 1, 0.499, True),
        (Metric("a", "", nothing, "less", relative=0.1, absolute=5), 10, 14, False),
        (Metric("a", "", nothing, "less", relative=0.1, absolute=5), 100, 109, False),
        (Metric("a", "", nothing, "less", relative=0.1, absolute=5), 100, 111, True),
        (Metric("a", "", nothing, "less"), 1, 100, False),
        (Metric("a", "", nothing, "neither", relative=0.1), 1, 100, False),
        # 0.1 + 0.2 is not 0.3: a tolerance met to the last digit is met.
        (Metric("a", "", nothing, "less", absolute=0.1), 0.2, 0.1 + 0.2, False),
        (Metric("a", "", nothing, "less", absolute=1e-6), 1e3, 1e3 + 1.5e-6, False),
        (Metric("a", "", nothing, "less", absolute=1e-6), 1e3, 1e3 + 3e-6, True),
        (Metric("a", "", nothing, "less", absolute=1e-6), 1e3 - 3e-6, 1e3, True),
    ],
)
def test_worse_is_beyond_every_tolerance(metric: Metric, old: float, new: float, worse: bool) -> None:
    assert metric.worsened(old, new) is worse


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (Metric("a", "nats", nothing, "less", relative=0.1, absolute=0.002), "+10% and +0.002"),
        (Metric("a", "share", nothing, "more", absolute=0.005), "-0.5 points"),
        (Metric("a", "tokens/s", nothing, "more", relative=0.1), "-10%"),
        (Metric("a", "", nothing, "neither"), ""),
    ],
)
def test_a_tolerance_in_words(metric: Metric, words: str) -> None:
    assert metric.tolerance == words


def test_the_tolerances_of_a_release() -> None:
    """A tolerance that is widened lets worse files pass: it is not changed in passing."""
    assert {metric.name: (metric.good, metric.tolerance, metric.per_host) for metric in METRICS} == {
        "file size": ("less", "+1%", False),
        "program memory": ("less", "+1%", False),
        "KV cache": ("less", "+1%", False),
        "KL mean": ("less", "+10% and +0.002", False),
        "top-1 agreement": ("more", "-0.5 points", False),
        "perplexity": ("less", "", False),
        "prefill": ("more", "-10%", True),
        "decode": ("more", "-10%", True),
        "load": ("less", "", True),
        "peak memory": ("less", "+10%", True),
        "parameters": ("neither", "", False),
        "context": ("neither", "", False),
        "delegated operators": ("more", "", False),
    }
    assert {metric.unit for metric in METRICS} == {"bytes", "nats", "share", "tokens/s", "", "s"}
    assert all(metric.read(cell()) >= 0 for metric in METRICS)


def test_metrics_read_what_they_name() -> None:
    values = {change.name: change.new for change in changes(cell(), cell())}
    assert values["program memory"] == 100_000_000
    assert values["KV cache"] == 80_000_000
    assert (values["context"], values["load"]) == (2048, 10)
    assert values["delegated operators"] == 210 / 240
    bare = cell().program.model_copy(update={"methods": ()})
    empty = cell().model_copy(update={"program": bare})
    assert {change.name: change.new for change in changes(empty, empty)}["program memory"] == 0


def test_a_change_as_a_share() -> None:
    found = {one.name: one for one in changes(cell(), cell(file__bytes=5_000_000_000))}
    assert found["file size"].relative == 0.25
    assert replace(found["file size"], old=0).relative is None


ACCEPT = '[[accept]]\nrecipe = "{}"\nwhat = "{}"\nsince = "{}"\nreason = "smaller groups"\n'


def worse(version: str = "1.1.0", **changed: Any) -> Any:
    return card(cell(parity__logits__kl_mean=0.05, **changed), version=version)


def test_a_regression_is_refused_unless_acknowledged_for_this_release(tmp_path: Path) -> None:
    old, new = card(cell()), worse()
    with pytest.raises(GateError, match=r"worse than 1\.0\.0: toy/8da4w: KL mean 0\.02 -> 0\.05") as refused:
        check_regressions(old, new, declared(tmp_path / "none"))
    assert '[[accept]] recipe = "8da4w", what = "KL mean", since = "1.0.0"' in str(refused.value.hint)
    (noted,) = check_regressions(old, new, declared(tmp_path / "told", ACCEPT.format("8da4w", "KL mean", "1.0.0")))
    assert (noted.cell, noted.what, noted.old, noted.new) == ("toy/8da4w", "KL mean", 0.02, 0.05)
    assert noted.reason == "smaller groups"
    with pytest.raises(GateError):
        check_regressions(old, new, declared(tmp_path / "stale", ACCEPT.format("8da4w", "KL mean", "0.9.0")))
    both = worse(file__bytes=5_000_000_000)
    with pytest.raises(GateError, match=r"1\.0\.0: toy/8da4w: file size 4e\+09 -> 5e\+09 \(allowed: \+1%\)$"):
        check_regressions(old, both, declared(tmp_path / "one", ACCEPT.format("8da4w", "KL mean", "1.0.0")))


@pytest.mark.parametrize(("recipe", "what"), [("8da4w", "beauty"), ("int8", "KL mean")])
def test_an_acknowledgement_of_what_is_not_measured_is_refused(tmp_path: Path, recipe: str, what: str) -> None:
    own = declared(tmp_path / "card", ACCEPT.format(recipe, what, "1.0.0"))
    with pytest.raises(ConfigError, match=f"'{what}' of '{recipe}' is not measured") as refused:
        check_regressions(card(cell()), card(cell()), own)
    line = (own.folder / "card.toml").read_text().splitlines().index("[[accept]]") + 1
    assert (refused.value.path, refused.value.line) == (str(own.folder / "card.toml"), line)
    assert "metrics: file size, program memory" in str(refused.value.hint)


def test_what_cannot_be_compared_holds_no_release_back(tmp_path: Path) -> None:
    own = declared(tmp_path / "card")
    # A rehearsal after a release, a cell that is new, and a scale model that was made anew.
    assert check_regressions(card(cell()), worse(source__scale_model=True), own) == ()
    assert check_regressions(card(cell(source__scale_model=True)), worse(), own) == ()
    assert check_regressions(card(), worse(), own) == ()
    files = [{"name": "a", "bytes": 1, "sha256": "0"}]
    scale = cell(source__scale_model=True)
    assert check_regressions(card(scale), worse(source__scale_model=True, source__files=files), own) == ()
    with pytest.raises(GateError):
        check_regressions(card(scale), worse(source__scale_model=True), own)
    # Of a real model that was made anew something is known.
    with pytest.raises(GateError):
        check_regressions(card(cell()), worse(source__files=files), own)
    # A cell that cannot be compared does not hide the next.
    old = card(cell(cell="toy/int8", recipe="int8"))
    with pytest.raises(GateError, match="toy/int8"):
        check_regressions(old, card(cell(), cell(cell="toy/int8", recipe="int8", file__bytes=5_000_000_000)), own)


def test_speed_of_scale_models_holds_no_release_back(tmp_path: Path) -> None:
    own = declared(tmp_path / "none")
    slow = cell(speed__decode_tokens_per_second=1, source__scale_model=True)
    assert check_regressions(card(cell(source__scale_model=True)), card(slow), own) == ()
    with pytest.raises(GateError, match="decode"):
        check_regressions(card(cell()), card(cell(speed__decode_tokens_per_second=1)), own)
    # Nor does it hide what is worse besides.
    both = cell(speed__decode_tokens_per_second=1, source__scale_model=True, parity__logits__kl_mean=0.05)
    with pytest.raises(GateError, match="KL mean"):
        check_regressions(card(cell(source__scale_model=True)), card(both), own)


@pytest.mark.parametrize(
    "other",
    [
        {"speed__host": "two"},
        {"speed__threads": 4},
        {"speed__through": "LLM runner"},
        {"speed__representative": False, "speed__reason": "busy"},
    ],
)
def test_speed_measured_in_another_way_holds_no_release_back(tmp_path: Path, other: dict[str, Any]) -> None:
    own = declared(tmp_path / "card")
    slow = {"speed__decode_tokens_per_second": 1}
    assert check_regressions(card(cell(**other)), card(cell(**slow)), own) == ()
    assert check_regressions(card(cell()), card(cell(**slow, **other)), own) == ()


def facts_of(found: CellFacts, name: str) -> Any:
    return next(change for change in changes(cell(), found) if change.name == name)


@pytest.mark.parametrize(
    ("changed", "name", "verdict"),
    [
        ({"file__bytes": 3_999_999_999}, "file size", "better"),
        ({"file__bytes": 4_000_000_001}, "file size", "worse"),
        ({"parity__logits__top1_agreement": 0.96}, "top-1 agreement", "better"),
        ({"parity__logits__top1_agreement": 0.94}, "top-1 agreement", "worse"),
        ({"parameters__total": 9}, "parameters", "changed"),
        ({}, "decode", "same"),
        ({"speed__host": "two"}, "decode", "not comparable"),
    ],
)
def test_verdicts(changed: dict[str, Any], name: str, verdict: str) -> None:
    assert facts_of(cell(**changed), name).verdict == verdict
