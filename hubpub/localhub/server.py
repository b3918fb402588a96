"""The sockets: one thread per connection, requests in, answers out, faults where they were ordered."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from email.message import Message
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hubpub.errors import HubError
from hubpub.localhub import api, pages, transfer, xet
from hubpub.localhub.disk import Disk, FolderLock
from hubpub.localhub.faults import Entry, Fault, Faults, RequestLog
from hubpub.localhub.names import check_repo_id
from hubpub.localhub.shelf import Shelf
from hubpub.localhub.site import CommitQuota, Options, Site
from hubpub.localhub.store import Store
from hubpub.localhub.tokens import Publisher, Role, Tokens
from hubpub.localhub.wire import (
    Body,
    FileSlice,
    Hangup,
    HttpError,
    Request,
    Response,
    error_response,
    json_response,
    parse_json,
)

ADDRESS = "address"
_CONNECTIONS = 200
_DRAIN_BYTES, _DRAIN_SECONDS = 16 << 20, 3.0
_CONTENT = re.compile(r"/_lfs/|/_xet/[^/]+/v1/(?:xorbs|shards)|/api/models/[^/]+/[^/]+/commit/")
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Pages set their own. Anything else, above all what users stored, may do nothing at all in a browser.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
_SMALL_REST = 64 << 10


def route(site: Site, request: Request) -> Response:
    """Answer one request. Raises HttpError."""
    reads = request.method == "GET"
    match request.segments:
        case ("api", *_):
            return api.handle(site, request)
        case ("oauth", "token") if request.method == "POST":
            return api.oauth_token(site, request)
        case ("_xet", _, *_):
            return xet.handle(site, request)
        case ("v1", "telemetry") if request.method == "POST" and site.options.xet:
            return xet.telemetry(request)
        case ("_lfs", *_):
            return transfer.lfs(site, request)
        case (namespace, name, "info", "lfs", "objects", "batch" | "verify" as step) if (
            request.method == "POST" and name.endswith(".git")
        ):
            lfs_step = transfer.batch if step == "batch" else transfer.verify
            return lfs_step(site, request, namespace, name.removesuffix(".git"))
        # A pull request's reference has slashes; clients escape them, people do not.
        case (namespace, name, "resolve" | "raw" as view, "refs", "pr", number, *path) if reads:
            action = transfer.resolve if view == "resolve" else transfer.raw
            repo = site.readable(request, namespace, name)
            return action(site, request, repo, f"refs/pr/{number}", "/".join(path))
        case (namespace, name, "resolve" | "raw" as view, revision, *path) if reads:
            action = transfer.resolve if view == "resolve" else transfer.raw
            return action(site, request, site.readable(request, namespace, name), revision, "/".join(path))
    if reads:
        return pages.handle(site, request)
    raise HttpError(405, "This method is not allowed here")


class Handler(BaseHTTPRequestHandler):
    """One connection. Whatever it is sent, it answers with an HTTP status or hangs up."""

    protocol_version = "HTTP/1.1"
    server: Server
    rbufsize = 1 << 18
    _said = False

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.site.options.idle_timeout)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        with contextlib.suppress(OSError, Hangup):
            super().handle()

    def version_string(self) -> str:
        return "hubpub"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: the request log is the record."""

    def handle_expect_100(self) -> bool:
        # The body is asked for when it is read: a request that is refused anyway need not send it.
        return True

    def send_continue(self) -> None:
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called by the base class for what cannot be parsed: say so without repeating it, and hang up."""
        status = {501: 405, 505: 400}.get(int(code), int(code))
        self.request_version = self.protocol_version
        self.close_connection = True
        self.server.log.begin()
        answer = error_response(HttpError(status, f"Bad request: {HTTPStatus(status).phrase}"))
        try:
            self._send(answer, whole=True)
        finally:
            self.server.log.end(Entry("-", "-", status, 0, answer.length, time.time()))
        self._drain()

    def _answer(self) -> None:
        """Read, route and answer the request whose head was parsed."""
        began, log = time.time(), self.server.log
        path = self.path.partition("?")[0]
        local = path.startswith("/_local/")
        status, sent, body = 0, 0, None
        fault = None if local else self.server.faults.take(self.command, path)
        if not local:
            log.begin()
        try:
            response, body = self._respond(fault)
            if fault and fault.cut == "before-response":
                raise Hangup
            limit = fault.after_bytes if fault and fault.cut == "in-response" else None
            sent = self._send(
                response, whole=self.command != "HEAD", ends=bool(body and body.reusable(_SMALL_REST)), limit=limit
            )
            status = response.status
            if body and not self.close_connection:
                # After the answer: what was not read can be late, or never come.
                body.skip()
        except (Hangup, OSError):
            self.close_connection = True
        finally:
            if not local:
                received = body.received if body else self._received
                shown = path if path.isascii() else ascii(path)
                self.server.count(path, received)
                log.end(Entry(self.command, shown[:2000], status, received, sent, began))
        if body and not body.ended and status:
            self._drain()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer

    _received = 0

    def _respond(self, fault: Fault | None) -> tuple[Response, Body | None]:
        """The answer and the body that was read for it. Raises Hangup where a fault cuts the connection."""
        body: Body | None = None
        self._received = 0
        try:
            if self.request_version == "HTTP/0.9":
                self.request_version = "HTTP/1.1"
                raise HttpError(400, "HTTP/1.1 is needed")
            body = Body(self, self.headers)
            self._check_host(self.headers)
            if fault:
                self._suffer(fault, body)
                if fault.status is not None:
                    response = error_response(HttpError(fault.status, "This failure was ordered"))
                    if fault.retry_after is not None:
                        response.headers["Retry-After"] = f"{fault.retry_after:g}"  # type: ignore[index]
                    return response, body
            method = "GET" if self.command == "HEAD" else self.command
            request = Request.parse(method, self.path, self.headers, body)
            if request.segments[0] == "_local":
                return self.server.control(request), body
            return route(self.server.site, request), body
        except HttpError as error:
            if pages.wanted(self.command, self.path, self.headers):
                return pages.error(error), body
            return error_response(error), body
        except TimeoutError:
            return error_response(HttpError(408, "The request body did not arrive in time")), body
        except (Hangup, ConnectionError):
            self._received = body.received if body else 0
            raise Hangup from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                return error_response(HttpError(507, "There is no space left on the disk")), body
            self.server.failed(error)
            return error_response(HttpError(500, "Internal error of the local Hub")), body

    def _suffer(self, fault: Fault, body: Body) -> None:
        if fault.delay:
            self.server.stopping.wait(fault.delay)
        if fault.cut == "before-body":
            raise Hangup
        if fault.cut == "in-body":
            body.cut(fault.after_bytes)

    def _check_host(self, headers: Message) -> None:
        """Only names of this machine: a page of somebody else's that resolves here must not be answered."""
        hosts = headers.get_all("Host", [])
        if len(hosts) != 1:
            raise HttpError(400, "One Host header is needed")
        found = re.fullmatch(r"(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", hosts[0].lower())
        if not found:
            raise HttpError(403, "This server answers to the names of this machine only")

    def _send(self, response: Response, *, whole: bool, ends: bool = True, limit: int | None = None) -> int:
        """Write the answer and return how many bytes of body were sent; past `limit` the connection is cut."""
        if not ends:
            self.close_connection = True
        self.send_response(response.status)
        for name, value in {**_SECURITY, **response.headers}.items():
            self.send_header(name, value)
        if response.status not in {204, 304}:
            self.send_header("Content-Length", str(response.length))
        if self.close_connection:
            self.send_header("Connection", "close")
        if not whole or response.length == 0 or response.status in {204, 304}:
            self.end_headers()
            return 0
        length = response.length if limit is None else min(limit, response.length)
        if isinstance(response.body, FileSlice):
            self.end_headers()
            sent = 0
            with response.body.path.open("rb") as file:
                while sent < length:
                    part = min(length - sent, 8 << 20)
                    done = self.connection.sendfile(file, response.body.start + sent, part)
                    if not done:
                        raise Hangup
                    sent += done
        else:
            # Head and body in one packet: small answers are most answers.
            self._headers_buffer: list[bytes]
            self._headers_buffer.append(b"\r\n" + response.body[:length])
            self.flush_headers()
        if length < response.length:
            raise Hangup
        return length

    def _drain(self) -> None:
        """Take what is still coming for a moment: closing at once could destroy the answer on its way."""
        self.close_connection = True
        with contextlib.suppress(OSError, HttpError, Hangup):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAIN_SECONDS / 3)
            until, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
            while left > 0 and time.monotonic() < until and (data := self.rfile.read1(1 << 16)):
                left -= len(data)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The listening socket and what all connections share."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, site: Site, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.site = site
        self.faults = Faults()
        self.log = RequestLog()
        self.stopping = threading.Event()
        self.errors: list[BaseException] = []
        self._received = 0
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise HubError(f"cannot listen on {host} port {port}: {error.strerror}", "choose another port") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if len(self._open) >= _CONNECTIONS:
                self.shutdown_request(request)
                return
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is printed; what went wrong inside is in `errors`."""

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def count(self, path: str, received: int) -> None:
        """Add to the bytes of content that arrived."""
        if _CONTENT.match(path):
            with self._changed:
                self._received += received

    @property
    def content_received(self) -> int:
        self.log.read()
        return self._received

    def close(self) -> None:
        """Stop listening and end all connections, those in the middle of a request too."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        until = time.monotonic() + 5
        with self._changed:
            while self._open and time.monotonic() < until:
                for connection in self._open:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                self._changed.wait(0.2)

    def control(self, request: Request) -> Response:
        """The instrument's own panel under /_local, for whoever holds the user's write token. Raises HttpError."""
        access = self.site.user(request)
        if access.user != self.site.tokens.user or access.role != "write" or access.repos is not None:
            raise HttpError(403, "This needs the write token of the server's own user")
        match request.method, request.segments[1:]:
            case "GET", ("requests",):
                return json_response([vars(entry) for entry in self.log.read()])
            case "DELETE", ("requests",):
                self.log.clear()
                return json_response([])
            case "GET", ("faults",):
                return json_response(self.faults.listed())
            case "POST", ("faults",):
                wanted = parse_json(request.body.all())
                try:
                    self.faults.arm([Fault.from_json(item) for item in (wanted if type(wanted) is list else [wanted])])
                except HubError as error:
                    raise HttpError(400, error.message) from None
                return json_response(self.faults.listed())
            case "DELETE", ("faults",):
                self.faults.disarm()
                return json_response([])
            case "POST", ("tokens",):
                return self._new_token(request)
        raise HttpError(404, "Not found")

    def _new_token(self, request: Request) -> Response:
        wanted = request.body.json()
        user, role, repos = wanted.get("user"), wanted.get("role", "write"), wanted.get("repos")
        check_repo_id(user, "any")
        if role not in ("read", "write") or not (repos is None or isinstance(repos, list)):
            raise HttpError(400, "'role' must be read or write, 'repos' a list")
        for repo in repos or ():
            check_repo_id(*str(repo).partition("/")[::2])
        expires = wanted.get("expires")
        if not (expires is None or isinstance(expires, int | float)):
            raise HttpError(400, "'expires' must be seconds since 1970")
        return json_response({"token": self.site.tokens.add(str(user), role, repos, expires)}, 201)


class LocalHub:
    """A Hub of one's own in `root`, on this machine alone, served by threads of this process while it is open.

    `user` owns the write token; it may also write to the namespaces in `orgs`. Raises HubError where the folder is
    being served already, the port is taken or `host` is no address of this machine's own.
    """

    def __init__(
        self,
        root: Path,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        user: str = "local",
        orgs: Iterable[str] = (),
        options: Options | None = None,
    ) -> None:
        _check_loopback(host)
        self.root = Path(root)
        self._host, self._port = host, port
        self._who = user, tuple(orgs)
        self._options = options or Options()
        self._server: Server | None = None
        self._lock: FolderLock | None = None

    def __repr__(self) -> str:
        return f"LocalHub({str(self.root)!r})"

    def open(self) -> Self:
        """Start serving."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FolderLock(self.root)
        except OSError as error:
            raise HubError(f"cannot use {self.root} as the local Hub's folder: {error.strerror}") from None
        try:
            disk = Disk(self.root.resolve())
            store = Store(disk)
            quota = CommitQuota(self._options.commits_per_hour)
            site = Site(store, Tokens(disk, *self._who), self._options, quota, Shelf(disk))
            self._server = Server(site, self._host, self._port)
            # Who finds the folder locked can ask the one that has it.
            disk.write(self.root / ADDRESS, self.url.encode())
        except BaseException:
            self._lock.release()
            raise
        threading.Thread(target=partial(self._server.serve_forever, 0.05), name="local-hub", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop serving; what was stored stays."""
        if self._server:
            self._server.close()
            self._server = None
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise HubError("the local Hub is not running", "use it in a with statement")
        return self._server

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._running.server_address[1]}"

    @property
    def user(self) -> str:
        return self._who[0]

    @property
    def token(self) -> str:
        """A write token of `user`, the same at every start."""
        return self._running.site.tokens.token

    @property
    def token_path(self) -> Path:
        """The file that holds `token`, readable by its owner alone."""
        return self._running.site.tokens.token_path

    def add_token(
        self, user: str, role: Role = "write", repos: Iterable[str] | None = None, expires: float | None = None
    ) -> str:
        """A token of `user`, for `repos` alone where given, until `expires` (seconds since 1970)."""
        return self._running.site.tokens.add(user, role, repos, expires)

    def trust(self, publisher: Publisher) -> None:
        """Let a workflow exchange its identity for a token, as a trusted publisher does on the real Hub."""
        self._running.site.tokens.trust(publisher)

    @property
    def requests(self) -> tuple[Entry, ...]:
        """The requests so far, oldest first."""
        return self._running.log.read()

    def clear_requests(self) -> None:
        self._running.log.clear()

    def bytes_received(self) -> int:
        """Bytes of content that arrived so far: bodies of uploads in either transport, and of commits."""
        return self._running.content_received

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """Errors inside the server that were answered with status 500; there should be none."""
        return tuple(self._running.errors)

    def arm(self, *faults: Fault) -> None:
        self._running.faults.arm(faults)

    def disarm(self) -> None:
        self._running.faults.disarm()


def _check_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise HubError(f"the local Hub is for this machine alone: it cannot listen on {host}", "use 127.0.0.1")


def serve(hub: LocalHub, ready: Callable[[LocalHub], None], stop: threading.Event | None = None) -> None:
    """Open `hub` until `stop` is set or the process is interrupted; `ready` is called once requests are answered."""
    waiting = stop or threading.Event()
    with hub:
        ready(hub)
        while not waiting.wait(3600):
            pass
