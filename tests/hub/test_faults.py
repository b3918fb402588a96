"""What goes wrong on the way to the Hub: every fault at every call, and a client killed at random moments."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hubpub.errors import HubError
from hubpub.hub.client import Client, Retry
from hubpub.hub.publish import publish_all
from hubpub.hub.receipts import Published, TagOnly
from hubpub.localhub import Fault, LocalHub

from .conftest import FAST, SIZES, Maker, both, random_files, sent_to

pytestmark = pytest.mark.slow

CALLS = {
    "commit": r"/commit/main",
    "stage": r"/commit/hubpub-stage",
    "tag": r"/tag/",
    "branch": r"/branch/",
    "refs": r"/refs",
    "content": r"/_lfs/|/xorbs/",
}
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "retry_after": 0},
    "503": {"status": 503},
    "cut before the body": {"cut": "before-body"},
    "cut in the body": {"cut": "in-body", "after_bytes": 5},
    "lost response": {"cut": "before-response"},
    "delay": {"delay": 0.2},
}


def check(client: Client, make: Maker, version: str, files: dict[str, bytes]) -> None:
    """Exactly one commit and one tag for `version`, and every byte as it was."""
    refs = client.refs(make.repo)
    assert refs is not None
    titles = [c.title for c in client.commits(make.repo, "main")]
    assert titles.count(f"Release {version}") == 1, titles
    head = next(c.id for c in client.commits(make.repo, "main") if c.title == f"Release {version}")
    assert refs.tags[version] == head
    assert refs.branches.keys() == {"main"}
    for name, content in files.items():
        assert client.read(make.repo, version, name) == content


@both
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_at_every_call(
    fault: str, transport: str, hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    release = make()
    for call, path in CALLS.items():
        # A wait is real seconds: before one of the calls.
        asked = {"retry_after": 1} if (fault, call) == ("429", "commit") else {}
        hub.arm(Fault(path=path, **FAULTS[fault] | asked))
    before = len(hub.requests)
    (receipt,) = publish_all(client, [release], work)
    hub.disarm()
    if "delay" not in FAULTS[fault]:
        for path in CALLS.values():
            assert any(re.search(path, e.path) and e.status not in range(200, 300) for e in hub.requests[before:]), path
    assert isinstance(receipt.outcome, Published | TagOnly)
    check(client, make, "v1.0.0", {name: (make.folder / name).read_bytes() for name in SIZES})


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("call", "transport"),
    [("commit", "lfs"), ("stage", "lfs"), ("tag", "lfs"), ("branch", "lfs"), ("content", "lfs"), ("content", "xet")],
    indirect=["transport"],
)
def test_lost_responses(
    call: str, times: int, transport: str, hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    hub.arm(Fault(method="POST|PUT", path=CALLS[call], cut="before-response", times=times))
    (receipt,) = publish_all(client, [make()], work)
    hub.disarm()
    assert receipt.retries >= (0 if transport == "xet" else 1)
    check(client, make, "v1.0.0", {name: (make.folder / name).read_bytes() for name in SIZES})


def test_a_hub_that_stays_down_is_left_alone(hub: LocalHub, make: Maker, work: Path) -> None:
    client = Client(hub.url, hub.token, retry=Retry(attempts=3, first=0.01))
    publish_all(client, [make()], work)
    hub.arm(Fault(path="/commit/", status=503, times=100))
    with sent_to(hub) as sent, pytest.raises(HubError, match="503"):
        publish_all(client, [make("v2", card="two")], work)
    assert sum("/commit/" in entry.path for entry in sent.entries) == 3
    hub.disarm()
    assert isinstance(publish_all(client, [make("v2", card="two")], work)[0].outcome, Published)


def test_a_hub_that_asks_for_too_much_patience(hub: LocalHub, make: Maker, work: Path) -> None:
    client = Client(hub.url, hub.token, retry=Retry(patience=5))
    hub.arm(Fault(path="/refs", status=429, retry_after=3600, times=10))
    began = time.monotonic()
    with pytest.raises(HubError, match="3600 s"):
        publish_all(client, [make()], work)
    assert time.monotonic() - began < 5
    hub.disarm()


# Each one starts the client twice; HUBPUB_KILLS=20 takes minutes and is worth them when this room changes.
KILLS = int(os.environ.get("HUBPUB_KILLS", "2"))
KILL_SIZES = {"a.pte": 3 << 20, "b.pte": 2 << 20, "c.pte": 2 << 20}


@both
def test_killed_at_any_moment(transport: str, hub: LocalHub, make: Maker, tmp_path: Path) -> None:
    """kill -9 at random moments of a release: the next run finishes it and sends no finished file again."""
    client = Client(hub.url, hub.token, retry=FAST)
    rng = random.Random(transport)
    script = str(Path(__file__).with_name("one_release.py"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_XET_CACHE": str(tmp_path / "xet")}
    if transport == "lfs":
        environment["HF_HUB_DISABLE_XET"] = "1"

    def run(version: str, folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, script, hub.url, hub.token, make.repo, version, str(folder), str(tmp_path / "work")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    first = tmp_path / "first"
    random_files(first, KILL_SIZES, seed=1)
    began = time.monotonic()
    assert run("v0", first).wait(60) == 0
    whole = time.monotonic() - began
    killed = 0
    for number in range(1, KILLS + 1):
        folder, version = tmp_path / f"files{number}", f"v{number}"
        random_files(folder, KILL_SIZES, seed=100 + number)
        with sent_to(hub) as sent:
            process = run(version, folder)
            time.sleep(rng.uniform(0.3, 1.0) * whole)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            refs = client.refs(make.repo)
            assert refs is not None
            revision = version if version in refs.tags else refs.branches.get(f"hubpub-stage/{version}", "main")
            there = client.files(make.repo, revision, KILL_SIZES)
        with sent_to(hub) as again:
            process = run(version, folder)
            answer = json.loads(process.communicate(timeout=60)[0])
        assert process.returncode == 0, answer
        wanted = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in KILL_SIZES}
        finished = {name for name, file in there.items() if file.sha256 == wanted[name]}
        left = sum(size for name, size in KILL_SIZES.items() if name not in finished)
        assert again.content <= left * 1.02 + 20_000, (sent.content, again.content, left)
        check(client, make, version, {name: (folder / name).read_bytes() for name in KILL_SIZES})
    assert killed
