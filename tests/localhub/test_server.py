"""Everything a server can be sent, who may do what, ordered faults, and sudden ends."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hubpub.errors import HubError
from hubpub.localhub import LocalHub, Options

from .conftest import REPO, Process, api_of, noise, web
from .test_api import commit, info_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def say(hub: LocalHub, data: bytes, timeout: float = 5.0) -> bytes:
    """Send bytes and return all that comes back until the server hangs up or is silent."""
    host, port = hub.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def ask(hub: LocalHub, method: str, path: str, body: bytes = b"", token: str | None = "", **headers: str) -> Any:
    if token is not None:
        headers["Authorization"] = f"Bearer {token or hub.token}"
    return web().request(method, hub.url + path, content=body, headers=headers, timeout=10)


HOST = b"Host: localhost\r\n"
POST = b"POST /api/validate-yaml HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /%ff%fe HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /a/b%00c/resolve/main/x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 300 + b"\r\n",
        b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + b"Content-Length: -5\r\n\r\nhello",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
        POST + b"Content-Length: 900000000\r\n\r\nhello",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Content-Length: 50\r\n\r\nhello",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
        POST + b"Content-Length: 5\r\n\r\nhello",
        POST + b"Content-Length: 2\r\n\r\n[]",
        POST + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
        POST + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc",
    ],
)
def test_malformed_requests_get_an_answer(hub: LocalHub, data: bytes) -> None:
    answer = say(hub, data)
    assert re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]
    assert b"Traceback" not in answer and b"hello" not in answer
    assert ask(hub, "GET", "/api/whoami-v2").status_code == 200


def test_random_bytes_and_broken_requests_never_break_it(hub: LocalHub, api: HfApi, repo: str) -> None:
    chance = random.Random(11)
    good = (
        f"POST /api/models/{repo}/commit/main HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {hub.token}\r\n"
        'Content-Length: 60\r\n\r\n{"key":"header","value":{"summary":"x"}}\n{"key":"file","val'
    ).encode()
    for _ in range(150):
        broken = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(broken))
            broken[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        answer = say(hub, bytes(broken))
        assert answer == b"" or re.match(rb"HTTP/1\.1 (4\d\d|200) ", answer), (bytes(broken), answer[:200])
    assert api.list_repo_files(repo) == [".gitattributes"]


BAD_LINES: list[bytes] = [
    b"",
    b"nonsense",
    b"[]",
    b'{"key":"file"}',
    b'{"key":"header","value":{}}',
    b'{"key":"header","value":{"summary":7}}',
    b'{"key":"file","value":{"path":"a","content":"YQ==","encoding":"base64"}}',
]
BAD_CHANGES: list[dict[str, Any]] = [
    {"key": "file", "value": {"path": path, "content": "YQ==", "encoding": "base64"}}
    for path in (
        "",
        "/a",
        "a/../b",
        "..",
        "a//b",
        "a\\b",
        "a\0b",
        ".git/config",
        "x/.GIT/y",
        "./a",
        "a/",
        "\ud800",
        "a" * 2000,
    )
] + [
    {"key": "file", "value": {"path": 7, "content": "YQ==", "encoding": "base64"}},
    {"key": "file", "value": {"path": "a", "content": "*", "encoding": "base64"}},
    {"key": "file", "value": {"path": "a", "content": None}},
    {"key": "lfsFile", "value": {"path": "a.pte", "oid": "0" * 64, "size": 5}},
    {"key": "lfsFile", "value": {"path": "a.pte", "oid": "../../etc/passwd", "size": 5}},
    {"key": "lfsFile", "value": {"path": "a.pte", "oid": None}},
    {"key": "deletedFile", "value": {"path": "missing"}},
    {"key": "deletedFolder", "value": {"path": None}},
    {"key": "copyFile", "value": {"path": "a", "srcPath": "missing"}},
    {"key": "copyFile", "value": {"path": "a", "srcPath": "README.md", "srcRevision": ["x"]}},
    {"key": "header", "value": {"summary": "again"}},
    {"key": ["x"], "value": {}},
]


def test_malformed_commits_change_nothing(hub: LocalHub, api: HfApi, repo: str) -> None:
    head = api.model_info(repo).sha
    header = json.dumps({"key": "header", "value": {"summary": "x"}}).encode()
    bodies = BAD_LINES + [header + b"\n" + json.dumps(change).encode() for change in BAD_CHANGES]
    bodies.append(header + b"\n" + b'{"key":' * 50_000)
    bodies.append(
        header + b"\n" + json.dumps({"key": "file", "value": {"path": "a", "content": "A" * (17 << 20)}}).encode()
    )
    for body in bodies:
        response = ask(hub, "POST", f"/api/models/{repo}/commit/main", body)
        assert 400 <= response.status_code < 500, (body[:200], response.text)
        assert response.json()["error"]
    assert api.model_info(repo).sha == head
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
    with pytest.raises(Exception, match="pointer"):
        commit(api, repo, {"a.txt": pointer})


@pytest.mark.parametrize(
    "name", ["..", "a..b", ".hidden", "a b", "a/b/c", "x.git", "a--b", "", "ü", "a" * 120, None, 5, {}]
)
def test_names_are_checked(hub: LocalHub, name: Any) -> None:
    response = ask(hub, "POST", "/api/repos/create", json.dumps({"name": name}).encode())
    assert response.status_code == 400
    assert [path.name for path in (hub.root / "repos").iterdir()] == []


def test_references_are_checked(hub: LocalHub, repo: str) -> None:
    for name in ("../x", "a..b", "-x", "x.lock", "refs/heads/x", "a b", "a" * 40, "x/", "", "HEAD", "a~1", "x" * 300):
        response = ask(hub, "POST", f"/api/models/{repo}/tag/main", json.dumps({"tag": name}).encode())
        assert response.status_code == 400, name
    assert ask(hub, "POST", f"/api/models/{repo}/branch/a%2Fb", b"{}").status_code == 201
    assert ask(hub, "POST", f"/api/models/{repo}/branch/a", b"{}").status_code == 409
    assert ask(hub, "DELETE", f"/api/models/{repo}/branch/main").status_code == 403
    for path in ("/local/..%2f..%2fetc/resolve/main/x", "/local/model/resolve/main/..%2f..%2ftokens.json", "/../token"):
        assert ask(hub, "GET", path).status_code in (400, 404)
    for path in ("_lfs/local/model/" + "0" * 64, "_xet/x/v1/shards", "_local/requests", "_local/none"):
        for method in ("GET", "PUT", "POST"):
            assert 400 <= ask(hub, method, f"/{path}", token="hf_wrong").status_code < 500


def test_uploads_are_checked(hub: LocalHub, repo: str) -> None:
    content = b"\0" * 1000
    sha256 = hashlib.sha256(content).hexdigest()

    def offer(**item: Any) -> Any:
        body = json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": 1000, **item}]}).encode()
        return ask(hub, "POST", f"/{repo}.git/info/lfs/objects/batch", body)

    for wrong in ({"oid": "x"}, {"oid": sha256.upper()}, {"size": -1}, {"size": True}, {"size": 1 << 60}):
        assert offer(**wrong).status_code == 400
    href = offer().json()["objects"][0]["actions"]["upload"]["href"]
    assert web().put(href, content=b"\1" * 1000).status_code == 400
    assert web().put(href, content=content[:-1]).status_code == 400
    assert web().put(href, content=content + b"\0").status_code == 413
    for forged in (
        href.replace("size=1000", "size=2000"),
        re.sub("signature=.", "signature=x", href),
        href.partition("?")[0],
        href.replace("local/model", "local/other"),
    ):
        assert web().put(forged, content=content).status_code in (403, 404)
    assert not list((hub.root / "blobs").glob(f"*/{sha256}"))
    assert list((hub.root / "unfinished").iterdir()) == []
    assert web().put(href, content=content).status_code == 200
    assert offer().json()["objects"][0].get("actions") is None


@pytest.mark.slow
def test_the_storage_service_checks_what_it_gets(hub: LocalHub, api: HfApi, repo: str) -> None:
    commit(api, repo, {"a.pte": noise(100_000)})
    access = ask(hub, "GET", f"/api/models/{repo}/xet-write-token/main").json()
    headers = {"Authorization": f"Bearer {access['accessToken']}"}
    tag = bytes.fromhex("48465265706f4d6574614461746100556967456a7b815783a5bdd95ccdd14aa9") + (2).to_bytes(8, "little")
    record = b"\1" * 32 + b"\0\0\0\xc0" + b"\xff\xff\xff\x7f" + bytes(8)
    chance = random.Random(5)
    shards = [
        b"",
        b"x" * 500,
        tag + bytes(8),
        tag + bytes(8) + record,
        *(tag + chance.randbytes(600) for _ in range(30)),
    ]
    for shard in shards:
        assert web().post(f"{access['casUrl']}/v1/shards", content=shard, headers=headers).status_code == 400
    lz4 = b"\x04\x22\x4d\x18\x40\x40\xc0"
    xorbs = [b"", b"\0" * 20, b"\0\5\0\0\1\5\0\0hell", b"XETBLOB", *(chance.randbytes(200) for _ in range(20))]
    for xorb in xorbs:
        address = f"{access['casUrl']}/v1/xorbs/default/{chance.randbytes(32).hex()}"
        assert web().post(address, content=xorb, headers=headers).status_code == 400
    # Chunks are unpacked when a shard asks for them: damaged ones must fail then.
    for damaged in (
        lz4 + b"\xff\0\0\0",
        lz4 + b"\4\0\0\0\x1fa\1\0",
        lz4 + b"\3\0\0\0\xf0\xff\xff",
        lz4 + b"\0\0\0\0",
        b"abc",
    ):
        name = chance.randbytes(32)
        xorb = b"\0" + len(damaged).to_bytes(3, "little") + b"\1" + (100).to_bytes(3, "little") + damaged
        text = b"".join(name[i : i + 8][::-1] for i in range(0, 32, 8)).hex()
        sent = web().post(f"{access['casUrl']}/v1/xorbs/default/{text}", content=xorb, headers=headers)
        assert sent.status_code == 200
        entry = name + bytes(4) + (100).to_bytes(4, "little") + bytes(4) + (1).to_bytes(4, "little")
        shard = (
            tag
            + bytes(8)
            + chance.randbytes(32)
            + bytes(4)
            + (1).to_bytes(4, "little")
            + bytes(8)
            + entry
            + b"\xff" * 48
        )
        refused = web().post(f"{access['casUrl']}/v1/shards", content=shard, headers=headers)
        assert refused.status_code == 400, refused.text
    reading = ask(hub, "GET", f"/api/models/{repo}/xet-read-token/main").json()["accessToken"]
    for wrong, status in ((reading, 403), ("x.y", 401), (hub.token, 401), (access["accessToken"][:-1], 401)):
        answer = web().post(f"{access['casUrl']}/v1/shards", content=b"", headers={"Authorization": f"Bearer {wrong}"})
        assert answer.status_code == status


def test_who_may_do_what(hub: LocalHub, api: HfApi, transport: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api.create_repo("local/open")
    api.create_repo("local/hidden", private=True)
    commit(api, "local/hidden", {"a.pte": noise(30_000)})
    cases = {
        "reader": (hub.add_token("local", "read"), 403, True),
        "other user": (hub.add_token("other"), 403, False),
        "other repo": (hub.add_token("local", repos=["local/open2"]), 403, False),
        "expired": (hub.add_token("local", expires=time.time() - 1), 401, False),
        "unknown": ("hf_unknown", 401, False),
    }
    for name, (token, status, sees) in cases.items():
        theirs = api_of(hub.url, token)
        for call in (
            lambda theirs=theirs: commit(theirs, "local/open", {"a.pte": noise(30_000, 1)}),
            lambda theirs=theirs: theirs.create_tag("local/open", tag="v1"),
            lambda theirs=theirs: theirs.delete_repo("local/open"),
            lambda theirs=theirs: theirs.create_repo("local/new"),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                call()
            assert caught.value.response.status_code == status, name
            assert hub.token not in str(caught.value) and token not in str(caught.value)
        if sees:
            assert theirs.model_info("local/hidden").private
        else:
            with pytest.raises(HfHubHTTPError):
                theirs.model_info("local/hidden")
    own = api_of(hub.url, hub.add_token("local", repos=["local/open"]))
    commit(own, "local/open", {"b.pte": noise(30_000, 2)})
    assert own.whoami()["auth"]["accessToken"]["role"] == "fineGrained"
    nobody = api_of(hub.url, "")
    nobody.token = False
    assert nobody.model_info("local/open").id == "local/open"
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info("local/hidden")
    assert ask(hub, "GET", "/local/hidden/resolve/main/a.pte", token=None).status_code == 404
    assert ask(hub, "GET", "/local/hidden", token=None).status_code == 404
    assert ask(hub, "POST", "/api/models/local/open/commit/main", token=None).status_code == 401
    # Knowing a SHA-256 is not having the file: another repo cannot take it from this one.
    sha256 = hashlib.sha256(noise(30_000)).hexdigest()
    taking = json.dumps({"key": "header", "value": {"summary": "x"}}).encode() + b"\n"
    taking += json.dumps({"key": "lfsFile", "value": {"path": "a.pte", "oid": sha256, "size": 30_000}}).encode()
    assert ask(hub, "POST", "/api/models/local/open/commit/main", taking).status_code == 400


def test_names_of_other_machines_are_refused(hub: LocalHub, tmp_path: Path) -> None:
    for name in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "localhost:80:80",
        "0.0.0.0",
    ):
        assert web().get(f"{hub.url}/api/models", headers={"Host": name}).status_code == 403
    assert web().get(f"{hub.url}/api/models", headers={"Host": "localhost:1234"}).status_code == 200
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(HubError, match="this machine alone"):
            LocalHub(tmp_path / "x", host=host)


def test_tokens_stay_secret(hub: LocalHub, api: HfApi, repo: str, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("token", "tokens.json"):
        assert stat.S_IMODE((hub.root / name).stat().st_mode) == 0o600
    texts = [repr(hub), repr(hub.requests), repr(hub._running.site), repr(hub._running.site.tokens)]
    texts += [
        ask(hub, "GET", path).raise_for_status().text
        for path in ("/", f"/{repo}", f"/{repo}/commits/main", "/_local/requests")
    ]
    texts += list(capfd.readouterr())
    assert not [text for text in texts if hub.token in text or "hf_" in text]
    assert ask(hub, "GET", "/_local/requests", token=hub.add_token("local", "read")).status_code == 403
    assert ask(hub, "GET", "/_local/requests", token=None).status_code == 401


def test_one_server_to_a_folder(hub: LocalHub, start: Callable[..., Process]) -> None:
    with pytest.raises(HubError, match="another local Hub is serving"), LocalHub(hub.root):
        pass
    start()
    with pytest.raises(json.JSONDecodeError):
        start()


def test_a_slow_client_is_let_go(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub", options=Options(idle_timeout=0.3)) as hub:
        host, port = hub.url.removeprefix("http://").split(":")
        for data in (b"GET / HT", POST + b"Content-Length: 100\r\n\r\nhel"):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(data)
                answer = connection.recv(100)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_will_be_refused_is_not_asked_for(hub: LocalHub, repo: str) -> None:
    head = f"POST /api/models/{repo}/commit/main HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    head += "Content-Length: 9\r\n"
    assert say(hub, head.encode() + b"\r\n").startswith(b"HTTP/1.1 401")
    allowed = head.encode() + f"Authorization: Bearer {hub.token}\r\n\r\nnot json\n".encode()
    assert say(hub, allowed).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400")


WRITER = """
import random, sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi(endpoint=sys.argv[1], token=sys.stdin.readline().strip())
api.create_repo("local/model")
print("ready", flush=True)
for number in range(1000):
    files = {f"{number}.pte": random.Random(number).randbytes(200_000), "n.txt": str(number).encode()}
    operations = [CommitOperationAdd(*item) for item in files.items()]
    print(api.create_commit("local/model", operations, commit_message="Add").oid, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(seed: int, transport: str, start: Callable[..., Process], tmp_path: Path) -> None:
    """After kill -9 every commit that was answered is there, whole, and nothing half-done shows."""
    server = start()
    env = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": str(int(transport == "lfs"))}
    command = [sys.executable, "-c", WRITER, server.url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as writer:
        assert writer.stdin and writer.stdout
        writer.stdin.write(server.token + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "ready\n"
        time.sleep(random.Random(f"{seed}{transport}").uniform(0.2, 1.0))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        time.sleep(0.1)
        writer.kill()
        answered = writer.stdout.read().split()
    again = start()
    api = api_of(again.url, again.token)
    assert list((tmp_path / "served/unfinished").iterdir()) == []
    history = [c.commit_id for c in api.list_repo_commits(REPO)][::-1][1:]
    # At most one commit was made whose answer did not get through.
    assert history[: len(answered)] == answered and len(history) - len(answered) in (0, 1)
    for number, oid in enumerate(history):
        content = noise(200_000, number)
        lfs = info_of(api, REPO, f"{number}.pte", oid).lfs
        assert lfs and lfs.sha256 == hashlib.sha256(content).hexdigest()
        assert web().get(f"{again.url}/{REPO}/resolve/{oid}/n.txt").text == str(number)
    if history:
        number = len(history) - 1
        assert web().get(f"{again.url}/{REPO}/resolve/main/{number}.pte").content == noise(200_000, number)
    commit(api, REPO, {"after.txt": b"1"})


def test_two_writers_cannot_both_win(hub: LocalHub, api: HfApi, repo: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    for turn in range(5):
        head = api.model_info(repo).sha
        results: list[int] = []

        def write(number: int, head: str | None = head, turn: int = turn, results: list[int] = results) -> None:
            try:
                commit(api, repo, {f"{turn}-{number}.txt": b"x"}, parent_commit=head)
                results.append(200)
            except HfHubHTTPError as error:
                results.append(error.response.status_code)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [200] + [412] * 5


def test_connections_are_used_again(hub: LocalHub, repo: str) -> None:
    import httpx2

    with httpx2.Client(base_url=hub.url) as session:
        sample = base64.b64encode(b"x").decode()
        body = {"files": [{"path": "a", "size": 1, "sample": sample}]}
        for _ in range(3):
            assert session.get("/api/models").headers.get("Connection") is None
            assert session.post(f"/api/models/{repo}/preupload/main", json=body).headers.get("Connection") is None
            assert session.post("/api/none", json=body).headers.get("Connection") is None
