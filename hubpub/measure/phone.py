"""A program on a phone, over adb: ExecuTorch's own runner (llama_main) is pushed there with the file, and run.

Speed is what the runner says. Memory is what the phone's kernel says of its process: anonymous, which nothing but its
end gives back, and mapped from files. The runner's clock and that of the samples are one, so a sample is known to be
from after loading, after the prompt or after the answer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hubpub.errors import ExportError, SourceError, ToolchainError, UsageError
from hubpub.facts import DeviceSpeed, Memory, Resident
from hubpub.measure.bench import read_stats, statistics
from hubpub.progress import Progress
from hubpub.units import size

PLACE = "/data/local/tmp/hubpub"
# A runner that says nothing for so long hangs.
SECONDS = 900
# Where ExecuTorch's build for Android leaves it, from the folder of a clone.
BUILT = ("cmake-out-android/examples/models/llama/llama_main", "cmake-android-out/examples/models/llama/llama_main")
_MEMORY, _EXIT = "hubpub-memory", "hubpub-exit"
# One run: the runner in the background, and what the kernel says of it until it ends.
_RUN = f"""
"$@" 2>&1 &
runner=$!
while kill -0 $runner 2>/dev/null; do
  echo {_MEMORY} $(date +%s%N) $(grep -E 'RssAnon|RssFile' /proc/$runner/status 2>/dev/null)
  sleep 0.05
done
wait $runner
echo {_EXIT} $?
"""
_SAMPLE = re.compile(rf"{_MEMORY} (\d+) RssAnon:\s*(\d+) kB RssFile:\s*(\d+) kB")


@dataclass(frozen=True)
class Ask:
    """What the runner is to do `runs` times: read `prompt` with `num_bos` first tokens before it, write `new_tokens`.

    `threads` is None where the runner chooses.
    """

    prompt: str
    num_bos: int
    new_tokens: int
    runs: int
    threads: int | None


@dataclass(frozen=True)
class Phone:
    """A device that adb reaches, and what it calls itself."""

    adb: str
    serial: str
    name: str

    @classmethod
    def find(cls, serial: str | None) -> Phone:
        """The device with that serial, or the only one. Raises ToolchainError or UsageError that says what to do."""
        adb = shutil.which("adb")
        if adb is None:
            raise ToolchainError("there is no adb", "install Android's platform-tools and put them on the PATH")
        done = subprocess.run([adb, "devices"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolchainError(f"adb devices: {_last(done.stderr or done.stdout)}", "try 'adb kill-server'")
        listed = dict(re.findall(r"(?m)^(\S+)\t+(\w[\w ]*)", done.stdout))
        if serial is None and len(listed) > 1:
            raise UsageError(f"adb sees {len(listed)} devices: {', '.join(listed)}", "name one: --adb SERIAL")
        chosen = serial or next(iter(listed), None)
        if chosen is None:
            raise UsageError("adb sees no device", "connect one, with USB debugging turned on in its developer options")
        if chosen not in listed:
            raise UsageError(f"adb sees no device '{chosen}'", f"it sees {', '.join(listed) or 'none'}")
        state = listed[chosen]
        if state == "unauthorized":
            raise UsageError(f"{chosen} does not trust this computer", "unlock it and allow USB debugging")
        if state != "device":
            raise UsageError(f"{chosen} is {state}", "connect it again, or try 'adb reconnect'")
        phone = cls(adb, chosen, chosen)
        told = [phone.say("getprop", key) for key in ("ro.product.manufacturer", "ro.product.model")]
        model = told[1] if told[1].lower().startswith(told[0].lower()) else " ".join(told)
        system = phone.say("getprop", "ro.build.version.release")
        return cls(adb, chosen, f"{model.strip() or chosen}, Android {system}")

    def run(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """One adb command for this device. Raises ToolchainError where the device went away."""
        try:
            done = subprocess.run(
                [self.adb, "-s", self.serial, *command],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise ToolchainError(
                f"{self.name} did not answer for {seconds:.0f} seconds ({command[0]})", "see what it shows, try again"
            ) from None
        gone = re.search(r"(?m)^(adb: )?error: (device .*|closed|no devices.*)$", done.stderr)
        if done.returncode and gone:
            raise ToolchainError(f"{self.name} went away: {gone[2]}", "connect it again; nothing was kept of this run")
        return done

    def say(self, *command: str) -> str:
        """What a command prints there, "" where it fails."""
        done = self.run("shell", *command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def push(self, source: Path, name: str) -> str:
        """Put a file there. Raises ToolchainError where it has no room, or where something else arrives."""
        path = f"{PLACE}/{name}"
        done = self.run("push", str(source), path, seconds=3600)
        if done.returncode:
            reason = _last(done.stderr or done.stdout)
            hint = "free some of its storage" if "space" in reason.lower() else "see 'adb push'"
            raise ToolchainError(f"{source.name} cannot be pushed to {self.name}: {reason}", hint)
        there = self.say("stat", "-c", "%s", path)
        if there.isdigit() and int(there) != source.stat().st_size:
            raise ToolchainError(
                f"{self.name} holds {there} bytes of {source.name}, which has {source.stat().st_size}", "push it again"
            )
        return path

    def room(self, needed: int) -> None:
        """Raise ToolchainError where its storage cannot hold so many bytes."""
        fields = [line.split() for line in self.say("df", "-k", "/data/local/tmp").splitlines()[1:]]
        free = next((int(one[3]) * 1024 for one in fields if len(one) > 3 and one[3].isdigit()), None)
        if free is not None and free < needed:
            raise ToolchainError(
                f"{self.name} has {size(free)} free, and {size(needed)} are needed", "free some of its storage"
            )

    def celsius(self) -> float | None:
        """How warm its processor is at its warmest sensor; None where it does not say."""
        service = re.findall(r"mValue=(-?[\d.]+), mType=0\b", self.say("dumpsys", "thermalservice"))
        if not service:
            zones = "for z in /sys/class/thermal/thermal_zone*; do cat $z/type $z/temp | xargs; done 2>/dev/null"
            found = re.findall(r"(?mi)^\S*cpu\S* (-?\d+)$", self.say(zones))
            service = [str(int(one) / 1000) for one in found]
        values = [float(one) for one in service if 0 < float(one) < 150]
        return max(values) if values else None


def runner(given: Path | None) -> Path:
    """ExecuTorch's runner for Android: the one given, or the one built under this folder. Raises SourceError."""
    found = [given] if given else [path for path in map(Path, BUILT) if path.is_file()]
    if not found or not found[0].is_file():
        where = str(given) if given else " or ".join(BUILT)
        raise SourceError(
            f"there is no runner at {where}", "build ExecuTorch's llama_main for Android, and pass --runner PATH"
        )
    with found[0].open("rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF" or head[18:20] not in {b"\xb7\x00", b"\x3e\x00"}:
        raise SourceError(f"{found[0]} is no program for a phone", "build it with the NDK, for arm64-v8a")
    return found[0]


def measure(
    phone: Phone, pte: Path, tokenizer: Path, program: Path, ask: Ask, log: Path, progress: Progress
) -> DeviceSpeed:
    """Run the file at `pte` on the phone with the runner `program`. What the runner printed is kept as `log`.

    What was pushed is removed again. Raises ToolchainError for a phone that cannot, ExportError for a run that failed.
    """
    sent = sum(path.stat().st_size for path in (pte, tokenizer, program))
    phone.run("shell", "rm", "-rf", PLACE)
    phone.room(sent)
    phone.run("shell", "mkdir", "-p", PLACE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("prompt.txt", ask.prompt), ("run.sh", _RUN)):
                (Path(folder) / name).write_text(text, "utf-8")
                phone.push(Path(folder) / name, name)
        for number, (source, name) in enumerate(
            ((tokenizer, "tokenizer.json"), (program, "llama_main"), (pte, "model.pte"))
        ):
            progress(f"push {source.name}", number / 3)
            phone.push(source, name)
        phone.run("shell", "chmod", "755", f"{PLACE}/llama_main")
        before = phone.celsius()
        texts = []
        for number in range(ask.runs):
            progress("run", number / ask.runs)
            texts.append(_one(phone, ask))
        after = phone.celsius()
    finally:
        # A phone that went away has said so already.
        with suppress(ToolchainError):
            phone.run("shell", "rm", "-rf", PLACE)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(texts), "utf-8")
    return read_stats(log, phone.name).model_copy(
        update={
            "threads": ask.threads,
            "memory": _memory(texts),
            "celsius": (before, after) if before is not None and after is not None else None,
        }
    )


def _one(phone: Phone, ask: Ask) -> str:
    """What the runner printed of one run, with the samples of its memory."""
    command = [f"{PLACE}/llama_main", f"--model_path={PLACE}/model.pte", f"--tokenizer_path={PLACE}/tokenizer.json"]
    command += [f"--prompt_file={PLACE}/prompt.txt", "--temperature=0", f"--num_bos={ask.num_bos}", "--ignore_eos"]
    command += [f"--max_new_tokens={ask.new_tokens}", *([f"--cpu_threads={ask.threads}"] if ask.threads else [])]
    done = phone.run("shell", "sh", f"{PLACE}/run.sh", *command, seconds=SECONDS)
    ended = re.search(rf"{_EXIT} (\d+)\s*\Z", done.stdout)
    if ended is None:
        raise ToolchainError(
            f"the connection to {phone.name} ended in the middle of a run", "connect it again, and run again"
        )
    code = int(ended[1])
    if code == 0 and "PyTorchObserver" in done.stdout:
        return done.stdout
    said = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith((_MEMORY, _EXIT))]
    if code == 137:
        raise ExportError(f"{phone.name} killed the runner: it had no memory left for it", "choose a smaller file")
    if code > 128:
        raise ExportError(f"the runner crashed on {phone.name} with signal {code - 128}: {_last(said)}", _BUILD)
    raise ExportError(f"the runner failed on {phone.name} with code {code}: {_last(said)}", _BUILD)


_BUILD = "is it built from the ExecuTorch that wrote the file, with XNNPACK and the custom and quantized kernels?"


def _memory(texts: Sequence[str]) -> Memory | None:
    """Medians over runs of the last samples before loading, the prompt and the answer ended."""
    rows = []
    for text in texts:
        samples = [(int(at) / 1e6, int(anonymous), int(mapped)) for at, anonymous, mapped in _SAMPLE.findall(text)]
        (told,) = statistics(text)[-1:]
        unit = float(told.get("SCALING_FACTOR_UNITS_PER_SECOND", 1000)) / 1000
        ends = [float(told[key]) / unit for key in ("model_load_end_ms", "prompt_eval_end_ms", "inference_end_ms")]
        found = [[one for one in samples if one[0] <= end][-1:] for end in ends]
        if not all(found):
            return None
        rows.append([*(one[0][1:] for one in found), (int(told["generated_tokens"]), 0)])
    *kinds, tokens = zip(*rows, strict=True)
    loaded, prefilled, generated = (
        Resident(
            anonymous=int(median(one[0] for one in kind)) * 1024, mapped=int(median(one[1] for one in kind)) * 1024
        )
        for kind in kinds
    )
    return Memory(
        loaded=loaded, prefilled=prefilled, generated=generated, generated_tokens=min(one[0] for one in tokens)
    )


def _last(text: str | Sequence[str]) -> str:
    lines = [line for line in (text.splitlines() if isinstance(text, str) else text) if line.strip()]
    return lines[-1].strip()[:300] if lines else "it says nothing"
