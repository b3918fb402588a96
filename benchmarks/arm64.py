"""The release workflow with its ARM job on another machine's userland: a root folder with an arm64 system, under qemu.

    python benchmarks/arm64.py ROOT --recipes bf16 8da8w > table.md
    python benchmarks/arm64.py ROOT --recipes 8da4w --real CHECKPOINT --context 256

All jobs run as the tests run them, from release.yml as it stands, against a local Hub; the steps of `measure` run in
ROOT. Without `--real` the cells are of a scale model, as in a rehearsal; with it, of the checkpoint in that folder, at
a context that emulation can bear. What comes out is a table of every cell on both machines, and in `--out` the
published repo with its card. No speed under emulation is one of an ARM processor.

To make ROOT, as root, on a machine with Debian's qemu-user-static and debootstrap:

    debootstrap --arch=arm64 --include=python3,python3-venv,libatomic1,libgomp1 bookworm ROOT
    chroot ROOT python3 -m venv /opt/venv          # and what .github/requirements.txt lists into it, for aarch64
    mount --bind /proc ROOT/proc; mount --bind CPUINFO ROOT/proc/cpuinfo    # CPUINFO: that of an ARM processor

The library by which PyTorch tells processors apart crashes where /proc/cpuinfo is of another architecture. torch is to
be the CPU build. This checkout and the folder of `--out` are mounted at the same paths (`mount --bind`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

import real_weights  # noqa: E402
from conftest import with_card  # noqa: E402
from e2e.actions import REPOSITORY, Workflow, issuer  # noqa: E402
from huggingface_hub import HfApi  # noqa: E402

from hubpub.facts import CardFacts, Gate, Parity  # noqa: E402
from hubpub.localhub import LocalHub  # noqa: E402
from hubpub.localhub.tokens import Publisher  # noqa: E402

REPO = "SmolLM2-135M-Instruct-pte"
VERSION = "v1.0.0"
# As of a Neoverse N2, with dot products and products of int8 matrices. The SME of QEMU 7.2 computes products of several
# rows by int4 wrongly; QEMU 10.0 does not.
PROCESSOR = "max,sme=off"


class Emulated(Workflow):
    """A workflow whose `measure` job runs in the root folder `userland`."""

    userland: Path

    def command(self, job: str, script: str, space: Path) -> list[str]:
        shell = super().command(job, script, space)
        if job != "measure":
            return shell
        path = f"{self.root / 'arm-tools'}:/opt/venv/bin:/usr/bin:/bin"
        return ["chroot", str(self.userland), "env", "-C", str(space), f"PATH={path}", f"QEMU_CPU={PROCESSOR}", *shell]

    def tools_of_userland(self) -> None:
        folder = self.root / "arm-tools"
        folder.mkdir()
        (folder / "pip").symlink_to(self.tools / "pip")
        (folder / "hubpub").write_text(f'#!/bin/bash\nPYTHONPATH="{CHECKOUT}" exec python3 -m hubpub "$@"\n')
        (folder / "hubpub").chmod(0o755)


def cards_of(folder: Path, recipes: list[str], revision: str | None, context: int | None) -> Path:
    """A project with one card: `recipes`, and where they are given another source commit and context."""
    values = {"recipes": recipes, "recommended": recipes[0], "revision": revision, "context": context}
    card = with_card(folder, REPO, **{key: value for key, value in values.items() if value})
    card.write_text(card.read_text("utf-8").partition("\n[tuned.")[0] + "\n", "utf-8")
    return folder


def released(arguments: argparse.Namespace) -> CardFacts:
    """Run the workflow to its end; what was published. Exits where a job failed."""
    out, owner = arguments.out.resolve(), real_weights.REPO.partition("/")[0]
    with LocalHub(out / "hub", orgs=[owner]) as hub, issuer() as service:
        commit = real_weights.source_on(hub, arguments.real) if arguments.real else None
        project = cards_of(out / "project", arguments.recipes, commit, arguments.context)
        work = out / "work"
        work.mkdir(exist_ok=True)
        flow = Emulated(
            CHECKOUT / ".github/workflows/release.yml", out / "runs", project, hub.url, service, work, VERSION
        )
        flow.userland = arguments.root
        flow.tools_of_userland()
        flow.variables |= {"HF_NAMESPACE": hub.user} if commit else {"HF_REHEARSAL_NAMESPACE": hub.user}
        flow.variables |= {"HUBPUB_REHEARSE": "" if commit else "true", "HUBPUB_ARM_RUNNER": "ubuntu-24.04-arm"}
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(f"{hub.user}/{REPO}")
        claims = {"repository": REPOSITORY, "workflow": "release.yml", "environment": "hub-release"}
        hub.trust(Publisher(f"{hub.user}/{REPO}", service.url, service.keys, claims))
        began = time.monotonic()
        run = flow.run()
        for name, jobs in run.jobs.items():
            for values, one in jobs:
                log = out / f"{name}-{values.get('key', '')}.log"
                log.write_text(one.log)
                print(f"{name} {values.get('cell', '')}: {one.result}", file=sys.stderr)
                if one.result == "failure":
                    print(one.log[-3000:], file=sys.stderr)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        if any(run.result(name) == "failure" for name in run.jobs):
            sys.exit(1)
        api.snapshot_download(f"{hub.user}/{REPO}", revision=VERSION, local_dir=out / "published")
    return CardFacts.model_validate_json((out / "published" / "facts.json").read_text("utf-8"))


def row(recipe: str, where: str, parity: Parity, gates: tuple[Gate, ...]) -> str:
    logits, lowering = parity.logits, parity.lowering
    figures = [f"{logits.kl_mean:.3g}", f"{logits.top1_agreement:.1%}", f"{logits.prefill_kl_mean or 0:.2g}"]
    figures.append(f"{lowering.kl_mean:.2g}" if lowering else "")
    passed = "passed" if all(gate.passed for gate in gates) else "missed"
    return f"| {' | '.join([f'`{recipe}`', where, *figures, passed])} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("root", type=Path)
    asked.add_argument("--recipes", nargs="+", default=["fp32", "bf16", "int8", "8da8w", "8da4w"])
    asked.add_argument("--real", type=Path, help="a checkpoint of SmolLM2 135M Instruct")
    asked.add_argument("--context", type=int)
    asked.add_argument("--out", type=Path, default=Path(".hubpub/arm64"))
    arguments = asked.parse_args()
    facts = released(arguments)
    print("| | machine | KL | same next token | in pieces | kernels | gates |\n|---|---|---:|---:|---:|---:|---|")
    for cell in facts.cells:
        print(row(cell.recipe, "here", cell.parity, cell.gates))
        for host in cell.hosts:
            print(row(cell.recipe, host.system, host.parity, host.gates))


if __name__ == "__main__":
    main()
