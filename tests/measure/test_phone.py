"""A phone over adb: one that answers as a phone does, and each way in which it may not."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, hubpub_here

from hubpub.config import Project
from hubpub.errors import ExportError, HubpubError, SourceError, ToolchainError, UsageError
from hubpub.facts import DeviceSpeed, Memory
from hubpub.make.devices import Runs, on_phone
from hubpub.make.existing import Target
from hubpub.measure.phone import Ask, Phone, measure, runner
from hubpub.workspace import Workspace

ASK = Ask(prompt="The sun warms the sea", num_bos=1, new_tokens=32, runs=2, threads=4)

# adb as it is seen from a computer, with a phone behind it. The file `fault` says what goes wrong.
ADB = r"""#!/usr/bin/env bash
here=$(dirname "$0"); fault=$(cat "$here/fault" 2>/dev/null)
echo "$*" >> "$here/calls"
if [ "$1" = devices ]; then
  printf 'List of devices attached\n'
  case $fault in
    none) ;;
    several) printf 'ONE\tdevice\nTWO\tdevice\n' ;;
    unauthorized|offline) printf 'ONE\t%s\n' "$fault" ;;
    *) printf 'ONE\tdevice\n' ;;
  esac
  exit 0
fi
[ "$1" = -s ] && shift 2
if [ "$fault" = gone ]; then echo "adb: error: device 'ONE' not found" >&2; exit 1; fi
case "$1" in
push)
  if [ "$fault" = full ] && [ "$(basename "$2")" = model.pte ]; then
    echo "adb: error: failed to copy '$2' to '$3': remote couldn't write: No space left on device" >&2; exit 1
  fi
  mkdir -p "$(dirname "$3")"; cp "$2" "$3"
  if [ -f "$here/stand-in" ] && [ "$(basename "$2")" = true ]; then cp "$here/stand-in" "$3"; exit 0; fi
  if [ "$fault" = short ] && [ "$(basename "$2")" = model.pte ]; then printf x > "$3"; fi
  echo "$2: 1 file pushed" ;;
shell)
  shift
  case "$*" in
    "getprop ro.product.manufacturer") echo Google ;;
    "getprop ro.product.model") echo "Pixel 9" ;;
    "getprop ro.build.version.release") echo 16 ;;
    "df -k /data/local/tmp")
      free=90000000; [ "$fault" = small ] && free=0
      echo "Filesystem 1K-blocks Used Available Use% Mounted on"
      echo "/dev/block/dm-5 112000000 22000000 $free 20% /data" ;;
    "dumpsys thermalservice")
      [ "$fault" = quiet ] && exit 0
      n=$(grep -c thermalservice "$here/calls")
      echo "Temperature{mValue=$((30 + n)).5, mType=0, mName=CPU0, mStatus=0}"
      echo "Temperature{mValue=90.0, mType=3, mName=skin, mStatus=0}" ;;
    stat*) stat -c %s "$4" ;;
    rm*) rm -rf "$3" ;;
    mkdir*) mkdir -p "$3" ;;
    "for z"*) [ "$fault" = quiet ] && exit 0; echo "cpu-0-0 41000" ;;
    chmod*) chmod "$2" "$3" ;;
    sh*)
      script=$2; shift 2
      if [ "$fault" = unplugged ]; then echo "half an ans"; exit 0; fi
      sh "$script" "$@" ;;
  esac ;;
esac
"""

# The runner as executorch 1.4.1's prints: times in milliseconds of the clock that `date` shows.
RUNNER = r"""#!/usr/bin/env bash
now() { echo $(($(date +%s%N) / 1000000)); }
fault=$(cat "__HERE__/fault" 2>/dev/null)
echo "$*" >> "__HERE__/runs"
[ "$fault" = crash ] && kill -SEGV $$
[ "$fault" = killed ] && kill -KILL $$
if [ "$fault" = kernel ]; then echo "E 00:00:01 executorch: Missing operator: [1] llama::custom_sdpa"; exit 1; fi
begin=$(now); sleep 0.2; loaded=$(now); sleep 0.2; read=$(now); echo -n "an answer"; sleep 0.2; end=$(now)
printf '\nPyTorchObserver {"prompt_tokens":6,"generated_tokens":32,"aggregate_sampling_time_ms":0,'
printf '"model_load_start_ms":%s,"model_load_end_ms":%s,"inference_start_ms":%s,' $begin $loaded $loaded
printf '"inference_end_ms":%s,"prompt_eval_end_ms":%s,"first_token_ms":%s,' $end $read $read
printf '"SCALING_FACTOR_UNITS_PER_SECOND":1000}\n'
"""


class Desk:
    """A computer with adb on its PATH and a phone behind it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "adb").write_text(ADB)
        (folder / "adb").chmod(stat.S_IRWXU)
        # The phone's files are this computer's: the place on it is a folder of the test.
        (folder / "model.pte").write_bytes(b"program")
        (folder / "tokenizer.json").write_text("{}")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setattr("hubpub.measure.phone.PLACE", f"{folder}/phone-place")
        self.log = folder / "log.txt"

    def breaks(self, how: str) -> None:
        (self.folder / "fault").write_text(how)

    def runner(self, name: str) -> Path:
        path = self.folder / name
        path.write_text(RUNNER.replace("__HERE__", str(self.folder)))
        return path

    def measure(self, ask: Ask = ASK) -> DeviceSpeed:
        program = self.runner("llama_main")
        return measure(
            Phone.find(None), self.folder / "model.pte", self.folder / "tokenizer.json", program, ask, self.log,
            lambda *_: None,
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_a_phone_runs_a_file_and_leaves_nothing_behind(desk: Desk) -> None:
    found = desk.measure()
    assert found.device == "Google Pixel 9, Android 16"
    assert (found.runs, found.threads, found.prefill_tokens, found.decode_tokens) == (2, 4, 6, 32)
    assert 0.1 < found.load_seconds < 1
    assert found.celsius == (31.5, 32.5)
    assert isinstance(found.memory, Memory)
    assert found.memory.generated_tokens == 32
    # Of a real process, as its kernel counts.
    for one in (found.memory.loaded, found.memory.prefilled, found.memory.generated):
        assert 50_000 < one.anonymous < 50_000_000 and 500_000 < one.mapped < 50_000_000
    assert found.stats.name == "log.txt" and desk.log.read_text().count("PyTorchObserver") == 2
    assert not (desk.folder / "phone-place").exists()
    (first, second) = (desk.folder / "runs").read_text().splitlines()
    assert first == second
    for flag in ("--num_bos=1", "--cpu_threads=4", "--max_new_tokens=32", "--temperature=0", "--ignore_eos"):
        assert flag in first


def test_a_phone_that_does_not_say_how_warm_it_is(desk: Desk) -> None:
    desk.breaks("quiet")
    assert desk.measure().celsius is None


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("none", UsageError, "adb sees no device"),
        ("several", UsageError, "2 devices: ONE, TWO"),
        ("unauthorized", UsageError, "ONE does not trust this computer"),
        ("offline", UsageError, "ONE is offline"),
        ("small", ToolchainError, "has 0 B free"),
        ("full", ToolchainError, "No space left on device"),
        ("short", ToolchainError, "holds 1 bytes of model.pte, which has 7"),
        ("crash", ExportError, "crashed on Google Pixel 9, Android 16 with signal 11"),
        ("killed", ExportError, "had no memory left for it"),
        ("kernel", ExportError, r"code 1: .*Missing operator: \[1\] llama::custom_sdpa"),
        ("unplugged", ToolchainError, "ended in the middle of a run"),
        ("gone", ToolchainError, "went away: device 'ONE' not found"),
    ],
)
def test_what_goes_wrong_is_said(desk: Desk, fault: str, error: type[HubpubError], said: str) -> None:
    desk.breaks(fault)
    with pytest.raises(error, match=said) as caught:
        desk.measure()
    assert caught.value.hint
    assert not desk.log.exists()
    assert not (desk.folder / "phone-place" / "model.pte").exists()


def test_a_program_is_asked_what_its_tokenizer_and_context_allow(
    desk: Desk, program: Path, project: Project, tmp_path: Path
) -> None:
    """Pushed in place of a program for phones, which this computer could not run: the script that answers as one."""
    desk.runner("stand-in")
    workspace = Workspace(project, tmp_path / "work", rehearsal=True)
    size = Path("/bin/true").stat().st_size
    with (desk.folder / "stand-in").open("a") as file:
        file.write("exit 0\n" + "#" * (size - file.tell() - 7))
    how = Runs(None, Path("/bin/true"), None, 1)
    found = on_phone(workspace, Target("model.pte", program, None, None), None, how, lambda *_: None)
    assert found.runs == 1
    asked = (desk.folder / "runs").read_text()
    # The context is 160: half of it is read, and what is left can be written.
    assert "--max_new_tokens=80\n" in asked and "cpu_threads" not in asked
    (log,) = (tmp_path / "work" / "phones").glob("*.log")
    assert found.stats.name == log.name


def test_one_of_several_is_named(desk: Desk) -> None:
    desk.breaks("several")
    assert Phone.find("TWO").serial == "TWO"
    with pytest.raises(UsageError, match="no device 'THREE'"):
        Phone.find("THREE")


def test_without_adb_or_a_runner(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no program for a phone"):
        runner(desk.folder / "adb")
    with pytest.raises(SourceError, match="there is no runner at"):
        runner(desk.folder / "none")
    (tmp_path / "elf").write_bytes(b"\x7fELF" + bytes(14) + b"\xb7\x00")
    assert runner(tmp_path / "elf") == tmp_path / "elf"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match="there is no adb"):
        Phone.find(None)


def test_the_command_line_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.pte").write_bytes(b"program")
    ran = hubpub_here("bench", str(tmp_path / "x.pte"), "--adb", work=tmp_path / "w", PATH=str(tmp_path))
    assert (ran.code, "there is no adb" in ran.err) == (4, True), ran.err


def test_flags_are_those_of_the_runner() -> None:
    """What is asked of it stands in its source: benchmarks/usage_sources.py looks up what is quoted."""
    claims = tomllib.loads((ROOT / "tests" / "cards" / "signatures.toml").read_text())["page"]["claim"]
    (known,) = [set(one["source"]) for one in claims if one["file"] == "examples/models/llama/main.cpp"]
    source = (ROOT / "hubpub" / "measure" / "phone.py").read_text().split("def _one")[1]
    flags = set(re.findall(r'f?"--(\w+)', source))
    assert len(flags) == 8
    assert {f"{flag}," for flag in flags} <= known
