"""Looks up what the code on the cards takes from ExecuTorch in ExecuTorch's sources, at the version of the cards.

    git clone --bare --filter=blob:none https://github.com/pytorch/executorch.git executorch.git
    python benchmarks/usage_sources.py executorch.git

Reads tests/cards/signatures.toml, which the tests hold the cards to: every text it quotes must stand in the file it
names. Exits with 1 and a line for each that does not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

SIGNATURES = Path(__file__).parent.parent / "tests" / "cards" / "signatures.toml"


def text_of(git: Path, revision: str, file: str) -> str:
    """A file of a repository at a revision, with every run of spaces as one. Raises CalledProcessError."""
    command = ["git", "-C", str(git), "show", f"{revision}:{file}"]
    return squeezed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("git", type=Path, help="a clone of ExecuTorch, bare or not")
    parser.add_argument("--version", default="1.4.1", help="the version the cards name")
    given = parser.parse_args()
    looked_up, missing = 0, []
    for language, table in tomllib.loads(SIGNATURES.read_text("utf-8")).items():
        for claim in table["claim"]:
            revision = claim.get("revision", f"v{given.version}")
            try:
                text = text_of(given.git, revision, claim["file"])
            except subprocess.CalledProcessError as error:
                missing.append(f"{language}: {claim['file']} at {revision}: {error.stderr.strip().splitlines()[-1]}")
                continue
            for quoted in claim["source"]:
                looked_up += 1
                if squeezed(quoted) not in text:
                    missing.append(f"{language}: {claim['file']} at {revision} does not say: {quoted}")
    print("\n".join(missing) or f"all {looked_up} texts stand where they are said to")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
