"""What is tuned is written into the card as data that a person reads and a release repeats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import OF_FAMILY, ROOT, scale_model

from hubpub.cli.app import main
from hubpub.config import Project
from hubpub.errors import ConfigError, UsageError
from hubpub.make.tuning import bytes_of, card_of, write_tuned
from hubpub.matrix import cells, select
from hubpub.plan import fingerprint

REPO = "SmolLM2-360M-Instruct-pte"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with the one card, to be written to."""
    (tmp_path / "cards" / REPO).mkdir(parents=True)
    shutil.copy(ROOT / "cards" / REPO / "card.toml", tmp_path / "cards" / REPO)
    return Project.find(tmp_path)


def again(project: Project) -> Project:
    return Project.find(project.root)


def test_the_card_says_what_was_chosen_and_the_cell_is_another(project: Project) -> None:
    path = project.cards_dir / REPO / "card.toml"
    before = path.read_text()
    (cell,) = select(cells(project), ["*/8da4w"])
    write_tuned(cell.card, "8da4w", {"mlp.down_proj": ("0-4", "29"), "self_attn.o_proj": ("7",)})
    text = path.read_text()
    assert text.startswith(before)
    assert '[tuned.8da4w]\n"mlp.down_proj" = ["0-4", "29"]\n"self_attn.o_proj" = ["7"]\n' in text
    (tuned,) = select(cells(again(project)), ["*/8da4w"])
    assert tuned.recipe.tuned == {"mlp.down_proj": ("0-4", "29"), "self_attn.o_proj": ("7",)}
    one, other = (fingerprint(each, rehearsal=False) for each in (cell, tuned))
    assert other.changes(one) == ["recipe"]
    (untouched,) = select(cells(again(project)), ["*/8da8w"])
    assert untouched.recipe.tuned == {}
    # Nothing is left of it where nothing is chosen.
    write_tuned(tuned.card, "8da4w", {})
    assert path.read_text().strip() == before.strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"mlp.down_proj" = ["7-3"]', "a layer or a range of layers"),
        ('"mlp.down_proj" = ["all"]', "a layer or a range of layers"),
    ],
)
def test_what_is_no_range_is_refused(project: Project, line: str, message: str) -> None:
    path = project.cards_dir / REPO / "card.toml"
    path.write_text(path.read_text() + f"\n[tuned.8da4w]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        _ = again(project).cards


def test_a_recipe_that_cannot_be_tuned_is_refused(project: Project) -> None:
    path = project.cards_dir / REPO / "card.toml"
    path.write_text(path.read_text() + '\n[tuned.bf16]\n"mlp.down_proj" = ["0"]\n')
    (card,) = again(project).cards
    with pytest.raises(ConfigError, match=r"tuned: only linear layers with int8 activations are tuned"):
        again(project).recipe(card, "bf16")


@pytest.mark.parametrize(
    ("text", "size"), [("105MB", 105_000_000), ("1.3 gb", 1_300_000_000), ("2MiB", 2 << 20), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "12 apples", "-3MB", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        bytes_of(text)


def test_unknown_variants_and_recipes_are_named(project: Project) -> None:
    with pytest.raises(UsageError, match="no card has a variant 'Smol'"):
        card_of(project, "Smol", "8da4w")
    with pytest.raises(UsageError, match="does not offer 8da4w-small"):
        card_of(project, "SmolLM2-360M-Instruct", "8da4w-small")


def test_tuning_a_variant(project: Project, scale_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = scale_model(OF_FAMILY["llama"], scale_cache)
    asked = ["tune", "SmolLM2-360M-Instruct", "--project", str(project.root), "--source", str(source)]
    path = project.cards_dir / REPO / "card.toml"
    before = path.read_text()
    assert main([*asked, "--budget", "1GB", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert path.read_text() == before and said["written"] is None
    assert {one["kind"].partition(".")[0] for one in said["parts"]} == {"self_attn", "mlp"}
    assert all(one["chosen"] for one in said["parts"])
    dearest = said["parts"][0]
    assert main([*asked, "--budget", str(said["bytes_before"] + dearest["bytes"])]) == 0
    assert "of what int4 costs is left" in capsys.readouterr().out
    (cell,) = select(cells(again(project)), ["*/8da4w"])
    assert dearest["kind"] in cell.recipe.tuned
    assert main([*asked, "--budget", "10kB"]) == 2
    assert "give a larger --budget" in capsys.readouterr().err
