"""Collections: named lists of repos, in an order of their owner's, each kept as one file under collections/."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, replace

from hubpub.localhub.disk import Disk


@dataclass(frozen=True)
class Item:
    """A repo of a collection; `key` names its place there."""

    key: str
    repo: str
    note: str | None = None


@dataclass(frozen=True)
class Collection:
    """`slug` is "owner/title-in-short-id"; `updated` is in seconds since 1970."""

    slug: str
    owner: str
    title: str
    updated: int
    description: str | None = None
    private: bool = False
    items: tuple[Item, ...] = ()


class Shelf:
    """All collections of one server. Whoever changes one holds `lock`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._folder = disk.root / "collections"
        self.lock = threading.RLock()
        self._held: dict[str, Collection] = {}
        for path in sorted(self._folder.glob("*/*.json")):
            stored = json.loads(path.read_bytes())
            stored["items"] = tuple(Item(**item) for item in stored["items"])
            found = Collection(**stored)
            self._held[found.slug] = found

    def of(self, owner: str = "") -> list[Collection]:
        """Those of `owner`, or all, the one that changed last first."""
        with self.lock:
            found = [one for one in self._held.values() if not owner or one.owner.casefold() == owner.casefold()]
        return sorted(found, key=lambda one: (-one.updated, one.slug))

    def find(self, owner: str, name: str) -> Collection | None:
        return self._held.get(f"{owner}/{name}")

    def keep(self, collection: Collection) -> Collection:
        """Put `collection` in place of the one of its slug, on disk first."""
        kept = replace(collection, updated=int(time.time()))
        self._disk.write_json(self._folder / f"{kept.slug}.json", asdict(kept))
        self._held[kept.slug] = kept
        return kept

    def drop(self, collection: Collection) -> None:
        (self._folder / f"{collection.slug}.json").unlink(missing_ok=True)
        self._held.pop(collection.slug, None)
