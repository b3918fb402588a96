"""Cells staged by several machines, promoted by another one: the command line in processes and folders of their own."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cards.sample import cell as sample_cell
from conftest import Ran, hubpub

from hubpub.config import Project
from hubpub.errors import ToolchainError
from hubpub.facts import MEASURING, FileFact, save
from hubpub.hub.client import Add, Client
from hubpub.hub.maintenance import verify
from hubpub.hub.sources import download_source
from hubpub.localhub import Fault, LocalHub
from hubpub.make.run import _check_disk
from hubpub.matrix import cells
from hubpub.plan import plan
from hubpub.workspace import Workspace

from .conftest import both, random_files, sent_to
from .test_publish import history, refs_of

pytestmark = pytest.mark.slow

CARD = """
schema = 1
repo = "small-pte"
[variant]
name = "small"
source = "{source}"
revision = "{revision}"
family = "gemma3n"
license = "gemma"
[export]
recipes = ["8da4w", "8da8w"]
recommended = "8da4w"
[card]
title = "Small"
"""
TOKENIZER = {"tokenizer.json": b'{"tokens": 1}' * 4_000, "tokenizer_config.json": b"{}\n"}
CONFIG = b'{"architectures": ["Gemma3nForConditionalGeneration"]}'


@dataclass(frozen=True)
class Site:
    """A project of two cells whose source lies on a local Hub, and the machines that work on it."""

    hub: LocalHub
    root: Path
    project: Project
    transport: str

    def machine(self, name: str, recipe: str) -> Path:
        """A work folder in which one cell has been exported and measured."""
        work = self.root / name
        card = self.project.cards[0]
        (step,) = plan(
            [c for c in cells(self.project) if c.recipe.name == recipe], Workspace(self.project, work, rehearsal=False)
        )
        random_files(step.folder, {step.cell.file: 600_000}, seed=sum(recipe.encode()))
        facts = sample_cell(card, recipe, step.cell.recipe.summary)
        content = step.pte.read_bytes()
        tokens = tuple(
            FileFact(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in TOKENIZER.items()
        )
        file = FileFact(name=step.cell.file, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        facts = facts.model_copy(
            update={
                "file": file,
                "tokenizer": tokens,
                "parity": facts.parity.model_copy(update={"measuring": MEASURING, "sha256": file.sha256}),
                "speed": facts.speed.model_copy(update={"measuring": MEASURING, "sha256": file.sha256}),
            }
        )
        save(facts, step.folder / "facts.json")
        return work

    def run(self, *arguments: str, work: Path, code: int = 0, token: str | None = None) -> Any:
        token = self.hub.token if token is None else token
        environment = {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": token, "HF_HOME": str(work / "hf")}
        environment |= {"HF_XET_CACHE": str(work / "xet")}
        if self.transport == "lfs":
            environment["HF_HUB_DISABLE_XET"] = "1"
        common = ("--hub", self.hub.url, "--project", str(self.root), "--json")
        ran: Ran = hubpub(*arguments, *common, work=work, cwd=self.root, timeout=120, **environment)
        assert ran.code == code, ran.err + ran.out
        assert "Traceback" not in ran.err and self.hub.token not in ran.out + ran.err
        return ran.json


@pytest.fixture
def site(hub: LocalHub, client: Client, tmp_path: Path, transport: str) -> Site:
    source = f"{hub.user}/source"
    client.create_repo(source, private=False)
    for name, data in {**TOKENIZER, "config.json": CONFIG}.items():
        add = Add(name, data, len(data), hashlib.sha256(data).hexdigest())
        client.commit(source, "main", [client.send(source, "main", add)], title=name, parent=None,
                      find_committed=lambda: None)  # fmt: skip
    folder = tmp_path / "cards" / "small-pte"
    folder.mkdir(parents=True)
    revision = refs_of(client, source)[0]["main"]
    (folder / "card.toml").write_text(CARD.format(source=source, revision=revision))
    return Site(hub, tmp_path, Project.find(tmp_path), transport)


@both
def test_two_machines_stage_and_a_third_promotes(site: Site, client: Client, tmp_path: Path) -> None:
    hub, repo = site.hub, f"{site.hub.user}/small-pte"
    works = {recipe: site.machine(f"machine-{recipe}", recipe) for recipe in ("8da4w", "8da8w")}
    facts, last = tmp_path / "facts", tmp_path / "last"
    version = ("--version", "v1.0.0")

    staged = site.run("release", "small/8da4w", *version, "--stage", work=works["8da4w"])
    assert {f["path"]: f["location"] for f in staged["staged"][0]["files"]} == dict.fromkeys(
        ["small-8da4w.pte", "small-8da4w.pte.facts.json", "Notice", *TOKENIZER], "staged"
    )
    assert refs_of(client, repo)[1] == {} and history(client, repo) == []
    shutil.copytree(works["8da4w"] / "releases" / "v1.0.0", facts)
    missing = site.run("promote", "--all", *version, "--facts", str(facts), work=last, code=3)
    assert "no facts of small/8da8w" in missing["error"]
    (path,) = works["8da8w"].rglob("facts.json")
    shutil.copy(path, facts / "small-8da8w.pte.facts.json")
    missing = site.run("promote", "--all", *version, "--facts", str(facts), work=last, code=9)
    assert "small-8da8w.pte is neither staged for v1.0.0 nor on main" in missing["error"]
    assert history(client, repo) == []

    # The tokenizer is there already: the second machine sends its program alone, and once.
    with sent_to(hub) as sent:
        staged = site.run("release", "small/8da8w", *version, "--stage", work=works["8da8w"])
    assert 600_000 <= sent.content < 640_000
    with sent_to(hub) as sent:
        again = site.run("release", "small/8da8w", *version, "--stage", work=works["8da8w"])
    assert sent.content == 0 and again["staged"][0]["bytes_sent"] == 0

    with sent_to(hub) as sent:
        dry = site.run("promote", "--all", *version, "--facts", str(facts), "--dry-run", work=last)
    sizes = {file["path"]: (file["changed"], file["sent_bytes"]) for file in dry["receipts"][0]["files"]}
    assert sizes["small-8da4w.pte"] == (True, 0) and sizes["README.md"][1] > 0
    # The Hub keeps it with the text files, which it cannot copy from branch to branch: it goes once more.
    assert sizes["tokenizer.json"] == (True, len(TOKENIZER["tokenizer.json"]))
    assert history(client, repo) == [] and not any("/commit/" in entry.path for entry in sent.entries)

    with sent_to(hub) as sent:
        done = site.run("promote", "--all", *version, "--facts", str(facts), work=last)
    assert sent.content == 0 and sent.bytes < 200_000
    assert done["receipts"][0]["outcome"]["kind"] == "published"
    assert dry["receipts"][0]["bytes_sent"] == done["receipts"][0]["bytes_sent"]
    assert history(client, repo) == ["Release v1.0.0"] and refs_of(client, repo)[0].keys() == {"main"}
    assert verify(client, repo, "v1.0.0", download=True).problems == ()
    assert client.read(repo, "v1.0.0", "tokenizer_config.json") == TOKENIZER["tokenizer_config.json"]
    with sent_to(hub) as sent:
        done = site.run("promote", "--all", *version, "--facts", str(facts), work=last)
    assert done["receipts"][0]["outcome"]["kind"] == "no-changes" and sent.bytes < 10_000


def test_facts_of_something_else_are_refused(site: Site, tmp_path: Path) -> None:
    facts, last = tmp_path / "facts", tmp_path / "last"
    facts.mkdir()
    for recipe in ("8da4w", "8da8w"):
        (path,) = site.machine(f"machine-{recipe}", recipe).rglob("facts.json")
        shutil.copy(path, facts / f"small-{recipe}.pte.facts.json")
    promote = ("promote", "--all", "--version", "v1.0.0", "--facts", str(facts))
    answer = site.run(*promote, "--rehearse", "--rehearsal-namespace", site.hub.user, work=last, code=3)
    assert "measured on the real model" in answer["error"]
    card = tmp_path / "cards/small-pte/card.toml"
    card.write_text(card.read_text().replace('revision = "', 'revision = "' + "0" * 40 + '" # "'))
    answer = site.run(*promote, work=last, code=3)
    assert "not of the source its card names" in answer["error"]


def test_what_cannot_end_well_is_said_before_anything_is_made(site: Site, client: Client, tmp_path: Path) -> None:
    hub, work = site.hub, tmp_path / "w"
    scoped = hub.add_token(hub.user, "write", repos=[f"{hub.user}/small-pte"])
    cases = {
        "does not accept this token": "hf_" + "x" * 34,
        "may only read": hub.add_token(hub.user, "read"),
        "made for other repos": hub.add_token(hub.user, "write", repos=[f"{hub.user}/else"]),
        "no member": hub.add_token("stranger", "write"),
        "cannot make it": scoped,
    }
    release = ("release", "--all", "--version", "v1.0.0")
    for message, token in cases.items():
        answer = site.run(*release, "--namespace", hub.user, work=work, code=10, token=token)
        assert message in answer["error"] and answer["hint"], answer
    answer = site.run(*release, "--pr", work=work, code=9)
    assert "does not exist" in answer["error"]
    hub.arm(Fault(path="/source/auth-check", status=403, times=3))
    answer = site.run(*release, work=work, code=10)
    assert "the source local/source cannot be read" in answer["error"] and "accept its terms" in answer["hint"]
    hub.disarm()
    assert not list(work.rglob("*.pte")) and client.refs(f"{hub.user}/small-pte") is None
    assert not (work / "hf" / "hub").exists()


def test_files_that_the_disk_cannot_hold_stop_before_they_are_made(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source as large as a sparse file can be: a table of four terabytes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", site.hub.token)
    variant, rows = site.project.cards[0].variant, 1 << 20
    folder = download_source(variant.source, revision=variant.revision, endpoint=site.hub.url)
    name, columns = "model.language_model.embed_tokens.weight", 1 << 21
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}
    header = json.dumps({name: entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2 * rows * columns)
    steps = plan(cells(site.project), Workspace(site.project, tmp_path / "w", rehearsal=False))
    with pytest.raises(ToolchainError, match=r"2 cells need \d{4}\.\d GB .* GB are free"):
        _check_disk(steps, tmp_path / "w")


def test_withdrawn_staged_and_published_show_in_the_status(site: Site, client: Client, tmp_path: Path) -> None:
    hub, repo = site.hub, f"{site.hub.user}/small-pte"
    work = site.machine("machine", "8da4w")
    site.machine("machine", "8da8w")
    site.run("release", "--all", "--version", "v1.0.0", "--stage", work=work)
    (one,) = site.run("status", work=work)["repos"]
    assert one["published"] is None and one["notes"] == [
        "v1.0.0 is staged and not published: 'hubpub promote' publishes it"
    ]
    site.run("promote", "--all", "--version", "v1.0.0", work=work)
    (one,) = site.run("status", work=work)["repos"]
    assert one["published"] == one["receipts"][0]["version"] == "v1.0.0" and one["notes"] == []
    assert site.run("unstage", repo, work=work)["dropped"] == []
    client.create_branch(repo, "hubpub-stage/v1.1.0", refs_of(client, repo)[0]["main"])
    assert site.run("unstage", repo, "--version", "v9", work=work)["dropped"] == []
    assert site.run("unstage", repo, work=work)["dropped"] == ["v1.1.0"]
    assert refs_of(client, repo)[0].keys() == {"main"}
    tags = refs_of(client, repo)[1]
    answer = site.run("yank", f"{repo}@v1.0.0", "--reason", "The scales are wrong.", work=work)
    card = (client.read(repo, "main", "README.md") or b"").decode()
    assert answer["commit"] and "v1.0.0 was withdrawn:** The scales are wrong." in card
    assert site.run("yank", f"{repo}@v1.0.0", "--reason", "The scales are wrong.", work=work)["commit"] is None
    assert refs_of(client, repo)[1] == tags
    site.run("yank", repo, "--reason", "x", work=work, code=2)
    # The tag still holds the release; a release that follows keeps what the card says about the bad one.
    assert site.run("verify", f"{repo}@v1.0.0", work=work)["ok"]
    site.run("release", "--all", "--version", "v1.1.0", work=work)
    assert "v1.0.0 was withdrawn" in (client.read(repo, "v1.1.0", "README.md") or b"").decode()
    for secret in (hub.token,):
        assert all(secret not in path.read_text(errors="replace") for path in (work / "releases").rglob("*.json"))
