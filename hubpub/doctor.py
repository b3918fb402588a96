"""Is this machine able to do that release? Versions, memory, disk, access and licenses, before hours are spent.

What a cell needs is worked out from the headers of its source checkpoint (a few kilobytes, read from the local cache
or over HTTP) and from its recipe; nothing is downloaded and no model is built. Without a network the checks that need
one say that they could not be made.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from packaging.requirements import Requirement

from hubpub import units
from hubpub.cards.licenses import files, lacks_agreement
from hubpub.config import PACKAGE, Card, locate
from hubpub.errors import AccessError, HubpubError, ToolchainError
from hubpub.hub.source_sizes import sizes
from hubpub.hub.sources import cached_source
from hubpub.machine import check_runner_loads
from hubpub.sizing import GB, Size, agrees, known_as, need_of

if TYPE_CHECKING:
    from hubpub.hub.client import Client
    from hubpub.plan import Step

Verdict = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do where it is not well."""

    subject: str
    verdict: Verdict
    found: str
    fix: str | None = None


def examine(
    steps: Sequence[Step], work: Path, *, client: Client | None, namespace: str | None, rehearse: bool
) -> list[Check]:
    """Every check for the planned `steps`. `client` None: nothing that needs a network is asked."""
    planned = [step for step in steps if step.action != "skip"]
    cards = list({step.cell.card.repo: step.cell.card for step in planned}.values())
    checks = [*versions(), *_licenses(cards)]
    if rehearse:
        return [*checks, *_room(work, 12 * GB, 4 * GB, "a rehearsal of every cell", "--work on a larger disk")]
    known = sizes(planned, client)
    checks += [_source(card, known[card.variant.name], client) for card in cards]
    needs = {
        step.cell.id: need_of(size, step.cell.recipe)
        for step in planned
        if step.action == "export" and not isinstance(size := known[step.cell.variant.name], HubpubError)
    }
    if needs:
        disk = sum(need.file for need in needs.values()) + sum(
            size.checkpoint
            for name, size in known.items()
            if not isinstance(size, HubpubError) and not _is_cached(cards, name)
        )
        name, worst = max(needs.items(), key=lambda item: item[1].memory)
        stage = "validating" if worst.validate_memory > worst.export_memory else "exporting"
        checks += _room(
            work, disk, worst.memory, f"{len(needs)} cells, the heaviest {stage} {name}", "fewer cells per machine"
        )
    checks += _targets(cards, client, namespace)
    return checks


def _is_cached(cards: Sequence[Card], variant: str) -> bool:
    card = next(card for card in cards if card.variant.name == variant)
    return cached_source(card.variant.source, card.variant.revision) is not None


def versions() -> list[Check]:
    """Every required package against the range that was tested."""
    checks = [
        Check("python", "ok", platform.python_version())
        if sys.version_info >= (3, 11)
        else Check("python", "failed", f"{platform.python_version()}, 3.11 or newer is needed", "install Python 3.11")
    ]
    for text in _requirements():
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            checks.append(Check(wanted.name, "failed", "not installed", f"pip install '{wanted}'"))
            continue
        # A local build tag ("2.13.0+cpu") says how it was built, not what it is.
        fits = wanted.specifier.contains(found.partition("+")[0], prereleases=True)
        checks.append(
            Check(wanted.name, "ok", found)
            if fits
            else Check(wanted.name, "failed", f"{found}, tested with {wanted.specifier}", f"pip install '{wanted}'")
        )
    try:
        check_runner_loads()
    except ToolchainError as error:
        checks.append(Check("LLM runner", "failed", error.message, error.hint))
    return checks


def _requirements() -> list[str]:
    """hubpub's own requirements: of the checkout this file lies in, else of the installed package."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and (data := tomllib.loads(project.read_text("utf-8"))["project"])["name"] == "hubpub":
        return list(data["dependencies"])
    try:
        return [text for text in requires("hubpub") or () if "extra ==" not in text]
    except PackageNotFoundError:
        raise ToolchainError("hubpub is not installed", "pip install hubpub") from None


def _licenses(cards: Sequence[Card]) -> list[Check]:
    checks = []
    for card in cards:
        try:
            given = f"{card.variant.license}: {', '.join(files(card.variant, card.folder.parent))}"
            lacking = lacks_agreement(card.variant, card.folder.parent)
            state: Verdict = "warning" if lacking else "ok"
            found = Check(f"license of {card.repo}", state, given, lacking)
        except HubpubError as error:
            found = Check(f"license of {card.repo}", "failed", error.message, error.hint)
        checks.append(found)
    return checks


def _source(card: Card, size: Size | HubpubError, client: Client | None) -> Check:
    variant = card.variant
    subject = f"source {known_as(variant)}"
    if variant.revision is None:
        path, line = locate(card, "variant.source")
        return Check(subject, "failed", f"not pinned ({path}:{line})", f"run: hubpub pin {card.repo}")
    at = f"at {variant.revision[:12]}"
    if isinstance(size, Size):
        found = f"{at}, {units.size(size.checkpoint)}, {size.text / 1e9:.2f} B text weights"
        if not agrees(size, known_as(variant)):
            return Check(subject, "warning", f"{found}: not what hubpub/sizes.toml says", "correct that table")
        return Check(subject, "ok", found)
    if isinstance(size, AccessError):
        endpoint = client.endpoint if client else "https://huggingface.co"
        return Check(
            subject, "failed", size.message, f"accept its terms at {endpoint}/{variant.source}, then set HF_TOKEN"
        )
    if client is None or "connection" in size.message:
        return Check(subject, "unknown", f"not checked: {size.message}", "run again with a network")
    return Check(subject, "failed", size.message, size.hint)


def _room(work: Path, disk: int, memory: int, what: str, instead: str) -> list[Check]:
    place = next(path for path in (work.absolute(), *work.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    total = psutil.virtual_memory().total + psutil.swap_memory().total
    checks = [
        Check("disk", "ok", f"{units.size(free)} free at {place}, {units.size(disk)} needed for {what}")
        if free >= disk
        else Check(
            "disk",
            "failed",
            f"{units.size(free)} free at {place}, {units.size(disk)} needed for {what}",
            f"take {instead}",
        )
    ]
    checks.append(
        Check("memory", "ok", f"{units.size(total)} with swap, {units.size(memory)} needed for {what}")
        if total >= memory
        else Check(
            "memory",
            "failed",
            f"{units.size(total)} with swap, {units.size(memory)} needed for {what}",
            f"add {units.size(memory - total)} of swap, or take a larger machine for that cell",
        )
    )
    return checks


def _targets(cards: Sequence[Card], client: Client | None, namespace: str | None) -> list[Check]:
    if client is None:
        return [
            Check("targets", "unknown", "not checked: no network was asked for", "run without --offline"),
            _publisher(None, ()),
        ]
    try:
        namespace = namespace or client.namespace
        repos = [f"{namespace}/{card.repo}" for card in cards]
    except AccessError as error:
        return [Check("targets", "failed", error.message, error.hint), _publisher(client, ())]
    except HubpubError as error:
        return [Check("targets", "unknown", f"not checked: {error.message}", error.hint), _publisher(client, ())]
    checks = []
    for repo in repos:
        subject = f"target {repo}"
        try:
            refs = client.refs(repo)
            client.check_write(repo, exists=refs is not None)
            text = f"writable, {len(refs.tags)} tags" if refs else "not there yet, will be created"
            checks.append(Check(subject, "ok", text))
        except AccessError as error:
            checks.append(Check(subject, "failed", error.message, error.hint))
        except HubpubError as error:
            checks.append(Check(subject, "unknown", f"not checked: {error.message}", error.hint))
    return [*checks, _publisher(client, repos)]


def _publisher(client: Client | None, repos: Sequence[str]) -> Check:
    """A trusted publisher shows only where an identity token can be had: in a job with `id-token: write`."""
    subject = "trusted publisher"
    if not os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL"):
        return Check(
            subject,
            "unknown",
            "cannot be seen from here: only a job with 'id-token: write' can ask for its token",
            "in the repo's settings on the Hub, name this repository and the workflow release.yml",
        )
    if client is None:
        return Check(subject, "unknown", "not checked: no network was asked for", "run without --offline")
    refused = []
    for repo in repos:
        try:
            client.exchange(repo)
        except HubpubError as error:
            refused.append(f"{repo}: {error.message}")
    if refused:
        return Check(subject, "failed", "; ".join(refused), "name this repository and workflow in each repo's settings")
    return Check(subject, "ok", f"{len(repos)} repos give this workflow a token")


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    return {"ok": not any(check.verdict == "failed" for check in checks), "checks": [asdict(one) for one in checks]}
