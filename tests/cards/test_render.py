"""Cards rendered from declarations and facts: valid metadata, licenses, every figure from the facts, clean text."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cards.sample import facts as sample
from hubpub.cards import charts, choice, licenses
from hubpub.cards.blocks import BLOCK, metadata
from hubpub.cards.render import CHARTS, golden, render, stale
from hubpub.config import Card, Project
from hubpub.errors import RenderError
from hubpub.facts import CardFacts, PromptFormat, SliceFact, Turns, Whole


@pytest.fixture(params=["gemma-3n-E2B-it-pte", "gemma-3n-E4B-it-pte"])
def card(request: pytest.FixtureRequest, project: Project) -> Card:
    """Each committed card."""
    return next(card for card in project.cards if card.repo == request.param)


@pytest.fixture
def facts(card: Card, project: Project) -> CardFacts:
    """A release of it."""
    return sample(project, card)


def text_of(
    card: Card, project: Project, facts: CardFacts | None, previous: CardFacts | None = None, **prose: object
) -> str:
    changed = card.model_copy(update={"card": card.card.model_copy(update=prose)})
    made = render(changed, facts, namespace="someone", templates=project.templates_dir, previous=previous)
    return made.files["README.md"].decode()


def test_committed_cards_are_what_their_facts_render(project: Project) -> None:
    assert stale(project) == []


def test_metadata_makes_the_hub_do_what_it_should(card: Card, project: Project, facts: CardFacts) -> None:
    found = metadata(text_of(card, project, facts))
    assert found["license"] == "gemma"
    assert found["license_link"] == licenses.GEMMA_TERMS
    assert found["base_model"] == card.variant.source
    assert (found["base_model_relation"], found["library_name"]) == ("quantized", "executorch")
    assert found["pipeline_tag"] == "text-generation"
    assert {"executorch", "text-generation", card.variant.family, "on-device"} <= set(found["tags"])
    assert len(found["tags"]) == len(set(found["tags"]))
    # What the Hub filters by: a model to talk to, and one that knows more than one language.
    assert "conversational" in found["tags"]
    assert "multilingual" in found["tags"]
    assert found["language"] == ["en", "multilingual"]


def test_a_base_model_in_one_language_is_neither_conversational_nor_multilingual(project: Project) -> None:
    card = next(card for card in project.cards if not card.variant.chat)
    found = metadata(text_of(card, project, sample(project, card), language=("en",)))
    assert not {"conversational", "multilingual"} & set(found["tags"])


def test_every_file_is_in_the_table_and_in_config_json(card: Card, project: Project, facts: CardFacts) -> None:
    made = render(card, facts, namespace="someone", templates=project.templates_dir)
    text = made.files["README.md"].decode()
    config = json.loads(made.files["config.json"])
    assert {file["file"] for file in config["files"]} == {cell.file.name for cell in facts.cells}
    assert config["recommended"] == f"{card.variant.name}-{card.export.recommended}.pte"
    for cell in facts.cells:
        assert f"[{cell.recipe}](./{cell.file.name})" in text
        assert cell.file.sha256 in text
    assert text.count("| **[") == 1
    assert f"| **[{card.export.recommended}]" in text


def test_every_file_the_card_shows_is_made(card: Card, project: Project, facts: CardFacts) -> None:
    made = render(card, facts, namespace="someone", templates=project.templates_dir).files
    targets = {*re.findall(r"\]\(\./([^)]+)\)", made["README.md"].decode())}
    targets |= {*re.findall(r'(?:src|srcset)="\./([^"]+)"', made["README.md"].decode())}
    published = {c.file.name for c in facts.cells} | {f.name for c in facts.cells for f in c.tokenizer}
    assert targets <= {*made, *published, "facts.json", "SHA256SUMS"}
    assert {*CHARTS, "config.json", "Notice"} <= made.keys()


def test_charts_are_plain_svg_that_a_strict_hub_still_draws(card: Card, project: Project, facts: CardFacts) -> None:
    made = render(card, facts, namespace="someone", templates=project.templates_dir).files
    for name in CHARTS:
        tree = ET.fromstring(made[name])
        tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert tags <= {"svg", "title", "desc", "rect", "line", "circle", "text"}
        assert not any("style" in element.attrib for element in tree.iter())
        # One point for each file of the first table, the ring of the recommended one, and two in the legend.
        shown = choice.worth_a_look(facts.cells, card.export.recommended)
        assert len(tree.findall("{*}circle")) == len(shown) + 3
        for label in tree.findall("{*}text"):
            assert 0 <= float(label.attrib["x"]) <= charts.WIDTH
            assert 0 <= float(label.attrib["y"]) <= charts.HEIGHT


def test_one_file_needs_no_choice(card: Card, project: Project, facts: CardFacts) -> None:
    one = facts.model_copy(update={"cells": facts.cells[:1]})
    made = render(card, one, namespace="someone", templates=project.templates_dir).files
    assert not CHARTS.keys() & made.keys()
    assert b"<picture>" not in made["README.md"]


def test_a_rehearsal_says_so_at_the_top(card: Card, project: Project) -> None:
    text = text_of(card, project, sample(project, card, scale_model=True))
    assert text.index("> [!WARNING]") < text.index("## Choose a file")
    assert "[!WARNING]" not in text_of(card, project, sample(project, card))


def test_without_facts_there_are_no_figures(card: Card, project: Project) -> None:
    text = text_of(card, project, None)
    assert "There is no release of this repo yet" in text
    body = text.split("\n---\n", 1)[1]
    assert not re.search(r"\d (MB|GB|tokens)|tokens/s|```", body)
    assert "coming soon" not in text.lower()


def test_the_text_is_tidy(card: Card, project: Project, facts: CardFacts) -> None:
    for text in (text_of(card, project, facts), text_of(card, project, None), text_of(card, project, facts, facts)):
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        # Two empty lines stand before a function of Python, and nowhere else.
        assert "\n\n\n" not in re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "code", text)
        assert not re.search(r"[ \t]\n", text)
        assert not re.search(r"\{\{|\{%|None|Undefined", text)


def test_prefill_takes_positions_as_the_program_asks(card: Card, project: Project, facts: CardFacts) -> None:
    assert "torch.tensor([held])" in text_of(card, project, facts)
    cell = facts.cells[0]
    method = cell.program.methods[0]
    wide = method.model_copy(update={"inputs": (method.inputs[0], method.inputs[0])})
    program = cell.program.model_copy(update={"methods": (wide,)})
    other = facts.model_copy(update={"cells": (cell.model_copy(update={"program": program}),)})
    assert "torch.arange(held, held + len(piece))" in text_of(card, project, other)


def test_python_blocks_are_python(card: Card, project: Project, facts: CardFacts) -> None:
    blocks = re.findall(r"```python\n(.*?)```", text_of(card, project, facts), re.DOTALL)
    assert len(blocks) == 4
    for code in blocks:
        compile(code, "card", "exec")
        assert f'"{facts.version}"' in code


def test_layers_that_were_tuned_are_named(card: Card, project: Project, facts: CardFacts) -> None:
    tuned = {"mlp.down_proj": ("0", "8-29"), "self_attn.o_proj": ("7",)}
    cells = tuple(one.model_copy(update={"tuned": tuned if one.recipe == "8da4w" else {}}) for one in facts.cells)
    text = text_of(card, project, facts.model_copy(update={"cells": cells}))
    said = "Of this model also int8: `mlp.down_proj` in layers 0, 8-29; `self_attn.o_proj` in layer 7 |"
    assert text.count("also int8") == 1 and said in next(line for line in text.splitlines() if "also int8" in line)
    assert "also int8" not in text_of(card, project, facts)


def test_a_gate_that_was_not_passed_is_not_praised(card: Card, project: Project, facts: CardFacts) -> None:
    assert "Every file passed these gates" in text_of(card, project, facts)
    gate = facts.cells[0].gates[1].model_copy(update={"measured": 0.3, "passed": False})
    failed = facts.cells[0].model_copy(update={"gates": (gate,)})
    text = text_of(card, project, facts.model_copy(update={"cells": (failed, *facts.cells[1:])}))
    assert "Not every gate was passed" in text
    assert "**0.3 > 0.2**" in text


def test_changes_since_the_release_before(card: Card, project: Project, facts: CardFacts) -> None:
    cell = facts.cells[0]
    smaller = cell.model_copy(update={"file": cell.file.model_copy(update={"bytes": cell.file.bytes // 2})})
    new = facts.model_copy(update={"version": "v1.1.0", "cells": (smaller, *facts.cells[1:-1])})
    text = text_of(card, project, new, facts)
    assert "## Changes since v1.0.0" in text
    assert "file size: 3.24 GB → 1.62 GB" in text
    assert f"`{facts.cells[-1].cell}` is no longer here" in text
    assert f"`{facts.cells[1].cell}` is as before" in text
    assert "## Changes" not in text_of(card, project, facts, facts)
    assert "## Changes" not in text_of(card, project, new, sample(project, card, "v0.9.0", scale_model=True))


def test_gemma_is_passed_on_as_its_terms_ask(card: Card, project: Project, facts: CardFacts) -> None:
    made = render(card, facts, namespace="x", templates=project.templates_dir).files
    for text in (made["Notice"].decode(), made["README.md"].decode().replace("[", "").split("](https")[0]):
        assert "Gemma" in text
    notice = made["Notice"].decode()
    assert licenses.GEMMA_NOTICE in notice
    assert "modified" in notice
    assert "Prohibited Use Policy" in notice


def test_apache_goes_with_its_text(card: Card) -> None:
    variant = card.variant.model_copy(update={"license": "apache-2.0", "family": "gemma4"})
    found = licenses.files(variant, card.folder.parent)
    assert b"Apache License" in found["LICENSE"]
    assert b"modified" in found["NOTICE"]


def test_the_agreement_goes_with_every_repo_where_its_text_is_there(
    card: Card, project: Project, facts: CardFacts, tmp_path: Path
) -> None:
    mine = card.model_copy(update={"folder": tmp_path / "cards" / card.repo})
    mine.folder.mkdir(parents=True)
    assert "Notice" in licenses.files(mine.variant, mine.folder.parent)
    assert "gemma-terms-of-use.txt" in str(licenses.lacks_agreement(mine.variant, mine.folder.parent))
    text = b"Gemma Terms of Use\n3.1 Distribution\n3.2 Use\n"
    (mine.folder.parent / licenses.AGREEMENT).write_bytes(text)
    made = render(mine, facts, namespace="x", templates=project.templates_dir).files
    assert made["LICENSE"] == text
    assert "A copy is in [LICENSE](./LICENSE)" in made["README.md"].decode()
    assert "a copy is in LICENSE" in made["Notice"].decode()
    assert licenses.lacks_agreement(mine.variant, mine.folder.parent) is None
    (mine.folder.parent / licenses.AGREEMENT).write_text("404 Not Found")
    with pytest.raises(RenderError, match="not the Gemma Terms of Use"):
        render(mine, facts, namespace="x", templates=project.templates_dir)
    # A model under another license takes no notice of it.
    apache = mine.variant.model_copy(update={"license": "apache-2.0", "family": "gemma4"})
    assert b"Apache License" in licenses.files(apache, mine.folder.parent)["LICENSE"]


def test_a_family_of_many_publishers_has_the_license_of_the_card(project: Project) -> None:
    (variant,) = (card.variant for card in project.cards if card.variant.name == "SmolLM2-135M-Instruct")
    assert licenses.files(variant, project.cards_dir).keys() == {"LICENSE", "NOTICE"}
    notice = licenses.files(variant, project.cards_dir)["NOTICE"].decode()
    assert f"modified from {variant.source} at revision {variant.revision}" in notice
    assert "multimodal" not in notice
    assert licenses.files(variant.model_copy(update={"license": "gemma"}), project.cards_dir).keys() == {"Notice"}


@pytest.mark.parametrize(("family", "license_"), [("gemma3n", "apache-2.0"), ("gemma4", "gemma")])
def test_a_license_nobody_gave_is_refused(card: Card, family: str, license_: str) -> None:
    variant = card.variant.model_copy(update={"license": license_, "family": family})
    with pytest.raises(RenderError, match=r"variant\.license: .* comes under"):
        licenses.files(variant, card.folder.parent)


@pytest.mark.parametrize(
    ("template", "says", "line"),
    [
        ("{{ facts.nothing }}", r"card\.md\.jinja:1: .*nothing", 1),
        ("a\n\n{% if %}", r"card\.md\.jinja:3: ", 3),
        ("a\n{{ ''.__class__.__mro__ }}", r"card\.md\.jinja:2: .*unsafe", 2),
        ("a\n{{ nobody }}", r"card\.md\.jinja:2: 'nobody' is undefined", 2),
        ("\n\n{% include 'gone.md.jinja' %}", r"card\.md\.jinja:3: there is no template gone\.md\.jinja", 3),
        ("{{ 1 // 0 }}", r"card\.md\.jinja:1: .*division", 1),
        ("\n{{ facts.cells | percent }}", r"card\.md\.jinja:2: ", 2),
    ],
)
def test_a_wrong_template_names_file_and_line(
    card: Card, facts: CardFacts, tmp_path: Path, template: str, says: str, line: int
) -> None:
    (tmp_path / "card.md.jinja").write_text(template)
    with pytest.raises(RenderError, match=says) as caught:
        render(card, facts, namespace="x", templates=tmp_path)
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "card.md.jinja"), line)


def test_a_card_of_no_cells_is_refused(card: Card, facts: CardFacts, project: Project) -> None:
    with pytest.raises(RenderError, match="hold no cells"):
        render(card, facts.model_copy(update={"cells": ()}), namespace="x", templates=project.templates_dir)


def test_a_new_variant_needs_a_folder_and_nothing_else(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "cards" / "mine"
    folder.mkdir(parents=True)
    text = (project.cards_dir / "gemma-3n-E2B-it-pte" / "card.toml").read_text()
    (folder / "card.toml").write_text(text.replace("gemma-3n-E2B-it", "gemma-9-X").replace("gemma3n", "gemma4")
                                      .replace('license = "gemma"', 'license = "apache-2.0"'))  # fmt: skip
    mine = Project(tmp_path / "cards", project.templates_dir)
    made = render(mine.cards[0], sample(mine, mine.cards[0]), namespace="x", templates=mine.templates_dir).files
    assert {"LICENSE", "NOTICE", "README.md", "config.json"} <= made.keys()
    assert b"gemma-9-X-8da4w.pte" in made["README.md"]


def test_the_same_input_gives_the_same_bytes(card: Card, project: Project, facts: CardFacts) -> None:
    made = [render(card, facts, namespace="x", templates=project.templates_dir).files for _ in range(2)]
    assert made[0] == made[1]
    names = [match["name"] for match in BLOCK.finditer(made[0]["README.md"].decode())]
    assert len(names) == len(set(names))


def test_all_cards_render_in_a_second(project: Project) -> None:
    started = time.process_time()
    for card in project.cards:
        golden(card, project)
        render(card, sample(project, card), namespace="x", templates=project.templates_dir)
    assert time.process_time() - started < 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["render", "diff", "preview"])
def test_help_takes_no_time(command: str) -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "hubpub", command, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


def test_rendering_imports_nothing_heavy() -> None:
    code = (
        "import sys, hubpub.cards.render, hubpub.cards.published\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'rich', 'markdown_it'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_marks_of_turns_are_written_as_they_are(project: Project) -> None:
    card = next(card for card in project.cards if card.repo == "gemma-4-E2B-it-pte")
    facts = sample(project, card)
    turns = Turns(
        opening="<|turn>user\n", reply="<turn|>\n<|turn>model\n", again="<turn|>\n<|turn>user\n", end="<turn|>"
    )
    prompt = PromptFormat(bos="<bos>", turns=turns)
    cells = tuple(cell.model_copy(update={"prompt": prompt}) for cell in facts.cells)
    text = text_of(card, project, facts.model_copy(update={"cells": cells}))
    # Outside of a table a bar is a bar.
    assert "The answer ends with `<turn|>`" in text
    assert "\\|" not in "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def test_a_model_that_wants_no_first_token_gets_none(card: Card, project: Project, facts: CardFacts) -> None:
    turns = Turns(opening="<s>user\n", reply="</s>model\n", again="</s>user\n", end="</s>", system=None)
    cells = tuple(cell.model_copy(update={"prompt": PromptFormat(bos="", turns=turns)}) for cell in facts.cells)
    text = text_of(card, project, facts.model_copy(update={"cells": cells}))
    assert "leave `num_bos` at 0" in text
    assert "numBos = 0," in text
    assert "$0.bosCount = 0" in text
    assert "config.num_bos = 0;" in text
    assert "config.num_bos = 1;" not in text
    assert "With a system message" not in text
    # Facts of an older release do not say: then the family does.
    old = tuple(cell.model_copy(update={"prompt": None}) for cell in facts.cells)
    text = text_of(card, project, facts.model_copy(update={"cells": old}))
    assert "numBos = 1," in text
    assert "<summary>React Native" not in text


def test_packed_weights_are_for_files_that_they_do_not_crash(card: Card, project: Project, facts: CardFacts) -> None:
    """A delegate with more than weights reads constants that are freed once its weights are in a file."""
    assert "load_packed" in text_of(card, project, facts)
    cell = facts.cells[0]
    program = cell.program.model_copy(update={"unpacked_constants": 2})
    softcapped = cell.model_copy(update={"program": program})
    text = text_of(card, project, facts.model_copy(update={"cells": (softcapped, *facts.cells[1:])}))
    assert "load_packed" not in text
    assert "packed_cache_path" not in text


def test_a_card_of_a_slice_says_of_what_and_whose_figure_is_whose(project: Project) -> None:
    card = next(card for card in project.cards if card.repo == "gemma-3n-E2.69B-it-pte")
    facts = sample(project, card)
    part = SliceFact(name="E2.69B", widths=(16384, 8192, 8192), skip=(3,), layers=4)
    far = Whole(kl_mean=0.056, top1_agreement=0.902, perplexity=43.5, perplexity_whole=43.9)
    cells = [
        cell.model_copy(
            update={
                "source": cell.source.model_copy(update={"slice": part}),
                "parity": cell.parity.model_copy(update={"whole": far}),
            }
        )
        for cell in facts.cells
    ]
    text = text_of(card, project, facts.model_copy(update={"cells": tuple(cells)}))
    assert metadata(text)["base_model"] == "google/gemma-3n-E4B-it"
    assert "of the 4 layers of [google/gemma-3n-E4B-it]" in text and "without 3; feed-forward widths 1 x 16,384" in text
    assert "Google reports 57.7% on MMLU" in text and "not measured on these files" in text
    assert "90.2% of the next tokens, at a mean KL of 0.056" in text
