"""What a card says of a file on other machines, and of its memory by kind."""

from __future__ import annotations

from cards.sample import facts as all_facts
from hubpub.cards.render import render
from hubpub.config import Project
from hubpub.facts import CellFacts, Gate, Memory, OtherHost, Resident


def shown(project: Project, **changed: object) -> str:
    """The card of a chat model, with something changed in the facts of its recommended file."""
    card = next(one for one in project.cards if one.repo == "gemma-4-E2B-it-pte")
    facts = all_facts(project, card)
    cells = tuple(
        one.model_copy(update=changed if one.recipe == card.export.recommended else {}) for one in facts.cells
    )
    made = render(card, facts.model_copy(update={"cells": cells}), namespace="x", templates=project.templates_dir)
    return made.files["README.md"].decode()


def recommended(project: Project) -> CellFacts:
    card = next(one for one in project.cards if one.repo == "gemma-4-E2B-it-pte")
    return next(one for one in all_facts(project, card).cells if one.recipe == card.export.recommended)


def test_both_processors_stand_side_by_side(project: Project) -> None:
    cell = recommended(project)
    assert "other processors" not in shown(project)
    speed = cell.speed.model_copy(
        update={"host": "Neoverse-N2, 4 cores, Linux", "system": "Linux 6.11 aarch64", "decode_tokens_per_second": 21.5}
    )
    here = cell.speed.model_copy(update={"system": "Linux 6.11 x86_64"})
    other = OtherHost(system="Linux aarch64", parity=cell.parity, speed=speed, gates=cell.gates)
    page = shown(project, speed=here, hosts=(other,))
    rows = [line for line in page.splitlines() if "| x86_64 |" in line or "| aarch64 |" in line]
    assert len(rows) == 2 and rows[1].endswith("| 21.5 |")
    assert "- aarch64: Neoverse-N2, 4 cores, Linux, 4 threads" in page


def test_no_speed_of_an_emulated_processor_is_shown(project: Project) -> None:
    cell = recommended(project)
    why = "the processor is emulated"
    speed = cell.speed.model_copy(
        update={
            "representative": False,
            "reason": why,
            "system": "Linux 6.11 aarch64",
            "decode_tokens_per_second": 0.37,
        }
    )
    page = shown(project, hosts=(OtherHost(system="Linux aarch64", parity=cell.parity, speed=speed, gates=cell.gates),))
    (row,) = [line for line in page.splitlines() if "| aarch64 |" in line]
    assert row.endswith("| - |") and "0.37" not in page
    assert f"would say little of the processor: {why}." in page
    assert why not in shown(project)


def test_a_gate_missed_on_another_machine_is_a_gate_missed(project: Project) -> None:
    cell = recommended(project)
    bad = (Gate(name="kl_mean", kind="max", limit=0.1, measured=0.2, passed=False),)
    other = OtherHost(system="Linux aarch64", parity=cell.parity, speed=cell.speed, gates=bad)
    assert cell.passed and not cell.model_copy(update={"hosts": (other,)}).passed
    assert "Not every gate was passed" in shown(project, hosts=(other,))


def test_memory_is_told_apart(project: Project) -> None:
    cell = recommended(project)
    assert "Memory by kind" not in shown(project)
    at = Resident(anonymous=248_000_000, mapped=38_600_000)
    memory = Memory(loaded=at, prefilled=at, generated=at, generated_tokens=256)
    page = shown(project, speed=cell.speed.model_copy(update={"memory": memory}))
    assert "248 MB + 38.6 MB | 248 MB + 38.6 MB |" in page
    assert "up to 256 tokens long" in page
