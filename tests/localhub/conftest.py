"""Local Hubs in this process and in one of their own, with the real client in front of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hubpub.localhub import LocalHub, Options

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

# Read when the library and its transport start: their caches must not meet those of the person who runs the tests.
os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = tempfile.mkdtemp(prefix="hubpub-tests-")
os.environ.pop("HF_HUB_DISABLE_XET", None)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", options=Options(multipart_from=1_000_000, part_size=300_000)) as running:
        yield running
        assert running.errors == ()


@pytest.fixture(params=["lfs", "xet"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways a large file can travel; the environment variable is read at import, hence the attribute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@cache
def web() -> httpx2.Client:
    """Asks by a connection for each request, as `httpx2.get` does, but reads the system's certificates once."""
    import httpx2

    return httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0))


def api_of(url: str, token: str) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=url, token=token)


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return api_of(hub.url, hub.token)


REPO = "local/model"


@pytest.fixture
def repo(api: HfApi) -> str:
    """An empty repo."""
    api.create_repo(REPO)
    return REPO


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass
class Process:
    """A server in a process of its own."""

    url: str
    token: str
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, value: Any = None) -> Any:
        """Use the panel under /_local."""
        data = None if value is None else json.dumps(value).encode()
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a server process on `tmp_path/served`; all of them are killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def starter(*arguments: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", "hubpub.localhub", str(tmp_path / "served"), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout
        found = json.loads(process.stdout.readline())
        return Process(found["url"], Path(found["token_file"]).read_text(), process)

    yield starter
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
