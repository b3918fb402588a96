"""Names that the Hub takes and that are safe to write to: of repos, versions, branches and files."""

from __future__ import annotations

import pytest

from hubpub.errors import ConfigError
from hubpub.hub import names
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.names import newest_above


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


IN_ORDER = [
    "v0.0.1", "v0.9.0", "v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-alpha.beta", "v1.0.0-beta", "v1.0.0-beta.2",
    "v1.0.0-beta.11", "v1.0.0-rc.1", "v1.0.0", "v1.0.1", "v1.2", "v1.10.0", "v2",
]  # fmt: skip


def test_versions_are_in_the_order_of_semver() -> None:
    for number, version in enumerate(IN_ORDER):
        for other in IN_ORDER[number + 1 :]:
            assert newest_above(version, [other]) == other and newest_above(other, [version]) is None
        assert newest_above(version, IN_ORDER) == (None if version == IN_ORDER[-1] else IN_ORDER[-1])
    assert newest_above("v1", ["v1.0.0", "1.0", "v1.0.0+build.7"]) is None and newest_above("v1.0.0", ["v1"]) is None
    assert newest_above("v0.0.0-rehearsal.0a", ["v1.0.0", "v0.0.0-rehearsal.ff"]) is None
    assert newest_above("v1.0.0", ["latest", "main", "v0.0.0-rehearsal.ff", "nightly-2"]) is None
    assert newest_above("nightly", ["v1.0.0"]) is None and newest_above("v1.0.0", []) is None
