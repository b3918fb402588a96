"""What a client says of its token, and what it asks of an endpoint."""

from __future__ import annotations

import pytest

from hubpub.errors import HubError
from hubpub.hub.client import Client, Identity


@pytest.mark.parametrize(
    "endpoint",
    ["", "huggingface.co", "ftp://x", "https://u:p@x", "http://example.com", "https://x?token=1", "file:///x"],
)
def test_odd_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(HubError):
        Client(endpoint, "hf_secretsecret")


def test_a_client_does_not_show_its_token() -> None:
    client = Client("https://example.com", "hf_secretsecret")
    assert "secret" not in repr(client) + str(client)


SCOPE = ("org", "google", frozenset({"repo.write", "repo.content.read"}))


@pytest.mark.parametrize(
    ("identity", "repo", "allowed"),
    [
        (Identity("me", "write", {}), "me/x", True),
        (Identity("me", "write", {"team": "write"}), "Team/x", True),
        (Identity("me", "write", {"team": "read"}), "team/x", False),
        (Identity("me", "write", {}), "other/x", False),
        (Identity("me", "read", {}), "me/x", False),
        (Identity("me", "unknown", {}), "any/x", True),
        (Identity("me", "fine-grained", {}, (SCOPE,)), "google/x", True),
        (Identity("me", "fine-grained", {}, (SCOPE,)), "me/x", False),
        (Identity("me", "fine-grained", {}, (("model", "me/x", frozenset({"repo.write"})),)), "me/x", True),
        (Identity("me", "fine-grained", {}, (("model", "me/x", frozenset({"repo.write"})),)), "me/y", False),
        (Identity("me", "fine-grained", {}, (("user", "me", frozenset({"repo.content.read"})),)), "me/x", False),
    ],
)
def test_what_a_token_may_do(identity: Identity, repo: str, allowed: bool) -> None:
    assert (identity.refusal(repo) is None) is allowed
