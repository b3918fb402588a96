"""A program is found by the repo it was published in, at a version, by its recipe."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubpub.errors import HubError, UsageError
from hubpub.hub.client import Client
from hubpub.hub.programs import address, download_program
from hubpub.localhub import LocalHub

REPO = "local/model-pte"


@pytest.fixture
def published(hub: LocalHub) -> LocalHub:
    """Two versions of a repo with two programs."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(REPO)
    for version in ("v1", "v2"):
        files = {f"model-{recipe}.pte": f"{recipe} of {version}".encode() for recipe in ("8da4w", "bf16")}
        table = [{"recipe": recipe, "file": f"model-{recipe}.pte"} for recipe in ("8da4w", "bf16")]
        files["config.json"] = json.dumps({"recommended": "model-8da4w.pte", "files": table}).encode()
        files["tokenizer.json"] = b"{}"
        api.create_commit(REPO, [CommitOperationAdd(*file) for file in files.items()], commit_message=version)
        api.create_tag(REPO, tag=version)
    return hub


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (REPO, (REPO, None)),
        (f"{REPO}@v1.0.0", (REPO, "v1.0.0")),
        ("folder/model.pte", None),
        ("model.pte", None),
        ("../model", None),
        ("./model@v1", None),
        ("/tmp/a", None),
        ("a/b/c", None),
    ],
)
def test_an_address_is_no_path(text: str, meant: object) -> None:
    assert address(text) == meant


@pytest.mark.parametrize(
    ("version", "recipe", "content"),
    [(None, None, "8da4w of v2"), ("v1", None, "8da4w of v1"), ("v1", "bf16", "bf16 of v1")],
)
def test_the_file_of_a_version_comes_with_its_tokenizer(
    published: LocalHub, client: Client, version: str | None, recipe: str | None, content: str
) -> None:
    pte = download_program(client, REPO, version, recipe)
    assert pte.read_text() == content
    assert (pte.parent / "tokenizer.json").exists()
    assert len(list(pte.parent.glob("*.pte"))) == 1 or recipe


def test_what_is_not_there_is_said(published: LocalHub, client: Client) -> None:
    with pytest.raises(UsageError, match="no file of recipe 'int8'") as caught:
        download_program(client, REPO, None, "int8")
    assert caught.value.hint == "it has 8da4w, bf16"
    with pytest.raises(HubError):
        download_program(client, REPO, "v9", None)
    HfApi(endpoint=published.url, token=published.token).create_repo("local/other")
    with pytest.raises(HubError, match="no repo of ExecuTorch programs") as refused:
        download_program(client, "local/other", None, None)
    assert "--hub local" in str(refused.value.hint)
