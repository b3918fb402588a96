"""Declarations: what is accepted, what an error says of what is not, and what nobody meant well."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from hubpub import cli
from hubpub.config import Project
from hubpub.errors import ConfigError
from hubpub.matrix import cells

ROOT = Path(__file__).parent.parent
HOSTILE = [
    '"../../outside"', '"/etc/passwd"', '"a\\u0000b"', '"a\\nb"', '"' + "x" * 100_000 + '"', '"--help"', '"{{ 7*7 }}"',
    '"../.git/config"', '"$(id)"', "-1", "0", "9" * 40, "1e400", "nan", "true", "[]", "[[[[]]]]", "{}", '{ a = "b" }',
    "1979-05-27", '["8da4w", "8da4w"]', '[{ weight = "int4" }]', '"\U0001f600"', '""',
]  # fmt: skip


def mutated(rng: random.Random, text: str) -> str:
    """`text` with one or more lines broken: values replaced, lines doubled, dropped or cut, bytes scattered."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 if " = " in lines[at]:
                lines[at] = lines[at].split(" = ")[0] + " = " + rng.choice(HOSTILE)
            case 2:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 3:
                del lines[at]
            case 4:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case _:
                lines.insert(at, "".join(chr(rng.choice([0, 9, 34, 39, 61, 91, 93, 123, 8232])) for _ in range(9)))
    return "\n".join(lines) + "\n"


def test_fuzzed_cards_and_recipes_never_break_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(6)
    root = tmp_path / "deep" / "project"
    folder = root / "cards" / "gemma-3n-E2B-it-pte"
    shutil.copytree(ROOT / "cards" / "gemma-3n-E2B-it-pte", folder)
    shutil.copytree(ROOT / "templates", root / "templates")
    card = (folder / "card.toml").read_text()
    recipe = (ROOT / "hubpub" / "recipes.toml").read_text().replace("[recipe.", "[recipe.my-")
    before = {path for path in tmp_path.rglob("*") if "/work" not in str(path)}
    refused, began = 0, time.process_time()
    for number in range(150):
        text = mutated(rng, card) + (mutated(rng, recipe) if number % 3 == 0 else "")
        (folder / "card.toml").write_text(text)
        for command in ("plan", "render"):
            common = ["--project", str(root), "--work", str(tmp_path / "work")]
            code = cli.main([command, *(["--check"] if command == "render" else ["--rehearse"]), *common])
            captured = capsys.readouterr()
            assert code in {0, 3, 8}, (text, captured.err[-2000:])
            assert "Traceback" not in captured.err and "a defect of hubpub" not in captured.err, (text, captured.err)
            refused += code == 3
    assert refused > 100 and time.process_time() - began < 60
    assert {path for path in tmp_path.rglob("*") if "/work" not in str(path)} == before


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\0" * 100, b"[" * 5000, b"a" * (5 << 20), b"", b"\xef\xbb\xbfschema=1"]
)
def test_files_that_are_no_toml(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "cards" / "one").mkdir(parents=True)
    (tmp_path / "cards" / "one" / "card.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"card\.toml"):
        cells(Project.find(tmp_path))


CARD = """
schema = 1
repo = "{name}-pte"

[variant]
name = "{name}"
source = "google/gemma-3n-E2B-it"
revision = "5e092ebca197cdcd8d8b195040accf22693501bc"
family = "gemma3n"
license = "gemma"

[export]
recipes = ["8da4w", "bf16"]
recommended = "8da4w"

[card]
title = "A model"
"""


def make(root: Path, **cards: str) -> Project:
    for name, text in cards.items():
        folder = root / "cards" / name
        folder.mkdir(parents=True)
        (folder / "card.toml").write_text(text)
    return Project.find(root)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[export]", "[exprot]", r"card\.toml:12: exprot: unknown key"),
        ("recommended", "recomended", r"export\.recomended: unknown key"),
        ('"8da4w", "bf16"', '"8da4w", "int2"', r"export\.recipes: unknown recipe 'int2'"),
        ("5e092ebca197cdcd8d8b195040accf22693501bc", "main", r"variant\.revision: must be a commit id"),
        ('repo = "a-pte"', 'repo = "../a"', r"repo: must be 1 to 96"),
        ("google/gemma-3n-E2B-it", "gemma", r"variant\.source: must be 'owner/name'"),
        ('recommended = "8da4w"', 'recommended = "int8"', r"'int8' is not one of recipes"),
        ("schema = 1", "schema = 2", r"card\.toml:2: schema"),
        ("schema = 1", "schema = ", r"not valid TOML"),
        ('title = "A model"', "", r"card\.title: this key is missing"),
    ],
)
def test_a_wrong_card_names_file_key_and_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = CARD.format(name="a")
    assert old in text
    with pytest.raises(ConfigError, match=says):
        cells(make(tmp_path, a=text.replace(old, new, 1)))


def test_two_cards_with_one_file_name_are_refused(tmp_path: Path) -> None:
    project = make(tmp_path, a=CARD.format(name="a"), b=CARD.format(name="a").replace("a-pte", "b-pte"))
    with pytest.raises(ConfigError, match=r"duplicate file name 'a-8da4w\.pte'"):
        cells(project)


def test_two_cards_with_one_repo_are_refused(tmp_path: Path) -> None:
    project = make(tmp_path, a=CARD.format(name="a"), b=CARD.format(name="b").replace("b-pte", "a-pte"))
    with pytest.raises(ConfigError, match=r"'a-pte' is also declared in a/card\.toml"):
        cells(project)


@pytest.mark.parametrize(
    ("dtype", "backend", "scheme", "problem"),
    [
        ("fp32", "xnnpack", 'linear = { weight = "int8" }', "linear: xnnpack has no weight-only"),
        ("fp32", "xnnpack", 'linear = { weight = "bf16" }', "linear: no fast kernel multiplies bf16 weights on every"),
        ("fp32", "portable", 'head = { weight = "int16" }', 'head: int16 weights need backend = "xnnpack"'),
        ("bf16", "portable", 'embedding = { weight = "int16" }', "embedding: int16 weights are read as float32"),
        ("fp32", "xnnpack", 'linear = { weight = "int16", group = 32 }', "int16 weights have neither groups nor"),
    ],
)
def test_a_recipe_no_backend_can_run_is_refused(
    dtype: str, backend: str, scheme: str, problem: str, tmp_path: Path
) -> None:
    own = f"""
[recipe.mine]
summary = "weights that cannot be"
dtype = "{dtype}"
backend = "{backend}"
{scheme}
[recipe.mine.gates]
kl_mean_max = 1.0
top1_min = 0.1
"""
    with pytest.raises(ConfigError, match=rf"recipe\.mine.*{problem}"):
        cells(make(tmp_path, a=CARD.format(name="a") + own))


def test_an_excluded_recipe_says_why(tmp_path: Path) -> None:
    text = CARD.format(name="a").replace("[card]", '[[exclude]]\nrecipe = "bf16"\nreason = "too large"\n\n[card]')
    assert [c.excluded for c in cells(make(tmp_path, a=text))] == [None, "too large"]


def test_a_project_without_templates_uses_those_of_hubpub(tmp_path: Path, project: Project) -> None:
    shutil.copytree(project.cards_dir, tmp_path / "cards")
    assert Project.find(tmp_path).templates_dir.is_dir()
