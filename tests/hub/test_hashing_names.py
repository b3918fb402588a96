"""Ids of content and names: no Hub needed."""

from __future__ import annotations

import pytest

from hubpub.errors import ConfigError, HubError
from hubpub.hub import names
from hubpub.hub.client import Client, Identity
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.hashing import git_blob_id, parse_sha256sums, sha256sums
from hubpub.hub.maintenance import _withdrawn
from hubpub.redaction import redact


def test_git_blob_id_is_gits() -> None:
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_sums_go_round_and_are_sorted() -> None:
    one, two = "1" * 64, "2" * 64
    text = sha256sums([("b", two), ("a", one)])
    assert text == f"{one}  a\n{two}  b\n".encode()
    assert parse_sha256sums(text.decode()) == {"a": one, "b": two}
    with pytest.raises(ValueError, match="line 2"):
        parse_sha256sums(f"{one}  a\nnonsense\n")
    for line in (f"{one[1:]}  a", f"{one[1:]}G  a", f"{one[1:]}A  a", f"{one}  ", f"{one} a", f"{one}1  a", "  a"):
        with pytest.raises(ValueError, match="line 1 is not"):
            parse_sha256sums(line)
    assert parse_sha256sums("") == {}


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "../a", "a/../b", "a//b", "a/./b", ".git/config", "a/.GIT/x", ".gitattributes"),
        *(".gitignore", "a\\b", "a\nb", "a b", "a\0b", "a?x", "a#x", "a%2e%2e", "ä", "a/", "con.", "$(id)", "-->"),
        "x" * 300,
    ],
)
def test_hostile_file_names(path: str) -> None:
    with pytest.raises(ConfigError):
        names.check_path(path)
    with pytest.raises(ConfigError):
        RepoRelease("a/b", "v1", (LocalFile.text(path, "x"),), "m")


@pytest.mark.parametrize("path", ["a", "a.pte", "a/b/c.json", ".eval_results/x.yaml", "a+b@c_d-e", "SHA256SUMS"])
def test_good_file_names(path: str) -> None:
    assert names.check_path(path) == path


@pytest.mark.parametrize(
    "repo", ["", "a", "a/b/c", "../b", "a/..", "a/b--c", "a/.b", "a/b.", "a b/c", "a/b?x", "a/b\n"]
)
def test_hostile_repo_ids(repo: str) -> None:
    with pytest.raises(ConfigError):
        names.check_repo_id(repo)


@pytest.mark.parametrize(
    "version", ["", "main", "HEAD", "v1/..", "a..b", "v1.lock", "-v", "v 1", "v1\n", "a" * 40, "~1"]
)
def test_hostile_versions(version: str) -> None:
    with pytest.raises(ConfigError):
        names.check_version(version)


def test_names_that_differ_in_case_are_refused() -> None:
    with pytest.raises(ConfigError, match="both"):
        RepoRelease("a/b", "v1", (LocalFile.text("A.pte", "1"), LocalFile.text("a.pte", "2")), "m")


def test_secrets_are_hidden() -> None:
    Client("http://127.0.0.1:1", "plain-local-secret")
    text = redact(
        "hf_abcdefghijkl Bearer xyz plain-local-secret https://s3/x?X-Amz-Signature=0af&a=1&token=q "
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc"
    )
    for secret in ("abcdefghijkl", "xyz", "plain-local", "0af", "=q", "eyJzdWIi"):
        assert secret not in text
    assert "a=1" in text


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


@pytest.mark.parametrize(
    "card", ["---\nlicense: x\n---\n# T\n", "---\nnew_version: a/b\n---\n# T\n", "# T\n", "", "---\nbroken\n# T\n"]
)
@pytest.mark.parametrize("successor", [None, "c/d"])
def test_withdrawing_twice_says_it_once(card: str, successor: str | None) -> None:
    once = _withdrawn(card, "v1", "wrong scale", successor)
    assert once.count("wrong scale") == 1
    assert _withdrawn(once, "v1", "wrong scale", successor) == once
    assert (successor is None) or once.count("new_version: c/d") == 1
    both = _withdrawn(once, "v2", "also", successor)
    assert "wrong scale" in both and "also" in both


def test_names_that_may_be_are_handed_back() -> None:
    assert names.check_repo_id("a/b-c_d.e") == "a/b-c_d.e"
    assert names.check_version("v1.2.3-rc.1") == "v1.2.3-rc.1"
    assert names.check_path("a/b@c+d") == "a/b@c+d"
    assert names.stage_branch("v1") == "hubpub-stage/v1"
    for revision in ("main", "0" * 40, "hubpub-stage/v1.0.0", "x" * 200, "/".join(["y" * 99, "z" * 100])):
        assert names.check_revision(revision) == revision


@pytest.mark.parametrize(
    "revision", ["", "a/../b", "./a", "a//b", "/a", "a/", "a b", "a?b", "é", "/".join(["x" * 100] * 2)]
)
def test_revisions_that_cannot_stand_in_an_address(revision: str) -> None:
    with pytest.raises(ConfigError, match="is not a branch, tag or commit id"):
        names.check_revision(revision)


def test_paths_are_bounded_and_unlike_each_other() -> None:
    longest = "/".join(["x" * 99] * 4)
    assert len(longest) == 399 and names.check_path(longest + "y") == longest + "y"
    with pytest.raises(ConfigError, match="too long"):
        names.check_path(longest + "yy")
    names.check_paths(["a.pte", "b.pte", "a/a.pte"])
    with pytest.raises(ConfigError, match=r"both 'a\.pte' and 'A\.pte'"):
        names.check_paths(["a.pte", "b.pte", "A.pte"])
    with pytest.raises(ConfigError, match="both"):
        names.check_paths(["a.pte", "b.pte", "a.pte"])


def test_a_release_checks_what_it_is_made_of() -> None:
    file = LocalFile.text("README.md", "x")
    for repo, version in (("a", "v1"), ("a/b", "v 1")):
        with pytest.raises(ConfigError):
            RepoRelease(repo, version, (file,), "m")
    with pytest.raises(ConfigError, match="both as a file and as a merge"):
        RepoRelease("a/b", "v1", (file,), "m", card_merge=lambda card: card or "")
    assert LocalFile("a.bin", None, 256 << 10, "0" * 64).large and LocalFile("a.pte", None, 1, "0" * 64).large
    assert not LocalFile("a.bin", None, (256 << 10) - 1, "0" * 64).large
