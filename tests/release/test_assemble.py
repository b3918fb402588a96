"""What may become a release of a card: all of its cells, of its source, measured as now, past the gates as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError, ConflictError, GateError
from hubpub.facts import MEASURING, CardFacts, CellFacts, Whole, Workflow, dump
from hubpub.hub.client import Client
from hubpub.localhub import LocalHub
from hubpub.release.assemble import Ready, assemble, complete_card
from hubpub.release.connect import Destination
from hubpub.release.targets import check_targets

from .conftest import CARD, facts_of, release_facts, write_card
from .test_targets import put


def known(project: Project, *, scale_model: bool = False) -> dict[str, CellFacts]:
    return {
        facts.cell: facts
        for recipe in project.cards[0].export.recipes
        for facts in [facts_of(project, recipe, scale_model=scale_model)]
    }


def complete(project: Project, facts: dict[str, CellFacts], *, rehearsal: bool = False, partial: bool = False) -> Ready:
    return complete_card(project, project.cards[0], facts, {}, rehearsal=rehearsal, partial=partial)


def test_every_cell_in_the_order_of_the_card(small: Project) -> None:
    found = complete(small, dict(reversed(known(small).items())))
    assert [one.recipe for one in found.cells] == ["8da4w", "8da8w"]
    assert not found.partial


def test_a_missing_cell_keeps_the_repo_back_but_for_a_look(small: Project) -> None:
    facts = known(small)
    del facts["small/8da8w"]
    with pytest.raises(ConfigError, match="no facts of small/8da8w"):
        complete(small, facts)
    found = complete(small, facts, partial=True)
    assert found.partial and [one.recipe for one in found.cells] == ["8da4w"]
    with pytest.raises(ConfigError, match="no facts of small/8da4w, small/8da8w"):
        complete(small, {}, partial=True)


def test_an_excluded_cell_is_not_missed(tmp_path: Path) -> None:
    text = CARD + '[[exclude]]\nrecipe = "8da8w"\nreason = "too large"\n'
    project = write_card(tmp_path, text)
    facts = known(project)
    del facts["small/8da8w"]
    assert [one.recipe for one in complete(project, facts).cells] == ["8da4w"]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"source": {"scale_model": True}}, "measured on a scale model"),
        ({"source": {"revision": "1" * 40}}, "not of the source its card names"),
        ({"source": {"repo": "google/other"}}, "not of the source its card names"),
        ({"file": {"name": "other.pte"}}, "facts are of other.pte"),
        ({"parity": {"measuring": MEASURING - 1}}, "measured in another way"),
        ({"speed": {"sha256": "0" * 64}}, "measured in another way"),
    ],
)
def test_facts_of_something_else_are_refused(
    small: Project, update: dict[str, dict[str, object]], message: str
) -> None:
    facts = known(small)
    one = facts["small/8da4w"]
    changed = {key: getattr(one, key).model_copy(update=inner) for key, inner in update.items()}
    facts["small/8da4w"] = one.model_copy(update=changed)
    with pytest.raises(ConfigError, match=message):
        complete(small, facts)


def test_gates_are_those_of_now_and_not_those_of_the_facts(small: Project, tmp_path: Path) -> None:
    facts = known(small)
    kept = facts["small/8da4w"]
    facts["small/8da4w"] = kept.model_copy(update={"gates": ()})
    assert complete(small, facts).cells[0].gates
    gates = '[recipe.8da4w]\nname = "8da4w"\nsummary = "s"\ndtype = "fp32"\nbackend = "xnnpack"\n'
    gates += "[recipe.8da4w.gates]\nkl_mean_max = 1e-30\ntop1_min = 1.0\n"
    with pytest.raises(GateError, match="kl_mean"):
        complete(write_card(tmp_path / "strict", CARD + gates), facts)


@pytest.mark.parametrize(("distance", "refused"), [(0.178, False), (0.435, True), (float("inf"), True)])
def test_a_slice_that_is_far_from_its_whole_is_not_released(small: Project, distance: float, refused: bool) -> None:
    """0.435 is that of a stand-in with a layer less than it was trained for: see tests/measure/test_slices.py."""
    facts = known(small)
    kept = facts["small/8da4w"]
    whole = Whole(kl_mean=distance, top1_agreement=0.8, perplexity=11.0, perplexity_whole=10.0)
    parity = kept.parity.model_copy(update={"whole": whole})
    facts["small/8da4w"] = kept.model_copy(update={"parity": parity, "gates": ()})
    if refused:
        with pytest.raises(GateError, match="slice_kl_mean"):
            complete(small, facts)
    else:
        assert {gate.name for gate in complete(small, facts).cells[0].gates} > {"slice_kl_mean"}


def test_the_commit_says_which_runs_made_the_files(hub: LocalHub, client: Client, small: Project) -> None:
    facts = known(small)
    run = Workflow(repository="a/b", commit="c0ffee", run="https://github.com/a/b/actions/runs/1")
    facts["small/8da4w"] = facts["small/8da4w"].model_copy(update={"workflow": run})
    release, _ = assemble(small, complete(small, facts), Destination(client, hub.user), "v1.0.0")
    assert release.message == f"Release v1.0.0\n\nMade by {run.run} from commit c0ffee."


def test_a_release_follows_no_rehearsal(hub: LocalHub, client: Client, small: Project) -> None:
    to = Destination(client, hub.user)
    put(client, to.repo_id(small.cards[0]), dump(release_facts(small, "v0.0.0-rehearsal.1", scale_model=True)))
    _, made = assemble(small, complete(small, known(small)), to, "v1.0.0")
    assert isinstance(made, CardFacts) and made.previous is None
    put(client, to.repo_id(small.cards[0]), dump(release_facts(small, "v0.9.0", scale_model=False)))
    _, made = assemble(small, complete(small, known(small)), to, "v1.0.0")
    assert made.previous == "v0.9.0"


def test_a_release_that_was_never_tagged_follows_what_it_followed_then(
    hub: LocalHub, client: Client, small: Project
) -> None:
    """Newer ones are out meanwhile: with other facts it would be another release under the same version."""
    to = Destination(client, hub.user)
    repo = to.repo_id(small.cards[0])

    for version, previous, tag in [("v0.9.0", None, True), ("v1.0.0", "v0.9.0", False), ("v1.1.0", "v0.9.0", True)]:
        facts = release_facts(small, version, scale_model=False).model_copy(update={"previous": previous})
        put(client, repo, dump(facts), version if tag else None, message=f"Hubpub-Release: {version}")
    _, made = assemble(small, complete(small, known(small)), to, "v1.0.0")
    assert made.previous == "v0.9.0"
    _, made = assemble(small, complete(small, known(small)), to, "v1.2.0")
    assert made.previous == "v1.1.0"
    with pytest.raises(ConflictError, match=r"older v1\.0\.5"):
        check_targets(to, small.cards, rehearsal=False, version="v1.0.5")
    assert check_targets(to, small.cards, rehearsal=False, version="v1.0.0")
