"""Speeds: of a busy machine, and from the statistics that ExecuTorch's LLM runner prints elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, hubpub_here

from hubpub.errors import ExportError, UsageError
from hubpub.facts import CardFacts, load
from hubpub.make.pool import run_all
from hubpub.measure.bench import _child, _Watch, read_stats


def printed(**changed: int) -> str:
    """What the runner of executorch 1.4.1 prints of a run: 128 tokens read in 2 s, 32 made in 4 s."""
    stats = {
        "prefill_token_per_sec": 64,
        "decode_token_per_sec": 8,
        "prompt_tokens": 128,
        "generated_tokens": 32,
        "model_load_start_ms": 1000,
        "model_load_end_ms": 4500,
        "inference_start_ms": 5000,
        "inference_end_ms": 11000,
        "prompt_eval_end_ms": 7000,
        "first_token_ms": 7010,
        "aggregate_sampling_time_ms": 0,
        "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
    }
    assert stats.keys() >= changed.keys()
    return json.dumps({**stats, **changed})


@pytest.mark.parametrize("form", ["json", "log", "list"])
def test_statistics_of_the_runner_are_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "stats.txt"
    slower = printed(inference_end_ms=15000)
    log = f"I 00:00:01 executorch:runner.cpp:90] RSS\nPyTorchObserver {printed()}\nnoise\nPyTorchObserver {slower}\n"
    path.write_text({"json": printed(), "log": log, "list": f"[{printed()}, {slower}]"}[form])
    found = read_stats(path, "Pixel 9")
    assert found.runs == (1 if form == "json" else 2)
    assert (found.load_seconds, found.first_token_seconds) == (3.5, 2.01)
    assert (found.prefill_tokens, found.prefill_tokens_per_second) == (128, 64.0)
    assert found.decode_tokens_per_second == (8.0 if form == "json" else 6.0)
    assert found.stats.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "a log without figures", printed(generated_tokens=0), printed(inference_end_ms=6000)]
)
def test_what_is_no_statistics_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stats.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"stats\.json"):
        read_stats(path, "Pixel 9")


def test_a_phone_is_shown_for_the_file_it_ran(tmp_path: Path) -> None:
    """Bound to the bytes of the file: facts of another file do not show it."""
    shutil.copytree(ROOT / "cards", tmp_path / "cards")
    folder = tmp_path / "cards" / "gemma-3n-E2B-it-pte"
    (tmp_path / "stats.json").write_text(printed())
    command = ("bench", "gemma-3n-E2B-it/8da4w", "--import", str(tmp_path / "stats.json"), "--project", str(tmp_path))
    assert hubpub_here(*command, work=tmp_path / "work").code == 2
    ran = hubpub_here(*command, "--device", "Pixel | 9", work=tmp_path / "work")
    assert ran.code == 0, ran.err
    (shown,) = [cell for cell in load(CardFacts, folder / "facts.json").cells if cell.devices]
    assert shown.devices[0].device == "Pixel | 9"
    assert json.loads((folder / "devices.json").read_text())["measured"][0]["sha256"] == shown.file.sha256
    assert hubpub_here("render", "--project", str(tmp_path), work=tmp_path / "work").code == 0
    (row,) = [line for line in (folder / "README.md").read_text().splitlines() if "Pixel" in line]
    assert row.startswith("| `8da4w` | Pixel \\| 9 | 3.5 s | 2.01 s | 64 tokens/s | 8 tokens/s |")


def test_a_busy_machine_is_noticed() -> None:
    watch = _Watch()
    burn = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(os.cpu_count() or 1)]
    time.sleep(1.0)
    assert "other processes used" in watch.reason()
    for other in others:
        other.wait()


def refused(pte: Path, progress: object) -> tuple[list[str], float]:
    """What two processes of a worker say of a file that is no program, and the processor seconds of its children."""
    asked = {"pte": str(pte), "tokenizer": str(pte), "prompt": "a", "new_tokens": 1, "num_bos": 0}
    said = []
    for _ in range(2):
        with pytest.raises(ExportError) as error:
            _child("runner", asked, fresh=False)
        said.append(error.value.message)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return said, used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked where that is safe")
def test_a_worker_asks_processes_that_need_not_load_the_runtime_again(tmp_path: Path) -> None:
    """They end with the error, and their worker goes on; none is a child that it started itself."""
    (tmp_path / "no.pte").write_bytes(bytes(64))
    (done,) = run_all([("cell", refused, (tmp_path / "no.pte",))], 1, lambda *_: None)
    assert done.value is not None, done.error
    said, seconds = done.value
    assert said[0] == said[1] and "runner failed in the runtime" in said[0]
    assert seconds < 0.5
