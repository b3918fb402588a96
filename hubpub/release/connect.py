"""Where repos are published: a Hub and an owner on it. A local Hub is started for as long as it is needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubpub.config import Card
from hubpub.errors import HubError
from hubpub.hub.client import Client, Retry

if TYPE_CHECKING:
    from hubpub.localhub import LocalHub

HUGGING_FACE = "https://huggingface.co"
LOCAL = "local"
LOCAL_PORT = 8765


@dataclass(frozen=True)
class Destination:
    """A Hub, and the owner of the repos on it (None: the user of the token). `store` is the folder of a local Hub.

    With `create_pr` what is published becomes a pull request there. Where the repos hold a rehearsal, a release may
    follow it only with `over_rehearsal`.
    """

    client: Client
    owner: str | None = None
    store: Path | None = None
    create_pr: bool = False
    over_rehearsal: bool = False

    @property
    def namespace(self) -> str:
        """The owner of the repos. Raises AccessError where none was named and there is no token."""
        return self.owner or self.client.namespace

    def repo_id(self, card: Card) -> str:
        return f"{self.namespace}/{card.repo}"


def hub_of(repo_id: str, given: str | None, otherwise: str | None = None) -> str | None:
    """The Hub that is asked for a repo: the one that was `given`; of "local/NAME", as a release to the local Hub calls
    its repos, that one."""
    return given or (LOCAL if repo_id.startswith(f"{LOCAL}/") else otherwise)


@contextmanager
def connect(endpoint: str | None, store: Path, owner: str | None = None) -> Iterator[Destination]:
    """The Hub at `endpoint` (None: huggingface.co, or HF_ENDPOINT); "local": the one whose repos lie in `store`."""
    if endpoint != LOCAL:
        yield Destination(Client.from_environment(endpoint), owner)
        return
    with ExitStack() as stack:
        try:
            hub = stack.enter_context(_local_hub(store, owner))
        except HubError:
            # Somebody may be looking at it with `hubpub hub serve`: that one is asked then.
            if (served := _served(store)) is None:
                raise
            yield Destination(served, owner, store)
        else:
            yield Destination(Client(hub.url, hub.token), owner, store)


def _served(root: Path) -> Client | None:
    """A client for the local Hub that another process serves from `root`, if it answers."""
    try:
        client = Client((root / "address").read_text(), (root / "token").read_text(), retry=Retry(attempts=1))
        client.whoami()
    except (OSError, HubError):
        return None
    return Client(client.endpoint, (root / "token").read_text())


def _local_hub(root: Path, owner: str | None) -> LocalHub:
    """A local Hub at the address `hubpub hub serve` uses, so that its pages can be found again; else anywhere."""
    # A server takes a third of what `diff` and `preview` may take to start, and they mostly need none.
    from hubpub.localhub import LocalHub

    orgs = [owner] if owner else []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", LOCAL_PORT))
        except OSError:
            return LocalHub(root, orgs=orgs)
    return LocalHub(root, LOCAL_PORT, orgs=orgs)
