"""A published file is made again, byte for byte, or it is said what is not as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran, Silent, hubpub

from hubpub.config import Project
from hubpub.errors import ConfigError, SourceError, ToolchainError
from hubpub.facts import CardFacts, CellFacts, dump, load, save
from hubpub.hub.client import Client
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.publish import publish_all
from hubpub.localhub import LocalHub
from hubpub.make.rebuild import Comparison, rebuild, record, with_rebuilds
from hubpub.workspace import Workspace
from make.conftest import CELL, Made

pytestmark = pytest.mark.slow


def changed(facts: CellFacts, **update: Any) -> CellFacts:
    return facts.model_copy(update=update)


def test_what_was_rebuilt_is_noted_where_it_is_of(made: Made, tmp_path: Path) -> None:
    own = made.facts.file
    found = Comparison(CELL, own.name, own.sha256, own.sha256, python="3.13.1", system="Linux 6, x86_64")
    assert found.same
    folder = tmp_path / "card"
    shutil.copytree(made.step.cell.card.folder, folder)
    card = made.step.cell.card.model_copy(update={"folder": folder})
    facts = CardFacts(repo="a/b", version="v1.0.0", variant=made.facts.variant, cells=(made.facts,))
    save(facts, folder / "facts.json")
    path = record(card, found)
    assert record(card, found) == path and len(json.loads(path.read_text())["made"]) == 1
    (cell,) = load(CardFacts, folder / "facts.json").cells
    (rebuilt,) = cell.rebuilt
    assert (rebuilt.python, rebuilt.system) == (found.python, found.system)
    # A file with other bytes was not rebuilt.
    other = changed(made.facts, file=made.facts.file.model_copy(update={"sha256": "0" * 64}))
    assert with_rebuilds(facts.model_copy(update={"cells": (other,)}), card).cells[0].rebuilt == ()


def test_another_file_is_kept_and_what_is_known_of_the_reason_is_said(made: Made) -> None:
    published, display = changed(made.facts, file=made.facts.file.model_copy(update={"sha256": "0" * 64})), Silent()
    found = rebuild(made.workspace, published, display)
    assert display.finished == {CELL: "another file"}
    assert not found.same and found.rebuilt == made.facts.file.sha256
    assert found.kept is not None and Path(found.kept).stat().st_size == made.facts.file.bytes
    assert "are those on record" in found.reason
    Path(found.kept).unlink()


@pytest.mark.parametrize("package", ["torch", "executorch", "torchao", "transformers", "hubpub"])
def test_other_versions_are_refused_before_anything_is_done(made: Made, package: str) -> None:
    published = changed(made.facts, toolchain={**made.facts.toolchain, package: "0.0.1"})
    with pytest.raises(ToolchainError, match=rf"was made with {package} 0\.0\.1 \(here: ") as refused:
        rebuild(made.workspace, published, Silent())
    assert refused.value.hint == f"pip install '{package}==0.0.1'"


def test_another_python_is_not_refused(made: Made) -> None:
    from hubpub.make.rebuild import refuse_other_versions

    refuse_other_versions(changed(made.facts, toolchain={**made.facts.toolchain, "python": "3.99.0"}))


def test_another_source_is_refused(made: Made) -> None:
    files = (made.facts.source.files[0].model_copy(update={"sha256": "0" * 64}), *made.facts.source.files[1:])
    published = changed(made.facts, source=made.facts.source.model_copy(update={"files": files}))
    with pytest.raises(SourceError, match=r"config\.json is not the one that .* was made of"):
        rebuild(made.workspace, published, Silent())


def test_a_cell_that_is_not_declared_is_refused(made: Made, rehearsed: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody/8da4w is not declared"):
        rebuild(Workspace(rehearsed, tmp_path, rehearsal=True), changed(made.facts, cell="nobody/8da4w"), Silent())


def test_verify_rebuilds_what_a_hub_holds(made: Made, tmp_path: Path) -> None:
    """From the command line: facts and sums come from the Hub, the file from here."""
    cell = changed(made.facts, tokenizer=())
    facts = CardFacts(repo="x/small", version="v1.0.0", variant=cell.variant, cells=(cell,))
    own = cell.file
    with LocalHub(tmp_path / "hub") as hub:
        repo = f"{hub.user}/small"
        files = (
            LocalFile(own.name, made.step.pte, own.bytes, own.sha256),
            LocalFile.text("facts.json", dump(facts)),
            LocalFile.text("LICENSE", "terms"),
        )
        release = RepoRelease(repo, "v1.0.0", files, "A release", card_merge=lambda text: text or "# Small\n")
        publish_all(Client(hub.url, hub.token), [release], tmp_path / "work")

        def verify(*more: str) -> Ran:
            command = ("verify", f"{repo}@v1.0.0", "--hub", hub.url, "--json", *more)
            home = str(tmp_path / "hf")
            return hubpub(*command, work=made.workspace.root, HF_TOKEN=hub.token, HF_HOME=home)

        ran = verify("--rebuild", CELL)
        assert ran.code == 0, ran.err
        assert f"{CELL}: the same file" in ran.err
        rebuilt = ran.json["rebuilt"]
        assert rebuilt["same"] and rebuilt["published"] == rebuilt["rebuilt"] == own.sha256
        assert (rebuilt["reason"], rebuilt["kept"]) == ("", None)
        assert not list(made.workspace.rebuilds(CELL).glob("*.pte"))
        ran = verify("--rebuild", "gemma-4-E2B-it/fp32")
        assert ran.code == 2 and ran.json["hint"] == f"its cells: {CELL}"
        ran = verify("--record")
        assert ran.code == 2 and "--rebuild" in ran.json["hint"]
        ran = verify()
        assert ran.code == 0 and ran.json["rebuilt"] is None
