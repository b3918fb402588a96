"""Memory and time of one large upload to a local Hub, in either transport.

    python benchmarks/upload.py --gib 2                      # xet
    HF_HUB_DISABLE_XET=1 python benchmarks/upload.py --gib 2  # git-LFS

The Hub runs in a process of its own, so that the figures are the client's alone. The second release shows what an
unchanged file costs. Hashing is held against `sha256sum` on the same file, both with the file in the page cache.

Taken on two cores at 4 GiB, other work on the machine: git-LFS 47 MiB resident at most, 37.5 s; xet 467 MiB, 50.7 s;
an unchanged file 0.0 s of hashing and 0 bytes in either. Hashing 723 MB/s, sha256sum (coreutils) 139 MB/s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hubpub.files import HashCache
from hubpub.hub.client import Client
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.publish import publish_all


def _random_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _best_seconds(work: Callable[[], object], times: int = 3) -> float:
    found = []
    for _ in range(times):
        began = time.monotonic()
        work()
        found.append(time.monotonic() - began)
    return min(found)


def _hashing(path: Path, root: Path) -> None:
    def ours() -> None:
        HashCache(root / "fresh.json").sha256(path)
        (root / "fresh.json").unlink()

    theirs = _best_seconds(lambda: subprocess.run(["sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL))
    seconds, size = _best_seconds(ours), path.stat().st_size / 1e6
    print(f"hashing: {size / seconds:.0f} MB/s, sha256sum {size / theirs:.0f} MB/s: {theirs / seconds:.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument(
        "--dir", type=Path, help="where the file and the Hub's storage go (default: a temporary folder)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        root = Path(folder)
        path = root / "model.pte"
        _random_file(path, int(options.gib * (1 << 30)))
        _hashing(path, root)
        command = [sys.executable, "-m", "hubpub.localhub", str(root / "hub")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            said = json.loads(server.stdout.readline())
            url, token = said["url"], Path(said["token_file"]).read_text()
            client = Client(url, token)
            print(f"before: {_peak_mib():.0f} MiB")
            for version in ("v1", "v2"):
                began = time.monotonic()
                file = LocalFile.of("model.pte", path, HashCache(root / "work" / "hashes.json"))
                hashed = time.monotonic()
                facts = LocalFile.text("facts.json", f'{{"version": "{version}"}}\n')
                release = RepoRelease(f"{client.namespace}/upload", version, (file, facts), "Benchmark")
                (receipt,) = publish_all(client, [release], root / "work")
                print(
                    f"{version}: {receipt.outcome.kind}, hash {hashed - began:.1f} s, "
                    f"publish {time.monotonic() - hashed:.1f} s, "
                    f"{receipt.bytes_sent / (1 << 20):.1f} MiB sent, peak {_peak_mib():.0f} MiB resident"
                )
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
