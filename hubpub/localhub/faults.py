"""Faults on demand and a record of what was asked: what makes a server an instrument for tests."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from hubpub.errors import HubError

Cut = Literal["before-body", "in-body", "before-response", "in-response"]
"""Where a connection is cut: before the request's body is read, after `after_bytes` of it, when the request was carried
out but before the answer (a lost response), or after `after_bytes` of the answer's body."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with the next `times` requests that match, after `skip` that go well.

    `method` and `path` are regular expressions for the whole method and any part of the path (without the query);
    `delay` and `retry_after` are seconds.
    """

    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0
    status: int | None = None
    retry_after: float | None = None
    delay: float = 0.0
    cut: Cut | None = None
    after_bytes: int = 0

    def __post_init__(self) -> None:
        if self.cut not in (None, "before-body", "in-body", "before-response", "in-response"):
            raise HubError(f"'{self.cut}' is no place to cut a connection")
        if self.status is not None and not (isinstance(self.status, int) and 400 <= self.status <= 599):
            raise HubError("a fault's status is a number from 400 to 599")
        try:
            re.compile(self.method), re.compile(self.path)
            float(self.delay), float(self.retry_after or 0), int(self.times), int(self.skip), int(self.after_bytes)
        except (re.error, TypeError, ValueError) as error:
            raise HubError(f"not a fault: {error}") from None

    @classmethod
    def from_json(cls, value: object) -> Fault:
        """Raises HubError for anything that is not the JSON form of a fault."""
        if not isinstance(value, Mapping) or not value.keys() <= {item.name for item in fields(cls)}:
            raise HubError("a fault is an object with keys out of: " + ", ".join(item.name for item in fields(cls)))
        return cls(**value)


@dataclass(frozen=True)
class Entry:
    """One request as the log keeps it: bytes are those of the bodies, `t` seconds since 1970; status 0 is a cut."""

    method: str
    path: str
    status: int
    request_bytes: int
    response_bytes: int
    t: float


class Faults:
    """The faults that are armed, with how often each has been met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[tuple[Fault, int]] = []

    def arm(self, faults: Iterable[Fault]) -> None:
        with self._lock:
            self._armed.extend((fault, 0) for fault in faults)

    def disarm(self) -> None:
        with self._lock:
            self._armed.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault this request meets, if any; each match counts, and a spent fault is dropped."""
        with self._lock:
            for index, (fault, met) in enumerate(self._armed):
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    self._armed[index] = (fault, met + 1)
                    if met + 1 >= fault.skip + fault.times:
                        del self._armed[index]
                    if met >= fault.skip:
                        return fault
        return None

    def listed(self) -> list[dict[str, Any]]:
        with self._lock:
            return [{**asdict(fault), "met": met} for fault, met in self._armed]


class RequestLog:
    """The last requests, oldest first. Reading waits shortly for those that are being answered at the moment."""

    def __init__(self, limit: int = 100_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._settled = threading.Condition()
        self._open = 0

    def begin(self) -> None:
        with self._settled:
            self._open += 1

    def end(self, entry: Entry) -> None:
        with self._settled:
            self._open -= 1
            self._entries.append(entry)
            self._settled.notify_all()

    def read(self, patience: float = 0.5) -> tuple[Entry, ...]:
        """A client sees its answer a moment before the entry is written: hence the wait of up to `patience` seconds."""
        until = time.monotonic() + patience
        with self._settled:
            while self._open and (left := until - time.monotonic()) > 0:
                self._settled.wait(left)
            return tuple(self._entries)

    def clear(self) -> None:
        with self._settled:
            self._entries.clear()
