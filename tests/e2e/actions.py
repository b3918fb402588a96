"""GitHub Actions as far as our workflows use it: jobs in folders and processes of their own, from the real YAML.

Contexts and expressions, needs and matrices, outputs and summaries, artifacts, and the service that mints identity
tokens. What the `uses:` steps do is done here; every `run:` step is run by bash as it is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from conftest import ROOT

REPOSITORY = "someone/models"
COMMIT = "c0ffee" * 6 + "abcd"
# The repository that defines the workflow, which another one may call, and the commit of it that runs.
DEFINED_IN, DEFINED_AT = "maker/hubpub", "f00d" * 10
SIGNER = f"{DEFINED_IN}/.github/workflows/release.yml"


def _prime(bits: int, source: random.Random) -> int:
    while True:
        candidate = source.getrandbits(bits) | 1 | 3 << (bits - 2)
        if all(pow(base, candidate - 1, candidate) == 1 for base in (2, 3, 5, 7, 11)) and (candidate - 1) % 65537:
            return candidate


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Issuer:
    """The identity service: whoever shows a job's request token gets a signed statement of which job that is."""

    def __init__(self) -> None:
        source = random.Random(7)
        p, q = _prime(512, source), _prime(512, source)
        self.n, self.d = p * q, pow(65537, -1, (p - 1) * (q - 1))
        self.jobs: dict[str, dict[str, str]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                claims = outer.jobs.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
                audience = parse_qs(urlsplit(self.path).query).get("audience", [""])[0]
                body = json.dumps({"value": outer.mint(claims, audience)} if claims else {}).encode()
                self.send_response(200 if claims else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def keys(self) -> tuple[Mapping[str, str], ...]:
        return ({"kty": "RSA", "n": _text(self.n.to_bytes(128)), "e": _text((65537).to_bytes(3))},)

    def mint(self, claims: Mapping[str, str], audience: str, *, lasting: float = 300) -> str:
        now = int(time.time())
        parts = [{"alg": "RS256", "typ": "JWT"}, {**claims, "iss": self.url, "aud": audience, "exp": now + lasting}]
        signed = ".".join(_text(json.dumps(part).encode()) for part in parts)
        info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(signed.encode()).digest()
        padded = b"\0\1" + b"\xff" * (128 - 3 - len(info)) + b"\0" + info
        return f"{signed}.{_text(pow(int.from_bytes(padded), self.d, self.n).to_bytes(128))}"


@contextmanager
def issuer() -> Iterator[Issuer]:
    service = Issuer()
    try:
        yield service
    finally:
        service.server.shutdown()
        service.server.server_close()


@dataclass
class JobRun:
    """One job of a run: how it ended, its outputs, what its steps printed and the summary they wrote."""

    result: str
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    summary: str = ""
    steps: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run of a workflow: jobs by name, those of a matrix as "export (cell)"."""

    jobs: dict[str, list[tuple[dict[str, Any], JobRun]]] = field(default_factory=dict)

    def result(self, job: str) -> str:
        results = {one.result for _, one in self.jobs[job]}
        return "failure" if "failure" in results else "success" if "success" in results else "skipped"

    def of(self, job: str, **matrix: str) -> JobRun:
        return next(one for values, one in self.jobs[job] if matrix.items() <= values.items())


Killer = Callable[[str, Mapping[str, Any], str, "subprocess.Popen[str]"], bool]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # What is kept between test runs may lie on another disk.
        shutil.copy2(source, target)


class Workflow:
    """A workflow file, and the world around it: `variables`, the event, and where jobs find their work folder."""

    def __init__(
        self, path: Path, root: Path, project: Path, hub: str, service: Issuer, work: Path, ref: str = "v1.0.0"
    ) -> None:
        self.definition = yaml.safe_load(path.read_text())
        self.name, self.root, self.project, self.hub, self.work = path.name, root, project, hub, work
        self.service, self.ref = service, ref
        self.variables: dict[str, str] = {}
        self.inputs: dict[str, Any] = {}
        self.private = False
        self.artifacts = root / "artifacts"
        self.attested: list[str] = []
        self.attempt = 0
        self.killer: Killer | None = None
        self.tools = root / "tools"
        self.tools.mkdir(parents=True)
        self.installed = root / "installed"
        self._tool("pip", f'echo "$@" >> "{self.installed}"')
        self._tool("hubpub", f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m hubpub "$@"')
        self.releases = root / "releases.jsonl"
        # Signed statements: which workflow vouches for which bytes, as "repository signer sha256" a line.
        self.attestations = root / "attestations"
        self._tool(
            "gh",
            f'if [ "$1 $2" = "release view" ]; then grep -qsF -- "$3" "{self.releases}"; exit; fi\n'
            'if [ "$1 $2" = "attestation verify" ]; then\n'
            '  [ "$4 $6" = "--repo --signer-workflow" ] && [ -n "$GH_TOKEN" ] || exit 2\n'
            '  sum=$(sha256sum "$3"); grep -qsxF -- "$5 $7 ${sum%% *}" "' + str(self.attestations) + '"; exit\nfi\n'
            f'"{sys.executable}" -c "import json,sys; print(json.dumps(sys.argv[1:]))" "$@" >> "{self.releases}"',
        )

    def attest(self, sha256: str, *, signer: str = SIGNER, repository: str = REPOSITORY) -> None:
        """Sign that a workflow made a file of this hash."""
        with self.attestations.open("a") as file:
            file.write(f"{repository} {signer} {sha256}\n")

    def _tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run(self, again: Run | None = None) -> Run:
        """All jobs, or, after a run that failed, those that failed or were skipped, and what depends on them."""
        self.attempt += 1
        done = Run()
        todo = dict(self.definition["jobs"])
        while todo:
            name = next(n for n, job in todo.items() if not set(_needs(job)) & todo.keys())
            done.jobs[name] = self._job(name, todo.pop(name), done, again)
        return done

    def _job(self, name: str, job: Any, done: Run, again: Run | None) -> list[tuple[dict[str, Any], JobRun]]:
        needs = {need: {"result": done.result(need), "outputs": done.jobs[need][0][1].outputs} for need in _needs(job)}
        github = {
            "ref": f"refs/tags/{self.ref}", "ref_name": self.ref, "ref_type": "tag", "event_name": "push",
            "repository": REPOSITORY, "sha": COMMIT, "token": "ghs_of_this_job",
            "event": {"repository": {"private": self.private}},
        }  # fmt: skip
        base = {"github": github, "needs": needs, "vars": self.variables, "inputs": self.inputs, "secrets": {}}
        status = all(need["result"] == "success" for need in needs.values())
        condition = _bare(job.get("if", "success()"))
        implied = status if not re.search(r"(success|failure|cancelled|always)\(", condition) else True
        if not (implied and evaluate(condition, base, status)):
            return [({}, JobRun("skipped"))]
        matrix = evaluate_value(job["strategy"]["matrix"], base)["include"] if "strategy" in job else [{}]
        found = []
        for values in matrix:
            if again is not None:
                old = next((one for known, one in again.jobs[name] if known == values), None)
                unchanged = all(again.result(need) == "success" for need in needs)
                if old is not None and old.result == "success" and unchanged:
                    found.append((values, old))
                    continue
            found.append((values, self._run_job(name, job, {**base, "matrix": values})))
        return found

    def _run_job(self, name: str, job: Any, contexts: dict[str, Any]) -> JobRun:
        key = re.sub(r"\W+", "-", "-".join([name, *map(str, list(contexts["matrix"].values())[:1])]))
        home = self.root / f"{self.attempt}-{key}"
        space, work = home / "space", home / "work"
        space.mkdir(parents=True)
        # A machine of its own: files are shared by links, and every tool replaces files instead of writing into them.
        shutil.copytree(self.work, work, copy_function=_link, ignore=shutil.ignore_patterns("hub", "downloads"))
        permissions = job.get("permissions", {})
        machine = {
            "PATH": f"{self.tools}:{os.environ['PATH']}", "HOME": str(home), "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.hub, "HUBPUB_WORK": str(work), "GITHUB_ACTIONS": "true", "CI": "true",
            "GITHUB_WORKSPACE": str(space), "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_SHA": COMMIT,
            "GITHUB_SERVER_URL": "https://github.com", "GITHUB_RUN_ID": "4711", "GITHUB_REF_NAME": self.ref,
            "GITHUB_REF_TYPE": "tag", "GITHUB_REF": f"refs/tags/{self.ref}", "RUNNER_ENVIRONMENT": "self-hosted",
            "HF_HUB_DISABLE_XET": "1", "GITHUB_STEP_SUMMARY": str(home / "summary.md"),
        }  # fmt: skip
        if permissions.get("id-token") == "write":
            secret = f"request-{self.attempt}-{key}"
            self.service.jobs[secret] = {
                "repository": REPOSITORY, "ref": f"refs/tags/{self.ref}", "workflow": self.definition["name"],
                "workflow_ref": f"{REPOSITORY}/.github/workflows/{self.name}@refs/tags/{self.ref}",
                "job_workflow_ref": f"{SIGNER}@refs/tags/v9",
                "environment": job.get("environment", ""),
            }  # fmt: skip
            machine |= {"ACTIONS_ID_TOKEN_REQUEST_URL": self.service.url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": secret}
        env: dict[str, str] = {}
        for block in (self.definition.get("env", {}), job.get("env", {})):
            env |= {key: _shown(evaluate_value(value, contexts)) for key, value in block.items()}
        ran = JobRun("success")
        state: dict[str, Any] = {}
        for number, step in enumerate(job["steps"]):
            label = step.get("name", step.get("uses", "").partition("@")[0])
            own_job = {
                "workflow_repository": DEFINED_IN, "workflow_sha": DEFINED_AT, "workflow_ref": f"{SIGNER}@refs/tags/v9"
            }  # fmt: skip
            scope = {**contexts, "env": env, "steps": state, "job": own_job}
            healthy = ran.result == "success"
            condition = _bare(step.get("if", "success()"))
            implied = healthy or re.search(r"(failure|cancelled|always)\(", condition)
            if not (implied and evaluate(condition, scope, healthy)):
                ran.steps[label] = "skipped"
                continue
            own = {key: _shown(evaluate_value(value, scope)) for key, value in step.get("env", {}).items()}
            output = home / f"output-{number}"
            output.touch()
            if "uses" in step:
                given = {key: _shown(evaluate_value(value, scope)) for key, value in step.get("with", {}).items()}
                ok = self._use(label, given, space, permissions)
            else:
                ok = self._script(name, label, step["run"], space, {**machine, **env, **own}, output, contexts, ran)
            ran.steps[label] = "success" if ok else "failure"
            outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
            state[step.get("id", f"_{number}")] = {"outputs": outputs}
            if not ok:
                ran.result = "failure"
        ran.outputs = {
            key: _shown(evaluate_value(value, {**contexts, "steps": state}))
            for key, value in job.get("outputs", {}).items()
        }
        summary = home / "summary.md"
        ran.summary = summary.read_text() if summary.exists() else ""
        shutil.rmtree(work)
        return ran

    def command(self, job: str, script: str, space: Path) -> list[str]:
        """What runs the `script` of a step of `job`, in the folder `space`."""
        return ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]

    def _script(
        self, job: str, label: str, script: str, space: Path, env: dict[str, str], output: Path,
        contexts: dict[str, Any], ran: JobRun,
    ) -> bool:  # fmt: skip
        assert "${{" not in script, "nothing is interpolated into a shell"
        with subprocess.Popen(
            self.command(job, script, space),
            cwd=space, env={**env, "GITHUB_OUTPUT": str(output)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        ) as process:  # fmt: skip
            killed = bool(self.killer and self.killer(job, contexts["matrix"], label, process))
            if killed and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            ran.log += f"# {label}\n{process.communicate()[0]}"
        return process.returncode == 0 and not killed

    def _use(self, action: str, given: dict[str, str], space: Path, permissions: Mapping[str, str]) -> bool:
        if action == "actions/checkout":
            assert given.get("persist-credentials") == "False"
            if "repository" in given:
                assert (given["repository"], given["ref"]) == (DEFINED_IN, DEFINED_AT)
                shutil.copytree(ROOT / ".github", space / given["path"] / ".github")
            else:
                shutil.copytree(self.project, space, dirs_exist_ok=True)
        elif action == "actions/upload-artifact":
            files = list(space.glob(given["path"]))
            if not files:
                return given.get("if-no-files-found") != "error"
            # gigabytes do not travel this way
            assert sum(file.stat().st_size for file in files) < 1 << 26
            folder = self.artifacts / given["name"]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in files:
                shutil.copy(file, folder)
        elif action == "actions/download-artifact":
            target = space / given["path"]
            target.mkdir(exist_ok=True)
            for folder in sorted(self.artifacts.glob(given.get("name") or given["pattern"])):
                shutil.copytree(folder, target, dirs_exist_ok=True)
        elif action == "actions/attest":
            assert permissions.get("attestations") == permissions.get("id-token") == "write"
            self.attested = (space / given["subject-checksums"]).read_text().splitlines()
            for line in self.attested:
                self.attest(line.split()[0])
        else:
            assert action == "actions/setup-python", action
        return True


def _needs(job: Any) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else list(needs)


def _bare(condition: str) -> str:
    found = re.fullmatch(r"\s*\$\{\{(.*)\}\}\s*", str(condition), re.DOTALL)
    return found[1] if found else str(condition)


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "" if value is None else "false"
    return "true" if value is True else str(value)


def evaluate_value(value: Any, contexts: Mapping[str, Any]) -> Any:
    """A value of the YAML with its expressions replaced; a single expression keeps its type."""
    if not isinstance(value, str):
        return str(value)
    if whole := re.fullmatch(r"\$\{\{((?:(?!\}\}).)*)\}\}", value):
        return evaluate(whole[1], contexts, True)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: _shown(evaluate(found[1], contexts, True)), value)


def evaluate(expression: str, contexts: Mapping[str, Any], healthy: bool) -> Any:
    """An expression of GitHub's language: contexts, strings, comparisons, and, or, not, and the functions we use."""

    def look(path: str) -> Any:
        value: Any = contexts
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def translated(found: re.Match[str]) -> str:
        text = found[0]
        if text.startswith("'"):
            return repr(text[1:-1])
        if text in names:
            return text
        return {"&&": " and ", "||": " or ", "!": " not "}.get(text) or f"look({text!r})"

    names: dict[str, Any] = {
        "fromJSON": json.loads,
        "cancelled": lambda: False,
        "success": lambda: healthy,
        "failure": lambda: not healthy,
        "always": lambda: True,
        "look": look,
    }
    python = re.sub(r"'[^']*'|&&|\|\||!(?!=)|[A-Za-z_][\w.-]*", translated, expression)
    return eval(python.strip(), {"__builtins__": {}, **names})
