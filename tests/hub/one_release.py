"""One release of a folder, run as a process of its own so that it can be killed: URL TOKEN REPO VERSION FOLDER WORK."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from hubpub.errors import HubpubError
from hubpub.files import HashCache
from hubpub.hub.client import Client, Retry
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.publish import publish_all


def main(url: str, token: str, repo: str, version: str, folder: str, work: str) -> int:
    hashes = HashCache(Path(work) / "hashes.json")
    files = tuple(LocalFile.of(path.name, path, hashes) for path in sorted(Path(folder).iterdir()))
    release = RepoRelease(repo, version, files, "A test", card_merge=lambda card: card or "# Card\n")
    client = Client(url, token, retry=Retry(first=0.05, longest=0.5))
    try:
        receipts = publish_all(client, [release], Path(work))
    except HubpubError as error:
        print(json.dumps({"error": type(error).__name__, "exit": error.exit_code, "message": error.message}))
        return error.exit_code
    print(json.dumps([asdict(receipt) for receipt in receipts]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
