"""Requests, answers, routes, and faults that a test scripts: what the two servers share, whatever they serve."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from tests.hub.repository import File
    from tests.hub.server import Hub

Server = Literal["hub", "cdn"]
Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in: `path` is decoded and without its query, `target` is as it was sent."""

    server: Server
    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def token(self) -> str | None:
        """Return the token it carries."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def json(self) -> Any:
        """Return what its body says."""
        return json.loads(self.body)

    def form(self) -> dict[str, list[str]]:
        """Return the fields of a form."""
        fields: dict[str, list[str]] = {}
        for key, value in parse_qsl(self.body.decode()):
            fields.setdefault(key, []).append(value)
        return fields


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a file, sent as it is read."""

    file: File
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: a body in memory or a slice of a file."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Slice = b""

    @property
    def length(self) -> int:
        """Return the bytes of the body."""
        return self.body.count if isinstance(self.body, Slice) else len(self.body)


def document(value: object, status: int = 200, **headers: str) -> Answer:
    """Return an answer in JSON; underscores in the names of headers stand for hyphens."""
    named = {key.replace("_", "-"): text for key, text in headers.items()}
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **named}, json.dumps(value).encode())


def refusal(status: int, code: str, message: str) -> Answer:
    """Return an error as the Hub tells it."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return replace(document({"error": message}, status), headers=headers | {"Content-Type": "application/json"})


# ---------------------------------------------------------------------------------------------------- routes

Endpoint = Callable[["Hub", Request, Mapping[str, str]], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests an endpoint answers."""

    server: Server
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    endpoint: Endpoint


class Routes(list[Route]):
    """The endpoints of one module; `Hub` asks those of all modules in turn."""

    def add(self, server: Server, methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
        """Register a function for paths that match `pattern` wholly; its named groups become the third argument."""

        def register(endpoint: Endpoint) -> Endpoint:
            self.append(Route(server, tuple(methods.split()), re.compile(pattern), endpoint))
            return endpoint

        return register


def find(routes: list[Route], request: Request) -> tuple[Endpoint, Mapping[str, str]] | None:
    """Return the endpoint that answers a request, and what its path holds."""
    for route in routes:
        if route.server == request.server and request.method in route.methods:
            match = route.pattern.fullmatch(request.path)
            if match:
                return route.endpoint, match.groupdict("")
    return None


# ---------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with an answer, `times` times (0: every time).

    `status`, `body` and `headers` replace those of the answer; a header of None is left out. With `instead` the
    request is not handled at all, so that nothing on the server changes. `delay` waits before the answer; `cut` sends
    so many bytes of the body and closes the connection, `stall` sends so many and then waits `pause` seconds, `drip`
    waits that long before each further byte. `reset` closes without a word. `whole` hides a Range header from the
    endpoint.
    """

    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    instead: bool = True
    delay: float = 0.0
    cut: int | None = None
    stall: int | None = None
    pause: float = 5.0
    drip: float = 0.0
    reset: bool = False
    whole: bool = False
    times: int = 1


@dataclass(slots=True)
class Scripted:
    """A fault that waits for requests; `left` says how often it still happens, None always."""

    server: Server
    method: str
    path: str
    fault: Fault
    left: int | None
    skip: int = 0

    def meets(self, request: Request) -> bool:
        """Return whether it happens to this request, and count it."""
        if request.server != self.server or self.method not in ("*", request.method):
            return False
        if not fnmatchcase(request.path, self.path) or self.left == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True
