"""The collection of a release: its repos in order, made again without a change, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import AccessError
from hubpub.facts import CardFacts, dump
from hubpub.hub.client import Client, Retry
from hubpub.localhub import Fault, LocalHub
from hubpub.release.collection import TITLE, Collected, collect, collected
from hubpub.release.connect import Destination

from .conftest import CARD, PINNED, facts_of

VERSION = "v1.0.0"
# Gigabytes of the recommended file, in the order of the folders: the order of the collection is another one.
SIZES = {"alpha": 4.0, "beta": 0.5, "gamma": 1.5, "delta": 0.2}


class Notes:
    """Keeps what a release would tell."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[str] = []

    def update(self, name: str, stage: str, fraction: float) -> None:
        pass

    def finish(self, name: str, outcome: str) -> None:
        self.done.append(f"{name}: {outcome}")

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three models for chat, and a base model that is the smallest of all."""
    for name in SIZES:
        folder = tmp_path / "cards" / f"{name}-pte"
        folder.mkdir(parents=True)
        text = CARD.format(revision=PINNED).replace("small", name)
        chat = "chat = false" if name == "delta" else "chat = true"
        (folder / "card.toml").write_text(text.replace('license = "gemma"', f'{chat}\nlicense = "gemma"'))
    return Project.find(tmp_path)


def release(hub: LocalHub, client: Client, project: Project, *names: str) -> None:
    """What a release of these cards leaves on the Hub, as far as a collection looks at it."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token=hub.token)
    for card in project.cards:
        if card.variant.name not in names:
            continue
        gigabytes = SIZES[card.variant.name]
        cells = []
        for recipe in card.export.recipes:
            cell = facts_of(project, recipe, card=card)
            program = cell.program.model_copy(update={"constant_bytes": 0, "delegate_bytes": 0})
            speed = cell.speed.model_copy(update={"peak_resident_bytes": int(gigabytes * 1e9)})
            file = cell.file.model_copy(update={"bytes": int(gigabytes * 1e9)})
            now = {"sha256": file.sha256}
            parity = cell.parity.model_copy(update=now)
            update = {"program": program, "speed": speed.model_copy(update=now), "file": file, "parity": parity}
            cells.append(cell.model_copy(update=update))
        repo = f"{hub.user}/{card.repo}"
        facts = CardFacts(repo=repo, version=VERSION, variant=card.variant.name, cells=tuple(cells))
        api.create_repo(repo)
        api.upload_file(path_or_fileobj=dump(facts).encode(), path_in_repo="facts.json", repo_id=repo)
        api.create_tag(repo, tag=VERSION)


def held(hub: LocalHub, client: Client) -> list[tuple[str, str | None]]:
    found = client.collection(hub.user, TITLE.format(version=VERSION))
    return [(item.repo_id, item.note) for item in found.items] if found else []


def changes(hub: LocalHub) -> int:
    return len([one for one in hub.requests if "/api/collections" in one.path and one.method != "GET"])


def test_the_smallest_comes_first_and_base_models_last(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha", "beta", "gamma", "delta")
    found = collect(Destination(client), project.cards, VERSION)
    assert found is not None
    assert [repo for repo, _ in held(hub, client)] == [
        f"local/{name}-pte" for name in ("beta", "gamma", "alpha", "delta")
    ]
    assert found.repos == tuple(repo for repo, _ in held(hub, client))
    assert "for 1 GB of RAM or more" in str(held(hub, client)[0][1]) and "for chat" in str(held(hub, client)[0][1])
    assert "a base model" in str(held(hub, client)[-1][1])
    assert found.url.startswith(f"{hub.url}/collections/local/executorch-models-v1-0-0-")


def test_the_same_again_changes_nothing(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha", "beta")
    first = collect(Destination(client), project.cards, VERSION)
    before = changes(hub)
    again = collect(Destination(client), project.cards, VERSION)
    assert first is not None and again == Collected(first.url, first.repos, 0)
    assert changes(hub) == before


def test_repos_that_come_later_find_their_places_and_what_others_put_there_stays(
    hub: LocalHub, client: Client, project: Project
) -> None:
    from huggingface_hub import HfApi

    release(hub, client, project, "alpha", "gamma")
    first = collect(Destination(client), project.cards, VERSION)
    assert first is not None
    slug = first.url.partition("/collections/")[2]
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("local/mine")
    api.add_collection_item(slug, "local/mine", "model", note="by hand")
    api.update_collection_item(slug, api.get_collection(slug).items[-1].item_object_id, position=0)
    release(hub, client, project, "beta")
    assert collect(Destination(client), project.cards, VERSION)
    names = [repo for repo, _ in held(hub, client)]
    assert names == ["local/beta-pte", "local/gamma-pte", "local/alpha-pte", "local/mine"]
    assert held(hub, client)[-1][1] == "by hand"


def test_a_repo_alone_or_of_another_version_is_no_collection(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha")
    assert collect(Destination(client), project.cards, VERSION) is None
    assert collect(Destination(client), project.cards, "v2.0.0") is None
    # A tag that somebody made by hand is no release, whatever lies there.
    from huggingface_hub import HfApi

    release(hub, client, project, "beta")
    for name in ("alpha", "beta"):
        HfApi(endpoint=hub.url, token=hub.token).create_tag(f"local/{name}-pte", tag="v3.0.0", revision=VERSION)
    assert collect(Destination(client), project.cards, "v3.0.0") is None
    assert changes(hub) == 0


def test_facts_of_no_file_are_no_release(hub: LocalHub, client: Client, project: Project) -> None:
    from huggingface_hub import HfApi

    release(hub, client, project, "alpha", "beta")
    empty = CardFacts(repo="local/gamma-pte", version=VERSION, variant="gamma", cells=())
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("local/gamma-pte")
    api.upload_file(path_or_fileobj=dump(empty).encode(), path_in_repo="facts.json", repo_id="local/gamma-pte")
    api.create_tag("local/gamma-pte", tag=VERSION)
    found = collect(Destination(client), project.cards, VERSION)
    assert found is not None and found.repos == ("local/beta-pte", "local/alpha-pte")


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_hub_that_refuses_is_a_note(hub: LocalHub, project: Project, client: Client, status: int) -> None:
    release(hub, client, project, "alpha", "beta")
    hub.arm(Fault(path="/api/collections", method="POST", status=status, times=100))
    told = Notes()
    collected(Destination(client), project.cards, VERSION, told)
    (note,) = told.notes
    assert "what is published is published" in note and "'hubpub collection --version v1.0.0'" in note
    assert told.done == []


def test_a_token_that_may_not_is_told_by_the_hub(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha", "beta")
    reader = Client(hub.url, hub.add_token(hub.user, role="read"), retry=Retry(attempts=1))
    with pytest.raises(AccessError):
        collect(Destination(reader, hub.user), project.cards, VERSION)


def test_a_lost_answer_makes_no_second_collection(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha", "beta")
    hub.arm(Fault(path="/api/collections", method="POST", cut="before-response"))
    found = collect(Destination(client), project.cards, VERSION)
    assert found is not None
    from huggingface_hub import HfApi

    assert len(list(HfApi(endpoint=hub.url, token=hub.token).list_collections(owner=hub.user))) == 1
    assert len(held(hub, client)) == 2


def test_a_token_for_one_repo_leaves_it_to_a_person(hub: LocalHub, client: Client, project: Project) -> None:
    release(hub, client, project, "alpha", "beta")
    one = Client(hub.url, hub.add_token(hub.user, repos=["local/alpha-pte"]), retry=Retry(attempts=1))
    told = Notes()
    collected(Destination(one, hub.user), project.cards, VERSION, told)
    assert told.notes == ["this token is for single repos: 'hubpub collection --version v1.0.0' collects them"]
    assert held(hub, client) == []
