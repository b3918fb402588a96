"""Runs the Python of cards as it stands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Runs each text of Python that it is given in a process of its own, and tells of each how it ended. What the packages
# of a card stand on, the export stack and torch's compiler, takes seconds to import: it is imported once, and processes
# are forked of that. No kernel, no runtime and no name is there that a text has not imported itself.
EACH_IN_A_PROCESS = """
import json, os, sys, tempfile
import executorch.exir, torchao, transformers

for name in ("kernels.quantized", "extension.llm.custom_ops.custom_ops", "extension.llm.runner", "runtime"):
    assert f"executorch.{name}" not in sys.modules, name
ended = []
for code in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            exec(compile(code, "card", "exec"), {"__name__": "__main__"})
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        ended.append([status, *texts])
print(json.dumps(ended))
"""


@dataclass(frozen=True)
class Ended:
    """How one text of Python ended."""

    code: str
    status: int
    out: str
    err: str


def each_in_a_process(codes: Sequence[str], env: Mapping[str, str], cwd: Path) -> list[Ended]:
    """How each of `codes` ended, run one after the other in `cwd` with the environment `env`."""
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_A_PROCESS],
        input=json.dumps([*codes]),
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Ended(code, *ended) for code, ended in zip(codes, json.loads(done.stdout), strict=True)]
