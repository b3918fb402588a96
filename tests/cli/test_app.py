"""The command line as a person meets it: help, misspelt commands, completion, and being there at once."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from conftest import ROOT, hubpub_here

import hubpub as package
from hubpub import cli
from hubpub.cli.app import SECTIONS, root
from hubpub.facts import CardFacts

COMMANDS = [name for commands in SECTIONS.values() for name in commands]


def run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """`hubpub` with exactly these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "hubpub", *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_groups_the_commands_by_what_a_person_is_doing() -> None:
    said = hubpub_here("--help").out
    assert [line[:-1] for line in said.splitlines() if line and not line.startswith((" ", "Usage"))] == [
        "Options",
        *SECTIONS,
    ]
    for name in COMMANDS:
        assert f"\n  {name} " in said
    assert hubpub_here("--version").out == f"hubpub {package.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_takes_the_common_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = root.get_command(click.Context(root), name)
    inner = list(command.commands) if isinstance(command, click.Group) else []
    for line in [[name, one] for one in inner] or [[name]]:
        assert cli.main([*line, "--help"]) == 0
        said = capsys.readouterr().out
        assert all(option in said for option in ("--json", "--verbose", "--project", "--work"))
        assert said.split("\n\n")[1].strip().endswith((".", ")"))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["relase"], ["there is no command 'relase'", "did you mean release?", "'hubpub --help'"]),
        (["hub", "srve"], ["there is no command 'srve'", "did you mean serve?"]),
        (["plan", "--rehears"], ["there is no option --rehears", "did you mean --rehearse?", "'hubpub plan --help'"]),
        (["ci", "export", "--version", "v1.0.0"], ["missing argument 'CELL'"]),
        (["bench", "x", "--runs", "0"], ["--runs", "0 is not in the range"]),
        (["completion", "tcsh"], ["'tcsh' is not one of 'bash', 'zsh', 'fish'"]),
        (["release"], ["nothing selected", "--all"]),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_would_be_right(typed: list[str], told: list[str]) -> None:
    plain, machine = hubpub_here(*typed), hubpub_here(*typed, "--json")
    assert (plain.code, machine.code) == (2, 2)
    assert plain.out == "" and plain.err.startswith("error: ") and "\n  fix: " in plain.err
    assert machine.json["exit_code"] == 2
    for part in told:
        assert part in plain.err and part in f"{machine.json['error']} {machine.json['hint']}"


@pytest.mark.parametrize("typed", [[], ["hub"], ["ci"], ["facts"]])
def test_a_group_alone_shows_its_commands(typed: list[str]) -> None:
    ran = hubpub_here(*typed)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: hubpub" in ran.err


def test_a_process_says_the_same_and_ends_with_that_code() -> None:
    typed = ("plan", "--rehears", "--json")
    ran, said = run(*typed), hubpub_here(*typed)
    assert (ran.returncode, ran.stdout, ran.stderr) == (said.code, said.out, said.err)


@pytest.mark.slow
def test_a_shell_completes_commands_options_cells_and_cards() -> None:
    def completed(*words: str) -> list[str]:
        ran = run(_HUBPUB_COMPLETE="bash_complete", COMP_WORDS=" ".join(["hubpub", *words]), COMP_CWORD=str(len(words)))
        return [line.partition(",")[2] for line in ran.stdout.splitlines()]

    assert completed("rel") == ["release"]
    assert completed("plan", "--reh") == ["--rehearse"]
    assert "gemma-3n-E2B-it/8da4w" in completed("release", "gemma-3n-E2B-it/8")
    assert completed("pin", "gemma-3n-E2B-it") == ["gemma-3n-E2B-it-pte"]
    assert completed("hub", "s") == ["serve"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_is_printed(shell: str, tmp_path: Path) -> None:
    ran = hubpub_here("completion", shell)
    assert ran.code == 0 and "_HUBPUB_COMPLETE" in ran.out
    script = tmp_path / "script"
    script.write_text(ran.out)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize("command", ["--help", "plan --rehearse", "render --help", "preview --help", "diff --help"])
def test_light_commands_are_there_at_once(command: str, tmp_path: Path) -> None:
    spent: list[float] = []
    # Seconds of the processor, the least of a few: what it takes on a machine that does nothing else.
    while len(spent) < 12 and min(spent, default=1.0) >= 0.3:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*command.split(), HUBPUB_WORK=str(tmp_path)).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3, spent


def test_the_console_script_is_this_command_line() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hubpub": "hubpub.cli:main"}


@pytest.mark.parametrize("command", [["hub", "serve"], ["preview"]])
def test_what_serves_until_ctrl_c_ends_with_it_and_without_a_word(
    command: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # What is started in the background of a shell ignores it, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with subprocess.Popen(
        [sys.executable, "-m", "hubpub", *command, "--port", "0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HUBPUB_WORK": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as serving:  # fmt: skip
        try:
            assert serving.stdout is not None
            assert "Ctrl-C stops it" in serving.stdout.readline()
            serving.send_signal(signal.SIGINT)
            said, complained = serving.communicate(timeout=60)
        finally:
            serving.kill()
    assert (serving.returncode, said, complained) == (0, "", "")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m hubpub plan --rehearse --json | head -1"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HUBPUB_WORK": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "{\n", "")


@pytest.mark.parametrize("flags", [[], ["--verbose"], ["--verbose", "--json"]])
def test_no_token_in_what_an_error_prints(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "Secret" * 5

    def broken(**_: object) -> dict[str, object]:
        raise RuntimeError(f"GET https://hub/x?token={secret} with Bearer {secret}")

    monkeypatch.setattr(CardFacts, "model_json_schema", broken)
    assert cli.main(["schema", *flags]) == 1
    captured = capsys.readouterr()
    assert "Secret" not in captured.out + captured.err and "RuntimeError" in captured.err
    assert ("in broken" in captured.err) is bool(flags)
