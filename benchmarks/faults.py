"""Every fault in both transports, and kill -9 of client and server: what was sent, how many commits, how it ended.

    python benchmarks/faults.py --kills 20 > table.md

The client is a process of its own; each row is a release of three files (2.8 MB) to a fresh repo of a local Hub, with
one fault armed at the named call. "sent" are bytes of file content that reached the Hub, as a share of the release; for
kills it is what the rerun sent. A row that does not end intact makes the exit code 1. Retries before staging begins are
not in the receipt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hubpub.hub.client import Client, Retry
from hubpub.hub.maintenance import verify
from hubpub.localhub import Fault, LocalHub

ROOT = Path(__file__).parent.parent
SIZES = {"a.pte": 1_200_000, "b.pte": 900_000, "c.pte": 700_000}
TOTAL = sum(SIZES.values())
CALLS = {"refs": "/refs", "branch": "/branch/", "file content": "/_lfs/|/xorbs/", "staging commit": "/commit/hubpub"}
CALLS |= {"release commit": "/commit/main", "tag": "/tag/"}
FAULTS: dict[str, dict[str, Any]] = {
    "429, Retry-After 1": {"status": 429, "retry_after": 1},
    "503": {"status": 503},
    "cut before the body": {"cut": "before-body"},
    "cut in the body": {"cut": "in-body", "after_bytes": 5},
    "answer lost": {"cut": "before-response"},
    "delay 2 s": {"delay": 2.0},
}


def files_in(folder: Path, seed: str) -> Path:
    folder.mkdir()
    for name, size in SIZES.items():
        (folder / name).write_bytes(random.Random(f"{seed} {name}").randbytes(size))
    return folder


def start(transport: str, url: str, token: str, repo: str, version: str, folder: Path, work: Path) -> Any:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(work / "hf"),
        "HF_XET_CACHE": str(work / "xet"),
    }
    environment.pop("HF_HUB_DISABLE_XET", None)
    if transport == "lfs":
        environment["HF_HUB_DISABLE_XET"] = "1"
    script = str(ROOT / "tests" / "hub" / "one_release.py")
    command = [sys.executable, script, url, token, repo, version, str(folder), str(work)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def content(hub: LocalHub, since: int) -> int:
    return sum(e.request_bytes for e in hub.requests[since:] if e.path.startswith("/_lfs/") or "/xorbs/" in e.path)


def state(client: Client, repo: str, version: str) -> tuple[int, int, str]:
    """Commits of `version` on main, tags of it, and whether tag and content are right."""
    refs = client.refs(repo)
    assert refs is not None
    commits = [c.id for c in client.commits(repo, "main") if c.title == f"Release {version}"]
    tags = [name for name in refs.tags if name == version]
    held = client.files(repo, version, SIZES) if tags else {}
    problems = [p for p in verify(client, repo, version).problems if "facts.json" not in p] if tags else ["no tag"]
    right = len(held) == len(SIZES) and not problems and refs.branches.keys() == {"main"}
    right = right and [refs.tags[version]] == commits
    return len(commits), len(tags), "intact" if right else f"WRONG {problems} {sorted(refs.branches)}"


def one_fault(hub: LocalHub, transport: str, call: str, fault: str, root: Path, number: int) -> str:
    client = Client(hub.url, hub.token)
    repo = f"{hub.user}/f{transport}{number}"
    folder = files_in(root / f"files-{transport}-{number}", f"{transport}{number}")
    before = len(hub.requests)
    hub.arm(Fault(path=CALLS[call], **FAULTS[fault]))
    process = start(transport, hub.url, hub.token, repo, "v1", folder, root / f"work-{transport}-{number}")
    said = json.loads(process.communicate(timeout=120)[0])
    hub.disarm()
    commits, tags, end = state(client, repo, "v1")
    retries = said[0]["retries"] if isinstance(said, list) else said
    sent = f"{content(hub, before) / TOTAL:.0%}"
    return f"| {transport} | {fault} | {call} | {sent} | {retries} | {commits} | {tags} | {end} |"


def kill_clients(hub: LocalHub, transport: str, times: int, root: Path) -> str:
    client, rng, repo = Client(hub.url, hub.token), random.Random(transport), f"{hub.user}/k{transport}"
    folder = files_in(root / f"first-{transport}", transport)
    began = time.monotonic()
    start(transport, hub.url, hub.token, repo, "v0", folder, root / "work").communicate(timeout=120)
    whole, killed, again, excess, wrong = time.monotonic() - began, 0, 0, 0, []
    for number in range(1, times + 1):
        version = f"v{number}"
        folder = files_in(root / f"kill-{transport}-{number}", f"kill {transport} {number}")
        process = start(transport, hub.url, hub.token, repo, version, folder, root / "work")
        time.sleep(rng.uniform(0.3, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        refs = client.refs(repo)
        assert refs is not None
        at = version if version in refs.tags else refs.branches.get(f"hubpub-stage/{version}", "main")
        there = client.files(repo, at, SIZES)
        missing = [n for n in SIZES if n not in there or there[n].sha256 != _sha(folder / n)]
        left = sum(SIZES[name] for name in missing)
        before = len(hub.requests)
        process = start(transport, hub.url, hub.token, repo, version, folder, root / "work")
        process.communicate(timeout=120)
        sent = content(hub, before)
        again += sent
        excess = max(excess, sent - left)
        commits, tags, end = state(client, repo, version)
        if (process.returncode, commits, tags, end) != (0, 1, 1, "intact"):
            wrong.append(f"{version}: {commits} commits, {tags} tags, {end}")
    end = "; ".join(wrong) or "all intact, one commit and one tag each"
    return (
        f"| {transport} | client killed | {killed} of {times} random moments "
        f"| {again / times / TOTAL:.0%} by the rerun, {max(0, excess):,} bytes more than was unfinished | | | | {end} |"
    )


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_servers(transport: str, times: int, root: Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hubpub.localhub", str(root / f"served-{transport}"), "--port", str(port)]

    def serve() -> tuple[Any, dict[str, str]]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout
        return process, json.loads(process.stdout.readline())

    server, said = serve()
    token = Path(said["token_file"]).read_text()
    client, rng, repo = Client(said["url"], token, retry=Retry(first=0.2)), random.Random(transport), "local/s"
    reruns, wrong = 0, []
    try:
        for number in range(1, times + 1):
            version, folder = f"v{number}", files_in(root / f"server-{transport}-{number}", f"{transport} {number}")
            process = start(transport, said["url"], token, repo, version, folder, root / "work-s")
            time.sleep(rng.uniform(0.5, 2.5))
            server.kill()
            server.wait()
            server, _ = serve()
            if process.wait(timeout=120):
                reruns += 1
                process = start(transport, said["url"], token, repo, version, folder, root / "work-s")
                process.wait(timeout=120)
            commits, tags, end = state(client, repo, version)
            if (process.returncode, commits, tags, end) != (0, 1, 1, "intact"):
                wrong.append(f"{version}: {commits} commits, {tags} tags, {end}")
    finally:
        server.kill()
        server.wait()
    end = "; ".join(wrong) or "all intact, one commit and one tag each"
    return f"| {transport} | server killed | {times} random moments | | {reruns} needed a rerun | | | {end} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("faults", "kills"))
    parser.add_argument("--transport", choices=("lfs", "xet"), action="append")
    options = parser.parse_args()
    print("| transport | fault | at | file bytes sent | retries | commits | tags | end |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as hub:
        root = Path(folder)
        for transport in options.transport or ("lfs", "xet"):
            rows = []
            if options.only != "kills":
                pairs = [(fault, call) for fault in FAULTS for call in CALLS]
                rows += [(one_fault, (hub, transport, call, fault, root, n)) for n, (fault, call) in enumerate(pairs)]
            if options.only != "faults":
                rows.append((kill_clients, (hub, transport, options.kills, root)))
                rows.append((kill_servers, (transport, options.kills, root)))
            for function, arguments in rows:
                row = function(*arguments)
                failed += "intact" not in row
                print(row, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
