"""A local Hub per test, the two transports, and releases made of small random files."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hubpub.files import HashCache
from hubpub.hub.client import Client, Retry
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.localhub import Entry, LocalHub

# Read when the library and its transport start: their caches must not meet those of the person who runs the tests.
os.environ["HF_HOME"] = os.environ["HF_XET_CACHE"] = tempfile.mkdtemp(prefix="hubpub-tests-")
os.environ["HF_XET_CLIENT_RETRY_BASE_DELAY"] = "100ms"
os.environ.pop("HF_HUB_DISABLE_XET", None)
os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)

FAST = Retry(attempts=6, first=0.05, longest=0.2)
CARD = "---\nlicense: apache-2.0\n---\n# Title\n\n<!-- made -->one<!-- /made -->\n"


class Seen:
    """Keeps what it is shown: the fractions of each stage of each piece of work."""

    def __init__(self) -> None:
        self.stages: dict[tuple[str, str], list[float]] = {}

    def update(self, name: str, stage: str, fraction: float) -> None:
        self.stages.setdefault((name, stage), []).append(fraction)

    def finish(self, name: str, outcome: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as running:
        yield running
        assert not running.errors


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files travel: "lfs" unless the test asks for `both`. The variable is read at import: hence this."""
    from huggingface_hub import constants

    name = getattr(request, "param", "lfs")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", name == "lfs")
    return str(name)


both = pytest.mark.parametrize("transport", ["lfs", "xet"], indirect=True)


@pytest.fixture
def client(hub: LocalHub) -> Client:
    return Client(hub.url, hub.token, retry=FAST)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def killed_before_tagging(monkeypatch: pytest.MonkeyPatch, publishing: Callable[[], object]) -> None:
    """Let `publishing` be killed between its commit and its tag."""
    with monkeypatch.context() as patch:
        patch.setattr(Client, "create_tag", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publishing()


def random_files(folder: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Write files of random content, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).write_bytes(random.Random(seed * 1000 + number).randbytes(size))


SIZES = {"model-8da4w.pte": 900_000, "model-int8.pte": 700_000, "tokenizer.json": 400_000}


@dataclass(frozen=True)
class Maker:
    """Makes releases of the files in `folder`."""

    folder: Path
    work: Path
    repo: str

    def __call__(
        self, version: str = "v1.0.0", *, card: str = "one", seed: int | None = None, **more: str
    ) -> RepoRelease:
        if seed is not None or not self.folder.exists():
            random_files(self.folder, SIZES, seed or 0)
        hashes = HashCache(self.work / "hashes.json")
        files = [LocalFile.of(path.name, path, hashes) for path in sorted(self.folder.iterdir())]
        texts = {"config.json": "{}\n", "facts.json": f'{{"version": "{version}"}}\n', "LICENSE": "Terms\n", **more}
        files += [LocalFile.text(name, content) for name, content in texts.items()]
        return RepoRelease(self.repo, version, tuple(files), "A release", card_merge=merger(card))


def merger(made: str) -> Callable[[str | None], str]:
    """Replaces the marked block and keeps the rest."""

    def merge(published: str | None) -> str:
        text = published if published and "<!-- made -->" in published else CARD
        before, _, rest = text.partition("<!-- made -->")
        return f"{before}<!-- made -->{made}<!-- /made -->{rest.partition('<!-- /made -->')[2]}"

    return merge


@pytest.fixture
def make(tmp_path: Path, work: Path, hub: LocalHub) -> Maker:
    return Maker(tmp_path / "files", work, f"{hub.user}/model")


@dataclass
class Sent:
    """What reached the Hub meanwhile: `content` are bytes of large files, `bytes` those of all request bodies."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def content(self) -> int:
        return sum(e.request_bytes for e in self.entries if e.path.startswith("/_lfs/") or "/xorbs/" in e.path)

    @property
    def bytes(self) -> int:
        return sum(entry.request_bytes for entry in self.entries)


@contextmanager
def sent_to(hub: LocalHub) -> Iterator[Sent]:
    """Collects the requests made while it is open."""
    before, sent = len(hub.requests), Sent()
    try:
        yield sent
    finally:
        sent.entries += hub.requests[before:]
