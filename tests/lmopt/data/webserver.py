"""A web server on this machine that misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Files:
    """What the server has, and how it answers."""

    content: dict[str, bytes]
    """Path -> bytes."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes an answer ends, once a number."""
    etag: str | None = None
    ranges: bool = True
    """It sends parts; else always the whole."""
    status: int | None = None
    """What it answers whatever is asked, where it is set."""
    lies: str | None = None
    """The Content-Range of its parts, whatever they are."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, range) of each request."""
    after: Any = None
    """Called behind each answer."""


@contextmanager
def serving(files: Files) -> Iterator[str]:
    """The address of a server that has these files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    files: Files

    def do_GET(self) -> None:
        files, asked = self.files, self.headers.get("Range")
        files.asked.append((self.path, asked))
        body = files.content.get(self.path)
        if body is None or files.status is not None:
            self._head(files.status or 404, {"Content-Length": "0"})
            return
        etag = {"ETag": files.etag} if files.etag else {}
        expected = self.headers.get("If-Range")
        ranged = asked is not None and files.ranges and expected in (None, files.etag)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranged else 0
        if first >= len(body) and ranged:
            self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            return
        part = {"Content-Range": files.lies or f"bytes {first}-{len(body) - 1}/{len(body)}"} if ranged else {}
        is_page = self.path.endswith("/")
        kind = {"Content-Type": "text/html" if is_page else "application/octet-stream"}
        self._head(206 if ranged else 200, {**etag, **part, **kind, "Content-Length": str(len(body) - first)})
        until = files.breaks.pop(0) if files.breaks and not is_page else None
        self.wfile.write(body[first:] if until is None else body[first : first + until])
        self.close_connection = True
        if files.after:
            files.after()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
