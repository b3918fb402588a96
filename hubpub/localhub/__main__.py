"""`python -m hubpub.localhub ROOT`: serve a folder until interrupted, after one line of JSON that says where."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from hubpub.errors import HubpubError
from hubpub.localhub.server import LocalHub, serve
from hubpub.localhub.site import Options


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hubpub.localhub", description="Serve a Hub on this machine.")
    parser.add_argument("root", type=Path, help="folder that holds the Hub's repos; made where it does not exist")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--user", default="local")
    parser.add_argument("--org", action="append", default=[], help="a further namespace the user may write to")
    parser.add_argument("--no-xet", action="store_true", help="offer git-LFS alone")
    parser.add_argument("--multipart-from", type=int, default=Options.multipart_from, metavar="BYTES")
    parser.add_argument("--part-size", type=int, default=Options.part_size, metavar="BYTES")
    asked = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def ready(hub: LocalHub) -> None:
        print(json.dumps({"url": hub.url, "user": hub.user, "token_file": str(hub.token_path)}), flush=True)

    try:
        options = Options(xet=not asked.no_xet, multipart_from=asked.multipart_from, part_size=asked.part_size)
        hub = LocalHub(asked.root, asked.port, asked.host, user=asked.user, orgs=asked.org, options=options)
        serve(hub, ready, stop)
    except HubpubError as error:
        print(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
