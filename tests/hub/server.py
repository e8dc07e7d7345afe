"""The two servers, hub and CDN, on loopback: each request is noted, meets its scripted faults, and is answered."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.hub import reading, writing
from tests.hub.exchange import Answer, Fault, Request, Route, Scripted, Server, Slice, find, refusal
from tests.hub.repository import REGULAR_LIMIT, File, Repository, file_of, files_in

CHUNK = 1 << 16
CONTROL = "/-/"
"""Where a server in another process is asked what it noted; never counted."""


@dataclass(slots=True)
class Hub:
    """A Hub and its CDN: what they hold, who may read it, what goes wrong, and what was asked.

    `latency` is waited before each answer, in seconds. `page` is how many rows a page of a listing has at most.
    `redirect_regular` answers small files with a redirect on the same host, as the public Hub does. `renamed` leads
    from old names of repositories to new ones, `tokens` from tokens to users; the tokens of `read_only` users may not
    write. Files up to `regular_limit` bytes may be committed without LFS.
    """

    latency: float = 0.0
    page: int = 1000
    redirect_regular: bool = False
    repositories: dict[str, Repository] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    uploads: dict[str, File] = field(default_factory=dict)
    read_only: set[str] = field(default_factory=set)
    regular_limit: int = REGULAR_LIMIT
    hosts: tuple[str, str] = ("127.0.0.1", "localhost")  # clients may tell hosts apart, and not ports
    ports: tuple[int, int] = (0, 0)
    _faults: list[Scripted] = field(default_factory=list)
    _servers: list[ThreadingHTTPServer] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sockets: set[socket.socket] = field(default_factory=set)

    # ------------------------------------------------------------------------------------------- what it holds

    def add(
        self,
        name: str,
        files: Path | Mapping[str, bytes | File],
        *,
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
    ) -> Repository:
        """Add a repository with one commit that holds the files of a folder, or these."""
        if isinstance(files, Path):
            held = files_in(files)
        else:
            held = {path: one if isinstance(one, File) else file_of(one, path) for path, one in files.items()}
        repository = Repository(name, private=private, gated=gated)
        repository.commit(held, title="initial commit")
        self.repositories[name] = repository
        return repository

    def blob(self, digest: str) -> File | None:
        """Return the content with this hash, of any commit or upload."""
        if digest in self.uploads:
            return self.uploads[digest]
        for repository in list(self.repositories.values()):
            for commit in list(repository.commits.values()):
                for file in commit.files.values():
                    if file.sha256 == digest:
                        return file
        return None

    @staticmethod
    def signature(file: File) -> str:
        """Return what lets anybody read a file from the CDN."""
        return hashlib.sha256(f"signed {file.etag}".encode()).hexdigest()[:32]

    # ------------------------------------------------------------------------------------------ what goes wrong

    def fail(self, path: str, fault: Fault, *, method: str = "*", server: Server = "hub", skip: int = 0) -> None:
        """Script a fault for requests whose path matches a glob; the first `skip` of them go well."""
        with self._lock:
            self._faults.append(Scripted(server, method, path, fault, fault.times or None, skip))

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def fault_for(self, request: Request) -> Fault | None:
        """Return the first fault scripted for a request."""
        with self._lock:
            return next((one.fault for one in self._faults if one.meets(request)), None)

    # ------------------------------------------------------------------------------------------- what was asked

    def asked(self, server: Server | None = None, path: str = "") -> list[str]:
        """Return what was asked so far, as `GET /path`, of one server or both, where the path holds `path`."""
        with self._lock:
            return [
                f"{one.method} {one.path}" for one in self.requests if server in (None, one.server) and path in one.path
            ]

    def note(self, request: Request) -> None:
        """Keep a request."""
        with self._lock:
            self.requests.append(request)

    def forget(self) -> None:
        """Forget what was asked."""
        with self._lock:
            self.requests.clear()

    # ------------------------------------------------------------------------------------------------- the servers

    @property
    def endpoint(self) -> str:
        """Return the address of the Hub, as HF_ENDPOINT takes it."""
        return self._address(0)

    @property
    def cdn(self) -> str:
        """Return the address of the CDN."""
        return self._address(1)

    def _address(self, place: int) -> str:
        return f"http://{self.hosts[place]}:{self._servers[place].server_address[1]}"

    def routes(self) -> list[Route]:
        """Return the endpoints of both servers."""
        return [*reading.routes, *writing.routes]

    def start(self) -> Self:
        """Listen on both ports."""
        names: tuple[Server, Server] = ("hub", "cdn")
        for name, host, port in zip(names, self.hosts, self.ports, strict=True):
            handler = type("Handler", (_Handler,), {"hub": self, "server_name": name})
            server = _Server((host, port), handler)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close both ports and every connection."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _close(one, reset=False)
        self._servers.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that leave."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = CHUNK
    hub: Hub
    server_name: Server

    def setup(self) -> None:
        super().setup()
        with self.hub._lock:
            self.hub._sockets.add(self.connection)

    def finish(self) -> None:
        with self.hub._lock:
            self.hub._sockets.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the overridden method's
        """Say nothing: requests are noted."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names the library asks for

    def _answer(self) -> None:
        request = self._request()
        if request.path.startswith(CONTROL):
            self._send(_control(self.hub, request.path.removeprefix(CONTROL)), request, Fault())
            return
        self.hub.note(request)
        if self.hub.latency:
            time.sleep(self.hub.latency)
        fault = self.hub.fault_for(request)
        if fault is None:
            self._send(self._handle(request), request, Fault())
            return
        if fault.delay:
            time.sleep(fault.delay)
        if fault.whole:
            request = replace(request, headers={k: v for k, v in request.headers.items() if k != "range"})
        replaced = fault.status is not None or fault.body is not None or fault.reset
        answer = Answer() if replaced and fault.instead else self._handle(request)
        if fault.reset:
            self._leave(reset=True)
            return
        headers: dict[str, str] = {key.lower(): value for key, value in answer.headers.items()}
        for key, value in fault.headers.items():
            headers.pop(key.lower(), None)
            if value is not None:
                headers[key] = value
        body = answer.body if fault.body is None else fault.body
        self._send(Answer(fault.status or answer.status, headers, body), request, fault)

    def _request(self) -> Request:
        split = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(int(headers.get("content-length", "0")))
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        return Request(self.server_name, self.command, self.path, unquote(split.path), query, headers, body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self, request: Request) -> Answer:
        found = find(self.hub.routes(), request)
        if found is None:
            return refusal(404, "", "Sorry, we can't find the page you are looking for.")
        endpoint, groups = found
        return endpoint(self.hub, request, groups)

    def _send(self, answer: Answer, request: Request, fault: Fault) -> None:
        self.send_response(answer.status)
        headers = {key.lower(): value for key, value in answer.headers.items()}
        headers.setdefault("content-length", str(answer.length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if request.method != "HEAD":
            self._send_body(answer.body, fault)
        self.wfile.flush()

    def _send_body(self, body: bytes | Slice, fault: Fault) -> None:
        count = body.count if isinstance(body, Slice) else len(body)
        limits = [limit for limit in (fault.cut, fault.stall) if limit is not None]
        first = min([count, *limits])
        position = 0
        while position < first:
            size = min(CHUNK, first - position)
            self.wfile.write(
                body.file.read(body.start + position, size) if isinstance(body, Slice) else body[position:][:size]
            )
            position += size
        self.wfile.flush()
        if fault.stall is not None:
            if fault.drip:
                rest = body.file.read(body.start + first, count) if isinstance(body, Slice) else body[first:]
                for place in range(len(rest)):
                    time.sleep(fault.drip)
                    self.wfile.write(rest[place : place + 1])
                    self.wfile.flush()
            else:
                time.sleep(fault.pause)
        if limits:
            self._leave(reset=False)

    def _leave(self, *, reset: bool) -> None:
        self.close_connection = True
        _close(self.connection, reset=reset)


def _close(connection: socket.socket, *, reset: bool) -> None:
    try:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the client left first


def _control(hub: Hub, word: str) -> Answer:
    """Answer a test in another process: `requests` tells what was asked, `forget` forgets it, `heal` ends faults."""
    actions: dict[str, Callable[[], None]] = {"forget": hub.forget, "heal": hub.heal}
    if word == "requests":
        with hub._lock:
            rows = [(one.server, one.method, one.path, "authorization" in one.headers) for one in hub.requests]
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(rows).encode())
    if word in actions:
        actions[word]()
        return Answer(200, {}, b"{}")
    return Answer(404)
