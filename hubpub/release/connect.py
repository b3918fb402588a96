"""The Hub a command speaks to: an endpoint, or a local Hub that is started for as long as it is needed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hubpub.errors import HubError

if TYPE_CHECKING:
    from hubpub.hub.client import Client
    from hubpub.localhub import LocalHub
    from hubpub.release.run import Options


HUGGING_FACE = "https://huggingface.co"


LOCAL_PORT = 8765


def connect(options: Options, stack: ExitStack) -> tuple[Client, Path | None]:
    """A client for the Hub of `options`; a local Hub is started for as long as `stack` is open."""
    from hubpub.hub.client import Client

    if options.endpoint != "local":
        return Client.from_environment(options.endpoint), None
    root = options.work / "hub"
    try:
        hub = stack.enter_context(_local_hub(root, options.namespace))
    except HubError:
        # Somebody may be looking at it with `hubpub hub serve`: that one is asked then.
        if (served := _served(root)) is None:
            raise
        return served, root
    return Client(hub.url, hub.token), root


def _served(root: Path) -> Client | None:
    """A client for the local Hub that another process serves from `root`, if it answers."""
    from hubpub.hub.client import Client, Retry

    try:
        client = Client((root / "address").read_text(), (root / "token").read_text(), retry=Retry(attempts=1))
        client.whoami()
    except (OSError, HubError):
        return None
    return Client(client.endpoint, (root / "token").read_text())


def _local_hub(root: Path, namespace: str | None) -> LocalHub:
    """A local Hub at the address `hubpub hub serve` uses, so that its pages can be found again; else anywhere."""
    import socket

    from hubpub.localhub import LocalHub

    orgs = [namespace] if namespace else []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", LOCAL_PORT))
        except OSError:
            return LocalHub(root, orgs=orgs)
    return LocalHub(root, LOCAL_PORT, orgs=orgs)
