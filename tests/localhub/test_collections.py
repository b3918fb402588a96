"""Collections as the real client makes them: in order, for those who may, and still there after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubpub.localhub import LocalHub

from .conftest import api_of, web

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TITLE = "Models v1.0.0"


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    """The owner, with three repos of which one is private."""
    made = api_of(hub.url, hub.token)
    for name, private in (("a", False), ("b", False), ("hidden", True)):
        made.create_repo(f"local/{name}", private=private)
    return made


def names(api: HfApi, slug: str) -> list[str]:
    return [item.item_id for item in api.get_collection(slug).items]


def test_made_filled_ordered_and_removed(api: HfApi, hub: LocalHub) -> None:
    made = api.create_collection(TITLE, namespace="local", description="Two models")
    assert made.slug.startswith("local/models-v1-0-0-") and made.url == f"{hub.url}/collections/{made.slug}"
    assert api.create_collection(TITLE, namespace="local", exists_ok=True).slug == made.slug
    api.add_collection_item(made.slug, "local/a", "model", note="first")
    api.add_collection_item(made.slug, "local/b", "model")
    api.add_collection_item(made.slug, "local/b", "model", exists_ok=True)
    assert names(api, made.slug) == ["local/a", "local/b"]
    held = api.get_collection(made.slug).items
    assert (held[0].note, held[0].position, held[1].note) == ("first", 0, None)
    api.update_collection_item(made.slug, held[1].item_object_id, position=0, note="now first")
    assert names(api, made.slug) == ["local/b", "local/a"]
    assert api.get_collection(made.slug).items[0].note == "now first"
    api.delete_collection_item(made.slug, held[0].item_object_id)
    assert names(api, made.slug) == ["local/b"]
    assert api.update_collection_metadata(made.slug, title="Other").title == "Other"
    api.delete_collection(made.slug)
    assert list(api.list_collections(owner="local")) == []


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        api = api_of(hub.url, hub.token)
        api.create_repo("local/a")
        slug = api.create_collection(TITLE, namespace="local").slug
        api.add_collection_item(slug, "local/a", "model", note="one")
    with LocalHub(tmp_path / "hub") as hub:
        found = api_of(hub.url, hub.token).get_collection(slug)
        assert (found.title, [(item.item_id, item.note) for item in found.items]) == (TITLE, [("local/a", "one")])


def test_nobody_sees_a_private_repo_in_it(api: HfApi, hub: LocalHub) -> None:
    slug = api.create_collection(TITLE, namespace="local").slug
    for name in ("hidden", "a"):
        api.add_collection_item(slug, f"local/{name}", "model")
    assert names(api, slug) == ["local/hidden", "local/a"]
    anybody = web().get(f"{hub.url}/api/collections/{slug}").json()
    assert [item["id"] for item in anybody["items"]] == ["local/a"]
    for page in (f"/collections/{slug}", "/collections", "/local/collections"):
        text = web().get(f"{hub.url}{page}", headers={"Accept": "text/html"})
        assert text.status_code == 200 and "hidden" not in text.text and TITLE in text.text


def test_a_private_collection_is_for_its_owner(api: HfApi, hub: LocalHub) -> None:
    slug = api.create_collection(TITLE, namespace="local", private=True).slug
    assert web().get(f"{hub.url}/api/collections/{slug}").status_code == 404
    assert web().get(f"{hub.url}/api/collections?owner=local").json() == []
    assert [one.slug for one in api.list_collections(owner="local")] == [slug]
    assert TITLE not in web().get(f"{hub.url}/collections", headers={"Accept": "text/html"}).text


def test_who_may_not_write_changes_nothing(api: HfApi, hub: LocalHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    slug = api.create_collection(TITLE, namespace="local").slug
    for other in (
        api_of(hub.url, hub.add_token(hub.user, role="read")),
        # A token for one repo, as a trusted publisher gets it.
        api_of(hub.url, hub.add_token(hub.user, repos=["local/a", "local/any"])),
        api_of(hub.url, hub.add_token("else")),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            other.create_collection("Another", namespace="local")
        assert refused.value.response.status_code == 403
        with pytest.raises(HfHubHTTPError) as refused:
            other.add_collection_item(slug, "local/a", "model")
        assert refused.value.response.status_code == 403
        with pytest.raises(HfHubHTTPError) as refused:
            other.delete_collection(slug)
        assert refused.value.response.status_code == 403
    assert [one.title for one in api.list_collections(owner="local")] == [TITLE]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", {"namespace": "local"}, 400),
        ("POST", "", {"namespace": "local", "title": "x" * 61}, 400),
        ("POST", "", {"namespace": "../etc", "title": "x"}, 400),
        ("POST", "", {"namespace": "local", "title": "x", "description": "y" * 151}, 400),
        ("POST", "/{slug}/items", {"item": {"id": "local/none", "type": "model"}}, 404),
        ("POST", "/{slug}/items", {"item": {"id": "2402.1", "type": "paper"}}, 400),
        ("POST", "/{slug}/items", {"item": "local/a"}, 400),
        ("POST", "/{slug}/items", {"item": {"id": "local/a", "type": "model"}, "note": 3}, 400),
        ("PATCH", "/{slug}/items/000000000000000000000000", {"position": 0}, 404),
        ("PATCH", "/local/none", {"title": "x"}, 404),
        ("GET", "/local/../../token", None, 404),
        ("PUT", "/{slug}", {}, 404),
    ],
)
def test_what_is_wrong_is_refused(api: HfApi, hub: LocalHub, method: str, path: str, body: object, status: int) -> None:
    slug = api.create_collection(TITLE, namespace="local").slug
    address = f"{hub.url}/api/collections{path.format(slug=slug)}"
    answer = web().request(method, address, json=body, headers={"Authorization": f"Bearer {hub.token}"})
    assert answer.status_code == status
