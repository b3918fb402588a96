"""HTTP as this server speaks it: requests with a body that is read as a stream, responses, and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

JSON_LIMIT = 16 << 20
_DIGITS = re.compile(r"[0-9]{1,18}")
_HEX = re.compile(rb"[0-9a-fA-F]{1,15}")


class HttpError(Exception):
    """An answer that is no success: `code` is what the Hub's clients read from X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers: dict[str, str] = {}


class Hangup(Exception):
    """The other side is gone, or this side was told to be: nothing more can be said on this connection."""


class _Wire(Protocol):
    rfile: BufferedIOBase

    def send_continue(self) -> None: ...


class Body:
    """The body of one request, from Content-Length or in chunks. `received` counts its bytes as they come."""

    def __init__(self, wire: _Wire, headers: Message) -> None:
        """Raises HttpError 400 where the headers say nothing that can be trusted about the length."""
        self._wire = wire
        self.received = 0
        self._cut_after: int | None = None
        self._expects = (headers.get("Expect") or "").lower() == "100-continue"
        codings = [value.strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
        lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
        self.length: int | None = 0
        self._left = 0
        self._chunked = bool(codings)
        self._ended = False
        if codings and (codings != ["chunked"] or lengths):
            raise HttpError(400, "Transfer-Encoding must be 'chunked' alone, without Content-Length")
        if self._chunked:
            self.length = None
        elif lengths:
            text = lengths.pop()
            if lengths or not _DIGITS.fullmatch(text):
                raise HttpError(400, "Content-Length is not a number of bytes")
            self.length = self._left = int(text)
        self._ended = not self._chunked and self._left == 0

    @property
    def ended(self) -> bool:
        """Whether the whole body has been read."""
        return self._ended

    def cut(self, after_bytes: int) -> None:
        """Hang up after so many bytes of the body, before its end in any case."""
        if self._ended:
            raise Hangup
        self._cut_after = after_bytes if self.length is None else min(after_bytes, self.length - 1)

    def reusable(self, limit: int) -> bool:
        """Whether the connection can be used again: what was not read is known to be at most `limit` bytes long."""
        return self._ended or (not self._expects and self.length is not None and self._left <= limit)

    def skip(self) -> None:
        """Read the rest."""
        with suppress(HttpError):
            while self.read(1 << 16):
                pass

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end. Raises HttpError 400 where the body is cut off or malformed."""
        if self._ended:
            return b""
        if self._expects:
            self._expects = False
            self._wire.send_continue()
        if self._cut_after is not None:
            size = min(size, self._cut_after - self.received)
            if size <= 0:
                raise Hangup
        if self._chunked and self._left == 0:
            self._next_chunk()
            if self._ended:
                if self._cut_after is not None:
                    raise Hangup
                return b""
        data = self._wire.rfile.read(min(size, self._left))
        if not data:
            raise HttpError(400, "The request body ended early")
        self._left -= len(data)
        self.received += len(data)
        if self._chunked:
            if self._left == 0 and self._wire.rfile.read(2) != b"\r\n":
                raise HttpError(400, "Malformed chunk")
        else:
            self._ended = self._left == 0
        return data

    def _next_chunk(self) -> None:
        line = self._wire.rfile.readline(1026)
        size = line.split(b";", 1)[0].strip()
        if not line.endswith(b"\n") or not _HEX.fullmatch(size):
            raise HttpError(400, "Malformed chunk size")
        self._left = int(size, 16)
        if self._left == 0:
            for _ in range(64):
                trailer = self._wire.rfile.readline(4098)
                if trailer in {b"\r\n", b"\n"}:
                    self._ended = True
                    return
                if not trailer.endswith(b"\n"):
                    break
            raise HttpError(400, "Malformed trailer")

    def blocks(self, limit: int, size: int = 1 << 18) -> Iterator[bytes]:
        """The body block by block. Raises HttpError 413 past `limit` bytes."""
        if self.length is not None and self.length > limit:
            raise HttpError(413, f"The request body is larger than {limit} bytes")
        while block := self.read(size):
            if self.received > limit:
                raise HttpError(413, f"The request body is larger than {limit} bytes")
            yield block

    def lines(self, limit: int, line_limit: int) -> Iterator[bytes]:
        """The lines of the body without their ends, empty ones left out."""
        rest = bytearray()
        for block in self.blocks(limit):
            rest += block
            if b"\n" in block:
                *lines, tail = bytes(rest).split(b"\n")
                rest = bytearray(tail)
                yield from (line for line in lines if line.strip())
            if len(rest) > line_limit:
                raise HttpError(413, f"A line of the request body is longer than {line_limit} bytes")
        if rest.strip():
            yield bytes(rest)

    def all(self, limit: int = JSON_LIMIT) -> bytes:
        return b"".join(self.blocks(limit))

    def json(self, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        data = self.all(limit)
        value = parse_json(data) if data.strip() else {}
        if not isinstance(value, dict):
            raise HttpError(400, "The request body must be a JSON object")
        return value


def parse_json(data: bytes) -> Any:
    """JSON or HttpError 400, also for what would exhaust Python's recursion."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise HttpError(400, "The request body is not valid JSON") from None


@dataclass(frozen=True)
class Request:
    """One request. `segments` are the parts of the path between slashes, decoded one by one."""

    method: str
    path: str
    segments: tuple[str, ...]
    query: Mapping[str, tuple[str, ...]]
    headers: Message
    body: Body
    base: str

    @classmethod
    def parse(cls, method: str, target: str, headers: Message, body: Body) -> Request:
        """Raises HttpError 400 for a target that is not the plain path of this server."""
        path, _, query = target.partition("?")
        if not path.startswith("/") or "#" in path:
            raise HttpError(400, "The request target must be a path")
        try:
            segments = tuple(unquote(part, errors="strict") for part in path.split("/")[1:])
            pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=200)
        except ValueError:
            raise HttpError(400, "The request target is malformed") from None
        if any("\0" in segment for segment in segments):
            raise HttpError(400, "The request target is malformed")
        values: dict[str, tuple[str, ...]] = {}
        for key, value in pairs:
            values[key] = (*values.get(key, ()), value)
        return cls(method, path, segments, values, headers, body, f"http://{headers['Host']}")

    def first(self, key: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(key, (default,))[0]

    def flag(self, key: str) -> bool:
        return self.first(key).lower() in {"1", "true"}

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """A query parameter as a number. Raises HttpError 400 where it is none or out of range."""
        text = self.first(key, str(default))
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            raise HttpError(400, f"'{key}' must be a number from {low} to {high}")
        return int(text)


@dataclass(frozen=True)
class FileSlice:
    """`length` bytes of a file from `start`."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class Response:
    """An answer. A body that is a FileSlice goes from disk to socket without passing through memory."""

    status: int = 200
    body: bytes | FileSlice = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode()
    return Response(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def error_response(error: HttpError) -> Response:
    """The error as the Hub's clients understand it: in the body and, on one line, in X-Error-Message."""
    headers = {"X-Error-Message": re.sub(r"[^\x20-\x7e]+", " ", error.message)[:500], **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_response({"error": error.message}, error.status, headers)


def file_response(request: Request, path: Path, size: int, headers: Mapping[str, str]) -> Response:
    """A whole file, or the one range of it that was asked for (206, or 416 where it lies outside)."""
    headers = {"Accept-Ranges": "bytes", **headers}
    if request.headers.get("If-None-Match") and headers.get("ETag") in request.headers["If-None-Match"].split(", "):
        return Response(304, b"", headers)
    asked = (request.headers.get("Range") or "").strip()
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", asked)
    if_range = request.headers.get("If-Range")
    # A Range that cannot be understood is to be ignored, one of several ranges may be.
    if found is None or asked == "bytes=-" or (if_range and if_range != headers.get("ETag")):
        return Response(200, FileSlice(path, 0, size), headers)
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or start > end or (not first and int(last) == 0):
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(206, FileSlice(path, start, end - start + 1), headers)
