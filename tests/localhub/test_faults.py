"""Faults that were ordered happen as often as ordered, in this process and over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hubpub.localhub import Fault, LocalHub

from .conftest import Process, noise, web
from .test_api import commit
from .test_server import ask

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def test_faults_happen_as_often_as_ordered(hub: LocalHub, api: HfApi, repo: str) -> None:
    import httpx2

    hub.arm(Fault(path="/whoami", status=429, retry_after=7, times=2, skip=1))
    answers = [ask(hub, "GET", "/api/whoami-v2") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200, 200]
    assert answers[1].headers["Retry-After"] == "7"
    hub.arm(Fault(method="GET", path="/refs", delay=0.3))
    began = time.monotonic()
    api.list_repo_refs(repo)
    assert time.monotonic() - began >= 0.3
    content = noise(400_000)
    commit(api, repo, {"a.pte": content})
    hub.arm(Fault(path="/resolve/", cut="in-response", after_bytes=1000))
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(hub, "GET", f"/{repo}/resolve/main/a.pte")
    assert hub.requests[-1].status == 0
    hub.arm(Fault(path="/refs", times=9, status=500))
    hub.disarm()
    assert api.list_repo_refs(repo).branches


def test_a_lost_response_is_a_commit_that_was_made(hub: LocalHub, api: HfApi, repo: str) -> None:
    import httpx2

    for cut, made in (("before-body", False), ("in-body", False), ("before-response", True)):
        head = api.model_info(repo).sha
        hub.arm(Fault(method="POST", path="/commit/", cut=cut, after_bytes=10))  # type: ignore[arg-type]
        with pytest.raises(httpx2.TransportError):
            commit(api, repo, {"a.txt": cut.encode()})
        assert (api.model_info(repo).sha != head) == made
    again = commit(api, repo, {"a.txt": b"before-response"})
    assert again == api.model_info(repo).sha
    assert len(api.list_repo_commits(repo)) == 2


def test_faults_are_ordered_over_http_too(start: Callable[..., Process]) -> None:
    server = start()
    order = {"path": "/api/models", "status": 503, "times": 2}
    assert server.ask("POST", "/_local/faults", order)[0]["met"] == 0
    assert web().get(f"{server.url}/api/models").status_code == 503
    assert server.ask("GET", "/_local/faults")[0]["met"] == 1
    assert server.ask("DELETE", "/_local/faults") == []
    assert web().get(f"{server.url}/api/models").status_code == 200
    assert [e["status"] for e in server.ask("GET", "/_local/requests")] == [503, 200]
    headers = {"Authorization": f"Bearer {server.token}"}
    for wrong in ({"cut": "somewhere"}, {"path": "("}, {"other": 1}, [1], {"times": "x"}, {"status": 200}):
        answer = web().post(f"{server.url}/_local/faults", json=wrong, headers=headers)
        assert answer.status_code == 400, wrong
