"""A preview of every card in the browser, kept up to date while templates, declarations and facts are edited.

Loopback only, and nothing is fetched from elsewhere. Cards pass a sanitizer and cannot run scripts; the one script of
the pages is ours.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from hubpub.cards import views
from hubpub.cards.markdown import css
from hubpub.cards.views import Sources
from hubpub.errors import UsageError

_POLL = 0.2
_HEARTBEAT = 15.0
_TYPES = {".svg": "image/svg+xml", ".json": "application/json; charset=utf-8"}


class Watch:
    """Notices when a file below `paths` is written, made or removed. `version` changes each time."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self.changed = threading.Condition()
        self.stopped = False
        # A page of an earlier server must not take itself for one of this.
        self._start, self._count = time.time_ns(), 0
        self._seen = self._signature()
        self._thread = threading.Thread(target=self._run, name="preview-watch", daemon=True)

    @property
    def version(self) -> str:
        return f"{self._start}.{self._count}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait(self, version: str, seconds: float) -> None:
        """Return when the version is no longer `version`, the watch was stopped, or after `seconds`."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.version != version, seconds)

    def _run(self) -> None:
        while not self.stopped:
            time.sleep(_POLL)
            now = self._signature()
            if now != self._seen:
                with self.changed:
                    self._seen, self._count = now, self._count + 1
                    self.changed.notify_all()

    def _signature(self) -> frozenset[tuple[str, int, int]]:
        return frozenset(_stats(self.paths))


class Preview:
    """The preview server while its context is open; `url` is where it is."""

    def __init__(self, sources: Sources, port: int = 0) -> None:
        """Raises UsageError where the port is taken."""
        self.sources = sources
        self.watch = Watch((sources.project.cards_dir, sources.project.templates_dir))
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UsageError(f"port {port} cannot be used: {error.strerror}", "choose another --port") from None
        self._server.preview = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="preview", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Preview:
        self.watch.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watch.stop()
        self._server.shutdown()
        self._server.server_close()


def serve_preview(sources: Sources, port: int, ready: Callable[[str], None]) -> None:
    """Serve the preview until interrupted; `ready` is told the address once it answers.

    Raises UsageError where the port is taken.
    """
    with Preview(sources, port) as preview:
        ready(preview.url)
        while True:
            time.sleep(3600)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    preview: Preview


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in {"127.0.0.1", "localhost"}:
            # A name of somebody else's that leads here must not read what is on this machine.
            self._send(HTTPStatus.FORBIDDEN, b"this preview answers on 127.0.0.1 only\n", "text/plain")
            return
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            self._route(parts)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # one page that fails must not look like a server that is gone
            text = f"this page cannot be made: {type(error).__name__}: {error}\n"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode(errors="replace"), "text/plain; charset=utf-8")

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """A preview is quiet."""

    def _route(self, parts: list[str]) -> None:
        preview = self.server.preview
        match parts:
            case [""]:
                self._page(views.index)
            case ["_events"]:
                self._events(preview.watch)
            case ["_style.css"]:
                self._send(HTTPStatus.OK, css().encode(), "text/css; charset=utf-8")
            case ["_script.js"]:
                script = files("hubpub.cards").joinpath("pages/script.js").read_bytes()
                self._send(HTTPStatus.OK, script, "text/javascript; charset=utf-8")
            case ["card", folder, *rest] if folder in views.folders(preview.sources.project):
                self._card(folder, rest)
            case _:
                self._send(HTTPStatus.NOT_FOUND, b"there is no such page\n", "text/plain; charset=utf-8")

    def _card(self, folder: str, rest: list[str]) -> None:
        match rest:
            case []:
                self._page(views.card_page, folder)
            case ["changes"]:
                self._page(views.changes_page, folder)
            case ["source"]:
                self._page(views.source_page, folder)
            case ["file", name]:
                made = views.make(self.server.preview.sources, folder)
                data = made.rendered.files.get(name) if made.rendered else None
                if data is None:
                    self._send(HTTPStatus.NOT_FOUND, b"there is no such file here\n", "text/plain; charset=utf-8")
                else:
                    self._send(HTTPStatus.OK, data, _TYPES.get(Path(name).suffix, "text/plain; charset=utf-8"))
            case _:
                self._send(HTTPStatus.NOT_FOUND, b"there is no such page\n", "text/plain; charset=utf-8")

    def _page(self, view: Callable[..., str], *arguments: str) -> None:
        nonce = secrets.token_urlsafe(16)
        # Asked before rendering: a file saved meanwhile gives a newer version and so another look.
        version = self.server.preview.watch.version
        text = view(self.server.preview.sources, *arguments, nonce=nonce, version=version)
        self._send(HTTPStatus.OK, text.encode(errors="replace"), "text/html; charset=utf-8", nonce)

    def _events(self, watch: Watch) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not watch.stopped:
            version = watch.version
            self.wfile.write(f"retry: 500\ndata: {version}\n\n".encode())
            self.wfile.flush()
            watch.wait(version, _HEARTBEAT)

    def _send(self, status: HTTPStatus, data: bytes, kind: str, nonce: str = "") -> None:
        scripts = f"script-src 'nonce-{nonce}'; connect-src 'self'; " if nonce else ""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {scripts}style-src 'self'; img-src 'self' data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
        )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _stats(paths: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    """(path, time of writing, size) of every file at or below `paths`."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else (path,):
            try:
                stat = file.stat()
            except OSError:
                continue
            yield str(file), stat.st_mtime_ns, stat.st_size
