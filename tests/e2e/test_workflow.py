"""The release workflow, step by step as it stands in the YAML, against a Hub that trusts it for one repo at a time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Ran, hubpub, with_card
from e2e.actions import REPOSITORY, Issuer, Run, Workflow, evaluate_value, issuer
from huggingface_hub import HfApi, hf_hub_download

from hubpub.config import PACKAGE, Project
from hubpub.localhub import LocalHub
from hubpub.localhub.tokens import Publisher

pytestmark = pytest.mark.slow

RELEASE = ROOT / ".github" / "workflows" / "release.yml"
PAIR = ("gemma-3n-E2B-it-pte", "gemma-3n-E4B-it-pte")
RECIPE = "bf16"


@pytest.fixture(scope="module")
def service() -> Iterator[Issuer]:
    with issuer() as running:
        yield running


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as running:
        yield running
        assert not running.errors


def cards_of(folder: Path, repos: Sequence[str], recipe: str) -> Path:
    """A project of somebody else's: these cards with one recipe each, so that few cells say it all."""
    for repo in repos:
        with_card(folder, repo, recipes=[recipe], recommended=recipe)
    return folder


class World:
    """A project, its workflow, and the repos on the Hub that trust it."""

    def __init__(
        self,
        tmp: Path,
        hub: LocalHub,
        service: Issuer,
        work: Path,
        repos: Sequence[str],
        ref: str,
        recipe: str = RECIPE,
    ) -> None:
        self.hub, self.service = hub, service
        self.api = HfApi(endpoint=hub.url, token=hub.token)
        self.project = cards_of(tmp / "project", repos, recipe)
        self.flow = Workflow(RELEASE, tmp / "runs", self.project, hub.url, service, work, ref)
        self.flow.variables |= {"HUBPUB_REHEARSE": "true", "HF_REHEARSAL_NAMESPACE": hub.user}
        # Every cell is measured once; a test of its own has the second machine.
        self.flow.variables |= {"HUBPUB_ARM_RUNNER": "none"}

    def trust(self, *repos: str, **other: str) -> None:
        """Make the repos and register the workflow, as an owner does on the Hub beforehand."""
        claims = {"repository": REPOSITORY, "workflow": "release.yml", "environment": "hub-release", **other}
        for repo in repos:
            self.api.create_repo(f"{self.hub.user}/{repo}", exist_ok=True)
            self.hub.trust(Publisher(f"{self.hub.user}/{repo}", self.service.url, self.service.keys, claims))

    def tags(self, repo: str) -> dict[str, str]:
        return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(f"{self.hub.user}/{repo}").tags}


@pytest.fixture
def world(tmp_path: Path, hub: LocalHub, service: Issuer, rehearsal: Ran, work: Path) -> World:
    assert rehearsal.code == 0
    return World(tmp_path, hub, service, work, PAIR, "v1.0.0")


def test_a_tag_becomes_a_release_of_every_repo(
    tmp_path: Path, hub: LocalHub, service: Issuer, rehearsal: Ran, work: Path, rehearsed: Project
) -> None:
    repos = [card.repo for card in rehearsed.cards if RECIPE in card.export.recipes]
    world = World(tmp_path, hub, service, work, repos, "v1.2.0")
    world.trust(*repos)
    run = world.flow.run()
    assert_green(run)
    sums = {}
    for repo in repos:
        commit = world.tags(repo)["v1.2.0"]
        refs = world.api.list_repo_refs(f"{hub.user}/{repo}")
        assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": commit}
        files = world.api.list_repo_files(f"{hub.user}/{repo}", revision="v1.2.0")
        assert not [name for name in files if "facts.json" in name and name != "facts.json"]
        path = hf_hub_download(f"{hub.user}/{repo}", "facts.json", endpoint=hub.url, cache_dir=tmp_path / "cache")
        (cell,) = json.loads(Path(path).read_text())["cells"]
        assert cell["workflow"] == {
            "repository": REPOSITORY,
            "commit": "c0ffee" * 6 + "abcd",
            "run": f"https://github.com/{REPOSITORY}/actions/runs/4711",
            "attested": True,
        }
        sums[cell["file"]["name"]] = cell["file"]["sha256"]
        card = hf_hub_download(f"{hub.user}/{repo}", "README.md", endpoint=hub.url, cache_dir=tmp_path / "cache")
        assert f"gh attestation verify {cell['file']['name']} --repo {REPOSITORY}" in Path(card).read_text()
        commits = world.api.list_repo_commits(f"{hub.user}/{repo}")
        assert "actions/runs/4711" in commits[0].message
    attested = {line.split()[1]: line.split()[0] for line in world.flow.attested}
    assert {name: digest for name, digest in attested.items() if name.endswith(".pte")} == sums
    assert attested.keys() - sums.keys() == {f"{name}.facts.json" for name in sums}
    installed = world.flow.installed.read_text().splitlines()
    assert {"--no-deps"} == {line.split()[1] for line in installed}
    assert len([line for line in installed if "--require-hashes" in line]) * 3 == len(installed) * 2
    (made,) = map(json.loads, world.flow.releases.read_text().splitlines())
    assert made[:4] == ["release", "create", "v1.2.0", "--verify-tag"]
    told = run.of("announce").summary
    assert all(f"/{repo}/tree/v1.2.0" in told for repo in repos)
    assert all(sha256 in told for sha256 in sums.values())
    # The same again, by hand: everything is there, nothing is sent, and nothing is attested that was not made here.
    before = hub.bytes_received()
    world.flow.attested = []
    again = world.flow.run()
    assert_green(again)
    assert hub.bytes_received() == before
    assert {one.steps["Stage"] for _, one in again.jobs["export"]} == {"skipped"}
    assert world.flow.attested == [] and again.of("attest").steps["actions/attest"] == "skipped"


def test_one_failing_cell_keeps_back_its_own_repo_and_fails_the_run(world: World) -> None:
    good, bad = PAIR
    world.trust(*PAIR)
    path = world.project / "cards" / bad / "card.toml"
    path.write_text(path.read_text() + strict_recipe())
    run = world.flow.run()
    failed = next(one for values, one in run.jobs["export"] if values["repo"] == bad)
    assert (failed.result, failed.steps["Stage"]) == ("failure", "skipped")
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("recipes = "))
    assert f"::error title=hubpub%3A GateError,file=cards/{bad}/card.toml,line={line}::" in failed.log
    assert "kl_mean" in failed.summary
    assert (run.of("promote", repo=good).result, run.of("promote", repo=bad).result) == ("success", "failure")
    assert (set(world.tags(good)), world.tags(bad)) == ({"v1.0.0"}, {})
    assert f"Not in this release yet: {bad}." in run.of("announce").summary


def test_what_was_killed_goes_on_where_it_stopped(world: World) -> None:
    world.trust(*PAIR)
    first, second = PAIR

    def kill(job: str, matrix: Mapping[str, Any], step: str, process: subprocess.Popen[str]) -> bool:
        """One machine dies while it stages, after its program has arrived; another before it has told anybody."""
        if job != "export" or step != "Stage":
            return False
        if matrix["repo"] == second:
            process.wait()
            return True
        while process.poll() is None:
            if any(f"{first}/commit/" in entry.path and entry.status == 200 for entry in world.hub.requests):
                return True
            time.sleep(0.005)
        return False

    world.flow.killer = kill
    run = world.flow.run()
    assert [one.result for _, one in run.jobs["export"]] == ["failure", "failure"]
    assert (world.tags(first), world.tags(second)) == ({}, {})
    world.flow.killer = None
    sent = world.hub.bytes_received()
    again = world.flow.run(run)
    assert_green(again)
    # The program of the one was there already, and everything of the other; but nothing vouched for it, so both made
    # theirs again, and sent next to nothing.
    assert again.of("export", repo=second).steps["Export, inspect, validate, bench"] == "success"
    assert "no attestation of this workflow vouches for it" in again.of("export", repo=second).log
    smallest = min(path.stat().st_size for path in world.flow.work.glob("cells/rehearsal/*/bf16/*/*.pte"))
    assert world.hub.bytes_received() - sent < smallest
    assert set(world.tags(first)) == set(world.tags(second)) == {"v1.0.0"}


def test_every_cell_is_measured_on_a_second_kind_of_machine(
    tmp_path: Path, hub: LocalHub, service: Issuer, work: Path
) -> None:
    repo = "SmolLM2-135M-Instruct-pte"
    # Calibrated: the second machine takes what the first one chose.
    world = World(tmp_path, hub, service, work, [repo], "v1.0.0", "8da8w")
    world.trust(repo)
    world.flow.variables |= {"HUBPUB_ARM_RUNNER": "ubuntu-24.04-arm"}
    world.flow.killer = lambda job, matrix, step, process: (job, step) == ("measure", "Validate, bench")
    run = world.flow.run()
    assert run.result("export") == "success", run.jobs["export"][0][1].log[-3000:]
    assert {values["runner"] for values, _ in run.jobs["measure"]} == {"ubuntu-24.04-arm"}
    assert run.result("attest") == "success", str(run.jobs["attest"][0][1].log[-2000:])
    refused = run.of("promote", repo=repo)
    assert refused.result == "failure" and "was not measured on ARM" in refused.log
    assert world.tags(repo) == {}
    world.flow.killer = None
    # Started anew: what was exported and attested counts, with the stand-in that it was made of.
    again = world.flow.run()
    assert_green(again)
    assert {one.steps["Stage"] for _, one in again.jobs["export"]} == {"skipped"}
    assert {one.steps["Validate, bench"] for _, one in again.jobs["measure"]} == {"success"}
    path = hf_hub_download(f"{hub.user}/{repo}", "facts.json", endpoint=hub.url, cache_dir=tmp_path / "cache")
    (cell,) = json.loads(Path(path).read_text())["cells"]
    (host,) = cell["hosts"]
    assert host["parity"]["sha256"] == host["speed"]["sha256"] == cell["file"]["sha256"]
    assert [gate["name"] for gate in host["gates"]] == [gate["name"] for gate in cell["gates"]]
    # What is published was measured there: the same version again measures nothing.
    known = world.flow.run()
    assert_green(known)
    assert {one.steps["Validate, bench"] for _, one in known.jobs["measure"]} == {"skipped"}


def kill_promotions(job: str, matrix: Mapping[str, Any], step: str, process: subprocess.Popen[str]) -> bool:
    return job == "promote" and step == "Promote"


def test_what_lies_on_a_branch_counts_where_this_workflow_vouches_for_it(world: World, tmp_path: Path) -> None:
    world.trust(*PAIR)
    honest, planted = PAIR
    world.flow.killer = kill_promotions
    assert {one.result for _, one in world.flow.run().jobs["export"]} == {"success"}
    world.flow.killer = None
    # Somebody with write access makes the figures of one cell better than they are; its fingerprint stays.
    repo, branch = f"{world.hub.user}/{planted}", "hubpub-stage/v1.0.0"
    name = f"gemma-3n-E4B-it-{RECIPE}.pte.facts.json"
    staged = world.api.hf_hub_download(repo, name, revision=branch, cache_dir=tmp_path / "cache")
    facts = json.loads(Path(staged).read_text())
    real = facts["parity"]["logits"]["kl_mean"]
    facts["parity"]["logits"]["kl_mean"] = 0.0
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    world.api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id=repo, revision=branch)
    attested = len(world.flow.attestations.read_text().splitlines())
    again = world.flow.run()
    assert_green(again)
    assert again.of("export", repo=honest).steps["Stage"] == "skipped"
    assert again.of("export", repo=planted).steps["Export, inspect, validate, bench"] == "success"
    made = {line.split()[1] for line in world.flow.attested}
    assert made == {name, name.removesuffix(".facts.json")}
    # Its facts say another run made them: they are attested as well, the file is the same as before.
    assert len(world.flow.attestations.read_text().splitlines()) == attested + 2
    path = hf_hub_download(repo, "facts.json", endpoint=world.hub.url, cache_dir=tmp_path / "published")
    assert json.loads(Path(path).read_text())["cells"][0]["parity"]["logits"]["kl_mean"] == real


def test_what_another_workflow_attested_does_not_count(world: World) -> None:
    world.trust(*PAIR)
    world.flow.killer = kill_promotions
    world.flow.run()
    world.flow.killer = None
    lines = world.flow.attestations.read_text()
    for other in (lines.replace("release.yml", "other.yml"), lines.replace(REPOSITORY, "some/one")):
        world.flow.attestations.write_text(other)
        world.flow.killer = kill_promotions
        again = world.flow.run()
        assert {one.steps["Stage"] for _, one in again.jobs["export"]} == {"success"}


def test_gates_are_those_of_now_when_a_run_goes_on(world: World) -> None:
    world.trust(*PAIR)
    world.flow.killer = kill_promotions
    world.flow.run()
    world.flow.killer = None
    path = world.project / "cards" / PAIR[1] / "card.toml"
    path.write_text(path.read_text() + strict_recipe())
    again = world.flow.run()
    assert again.of("export", repo=PAIR[0]).result == "success"
    failed = again.of("export", repo=PAIR[1])
    assert failed.steps["Go on where an earlier attempt stopped"] == "failure" and "kl_mean" in failed.log
    assert world.tags(PAIR[1]) == {}


def test_a_dry_run_of_repos_that_are_there_is_green_and_changes_nothing(world: World) -> None:
    world.trust(*PAIR)
    assert_green(world.flow.run())
    before = {repo: world.api.list_repo_refs(f"{world.hub.user}/{repo}") for repo in PAIR}
    world.flow.ref, world.flow.inputs = "v1.1.0", {"dry-run": True}
    world.project.joinpath("cards", PAIR[0], "card.toml").open("a").write("# another\n")
    dry = world.flow.run()
    assert_green(dry)
    assert "would change" in dry.of("promote", repo=PAIR[0]).summary
    assert dry.of("attest").steps["actions/attest"] == "skipped"
    assert {repo: world.api.list_repo_refs(f"{world.hub.user}/{repo}") for repo in PAIR} == before


def test_a_dry_run_of_some_cells_of_a_repo_is_green(world: World) -> None:
    # A cell that the rehearsal, whose work folder the jobs have, has not made.
    path = world.project / "cards" / PAIR[1] / "card.toml"
    path.write_text(path.read_text().replace(f'recipes = ["{RECIPE}"]', f'recipes = ["{RECIPE}", "int8"]'))
    world.trust(*PAIR)
    world.flow.inputs = {"selector": f"gemma-3n-E4B-it/{RECIPE}"}
    refused = world.flow.run()
    assert refused.result("plan") == "failure" and refused.result("export") == "skipped"
    assert "gemma-3n-E4B-it/int8 was not selected and has not been made" in refused.of("plan").log
    world.flow.inputs |= {"dry-run": True}
    assert_green(world.flow.run())
    assert world.tags(PAIR[1]) == {}


def test_a_rehearsal_never_falls_through_to_production(world: World) -> None:
    world.trust(*PAIR)
    world.flow.variables = {"HUBPUB_REHEARSE": "true", "HF_NAMESPACE": world.hub.user}
    run = world.flow.run()
    assert run.result("plan") == "failure" and run.result("export") == "skipped"
    assert "for rehearsals alone" in run.of("plan").log
    world.flow.variables |= {"HF_REHEARSAL_NAMESPACE": world.hub.user}
    assert "would both go to" in world.flow.run().of("plan").log
    # Called by another project, with its namespace.
    world.flow.variables, world.flow.inputs = {}, {"namespace": world.hub.user, "rehearse": True}
    assert "for rehearsals alone" in world.flow.run().of("plan").log
    # Nor to a repo with a release, whatever the variables say.
    world.flow.variables, world.flow.inputs = {"HF_REHEARSAL_NAMESPACE": world.hub.user}, {"rehearse": True}
    committed = json.loads((ROOT / "cards" / PAIR[0] / "facts.json").read_text())
    for cell in committed["cells"]:
        cell["source"]["scale_model"] = False
    world.api.upload_file(
        path_or_fileobj=json.dumps(committed).encode(), path_in_repo="facts.json",
        repo_id=f"{world.hub.user}/{PAIR[0]}",
    )  # fmt: skip
    run = world.flow.run()
    assert "holds a real release" in run.of("plan").log and run.result("export") == "skipped"
    assert world.tags(PAIR[0]) == world.tags(PAIR[1]) == {}


def test_a_private_repository_claims_no_attestation(world: World, tmp_path: Path) -> None:
    world.trust(*PAIR)
    world.flow.private = True
    run = world.flow.run()
    assert_green(run)
    assert run.of("attest").steps["actions/attest"] == "skipped"
    repo = f"{world.hub.user}/{PAIR[0]}"
    names = ("facts.json", "README.md")
    facts, card = (
        Path(hf_hub_download(repo, name, endpoint=world.hub.url, cache_dir=tmp_path / "cache")).read_text()
        for name in names
    )
    assert json.loads(facts)["cells"][0]["workflow"]["attested"] is False
    assert "attestation" not in card and "gh attestation" not in run.of("announce").summary


def test_a_tag_and_a_start_by_hand_of_one_version_wait_for_each_other() -> None:
    group = yaml.safe_load(RELEASE.read_text())["concurrency"]["group"]
    tag = {"github": {"ref": "refs/tags/v1.0.0", "ref_name": "v1.0.0"}, "inputs": {}}
    hand = {"github": {"ref": "refs/heads/main", "ref_name": "main"}, "inputs": {"version": "v1.0.0"}}
    assert evaluate_value(group, tag) == evaluate_value(group, hand) == "release-v1.0.0"


def strict_recipe() -> str:
    """A recipe of the same name whose gates nothing passes."""
    table = (PACKAGE / "recipes.toml").read_text().split(f"[recipe.{RECIPE}]\n")[1].split("\n[recipe.bf16-")[0]
    return f"\n[recipe.{RECIPE}]\n{re.sub(r'kl_mean_max = .*', 'kl_mean_max = 1e-30', table)}\n"


def test_a_token_is_for_one_repo_one_workflow_and_one_audience(world: World) -> None:
    trusted, other = PAIR
    world.trust(trusted)
    world.trust(other, repository="somebody/else")
    run = world.flow.run()
    refused = run.of("promote", repo=other)
    assert (run.of("promote", repo=trusted).result, refused.result) == ("success", "failure")
    export = next(one for values, one in run.jobs["export"] if values["repo"] == other)
    assert "no trusted publisher" in export.log
    assert "::error title=hubpub%3A AccessError" in export.log
    assert world.tags(other) == {}
    # The token itself, in the wrong hands.
    identity = f"{REPOSITORY}/.github/workflows/release.yml@refs/tags/v1.0.0"
    claims = {"repository": REPOSITORY, "workflow_ref": identity, "environment": "hub-release"}
    tokens = world.hub._running.site.tokens
    token, seconds = tokens.exchange(world.service.mint(claims, world.hub.url), f"local/{trusted}", world.hub.url)
    assert seconds == 3600
    access = tokens.access(f"Bearer {token}")
    assert access is not None and access.may_write(f"local/{trusted}") and not access.may_write(f"local/{other}")
    from hubpub.localhub.wire import HttpError

    genuine = world.service.mint(claims, world.hub.url)
    for forged in (
        world.service.mint(claims, "https://elsewhere.example"),
        world.service.mint(claims, world.hub.url, lasting=-1),
        world.service.mint({**claims, "repository": "some-one/models"}, world.hub.url),
        # The name of a workflow is anybody's to choose: its file is what counts.
        world.service.mint(
            {**claims, "workflow": "release.yml", "workflow_ref": identity.replace("release", "other")}, world.hub.url
        ),
        genuine[:-4] + "AAAA",
        "eyJhbGciOiJub25lIn0." + genuine.split(".")[1] + ".",
    ):
        with pytest.raises(HttpError, match="invalid_grant"):
            tokens.exchange(forged, f"local/{trusted}", world.hub.url)
    everything = "".join(one.log + one.summary for jobs in run.jobs.values() for _, one in jobs)
    assert not re.search(r"hf_[0-9a-f]{20}|eyJ[\w-]{20}|request-1-", everything)


@pytest.mark.parametrize("tag", ["v1.0.0$(touch${IFS}pwned)", "v1;touch pwned", "v1.0.0\n::set-output name=x::y"])
def test_a_hostile_tag_name_is_refused_and_never_run(world: World, tag: str, tmp_path: Path) -> None:
    world.flow.ref = tag
    run = world.flow.run()
    assert run.result("plan") == "failure"
    assert {run.result(job) for job in ("export", "attest", "promote", "announce")} == {"skipped"}
    assert "is not a version" in run.of("plan").log
    assert not list(tmp_path.rglob("pwned"))
    assert "\n::set-output" not in run.of("plan").log


def test_a_pull_request_shows_what_its_cards_become_and_stale_ones_are_red(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *name, *arguments], cwd=repo, check=True, capture_output=True)

    repo, summary = tmp_path / "repo", tmp_path / "summary.md"
    # All cards: each names the other sizes of its model.
    shutil.copytree(ROOT / "cards", repo / "cards")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    rehearse = ("ci", "rehearse", "--changed-since", "HEAD")
    env: dict[str, Any] = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_WORKSPACE": str(repo)}
    ran = hubpub(*rehearse, work=tmp_path, cwd=repo, **env)
    assert ran.code == 0, ran.err
    assert "No cell would come out differently" in summary.read_text()
    card = repo / "cards" / PAIR[0] / "README.md"
    card.write_text(card.read_text() + "A line nobody rendered.\n")
    ran = hubpub(*rehearse, work=tmp_path, cwd=repo, **env)
    assert ran.code == 8
    assert f"::error title=hubpub%3A RenderError,file=cards/{PAIR[0]}/README.md,line=1::" in ran.out
    assert "+A line nobody rendered." in (repo / "card-changes.md").read_text()
    assert "+A line nobody rendered." in summary.read_text()


def assert_green(run: Run) -> None:
    """Every job was a success, but for one that this release has no machine for."""
    ran = [(name, one) for name, jobs in run.jobs.items() for _, one in jobs]
    bad = [(name, one) for name, one in ran if (name, one.result) != ("measure", "skipped") and one.result != "success"]
    assert not bad, "\n".join(f"{name}:\n{one.log[-3000:]}" for name, one in bad)
