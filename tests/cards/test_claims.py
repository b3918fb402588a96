"""What a card says of its files holds for every one of them, whichever recipes it has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from operator import attrgetter
from typing import Any

import pytest

from cards.sample import cell as sample
from cards.sample import facts as all_facts
from hubpub.cards import choice
from hubpub.cards.render import render
from hubpub.config import Card, Project
from hubpub.facts import CardFacts, CellFacts, FileFact, Sampling

# A count on the page, and the fact of every cell that it must be: exceptions are named in brackets after it.
COUNTS = {
    r"on the same text of (.+?), and on greedy": "parity.logits.tokens",
    r"continuations of (.+?) by up to": "parity.greedy.prompts",
    r"by up to (.+?) each\. ": "parity.greedy.new_tokens",
    r"(?:Medians of |(?=One run))(.+?), each in a fresh process": "speed.runs",
    r"Prefill reads a prompt of (.+?), decode": "speed.prefill_tokens",
    r"decode generates (.+?)\. Peak": "speed.decode_tokens",
    r"\| context \| (.+?) here": "context.exported",
}
# A sentence, and what must be true of every cell for it to stand there.
SENTENCES: dict[str, Callable[[CellFacts], bool]] = {
    r"Every file passed these gates": lambda cell: cell.passed,
    r"written by \*\*ExecuTorch 1\.4\.1\*\*": lambda cell: cell.toolchain["executorch"] == "1.4.1",
    r"on Example CPU, 8 cores, Linux with 4 threads": lambda cell: (
        (cell.speed.host[:7], cell.speed.threads) == ("Example", 4)
    ),
    r"packages contain all that": lambda cell: (
        set(cell.program.operators.namespaces) <= {"aten", "llama", "quantized_decomposed"}
    ),
    r"Every file also needs \[tokenizer\.json\]": lambda cell: any(f.name == "tokenizer.json" for f in cell.tokenizer),
}
# Phrases a native reader stumbles over, and promises that nobody gave.
NEVER = (
    "promised to load",
    "stock LLM runner",
    "Every figure here comes from",
    "take this",
    "Which file should I take",
    "what to reckon with",
    "name the same next token",
    "compare the files, not the figure",
    "with the file. Every",
    "take and give text only",
    "longer talks",
    "the next one that is no patch",
    "shows at load time",
    "read the same.",
    "taken out of",
    "not asked",
    "| again |",
    "of it KV cache",
    "E2B it ",
    "E4B it ",
    "licence",
    "coming soon",
    "All figures on this page",
    "Community tab of",
    "no more than half",
)


MERITS: dict[str, Callable[[CellFacts, CellFacts], bool]] = {
    "smaller": lambda one, other: one.file.bytes < other.file.bytes,
    "faster": lambda one, other: one.speed.decode_tokens_per_second > other.speed.decode_tokens_per_second,
    "closer to the original": lambda one, other: one.parity.logits.top1_agreement > other.parity.logits.top1_agreement,
}


def texts(card: Card, project: Project) -> Iterator[tuple[CardFacts, str, dict[str, Any]]]:
    """The card and config.json with every combination of its recipes."""
    whole = all_facts(project, card)
    for count in range(1, len(whole.cells) + 1):
        for chosen in combinations(whole.cells, count):
            yield made(card, project, whole.model_copy(update={"cells": chosen}))


def made(card: Card, project: Project, facts: CardFacts) -> tuple[CardFacts, str, dict[str, Any]]:
    files = render(card, facts, namespace="someone", templates=project.templates_dir).files
    return facts, " ".join(files["README.md"].decode().split()), json.loads(files["config.json"])


def counts(text: str, found: str, cells: tuple[CellFacts, ...]) -> dict[str, int]:
    """What `found`, e.g. "24 tokens (8 for `bf16-window`)", says of each cell."""
    number = re.match(r"[\d,]+|One", found)
    assert number, found
    usual = 1 if number[0] == "One" else int(number[0].replace(",", ""))
    said = {cell.recipe: usual for cell in cells}
    for other in re.findall(r"([\d,]+) for ((?:`[^`]+`(?:, | and )?)+)", found):
        said |= {recipe: int(other[0].replace(",", "")) for recipe in re.findall("`([^`]+)`", other[1])}
    return said


@pytest.fixture(params=["gemma-3n-E2B-it-pte", "gemma-4-E4B-pte", "SmolLM2-135M-Instruct-pte"])
def card(request: pytest.FixtureRequest, project: Project) -> Card:
    """A tuned and a base model's card, and one of a model that is text alone."""
    return next(card for card in project.cards if card.repo == request.param)


def check(facts: CardFacts, text: str, config: dict[str, Any]) -> None:
    """Every claim of COUNTS and SENTENCES against every cell, and the table against the facts."""
    for pattern, path in COUNTS.items():
        match = re.search(pattern, text)
        assert match, pattern
        held = {cell.recipe: attrgetter(path)(cell) for cell in facts.cells}
        assert counts(text, match[1], facts.cells) == held, pattern
    for pattern, holds in SENTENCES.items():
        if re.search(pattern, text):
            assert all(map(holds, facts.cells)), pattern
    # Operators that nobody promises to keep are named with the files that need them.
    needing = re.search(r"custom operators \(.*?\), which (.+?) needs?\. ", text)
    said = re.findall("`([^`]+)`", needing[1]) if needing else []
    assert set(said) == {one.recipe for one in facts.cells if set(one.program.operators.namespaces) - {"aten"}}
    for phrase in NEVER:
        assert phrase not in text
    # Every row of the first tables is of a file, with figures that programs find too.
    rows = re.findall(r"\| \**\[([^]]+)\]\(\./[^)]+\.pte\)\** \| (\d+) GB \|", text)
    listed = {file["recipe"]: file["device_ram_gb"] for file in config["files"]}
    assert {name: int(gigabytes) for name, gigabytes in rows} == listed
    assert all(2 * choice.memory(cell) <= listed[cell.recipe] * 1e9 for cell in facts.cells)


def check_recommendation(facts: CardFacts, text: str, recommended: str) -> None:
    """Why one file is recommended, against the figures of those it is compared with."""
    cells = {cell.recipe: cell for cell in facts.cells}
    said = re.search(r"the recommended file\. (.*?)Compared with it:", text)
    assert bool(said) == ("Compared with it" in text)
    if said is None:
        return
    (first,) = re.findall(r"Start with \[([^]]+)\]", text)
    assert first == (recommended if recommended in cells else first)
    assert said[1], "nothing speaks for it"
    for merits, other in re.findall(
        r"(?:It is|and) ((?:smaller|faster|closer to the original)[^`]*?) than `([^`]+)`", said[1]
    ):
        for merit in re.split(", | and ", merits):
            assert MERITS[merit](cells[first], cells[other]), (merit, other)
    if none := re.search(r"No other file is clearly (.+?)\.", said[1]):
        rivals = [cell for cell in facts.cells if cell.recipe != first]
        for merit in none[1].split(" or "):
            tolerance = {"smaller": 0.95, "closer to the original": 0.01}[merit]
            for one in rivals:
                size, agreed = one.file.bytes / cells[first].file.bytes, one.parity.logits.top1_agreement
                clear = (
                    size < tolerance
                    if merit == "smaller"
                    else (agreed > cells[first].parity.logits.top1_agreement + tolerance)
                )
                assert not clear, (merit, one.recipe)


def test_with_every_combination_of_recipes(card: Card, project: Project) -> None:
    seen = 0
    for facts, text, config in texts(card, project):
        check(facts, text, config)
        check_recommendation(facts, text, card.export.recommended)
        cached = [cell for cell in facts.cells if choice.window(cell) is None]
        # What needs a KV cache is shown where a file has one, and only then.
        assert ("TextLLMRunner" in text) == bool(cached)
        assert ("<summary>Android" in text) == bool(cached)
        assert ("## Run it in a minute" in text) == bool(cached)
        assert ("## Sample answers" in text) == bool(cached)
        assert ("for scoring text" in text) == (len(cached) < len(facts.cells))
        seen += 1
    assert seen == 2 ** len(card.export.recipes) - 1


def test_with_cells_that_were_measured_elsewhere_and_otherwise(card: Card, project: Project) -> None:
    facts = all_facts(project, card)
    first, second, *rest = facts.cells
    speed = second.speed.model_copy(update={"host": "Another CPU", "threads": 8, "runs": 5, "prefill_tokens": 64})
    greedy = second.parity.greedy.model_copy(update={"prompts": 12, "new_tokens": 16})
    gates = (second.gates[0].model_copy(update={"passed": False, "measured": 0.0}), *second.gates[1:])
    changed = second.model_copy(
        update={
            "speed": speed,
            "parity": second.parity.model_copy(update={"greedy": greedy}),
            "toolchain": second.toolchain | {"executorch": "1.4.2"},
            "gates": gates,
            "context": second.context.model_copy(update={"exported": 4096}),
        }
    )
    other = facts.model_copy(update={"cells": (first, changed, *rest)})
    _, text, config = made(card, project, other)
    check(other, text, config)
    assert "Every file passed" not in text
    assert "ExecuTorch 1.4.1 and 1.4.2" in text
    assert "Another CPU" in text


def test_a_model_that_is_text_alone_lacks_nothing(project: Project) -> None:
    card = next(card for card in project.cards if card.repo == "SmolLM2-135M-Instruct-pte")
    facts = all_facts(project, card)
    layers = facts.cells[0].layers.model_copy(update={"sliding": 0, "full": 30, "sliding_sharing_kv": 0})
    context = facts.cells[0].context.model_copy(update={"sliding_window": None})
    cells = tuple(
        cell.model_copy(update={"layers": layers, "context": context, "parameters": cell.parameters})
        for cell in facts.cells
    )
    _, text, _ = made(card, project, facts.model_copy(update={"cells": cells}))
    assert "all with full attention" in text
    assert "| sliding window |" not in text
    assert "not included" not in text
    assert "multimodal" not in text
    assert "gemma" not in text.replace("gemma3n", "").lower().split("## license")[1]


def test_a_cell_of_unlike_operators_is_not_counted_in(card: Card, project: Project) -> None:
    cell = sample(card, "8da4w", "x")
    operators = cell.program.operators.model_copy(update={"kernels": {"mine::op.out": 1}})
    cell = cell.model_copy(update={"program": cell.program.model_copy(update={"operators": operators})})
    facts = all_facts(project, card).model_copy(update={"cells": (cell,)})
    _, text, config = made(card, project, facts)
    check(facts, text, config)
    assert "No ExecuTorch library is known for `mine`" in text
    assert "no promise for custom operators (`mine`), which `8da4w` needs." in text


@pytest.mark.parametrize("repo", ["gemma-3n-E2B-it-pte", "gemma-4-E2B-it-pte"])
def test_the_recommended_file_is_compared_with_what_is_worth_a_look(project: Project, repo: str) -> None:
    card = next(card for card in project.cards if card.repo == repo)
    facts = all_facts(project, card)
    shown = choice.worth_a_look(facts.cells, card.export.recommended)
    assert card.export.recommended in [cell.recipe for cell in shown]
    # Weight-only int8 is as good as int8 with activations, as large, and four times slower.
    assert not {"int8", "bf16-window"} & {cell.recipe for cell in shown}
    assert choice.beaten_by(next(c for c in facts.cells if c.recipe == "int8"), facts.cells) == "8da8w"
    by_name = {cell.recipe: cell for cell in facts.cells}
    assert choice.trade(by_name["8da8w"], by_name["8da4w"]) == (
        "closer to the original (98.6%) but 42% larger and 31% slower; it needs 12 GB of RAM"
    )
    assert choice.trade(by_name["8da4w"], by_name["8da4w"]) == "much the same as `8da4w`"


def test_what_speaks_for_a_file_is_true_of_each_word(card: Card) -> None:
    def one(recipe: str, size: int, agrees: float, speed: float) -> CellFacts:
        cell = sample(card, recipe, "x")
        logits = cell.parity.logits.model_copy(update={"top1_agreement": agrees})
        return cell.model_copy(
            update={
                "file": cell.file.model_copy(update={"bytes": size}),
                "parity": cell.parity.model_copy(update={"logits": logits}),
                "speed": cell.speed.model_copy(update={"decode_tokens_per_second": speed}),
            }
        )

    best, small = one("8da4w", 300, 0.9, 10), one("8da4w-small", 200, 0.8, 12)
    for closer, said in (
        (one("8da8w", 400, 0.98, 11), "smaller than `8da8w`"),
        (one("8da8w", 400, 0.98, 8), "smaller and faster than `8da8w`"),
        (one("8da8w", 305, 0.98, 8), "faster than `8da8w`"),
    ):
        cells = [best, small, closer]
        expected = f"It is {said}, and closer to the original than `8da4w-small`."
        assert choice.why(best, cells, cells) == expected
    assert choice.why(best, [best, small], [best, small]) == "No other file is clearly closer to the original."
    assert choice.why(best, [best], [best]) == "No other file is clearly smaller or closer to the original."


def test_no_device_is_too_small_and_none_is_larger_than_needed(card: Card) -> None:
    cell = sample(card, "8da4w", "x")
    for peak, gigabytes in ((1.9e9, 4), (2.1e9, 6), (3.9e9, 8), (4.1e9, 12), (9e9, 24)):
        speed = cell.speed.model_copy(update={"peak_resident_bytes": int(peak)})
        program = cell.program.model_copy(update={"constant_bytes": 0, "delegate_bytes": 0})
        assert choice.device(cell.model_copy(update={"speed": speed, "program": program})) == gigabytes


def test_samples_are_of_the_very_file_and_never_of_a_stand_in(card: Card, project: Project) -> None:
    facts = all_facts(project, card)
    _, text, _ = made(card, project, facts)
    pick = next(cell for cell in facts.cells if cell.recipe == card.export.recommended)
    shown = text.split("## Sample answers")[1].split("<!-- hubpub:end")[0]
    assert f"`{pick.file.name}`" in shown
    assert all(" ".join(one.text.split()) in shown for one in pick.parity.samples)
    # What was cut is marked, and the mark is explained; a fence that the model wrote closes nothing.
    assert "<pour> … ````" in shown and "the text was cut there" in shown
    whole = tuple(one for one in pick.parity.samples if one.ended)
    ended = pick.model_copy(update={"parity": pick.parity.model_copy(update={"samples": whole})})
    _, text, _ = made(card, project, facts.model_copy(update={"cells": (ended,)}))
    assert "cut there" not in text
    _, text, _ = made(card, project, all_facts(project, card, scale_model=True))
    assert "## Sample answers" not in text
    assert "only four things" not in text


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(top_k=64, top_p=0.95), "recommend top-k 64 and top-p 0.95 ([generation"),
        (Sampling(temperature=0.2), "recommend temperature 0.2"),
        (Sampling(temperature=1.5, top_p=0.9), "out of its range, so set 1"),
        (None, None),
    ],
)
def test_sampling_is_that_of_the_makers_as_far_as_the_runner_goes(
    card: Card, project: Project, sampling: Sampling | None, said: str | None
) -> None:
    facts = all_facts(project, card)
    shipped = FileFact(name="generation_config.json", bytes=200, sha256="d" * 64)
    cells = tuple(
        cell.model_copy(update={"sampling": sampling, "tokenizer": (*cell.tokenizer, shipped)}) for cell in facts.cells
    )
    _, text, _ = made(card, project, facts.model_copy(update={"cells": cells}))
    assert "Its top-p is fixed at 0.9" in text
    assert ("The makers of the model recommend" in text) == (said is not None)
    assert said is None or said in text
    assert ("where the rest matters" in text) == bool(sampling and (sampling.top_k or sampling.top_p))


def test_tools_and_thinking_are_shown_where_the_template_has_them(card: Card, project: Project) -> None:
    facts = all_facts(project, card)
    for dropped, summary in (
        ((), "Tools and thinking"),
        (("thinking",), "Tools"),
        (("tools",), "Thinking"),
        (("tools", "thinking"), None),
    ):
        cells = []
        for cell in facts.cells:
            assert cell.prompt
            known = cell.prompt.turns
            turns = known and known.model_copy(update=dict.fromkeys(dropped))
            cells.append(cell.model_copy(update={"prompt": cell.prompt.model_copy(update={"turns": turns})}))
        _, text, _ = made(card, project, facts.model_copy(update={"cells": tuple(cells)}))
        shown = re.search(r"<summary>(Tools|Thinking|Tools and thinking)</summary>", text)
        assert (shown[1] if shown else None) == (summary if card.variant.chat else None)
        if card.variant.chat:
            for said in ("Tools: get_weather(city)", "<call>get_weather<end>", "<response>sunny"):
                assert (said in text) == ("tools" not in dropped)
            for said in ("<start_of_turn>think", "between `<thought>` and `</thought>`"):
                assert (said in text) == ("thinking" not in dropped)
