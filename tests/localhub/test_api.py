"""What huggingface_hub does against the local Hub, in both transports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hubpub.localhub import LocalHub

from .conftest import Process, api_of, noise, web

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi, RepoFile


def add(path: str, content: bytes | Path) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))


def commit(api: HfApi, repo: str, files: dict[str, bytes], **more: Any) -> str:
    """One commit of `files`; returns its id."""
    return str(api.create_commit(repo, [add(*item) for item in files.items()], commit_message="Add", **more).oid)


def info_of(api: HfApi, repo: str, path: str, revision: str | None = None) -> RepoFile:
    """What the Hub tells of one file."""
    from huggingface_hub import RepoFile

    (found,) = api.get_paths_info(repo, path, revision=revision)
    assert isinstance(found, RepoFile)
    return found


# Contents that travel differently by xet: random (stored), repetitive (LZ4), numbers (grouped bytes), some of each.
CONTENTS = {
    "random.pte": noise(2_500_001),
    "same.bin": b"hello world " * 100_003,
    "numbers.safetensors": b"".join((i % 977).to_bytes(4, "little") for i in range(300_001)),
    "half.bin": noise(400_000, 1) + b"\0" * 1_000_003 + noise(77, 2),
    "text.model": ("".join(f"{i * 7919 % 10007} token\n" for i in range(60_000))).encode(),
}


def test_files_arrive_and_come_back_as_they_were(
    transport: str, hub: LocalHub, api: HfApi, repo: str, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    operations = []
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        operations.append(add(name, tmp_path / name))
    api.preupload_lfs_files(repo, operations)
    operations.append(add("sub/config.json", b"{}\n"))
    operations.append(add("empty.bin", b""))
    done = api.create_commit(repo, operations, commit_message="One", commit_description="With a text")
    assert done.commit_url == f"{hub.url}/{repo}/commit/{done.oid}"
    folder = Path(snapshot_download(repo, endpoint=hub.url, token=hub.token, cache_dir=tmp_path / "cache"))
    assert folder.name == done.oid
    for name, content in CONTENTS.items():
        assert (folder / name).read_bytes() == content
        found = info_of(api, repo, name)
        assert found.lfs and found.lfs.sha256 == hashlib.sha256(content).hexdigest() and found.size == len(content)
        assert (found.xet_hash is not None) == (transport == "xet")
    assert (folder / "sub/config.json").read_bytes() == b"{}\n"
    assert (folder / "empty.bin").read_bytes() == b""
    used = {entry.path.split("/")[1] for entry in hub.requests}
    assert ("_xet" in used, "_lfs" in used) == ((True, False) if transport == "xet" else (False, True))


def test_a_download_by_xet_needs_no_more_than_a_part(hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(1_500_000)
    commit(api, repo, {"a.pte": content})
    found = info_of(api, repo, "a.pte")
    access = (
        web()
        .get(f"{hub.url}/api/models/{repo}/xet-read-token/main", headers={"Authorization": f"Bearer {hub.token}"})
        .json()
    )
    address = f"{access['casUrl']}/v1/reconstructions/{found.xet_hash}"
    headers = {"Authorization": f"Bearer {access['accessToken']}", "Range": "bytes=700000-700009"}
    plan = web().get(address, headers=headers).json()
    assert len(plan["terms"]) == 1 and plan["terms"][0]["unpacked_length"] < 300_000
    ((where,),) = plan["fetch_info"].values()
    reach = where["url_range"]
    part = web().get(where["url"], headers={"Range": f"bytes={reach['start']}-{reach['end']}"})
    assert part.status_code == 206 and content[700000:700010] in part.content
    assert web().get(where["url"].replace("signature=", "signature=0")).status_code == 403
    assert web().get(address, headers={**headers, "Range": "bytes=1500000-1500001"}).status_code == 416
    assert web().get(address).status_code == 401


def test_what_is_there_already_is_not_sent_again(transport: str, hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(1_200_000, 3)
    first = commit(api, repo, {"a.pte": content})
    before = hub.bytes_received()
    assert commit(api, repo, {"a.pte": content}) == first
    assert hub.bytes_received() - before < 10_000
    # Another repo does not own what was never sent to it: LFS sends it again, xet finds its chunks.
    api.create_repo("local/other")
    commit(api, "local/other", {"b.pte": content})
    assert (hub.bytes_received() - before > len(content)) == (transport == "lfs")
    assert info_of(api, "local/other", "b.pte").size == len(content)


def test_large_uploads_come_in_parts(
    transport: str, hub: LocalHub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transport == "xet":
        pytest.skip("parts are a matter of git-LFS")
    content = noise(1_000_001, 4)
    commit(api, repo, {"a.pte": content, "b.pte": content[:999_999]})
    puts = [entry for entry in hub.requests if entry.method == "PUT"]
    assert sorted(entry.request_bytes for entry in puts) == [100_001, 300_000, 300_000, 300_000, 999_999]
    assert not list((hub.root / "parts").rglob("*.*"))


def test_uploads_from_a_file_object_take_lfs_where_xet_is_on(
    hub: LocalHub, api: HfApi, repo: str, tmp_path: Path
) -> None:
    (tmp_path / "a.pte").write_bytes(noise(100_000, 5))
    with (tmp_path / "a.pte").open("rb") as file:
        api.upload_file(path_or_fileobj=file, path_in_repo="a.pte", repo_id=repo)
    assert any(entry.path.startswith("/_lfs/") for entry in hub.requests)
    assert info_of(api, repo, "a.pte").size == 100_000


def test_repos(hub: LocalHub, api: HfApi) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    assert api.whoami()["name"] == "local"
    assert api.create_repo("one", private=True) == f"{hub.url}/local/one"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("local/one")
    assert api.create_repo("local/one", exist_ok=True).repo_id == "local/one"
    with pytest.raises(HfHubHTTPError):
        api.create_repo("local/ONE")
    api.create_repo("local/two")
    assert [model.id for model in api.list_models(author="local")] == ["local/one", "local/two"]
    assert [model.id for model in api_of(hub.url, "").list_models(author="local", token=False)] == ["local/two"]
    assert api.model_info("local/one").private
    api.update_repo_settings("local/one", private=False)
    assert not api.model_info("local/one").private
    api.auth_check("local/one", write=True)
    api.delete_repo("local/one")
    api.delete_repo("local/one", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("local/one")
    assert not (hub.root / "repos/local/one").exists()


def test_commits_guarded_by_their_parent(api: HfApi, repo: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    base = api.model_info(repo).sha
    first = commit(api, repo, {"a.txt": b"1"}, parent_commit=base)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, repo, {"a.txt": b"2"}, parent_commit=base)
    assert caught.value.response.status_code == 412
    assert commit(api, repo, {"a.txt": b"1"}) == first
    second = commit(api, repo, {"a.txt": b"2"}, parent_commit=first)
    assert [c.commit_id for c in api.list_repo_commits(repo)] == [second, first, base]
    assert [c.title for c in api.list_repo_commits(repo)] == ["Add", "Add", "initial commit"]


def test_changes_of_all_kinds(transport: str, api: HfApi, repo: str) -> None:
    from huggingface_hub import CommitOperationCopy, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    api.create_branch(repo, branch="stage")
    commit(api, repo, {"a.pte": noise(50_000, 6), "n/b.txt": b"b", "n/c.txt": b"c", "d.txt": b"d"}, revision="stage")
    done = api.create_commit(
        repo,
        [
            CommitOperationCopy("a.pte", "x/a.pte", src_revision="stage"),
            CommitOperationCopy("n/b.txt", "b.txt", src_revision="stage"),
        ],
        commit_message="Copy",
    )
    assert {f.path for f in api.list_repo_tree(repo, recursive=True)} >= {"x/a.pte", "x", "b.txt"}
    assert info_of(api, repo, "x/a.pte").lfs == info_of(api, repo, "a.pte", revision="stage").lfs
    api.create_commit(
        repo, [CommitOperationDelete("n/"), CommitOperationDelete("d.txt")], commit_message="Less", revision="stage"
    )
    assert sorted(api.list_repo_files(repo, revision="stage")) == [".gitattributes", "a.pte"]
    with pytest.raises(HfHubHTTPError, match="doesn't exist"):
        api.create_commit(repo, [CommitOperationDelete("nothing.txt")], commit_message="Less")
    with pytest.raises(HfHubHTTPError, match="cannot be a file and a folder"):
        commit(api, repo, {"b.txt/inside": b"1"})
    assert api.model_info(repo).sha == done.oid
    api.delete_branch(repo, branch="stage")
    assert [ref.name for ref in api.list_repo_refs(repo).branches] == ["main"]


def test_tags_stay_where_they_are(api: HfApi, repo: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    first = commit(api, repo, {"a.txt": b"1"})
    api.create_tag(repo, tag="v1", tag_message="One")
    commit(api, repo, {"a.txt": b"2"})
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(repo, tag="v1")
    assert caught.value.response.status_code == 409
    api.create_tag(repo, tag="v1", exist_ok=True)
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags} == {"v1": first}
    assert api.model_info(repo, revision="v1").sha == first
    with pytest.raises(HfHubHTTPError, match="not a branch"):
        commit(api, repo, {"a.txt": b"3"}, revision="v1")
    api.delete_tag(repo, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repo, tag="v2", revision="nowhere")


def test_trees(hub: LocalHub, api: HfApi, repo: str) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    commit(api, repo, {f"many/{i:04}.txt": b"%d" % i for i in range(250)} | {"a b/ü.txt": b"x"})
    last = commit(api, repo, {"many/0007.txt": b"new"})
    listed = [item.path for item in api.list_repo_tree(repo, "many", recursive=True, expand=True)]
    assert len(listed) == len(set(listed)) == 250
    assert sum("/tree/" in entry.path for entry in hub.requests) == 3
    assert [item.path for item in api.list_repo_tree(repo)] == ["a b", "many", ".gitattributes"]
    found = api.get_paths_info(repo, ["a b/ü.txt", "many", "none"], expand=True)
    assert [item.path for item in found] == ["a b/ü.txt", "many"]
    assert found[1].last_commit and found[1].last_commit.oid == last
    assert found[0].last_commit and found[0].last_commit.oid != last
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "none"))
    info = api.model_info(repo, files_metadata=True)
    assert {s.rfilename for s in info.siblings or ()} == set(api.list_repo_files(repo))


def test_downloads_of_a_part(hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(100_000, 7)
    oid = commit(api, repo, {"a.pte": content, "b.txt": b"text"})
    address = f"{hub.url}/{repo}/resolve/main/a.pte"

    def get(value: str, **headers: str) -> httpx2.Response:
        return web().get(address, headers={"Range": value, **headers})

    for asked, expected in {
        "bytes=0-9": content[:10],
        "bytes=99990-": content[-10:],
        "bytes=-5": content[-5:],
        "bytes=99999-200000": content[-1:],
    }.items():
        response = get(asked)
        assert (response.status_code, response.content) == (206, expected), asked
        assert int(response.headers["Content-Length"]) == len(expected)
    assert get("bytes=5-14").headers["Content-Range"] == "bytes 5-14/100000"
    for asked in ("bytes=100000-", "bytes=-0"):
        response = get(asked)
        assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */100000")
    for asked in ("bytes=a-b", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        assert (get(asked).status_code, len(get(asked).content)) == (200, 100_000)
    head = web().head(address)
    assert head.headers["X-Repo-Commit"] == oid
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == "100000"
    assert head.headers["X-Linked-ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert web().get(address, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304
    assert get("bytes=0-1", **{"If-Range": '"other"'}).status_code == 200
    missing = web().get(f"{hub.url}/{repo}/resolve/main/c.txt")
    assert (missing.status_code, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert web().get(f"{hub.url}/{repo}/raw/main/a.pte").text.startswith("version https://git-lfs")


def test_pull_requests(transport: str, api: HfApi, repo: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    base = commit(api, repo, {"a.txt": b"1"})
    made = api.create_commit(
        repo, [add("b.pte", noise(60_000, 8))], commit_message="Propose", commit_description="Why", create_pr=True
    )
    assert made.pr_num == 1 and made.pr_revision == "refs/pr/1"
    assert api.model_info(repo).sha == base
    assert api.file_exists(repo, "b.pte", revision="refs/pr/1")
    again = commit(api, repo, {"c.txt": b"c"}, revision="refs/pr/1")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests or ()] == [("refs/pr/1", again)]
    details = api.get_discussion_details(repo, 1)
    assert (details.title, details.status, details.target_branch) == ("Propose", "open", "refs/heads/main")
    assert [event.type for event in details.events] == ["comment", "commit", "commit"]
    commit(api, repo, {"a.txt": b"2"})
    api.merge_pull_request(repo, 1)
    assert api.get_discussion_details(repo, 1).status == "merged"
    assert api.get_discussion_details(repo, 1).merge_commit_oid == api.model_info(repo).sha
    assert {"b.pte", "c.txt"} < set(api.list_repo_files(repo))
    with pytest.raises(HfHubHTTPError):
        api.merge_pull_request(repo, 1)
    other = api.create_commit(repo, [add("a.txt", b"3")], commit_message="Clash", create_pr=True)
    commit(api, repo, {"a.txt": b"4"})
    with pytest.raises(HfHubHTTPError, match=r"Both sides changed: a\.txt"):
        api.merge_pull_request(repo, int(other.pr_num or 0))
    api.change_discussion_status(repo, 2, "closed")
    assert [(d.num, d.status) for d in api.get_repo_discussions(repo)] == [(2, "closed"), (1, "merged")]


CARD = "---\n{}\n---\n# Title\n"


def test_cards_are_checked(hub: LocalHub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard, constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    ModelCard(CARD.format("license: gemma\ntags:\n- executorch\nbase_model: google/gemma-3n-E2B-it")).validate()
    for wrong, said in {
        "license: apache-9": "license",
        "license: mit\ntags: one": "tags",
        "license: mit\nlicense: mit": "duplicated",
        "license: mit\nbase_model_relation: cousin": "base_model_relation",
        "license: mit\nlicense_name: x": "license_name",
        "license: mit\nlanguage: english language": "language",
        "license: mit\nmodel-index: {}": "model-index",
        "license: &a mit\nlicense_name: *a": "aliases",
    }.items():
        with pytest.raises(ValueError, match=said):
            api.create_commit(repo, [add("README.md", CARD.format(wrong).encode())], commit_message="Card")
    with pytest.warns(UserWarning, match='"license" is missing'):
        commit(api, repo, {"README.md": CARD.format("tags: [x]").encode()})
    assert api.model_info(repo).tags == ["x"]


def test_a_server_in_a_process_of_its_own(transport: str, start: Callable[..., Process]) -> None:
    server = start()
    api = api_of(server.url, server.token)
    api.create_repo("local/model")
    content = noise(300_000, 9)
    commit(api, "local/model", {"a.pte": content})
    assert any(entry["path"].endswith("/commit/main") for entry in server.ask("GET", "/_local/requests"))
    server.process.terminate()
    assert server.process.wait(10) == 0
    again = start()
    assert again.token == server.token
    assert info_of(api_of(again.url, again.token), "local/model", "a.pte").size == 300_000


def test_the_same_content_at_the_same_time_is_the_same_commit(
    hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for moment, repo in (("1700000000", "local/a"), ("1700000000", "local/b"), ("1700000001", "local/c")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)
        api.create_repo(repo)
        made.append(commit(api, repo, {"a.txt": b"a"}))
    assert made[0] == made[1] != made[2]
