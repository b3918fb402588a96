"""The main job from the outside: a whole rehearsal, what the Hub holds afterwards, and doing it again."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from browser import browser
from card_python import each_in_a_process
from conftest import ROOT, Ran, hubpub, hubpub_here, scale_model
from huggingface_hub import HfApi, hf_hub_download

from hubpub.config import Project
from hubpub.facts import CardFacts, CellFacts, load
from hubpub.localhub import LocalHub
from hubpub.matrix import cells
from hubpub.measure.pte import opened

pytestmark = pytest.mark.slow


def test_every_cell_is_made_measured_and_passes(rehearsal: Ran, rehearsed: Project) -> None:
    made = rehearsal.json["cells"]
    assert [cell["cell"] for cell in made] == [cell.id for cell in cells(rehearsed)]
    assert all(cell["passed"] and cell["bytes"] > 0 for cell in made)
    outcomes = {receipt["outcome"]["kind"] for receipt in rehearsal.json["receipts"]}
    assert outcomes <= {"published", "no-changes"}


def test_the_plain_client_finds_files_and_tag(rehearsal: Ran, work: Path, tmp_path: Path) -> None:
    version = rehearsal.json["version"]
    with LocalHub(work / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for receipt in rehearsal.json["receipts"]:
            refs = api.list_repo_refs(receipt["repo_id"])
            tags = {tag.name: tag.target_commit for tag in refs.tags}
            assert tags[version] == next(b for b in refs.branches if b.name == "main").target_commit
            assert [branch.name for branch in refs.branches] == ["main"]
            for file in receipt["files"]:
                path = hf_hub_download(
                    receipt["repo_id"], file["path"], revision=version, endpoint=hub.url, cache_dir=tmp_path
                )
                assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == file["sha256"]
            names = {file["path"] for file in receipt["files"]}
            assert {"README.md", "facts.json", "SHA256SUMS", "config.json", "tokenizer.json"} <= names


def test_what_was_published_verifies_and_shows_in_the_status(rehearsal: Ran, work: Path) -> None:
    for receipt in rehearsal.json["receipts"]:
        repo = f"{receipt['repo_id']}@{receipt['version']}"
        ran = hubpub("verify", repo, "--hub", "local", "--download", "--json", work=work, cwd=rehearsal.root)
        assert (ran.code, ran.json["ok"]) == (0, True), ran.out
        assert {file["how"] for file in ran.json["files"]} == {"downloaded"}
    ran = hubpub("status", "--hub", "local", "--json", work=work, cwd=rehearsal.root)
    assert {one["published"] for one in ran.json["repos"]} == {rehearsal.json["version"]}
    assert not any(one["staged"] for one in ran.json["repos"])


def test_again_changes_nothing_and_sends_nothing(rehearsal: Ran, work: Path) -> None:
    with LocalHub(work / "hub") as hub:
        before = HfApi(endpoint=hub.url).list_repo_commits(rehearsal.json["receipts"][0]["repo_id"])
    before_again = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = hubpub("release", "--all", "--rehearse", "--json", work=work, cwd=rehearsal.root)
    after_again = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.code == 0, again.err
    assert again.json["version"] == rehearsal.json["version"]
    for receipt in again.json["receipts"]:
        assert receipt["outcome"]["kind"] == "no-changes"
        assert receipt["bytes_sent"] == 0
    with LocalHub(work / "hub") as hub:
        after = HfApi(endpoint=hub.url).list_repo_commits(rehearsal.json["receipts"][0]["repo_id"])
    assert [c.commit_id for c in after] == [c.commit_id for c in before]
    # Processor time: the wall clock says more about the neighbours. Making one cell takes thirty seconds.
    assert after_again.ru_utime - before_again.ru_utime < 10


def test_facts_are_of_the_published_files(rehearsal: Ran, work: Path) -> None:
    with LocalHub(work / "hub") as hub:
        for receipt in rehearsal.json["receipts"]:
            path = hf_hub_download(receipt["repo_id"], "facts.json", endpoint=hub.url, cache_dir=work / "downloads")
            facts = CardFacts.model_validate_json(Path(path).read_bytes())
            published = {file["path"]: file for file in receipt["files"]}
            for cell in facts.cells:
                assert published[cell.file.name]["sha256"] == cell.file.sha256
                assert cell.source.scale_model
                assert cell.passed
                assert cell.parity.logits.tokens > (cell.context.sliding_window or 0)
                assert cell.parity.lowering is not None
                assert cell.parity.lowering.kl_mean < 0.005
                assert cell.program.metadata["get_max_context_len"] == cell.context.exported
                # A program over a window has no cache, and the LLM runner does not run it.
                assert (cell.parity.runner is not None) == cell.program.metadata["use_kv_cache"]
                assert cell.parity.runner is None or cell.parity.runner.matches_decode_loop


def test_the_python_on_the_card_runs_as_it_stands(
    rehearsal: Ran, rehearsed: Project, work: Path, tmp_path: Path
) -> None:
    """The first block of a tuned and of a base model's card, copied from the page that the Hub shows, on the released
    file. That every block runs is seen in tests/cards/test_usage.py."""
    recipes = {card.repo: [rehearsed.recipe(card, name) for name in card.export.recipes] for card in rehearsed.cards}
    tuned, base = next(n for n in recipes if "-it-" in n), next(n for n in recipes if "-it-" not in n)
    first = []
    with LocalHub(work / "hub") as hub:
        with browser() as chrome:
            for name in (tuned, base):
                page = chrome.new_page()
                page.goto(f"{hub.url}/local/{name}")
                blocks = page.locator("code.language-python").all_text_contents()
                page.close()
                assert len(blocks) == len({recipe.layout for recipe in recipes[name]}) + 2
                first.append(blocks[0])
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": ""}
        # What the scale models learned to say to a question about a capital, and about the way of water.
        for done, said in zip(each_in_a_process(first, env, tmp_path), ("The capital of", "great circle"), strict=True):
            assert done.status == 0, done.err[-2000:]
            assert said in done.out


def test_publishing_again_would_change_nothing(rehearsal: Ran, rehearsed: Project, work: Path) -> None:
    ran = hubpub("diff", "--hub", "local", "--json", work=work, cwd=rehearsal.root)
    assert ran.code == 0, ran.err
    assert [card["empty"] for card in ran.json["cards"]] == [True] * len(rehearsed.cards)
    assert {card["facts"] for card in ran.json["cards"]} == {f"measured in {work}"}


def cell_folder(work: Path, cell: dict[str, str]) -> Path:
    return work / "cells" / "rehearsal" / cell["cell"] / cell["fingerprint"]


def test_float_recipes_answer_like_the_original(rehearsal: Ran, work: Path) -> None:
    for cell in rehearsal.json["cells"]:
        if cell["cell"].endswith("/bf16"):
            facts = load(CellFacts, cell_folder(work, cell) / "facts.json")
            assert facts.parity.greedy.prompts >= 12
            assert facts.parity.greedy.first_token == 1.0
            assert facts.parity.logits.kl_mean < 0.005


def test_a_file_that_is_validated_by_itself_is_held_to_its_gates(rehearsal: Ran, work: Path, tmp_path: Path) -> None:
    cell = next(cell for cell in rehearsal.json["cells"] if cell["cell"] == "gemma-4-E4B/8da4w")
    path = tmp_path / cell["file"]
    with opened(cell_folder(work, cell) / cell["file"]) as (program, _):
        damaged = bytearray(program.data)
        layer = next(name for name in program.named if name.endswith("down_proj.values"))
        extent = program.under(layer)
    assert extent is not None
    damaged[slice(*extent)] = bytes(byte ^ 0x11 for byte in damaged[slice(*extent)])
    path.write_bytes(damaged)
    source = scale_model("gemma-4-E4B", work / "scale")
    command = ("validate", str(path), "--source", str(source), "--rehearse", "--json")
    ran = hubpub_here(*command, work=work, cwd=rehearsal.root)
    assert ran.code == 7, ran.err
    (target,) = ran.json["targets"]
    assert layer.removesuffix(".values") in str(target["parity"]["weights"]["wrong"])
    assert re.search(r"did not pass: .*weights_stored", ran.err)
    # What its weights were made with lies elsewhere.
    assert "another kind of processor chooses others" in ran.err


def test_killed_while_measuring_it_goes_on_where_it_was(rehearsal: Ran, work: Path) -> None:
    cell = next(cell for cell in rehearsal.json["cells"] if cell["cell"] == "gemma-3n-E2B-it/bf16")
    folder = cell_folder(work, cell)
    written = (folder / cell["file"]).stat().st_mtime_ns
    for name in ("facts.json", "parity.json"):
        (folder / name).unlink()
    command = [sys.executable, "-m", "hubpub", "release", "--all", "--rehearse", "--work", str(work)]
    with subprocess.Popen(
        command, cwd=rehearsal.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "gemma-3n-E2B-it/bf16: text" in line:
                break
        workers = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not (folder / "facts.json").exists()
    again = hubpub("release", "--all", "--rehearse", "--json", work=work, cwd=rehearsal.root)
    assert again.code == 0, again.err
    # The export was finished before the kill, so it was not done again; the figures are the same, so is the version.
    assert (folder / cell["file"]).stat().st_mtime_ns == written
    assert again.json["version"] == rehearsal.json["version"]


@pytest.mark.parametrize("selector", ["gemma-3n-E2B-it/nothing", "*/int3"])
def test_a_selector_without_cells_has_its_own_exit_code(selector: str, work: Path) -> None:
    ran = hubpub("release", selector, "--rehearse", work=work)
    assert ran.code == 3
    assert selector in ran.err
    assert "Traceback" not in ran.err


def test_a_release_without_version_is_a_usage_error(tmp_path: Path) -> None:
    ran = hubpub("release", "--all", work=tmp_path)
    assert (ran.code, "Traceback" in ran.err) == (2, False)
    assert "--version" in ran.err


def test_a_version_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    ran = hubpub("release", "--all", "--version", "1.0", work=tmp_path)
    assert ran.code == 2
    assert "'1.0' is not a version" in ran.err


def test_a_release_without_token_stops_before_anything_is_made(tmp_path: Path) -> None:
    ran = hubpub(
        "release",
        "gemma-3n-E2B-it",
        "--version",
        "v1.0.0",
        "--hub",
        "http://127.0.0.1:9",
        work=tmp_path / "w",
        HF_TOKEN="",
        HF_HOME=str(tmp_path),
    )
    assert ran.code == 10
    assert "no token" in ran.err
    assert not (tmp_path / "w").exists()


def test_a_source_that_is_not_pinned_is_not_released(tmp_path: Path, rehearsed: Project) -> None:
    shutil.copytree(rehearsed.root / "cards", tmp_path / "cards")
    card = tmp_path / "cards" / "gemma-4-E4B-pte" / "card.toml"
    text = card.read_text()
    card.write_text(re.sub(r"(?m)^revision = .*\n", "", text))
    select = ("gemma-4-E4B", "--project", str(tmp_path))
    refused = hubpub("release", *select, "--version", "v1.0.0", "--hub", "http://127.0.0.1:9", work=tmp_path / "w")
    assert refused.code == 3
    assert "its source is not pinned" in refused.err
    assert "hubpub pin gemma-4-E4B-pte" in refused.err
    with LocalHub(tmp_path / "hub", orgs=["google"]) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("google/gemma-4-E4B")
        head = api.list_repo_refs("google/gemma-4-E4B").branches[0].target_commit
        where = ("--project", str(tmp_path), "--hub", hub.url)
        pinned = hubpub("pin", *where, "--json", work=tmp_path / "w", HF_TOKEN=hub.token)
        again = hubpub("pin", "gemma-4-E4B-pte", *where, work=tmp_path / "w", HF_TOKEN=hub.token)
    assert pinned.json["pinned"] == [
        {"card": "gemma-4-E4B-pte", "source": "google/gemma-4-E4B", "old": None, "new": head}
    ]
    assert "as before" in again.out
    expected = re.sub(r"(?m)^revision = .*$", f'revision = "{head}"', text)
    assert sorted(card.read_text().splitlines()) == sorted(expected.splitlines())


def test_a_cell_that_fails_its_gate_keeps_its_repo_back(rehearsal: Ran, work: Path, tmp_path: Path) -> None:
    shutil.copytree(rehearsal.root / "cards", tmp_path / "cards")
    card = tmp_path / "cards" / "gemma-3n-E2B-it-pte" / "card.toml"
    recipe = """
[recipe.int8]
summary = "int8 weights per channel, float32 activations (weight-only)"
dtype = "fp32"
backend = "portable"
linear = { weight = "int8" }
embedding = { weight = "int8" }
per_layer_embedding = { weight = "int8" }
head = { weight = "int8" }
[recipe.int8.gates]
kl_mean_max = 1e-9
top1_min = 0.96
"""
    card.write_text(card.read_text() + recipe)
    ran = hubpub("release", "--all", "--rehearse", "--json", "--project", str(tmp_path), work=work, cwd=rehearsal.root)
    assert ran.code == 7, ran.err
    assert "gemma-3n-E2B-it/int8 did not pass: kl_mean" in ran.err
    repos = [receipt["repo_id"] for receipt in ran.json["receipts"]]
    others = [one for one in rehearsal.json["receipts"] if one["repo_id"] != "local/gemma-3n-E2B-it-pte"]
    assert repos == [one["repo_id"] for one in others]


def test_plan_needs_no_torch_and_half_a_second(tmp_path: Path) -> None:
    code = (
        "import sys, hubpub.cli; code = hubpub.cli.main(['plan', '--rehearse', '--json', '--work', sys.argv[1]]);"
        "assert not {'torch', 'transformers', 'executorch', 'huggingface_hub'} & set(sys.modules); sys.exit(code)"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor time: on a busy machine the wall clock says more about the neighbours.
    assert min(spent) < 0.5


def test_a_prompt_longer_than_one_call_takes_is_answered_by_the_runner(rehearsal: Ran, work: Path) -> None:
    from hubpub import data
    from hubpub.measure.bench import ask_runner
    from hubpub.measure.runtime import Session
    from hubpub.model.reader import Reader

    chosen = next(cell for cell in rehearsal.json["cells"] if cell["cell"] == "gemma-4-E2B-it/8da4w")
    (pte,) = (work / "cells").glob(f"*/gemma-4-E2B-it/8da4w/{chosen['fingerprint']}/*.pte")
    source = scale_model("gemma-4-E2B-it", work / "scale")
    reader = Reader(source, begins_with_bos=True)
    text = reader.decode(reader.encode(data.corpus())[1:700])
    session = Session(pte)
    prompt = reader.encode(text)
    assert session.longest < len(prompt)
    ours = session.generate(prompt, 16, [1, 106, 50])
    said = ask_runner(pte, source / "tokenizer.json", text, 16, num_bos=1).text
    assert said.strip() == reader.tokenizer.decode(ours, skip_special_tokens=True).strip()


def test_run_answers_and_prints_only_the_answer(rehearsal: Ran, work: Path) -> None:
    chosen = next(cell for cell in rehearsal.json["cells"] if cell["cell"] == "gemma-4-E2B-it/8da4w")
    (pte,) = (work / "cells").glob(f"*/gemma-4-E2B-it/8da4w/{chosen['fingerprint']}/*.pte")
    source = scale_model("gemma-4-E2B-it", work / "scale")
    ask = ("run", str(pte), "--tokenizer", str(source), "--prompt", "What is the capital of Japan?", "--chat")
    shown = hubpub(*ask, work=work, cwd=rehearsal.root)
    told = hubpub_here(*ask, "--json", work=work, cwd=rehearsal.root)
    assert shown.code == told.code == 0, shown.err + told.err
    assert "turn|" not in shown.out
    assert "Observer" not in shown.out
    assert shown.out.strip() == told.json["text"].strip()
    assert told.json["tokens"] > 3
    assert "decode" in shown.err
    alone = hubpub_here("run", str(pte), "--prompt", "Hello", work=work, cwd=rehearsal.root)
    assert alone.code != 0
    assert "tokenizer" in alone.err


def test_export_makes_files_from_a_local_checkpoint_and_says_what_does_not_fit(
    rehearsal: Ran, work: Path, tmp_path: Path
) -> None:
    assert rehearsal.code == 0
    source = scale_model("gemma-4-E2B-it", work / "scale")
    export = ("export", "gemma-4-E2B-it/8da4w", "--source", str(source), "--out", str(tmp_path / "out"))
    other = hubpub("export", "gemma-3n-E2B-it/8da4w", *export[2:], work=work, cwd=rehearsal.root)
    assert other.code != 0
    assert "is a gemma4 checkpoint" in other.err
    done = hubpub(*export, "--context", "256", "--json", work=work, cwd=rehearsal.root)
    assert done.code == 0, done.err
    (one,) = done.json["files"]
    made = (tmp_path / "out" / one["file"]["name"]).read_bytes()
    assert hashlib.sha256(made).hexdigest() == one["file"]["sha256"]
    assert one["context"]["exported"] == 256
