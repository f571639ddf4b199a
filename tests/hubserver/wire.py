"""The connection: HTTP/1.1 on a socket of loopback, and the faults that happen on it."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO
from urllib.parse import urlsplit

from hubserver.blobs import PIECE
from hubserver.errors import HubError
from hubserver.faults import Fault, Faults
from hubserver.messages import Answer, Request, of_error
from hubserver.request_log import Record, RequestLog

IN_MEMORY = 1 << 20
"""Bodies of requests above this size lie in a file until they are dealt with."""

Respond = Callable[[Request], Answer]


class Dropped(Exception):  # noqa: N818
    """The connection ends here."""


def flipped(pieces: Iterator[bytes], at: int, length: int) -> Iterator[bytes]:
    """The same bytes with one bit of byte ``at`` changed, if there are any."""
    position = at % length if length else -1
    offset = 0
    for piece in pieces:
        if offset <= position < offset + len(piece):
            changed = bytearray(piece)
            changed[position - offset] ^= 1
            yield bytes(changed)
        else:
            yield piece
        offset += len(piece)


class Server(ThreadingHTTPServer):
    """Listens on loopback, a thread for each connection.

    Args:
        port: The port, or 0 for a free one.
        origin: ``hub`` or ``cdn``.
        respond: What answers requests, tests' own included.
        faults: What goes wrong.
        log: What has happened.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, port: int, origin: str, respond: Respond, faults: Faults, log: RequestLog
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.origin = origin
        self.respond = respond
        self.faults = faults
        self.log = log

    @property
    def url(self) -> str:
        """Where it listens: two names, as some clients tell origins apart by name only."""
        host = "127.0.0.1" if self.origin == "hub" else "localhost"
        return f"http://{host}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away whenever they like; anything else is shown on stderr."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr: `RequestLog` has it all."""

    def parse_request(self) -> bool:
        """One way in for every method."""
        parsed = super().parse_request()
        if parsed:
            setattr(self, f"do_{self.command}", self.exchange)
        return parsed

    def body_pieces(self) -> Iterator[bytes]:
        """The request's body, by its length or in chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, PIECE))
            if not piece:
                raise Dropped
            left -= len(piece)
            yield piece

    def take_body(self, body: IO[bytes], record: Record, fault: Fault | None) -> None:
        """Read the request's body, as far as the fault lets it."""
        pieces = self.body_pieces()
        if fault is not None and fault.kind == "corrupt_upload":
            length = int(self.headers.get("Content-Length") or 0)
            pieces = flipped(pieces, fault.at, length)
        for piece in pieces:
            record.received += len(piece)
            if fault is not None and fault.kind == "cut_upload" and record.received > fault.after:
                raise Dropped
            body.write(piece)
        if fault is not None and fault.kind == "cut_upload":
            raise Dropped

    def exchange(self) -> None:
        """Read a request, answer it, and note both."""
        if urlsplit(self.path).path.startswith("/_test/"):
            self.answer_test()
            return
        line = f"{self.command} {self.path}"
        split = urlsplit(self.path)
        record = Record(
            number=0,
            origin=self.server.origin,
            method=self.command,
            path=split.path,
            query=split.query,
            range=self.headers.get("Range"),
            authenticated="Authorization" in self.headers,
            agent=self.headers.get("User-Agent", ""),
        )
        self.server.log.begin(record)
        try:
            fault = self.server.faults.pick(line)
            record.fault = fault.kind if fault is not None else None
            with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as body:
                self.carry_out(record, fault, body)
        except (Dropped, ConnectionError):
            self.hang_up()
        finally:
            self.server.log.end()

    def carry_out(self, record: Record, fault: Fault | None, body: IO[bytes]) -> None:
        """Answer a request, with or without a fault."""
        kind = fault.kind if fault is not None else None
        if kind == "drop":
            raise Dropped
        self.take_body(body, record, fault)
        if fault is not None and kind == "slow":
            time.sleep(fault.seconds)
        if fault is not None and kind == "status":
            answer = refusal(fault, self.headers.get("Authorization", ""))
        else:
            request = Request(self.server.origin, self.command, self.path, self.headers, body)
            answer = self.server.respond(request)
        if kind == "lost":
            raise Dropped
        self.send(answer, record, fault)

    def answer_test(self) -> None:
        """Answer what a test asks of the server itself: no log, no faults."""
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as body:
            for piece in self.body_pieces():
                body.write(piece)
            request = Request(self.server.origin, self.command, self.path, self.headers, body)
            self.send(self.server.respond(request), None, None)

    def send(self, answer: Answer, record: Record | None, fault: Fault | None) -> None:
        """Send an answer; HEAD gets the headers of it only."""
        self.send_response(answer.status)
        headers = {"X-Request-Id": uuid.uuid4().hex[:16], "RateLimit": '"api";r=499;t=300'}
        headers |= {"RateLimit-Policy": '"fixed window";"api";q=500;w=300'} | answer.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if record is not None:
            record.status = answer.status
        if self.command != "HEAD":
            self.send_body(answer, record, fault)
        self.wfile.flush()
        if fault is not None and fault.kind == "cut":
            raise Dropped

    def send_body(self, answer: Answer, record: Record | None, fault: Fault | None) -> None:
        """Send the body of an answer, or as much of it as the fault lets through."""
        pieces, left = answer.pieces(), answer.length
        if fault is not None and fault.kind == "corrupt":
            pieces = flipped(pieces, fault.at, answer.length)
        if fault is not None and fault.kind == "cut":
            left = max(min(fault.after, answer.length - 1), 0)
        for piece in pieces:
            part = piece[:left]
            if record is not None:
                record.sent += len(part)
            self.wfile.write(part)
            left -= len(part)
            if not left:
                break

    def hang_up(self) -> None:
        """End the connection, whatever the client still expects."""
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def refusal(fault: Fault, authorization: str) -> Answer:
    """The answer of a fault of kind ``status``."""
    said = f" (you sent {authorization})" if fault.echo else ""
    answer = of_error(HubError(fault.status, f"fault: {fault.status}, as asked for{said}"))
    if fault.retry_after is not None:
        answer.headers["Retry-After"] = str(fault.retry_after)
    if fault.ratelimit is not None:
        answer.headers["RateLimit"] = f'"api";r=0;t={fault.ratelimit}'
    return answer
