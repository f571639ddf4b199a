"""Stores of remote files on this machine: a web server with faults, and an object store.

The web server counts what it is asked for and what it sends, so that a test can say what travels.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")
_START_SECONDS: Final = 60

Fault = Callable[[BaseHTTPRequestHandler, bytes], bool]
"""Answers a request for a file's content in another way; False leaves it to the server."""


@dataclass
class WebServer:
    """A web server that gives ranges of files in memory.

    Attributes:
        url: Where it is, without a slash at the end.
        files: Contents by name.
        tags: Their ETags.
        faults: What happens to the next GETs, in order; then all is well.
        asked: Method and range of each request.
        sent: Bytes of content that it has sent.
        has_ranges: Whether it answers requests for ranges.
        has_tags: Whether it tells ETags, and refuses to give another version than asked for.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    has_ranges: bool = True
    has_tags: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, content: bytes) -> str:
        """Offer a file; its URL."""
        self.files[name] = content
        self.tags[name] = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        return f"{self.url}/{name}"

    def forget(self) -> None:
        """Count from here."""
        self.asked.clear()
        self.sent = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: WebServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its signature)
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        store = self.store
        name = self.path.partition("?")[0].lstrip("/")
        content = store.files.get(name)
        with store.lock:
            store.asked.append((self.command, self.headers.get("Range", "")))
            fault = store.faults.pop(0) if with_content and store.faults else None
        if content is None:
            self.send_error(404)
            return
        tag = store.tags[name]
        if store.has_tags and self.headers.get("If-Match", tag) != tag:
            self.send_error(412)
            return
        if fault is not None and fault(self, content):
            return
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked and store.has_ranges:
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            content = content[start:stop]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if store.has_tags:
            self.send_header("ETag", tag)
        self.end_headers()
        if with_content:
            with store.lock:
                store.sent += len(content)
            self.wfile.write(content)


def status(code: int) -> Fault:
    """Answer with an error."""

    def fault(request: BaseHTTPRequestHandler, _: bytes) -> bool:
        request.send_error(code)
        return True

    return fault


def hang_up(request: BaseHTTPRequestHandler, _: bytes) -> bool:
    """Close the connection without an answer."""
    request.close_connection = True
    return True


def cut_short(request: BaseHTTPRequestHandler, content: bytes) -> bool:
    """Promise a range, and hang up in the middle of it."""
    asked = _RANGE.fullmatch(request.headers["Range"])
    assert asked
    start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
    request.send_response(206)
    request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
    request.send_header("Content-Length", str(stop - start))
    request.end_headers()
    request.wfile.write(content[start : (start + stop) // 2])
    request.close_connection = True
    return True


def too_little(request: BaseHTTPRequestHandler, content: bytes) -> bool:
    """Give less than was asked for, as if that were all."""
    asked = _RANGE.fullmatch(request.headers["Range"])
    assert asked
    start = int(asked[1])
    part = content[start : start + 10]
    request.send_response(206)
    request.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(part)))
    request.end_headers()
    request.wfile.write(part)
    return True


@contextmanager
def web_server() -> Iterator[WebServer]:
    """A web server on a free port of this machine."""
    store = WebServer()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_SERVE: Final = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def object_store() -> Iterator[str]:
    """An object store (moto's server, in a process of its own); yields its endpoint."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            _wait_for(endpoint)
            yield endpoint
        finally:
            process.kill()


def _wait_for(endpoint: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            opener.open(f"{endpoint}/moto-api/", timeout=5).close()
        except OSError:
            assert time.monotonic() < end, "the object store does not start"
            time.sleep(0.05)
        else:
            return
