"""Source checkpoints: what is downloaded, and whether it is found again without asking anybody."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from hubpub.errors import AccessError, HubError
from hubpub.hub.client import Client
from hubpub.hub.sources import cached_source, check_source, download_source
from hubpub.localhub import Fault, LocalHub

from .test_publish import by_hand, refs_of


@pytest.fixture
def source(hub: LocalHub, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    """A checkpoint with files that no export reads, and its commit; the cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    repo = f"{hub.user}/source"
    client.create_repo(repo)
    for name in ("config.json", "model.safetensors", "model.gguf", "pytorch_model.bin", "LICENSE"):
        by_hand(client, repo, name, name.encode())
    return repo, refs_of(client, repo)[0]["main"]


@pytest.mark.parametrize("pinned", [True, False])
def test_a_downloaded_source_is_found_again_without_a_network(
    pinned: bool, source: tuple[str, str], hub: LocalHub
) -> None:
    repo, commit = source
    revision = commit if pinned else None
    assert cached_source(repo, revision) is None
    folder = download_source(repo, revision=revision, endpoint=hub.url)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "LICENSE"}
    before = len(hub.requests)
    assert cached_source(repo, revision) == folder
    assert len(hub.requests) == before
    (folder / "model.safetensors").unlink()
    assert cached_source(repo, revision) is None


def test_terms_that_were_not_accepted_are_named(source: tuple[str, str], hub: LocalHub, client: Client) -> None:
    repo, commit = source
    check_source(client, repo)
    with pytest.raises(AccessError, match="else cannot be read") as caught:
        check_source(client, f"{hub.user}/else")
    assert f"{hub.url}/{hub.user}/else" in str(caught.value.hint)
    hub.arm(Fault(path="/auth-check", status=403, times=9))
    with pytest.raises(AccessError, match="source cannot be read"):
        check_source(client, repo)
    hub.disarm()
    hub.arm(Fault(path="/source/", status=401, times=99))
    with pytest.raises(AccessError) as caught:
        download_source(repo, revision=commit, endpoint=hub.url)
    assert "accept its terms at" in str(caught.value.hint)
    hub.disarm()


def test_a_hub_that_is_not_there_is_said_to_be(source: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library speaks of its cache then; it has tried again by itself, and is not asked once more."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(HubError, match=r"no connection to the Hub \(") as caught:
            download_source("other/model", revision=None, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert caught.value.hint == "run again; nothing is lost"
    assert "snapshot folder" not in caught.value.message
    assert len(waits) < 10
