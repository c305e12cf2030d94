"""What both hubs share: repositories in memory, bytes with Range, faults, and a count of it all."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass
class Repository:
    """Files at each revision; one commit each.

    Attributes:
        files: Path -> content.
        revisions: Branches and tags, and the commit of all of them.
        refuses: A status that whoever asks is given instead, such as 401.
        token: The one that opens it; None where all may read.
    """

    files: dict[str, bytes]
    revisions: list[str] = field(default_factory=list)
    refuses: int | None = None
    token: str | None = None

    @cached_property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@dataclass
class Faults:
    """What goes wrong; nothing unless it is set.

    Attributes:
        status: The answer to every request.
        listed: Path -> the size that the hub lists, whatever it has.
        lacking: Paths that are listed, but not given.
        damaged: Paths whose content arrives changed, at the right length.
        cut_at: Bytes of a body after which the connection is closed, once for each path.
        stall_at: Bytes of a body after which nothing more comes until `go_on`.
    """

    status: int | None = None
    listed: dict[str, int] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    cut_at: int | None = None
    cut: set[str] = field(default_factory=set)
    stall_at: int | None = None
    stalled: Event = field(default_factory=Event)
    go_on: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@lru_cache(maxsize=64)
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class LoopbackHub:
    """A server on a free port of loopback, and the repositories that it has.

    Attributes:
        repositories: By kind (`model`, `dataset`) and name.
        faults: Switched by the test.
        requests: All that was asked.
        served: Bytes of each file that were sent.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults = Faults()
        self.requests: list[Request] = []
        self.served: Counter[str] = Counter()
        self._connections: list[socket] = []
        hub = self

        class Answering(Handler):
            def answer(self) -> None:
                parts = urlsplit(self.path)
                request = Request(
                    self.command,
                    unquote(parts.path),
                    dict(parse_qsl(parts.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                )
                hub.requests.append(request)
                if hub.faults.status is not None:
                    self.send_json({"error": "out of order"}, hub.faults.status)
                else:
                    hub.answer(self, request)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, client_address: Any) -> None:
                hub._connections.append(request)
                super().process_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no fault of the hub's."""

        self._server = Server(("127.0.0.1", 0), Answering)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def add(
        self, name: str, files: dict[str, bytes], kind: str = "model", **rest: Any
    ) -> Repository:
        """Put a repository on the hub."""
        revisions = rest.pop("revisions", [self.default_revision])
        repository = Repository(files, revisions, **rest)
        self.repositories[kind, name] = repository
        return repository

    def close(self) -> None:
        self.faults.go_on.set()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)  # a client would go on using it
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    default_revision = "main"

    def answer(self, handler: Handler, request: Request) -> None:
        raise NotImplementedError

    def size(self, path: str, content: bytes) -> int:
        """As the hub lists it."""
        return self.faults.listed.get(path, len(content))

    def send_file(self, handler: Handler, path: str, content: bytes, **headers: str) -> None:
        """The content, or the part of it that is asked for, with the faults."""
        faults = self.faults
        if path in faults.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
        body = memoryview(content)[start:]
        handler.send_response(206 if asked else 200)
        if asked:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", span)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        stop = len(body)
        cuts = faults.cut_at is not None and path not in faults.cut and start + stop > faults.cut_at
        stalls = faults.stall_at is not None and start + stop > faults.stall_at
        if cuts and faults.cut_at is not None:
            faults.cut.add(path)
            stop = faults.cut_at - start
        if stalls and faults.stall_at is not None:
            stop = faults.stall_at - start
        for at in range(0, stop, 1 << 18):
            piece = body[at : min(at + (1 << 18), stop)]
            handler.wfile.write(piece)
            self.served[path] += len(piece)
        if stalls:
            handler.wfile.flush()
            faults.stalled.set()
            faults.go_on.wait()
        if cuts or stalls:
            handler.close_connection = True
            handler.wfile.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            self.answer()

    do_HEAD = do_GET

    def send_json(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the tests' terminal."""
