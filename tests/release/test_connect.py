"""Where a command finds its Hub: an endpoint, a local one of its own, or one that another process serves."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hubpub.errors import AccessError, HubError
from hubpub.hub.client import Client, Retry
from hubpub.localhub import LocalHub
from hubpub.release.connect import LOCAL_PORT, Destination, connect, hub_of


def test_the_owner_is_the_one_that_was_named_else_the_tokens_user(hub: LocalHub, client: Client) -> None:
    assert Destination(client).namespace == hub.user
    assert Destination(client, "acme").namespace == "acme"
    assert Destination(Client(hub.url, None), "acme").namespace == "acme"
    with pytest.raises(AccessError):
        _ = Destination(Client(hub.url, None)).namespace


def test_an_endpoint_is_asked_with_the_token_of_the_environment(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with connect(hub.url, tmp_path / "store") as to:
        assert (to.client.endpoint, to.client.whoami().user, to.store) == (hub.url, hub.user, None)
    assert not (tmp_path / "store").exists()


def test_a_local_hub_lives_as_long_as_it_is_asked(tmp_path: Path) -> None:
    with connect("local", tmp_path / "store", "acme") as to:
        assert to.store == tmp_path / "store"
        to.client.create_repo("acme/one", private=False)
        endpoint = to.client.endpoint
    client = Client(endpoint, (tmp_path / "store" / "token").read_text(), retry=Retry(attempts=1))
    with pytest.raises(HubError):
        client.refs("acme/one")
    with connect("local", tmp_path / "store", "acme") as again:
        assert again.client.refs("acme/one") is not None


def test_a_local_hub_that_somebody_serves_is_used(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "store") as served, connect("local", tmp_path / "store") as to:
        assert (to.client.endpoint, to.store) == (served.url, tmp_path / "store")
        assert to.client.whoami().user == served.user


def test_a_store_that_is_in_use_by_nobody_who_answers(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "store"):
        (tmp_path / "store" / "address").write_text("http://127.0.0.1:9")
        with pytest.raises(HubError), connect("local", tmp_path / "store"):
            pass


def test_a_local_hub_where_its_usual_address_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", LOCAL_PORT))
        except OSError:
            pass  # somebody else's: just as well
        else:
            taken.listen()
        with connect("local", tmp_path / "store") as to:
            assert to.client.endpoint != f"http://127.0.0.1:{LOCAL_PORT}"
            assert to.client.whoami().user


@pytest.mark.parametrize(
    ("repo", "given", "asked"),
    [
        ("local/a-pte", None, "local"),
        ("local/a-pte", "https://hub.example", "https://hub.example"),
        ("acme/a-pte", None, None),
        ("localhost/a-pte", None, None),
    ],
)
def test_a_repo_of_the_owner_local_is_on_the_local_hub(repo: str, given: str | None, asked: str | None) -> None:
    assert hub_of(repo, given) == asked
    assert hub_of(repo, given, "https://else.example") == (asked or "https://else.example")
