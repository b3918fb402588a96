"""Declarations nobody meant well: every one is refused by name, quickly, and nothing is written anywhere."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from hubpub import cli
from hubpub.config import Project
from hubpub.errors import ConfigError, SourceError
from hubpub.facts import CardFacts
from hubpub.make.run import refuse_links
from hubpub.matrix import cells
from hubpub.model.checkpoint import digest

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


def test_links_that_lead_out_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    repo = tmp_path / "models--a--b"
    snapshot, blobs = repo / "snapshots" / "1", repo / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b1").write_text("{}")
    (snapshot / "config.json").symlink_to(blobs / "b1")
    refuse_links(snapshot)
    # Large files: the repo's blob is a link to one that all repos of the cache share.
    shared = repo.parent / "blobs" / "0c"
    shared.mkdir(parents=True)
    (shared / "x1").write_text("{}")
    (blobs / ("7" * 64)).symlink_to(shared / "x1")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'7' * 64}")
    refuse_links(snapshot)
    assert digest(snapshot / "model.safetensors").sha256 == "7" * 64
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"tokenizer\.json is a link"):
        refuse_links(snapshot)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="leads out"):
        refuse_links(plain)


@pytest.mark.parametrize("flags", [[], ["--verbose"], ["--verbose", "--json"]])
def test_no_token_in_what_an_error_prints(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "Secret" * 5

    def broken(**_: object) -> dict[str, object]:
        raise RuntimeError(f"GET https://hub/x?token={secret} with Bearer {secret}")

    monkeypatch.setattr(CardFacts, "model_json_schema", broken)
    assert cli.main(["schema", *flags]) == 1
    captured = capsys.readouterr()
    assert "Secret" not in captured.out + captured.err and "RuntimeError" in captured.err
    assert ("in broken" in captured.err) is bool(flags)
