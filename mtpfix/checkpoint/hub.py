"""The Hugging Face Hub over HTTP: which commit a revision is, what it lists, and bytes of its files. Writes nothing.

The one module that asks the Hub for something to read. Uses huggingface_hub's session (so proxies, certificates and
whatever a user has set there hold), its tokens and its settings, never its HTTP library, which differs
between releases. Follows redirects itself: the token goes to the Hub's own origin alone, never from https to http.
Retries itself, because the client's retries wait as long as a server says and close the session other threads use.

Every answer is checked: its status, its range, its length, the sizes and hashes it names. Knows nothing of what files
mean.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from mtpfix import __version__
from mtpfix.checkpoint.answers import (
    AGAIN,
    NETWORK,
    ONLINE,
    PORTS,
    PROXY,
    AccessError,
    Entry,
    EntryAbsentError,
    HubError,
    PlaceError,
    Question,
    TransientError,
    check_length,
    check_linked,
    check_range,
    host_of,
    is_hash,
    not_a_hub,
    number_of,
    origin_of,
    redirected,
    refuse,
    refuse_odd,
    refuse_page,
)
from mtpfix.checkpoint.ref import PathRefusedError, Reference, safe_member, shown
from mtpfix.errors import MtpfixError, UsageError

ATTEMPTS = 5
"""How often one thing is asked for before it is given up."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""

LONGEST_WAIT = 90.0
"""Seconds that a server may ask to be left alone; where it asks for more, it is given up."""

SLOWEST = 120.0
"""Seconds that one answer may take, however steadily its bytes drip."""

HOPS = 8
"""How many redirects one request follows."""

LARGEST_DOCUMENT = 64_000_000
"""Bytes of one answer of the API."""

MOST_PAGES = 500
"""Pages of one listing."""

_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16

T = TypeVar("T")

__all__ = ["AccessError", "Beginning", "Entry", "EntryAbsentError", "Hub", "HubError", "connect", "is_hash"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first bytes of a file, and where the rest of it can be had without asking the Hub again."""

    data: bytes
    place: str


@dataclass(slots=True)
class Hub:
    """One endpoint as one user sees it; `stop` ends all waiting when set."""

    endpoint: str
    headers: Mapping[str, str]
    timeout: float
    offline: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    # ---------------------------------------------------------------------------------------------- what there is

    def commit(self, reference: Reference) -> tuple[str, str]:
        """Return the repository's present name, and the whole hash of the commit that the revision is now."""
        path = f"/api/models/{reference.repository}"
        if reference.revision is not None:
            path += f"/revision/{quote(reference.revision, safe='')}"
        answer = self._document(path, {}, reference)
        sha, name = answer.get("sha") if isinstance(answer, dict) else None, reference.repository
        if not isinstance(sha, str) or not is_hash(sha):
            raise not_a_hub(self.endpoint, f"its answer on {shown(str(reference))} names no commit")
        told = Reference.of_repository(answer.get("id"))
        return (told.repository if told else name), sha

    def tree(self, repository: str, commit: str) -> dict[str, Entry]:
        """Return every file of a commit by its path. Raises HubError where the list is not what a Hub answers."""
        path = f"/api/models/{repository}/tree/{commit}"
        entries: dict[str, Entry] = {}
        for row in self._rows(path, {"recursive": "true"}, Reference(repository, commit)):
            if row.get("type") == "file" and self._is_plain(row.get("path")):
                name, entry = self._entry(row)
                entries[name] = entry
        return entries

    def models(self, organization: str) -> list[str]:
        """Return the names of an organization's or a user's model repositories, sorted."""
        names = set()
        for row in self._rows("/api/models", {"author": organization}, None):
            told = Reference.of_repository(row.get("id"))
            if told is None or told.repository.split("/")[0].lower() != organization.lower():
                raise not_a_hub(self.endpoint, "its list of repositories holds names of others")
            names.add(told.repository)
        return sorted(names)

    def _is_plain(self, name: object) -> bool:
        """Return whether a path is one that is ever asked for; what is odd and no shard, such as a picture, is not."""
        try:
            safe_member(name if isinstance(name, str) else "")
        except PathRefusedError as error:
            if not isinstance(name, str) or name.endswith(".safetensors"):
                hint = "report it to the owner of the repository"
                raise HubError(f"the Hub lists a file that cannot be read: {error.message}", hint) from None
            return False
        return True

    def _entry(self, row: Mapping[str, Any]) -> tuple[str, Entry]:
        name, size, oid, lfs = row.get("path"), row.get("size"), row.get("oid"), row.get("lfs")
        sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
        sound = (
            type(size) is int
            and size >= 0
            and isinstance(oid, str)
            and is_hash(oid)
            and (lfs is None or (isinstance(sha256, str) and is_hash(sha256)))
        )
        if not isinstance(name, str) or not isinstance(size, int) or not isinstance(oid, str) or not sound:
            raise not_a_hub(self.endpoint, f"its list says no size or no hash of {shown(str(name))}")
        return name, Entry(size, oid, sha256)

    def _rows(self, path: str, query: Mapping[str, str], about: Reference | None) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a listing, page after page; of the link to the next page only the query is believed."""
        asked: set[str] = set()
        for _ in range(MOST_PAGES):
            following: list[str] = []
            rows = self._document(path, query, about, following)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise not_a_hub(self.endpoint, f"its answer to {path} is not a list")
            yield from rows
            if not following:
                return
            if following[0] in asked:
                break
            asked.add(following[0])
            query = dict(parse_qsl(following[0], keep_blank_values=True))
        raise HubError(f"the list of files that {host_of(self.endpoint)} gives does not end", "try again later")

    def _document(
        self, path: str, query: Mapping[str, str], about: Reference | None, following: list[str] | None = None
    ) -> Any:
        """Return what the API answers in JSON; puts the query of the next page into `following`."""
        url = f"{self.endpoint}{path}" + (f"?{urlencode(query)}" if query else "")

        def consume(response: Any, url: str) -> Any:
            self._refuse(response, url, about, None)
            raw = b"".join(self._body(response, response.iter_bytes(), LARGEST_DOCUMENT))
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                refuse_page(response, url, raw)
                raise not_a_hub(self.endpoint, f"its answer to {path} is not JSON") from None
            if following is not None and (link := response.links.get("next", {}).get("url")):
                following.append(urlsplit(link).query)
            return value

        return self._insist(lambda: self._follow(url, {}, consume))

    # ---------------------------------------------------------------------------------------------------- files

    def whole(self, reference: Reference, name: str, entry: Entry) -> bytes:
        """Return all bytes of a file, as many as its entry says."""

        def consume(response: Any, url: str) -> bytes:
            self._refuse(response, url, reference, name)
            refuse_odd(response, url, name)
            check_length(response, name, entry.size)
            return self._exactly(response, entry.size, name)

        return self._insist(
            lambda: self._follow(
                self._resolve(reference, name), _PLAIN, consume, lambda one: check_linked(one, name, entry)
            )
        )

    def locate(self, reference: Reference, name: str, entry: Entry) -> str:
        """Return the address that the Hub redirects to for a file, or its own where it has the file itself."""

        def consume(response: Any, url: str) -> str:
            self._refuse(response, url, reference, name)
            return url

        return self._insist(
            lambda: self._follow(
                self._resolve(reference, name),
                {**_PLAIN, "Range": "bytes=0-0"},
                consume,
                lambda one: check_linked(one, name, entry),
                lambda url: url,
            )
        )

    def beginning(
        self,
        reference: Reference,
        name: str,
        entry: Entry,
        wanted: int,
        needed: Callable[[bytes], int],
        place: str = "",
    ) -> Beginning:
        """Return at least the bytes of a file that `needed` asks for, given its first eight, in one request if it can.

        `wanted` bytes are asked for at first. Where the server ignores that, no more is read than is needed. `place` is
        where the file was located before, if it was.
        """
        count = min(wanted, entry.size)

        def consume(response: Any, url: str) -> Beginning:
            self._refuse(response, url, reference, name)
            refuse_odd(response, url, name)
            if response.status_code == 206:
                check_range(response, name, 0, count, entry.size)
                return Beginning(self._exactly(response, count, name), url)
            check_length(response, name, entry.size)
            data = bytearray()
            for piece in self._body(response, response.iter_raw(_CHUNK), None):
                data += piece
                if len(data) >= 8 and len(data) >= needed(bytes(data[:8])):
                    return Beginning(bytes(data), url)
            raise TransientError(f"{shown(name)}: the answer ended after {len(data)} bytes", AGAIN)

        first = self._from(place, reference, name, entry, {**_PLAIN, "Range": f"bytes=0-{count - 1}"}, consume)
        length = needed(first.data[:8])
        if len(first.data) >= length:
            return first
        rest = self.span(reference, name, entry, len(first.data), length - len(first.data), first.place)
        return Beginning(first.data + rest, first.place)

    def span(self, reference: Reference, name: str, entry: Entry, start: int, count: int, place: str = "") -> bytes:
        """Return `count` bytes of a file from `start`; `place` is where it was found before, if it was."""
        headers = {**_PLAIN, "Range": f"bytes={start}-{start + count - 1}"}

        def consume(response: Any, url: str) -> bytes:
            self._refuse(response, url, reference, name)
            refuse_odd(response, url, name)
            if response.status_code != 206:
                raise HubError(
                    f"{shown(name)}: {host_of(url)} does not answer requests for part of a file",
                    "download the repository with `hf download` and scan the folder",
                )
            check_range(response, name, start, count, entry.size)
            return self._exactly(response, count, name)

        return self._from(place, reference, name, entry, headers, consume)

    def _from(
        self,
        place: str,
        reference: Reference,
        name: str,
        entry: Entry,
        headers: Mapping[str, str],
        consume: Callable[[Any, str], T],
    ) -> T:
        """Return what `consume` makes of a file, from where it was located, or from where the Hub says it is now."""
        if place:
            try:
                return self._insist(lambda: self._follow(place, headers, consume))
            except PlaceError:
                pass  # such addresses are valid for some minutes
        return self._insist(
            lambda: self._follow(
                self._resolve(reference, name), headers, consume, lambda one: check_linked(one, name, entry)
            )
        )

    def _resolve(self, reference: Reference, name: str) -> str:
        revision = quote(reference.revision or "main", safe="")
        return f"{self.endpoint}/{reference.repository}/resolve/{revision}/{quote(name)}"

    # ------------------------------------------------------------------------------------------------- requests

    def _insist(self, action: Callable[[], T]) -> T:
        """Return what an action returns, after as many attempts as it takes and is allowed."""
        wait, attempt = FIRST_WAIT, 1
        while True:
            try:
                return action()
            except TransientError as fault:
                pause = wait if fault.wait is None else fault.wait
                if attempt >= ATTEMPTS or pause > LONGEST_WAIT:
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise HubError(f"{fault.message}{tried}", fault.hint) from None
            if self.stop.wait(pause):
                raise HubError("the scan was interrupted", "run it again")
            wait, attempt = wait * 2, attempt + 1

    def _follow(
        self,
        url: str,
        headers: Mapping[str, str],
        consume: Callable[[Any, str], T],
        look: Callable[[Any], None] | None = None,
        leave: Callable[[str], T] | None = None,
    ) -> T:
        """Return what `consume` makes of the answer at the end of all redirects; `look` sees the first answer.

        With `leave` a redirect to another origin is not followed: what that makes of its address is returned.
        """
        from huggingface_hub.utils import get_session

        if self.offline:
            raise HubError("nothing can be asked offline", ONLINE)
        for _ in range(HOPS):
            own = origin_of(url) == origin_of(self.endpoint)
            sent = {**(self.headers if own else _anonymous(self.headers)), **headers}
            stream = get_session().stream
            try:
                with stream("GET", url, headers=sent, follow_redirects=False, timeout=self.timeout) as response:
                    if look is not None and response.status_code < 400:
                        look(response)
                        look = None
                    if response.status_code not in _REDIRECTS:
                        return consume(response, url)
                    url = redirected(url, response.headers.get("location", ""))
                    if 0 <= number_of(response.headers.get("content-length")) <= _CHUNK:
                        response.read()  # so that the connection can be used again
                if leave is not None and own and origin_of(url) != origin_of(self.endpoint):
                    return leave(url)
            except MtpfixError:
                raise
            except Exception as error:  # noqa: BLE001 - the HTTP library's exceptions cannot be named: see above
                self._fail(error, url)
        raise HubError(f"{host_of(self.endpoint)} redirects in a circle", "check HF_ENDPOINT and the proxy settings")

    def _body(self, response: Any, pieces: Iterator[bytes], largest: int | None) -> Iterator[bytes]:
        """Yield the pieces of a body, as long as it is neither too large nor too slow."""
        begun, count = time.monotonic(), 0
        for piece in pieces:
            count += len(piece)
            if largest is not None and count > largest:
                raise HubError(f"{host_of(str(response.url))} answers with more than {largest:,} bytes", AGAIN)
            if time.monotonic() - begun > SLOWEST or self.stop.is_set():
                raise HubError(f"{host_of(str(response.url))} takes more than {SLOWEST:.0f} s for one answer", AGAIN)
            yield piece

    def _exactly(self, response: Any, count: int, name: str) -> bytes:
        """Return a body of exactly `count` bytes."""
        data = bytearray()
        for piece in self._body(response, response.iter_raw(), None):
            data += piece
            if len(data) > count:
                raise HubError(f"{shown(name)}: the answer is longer than the {count} bytes asked for", PROXY)
        if len(data) < count:
            raise TransientError(f"{shown(name)}: the answer ended after {len(data)} of {count} bytes", AGAIN)
        return bytes(data)

    # --------------------------------------------------------------------------------------------------- refusals

    def _refuse(self, response: Any, url: str, about: Reference | None, name: str | None) -> None:
        """Raise what an answer that is an error means."""
        if response.status_code not in (200, 206):
            known = "authorization" in {key.lower() for key in self.headers}
            refuse(response, url, Question(self.endpoint, known, about, name), _pause(response))

    def _fail(self, error: Exception, url: str) -> NoReturn:
        """Raise what an exception of the HTTP library means; it is known by the names of its classes alone."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        text, host = self._without_token(str(error)), host_of(url)
        if "OfflineModeIsEnabled" in kinds:
            raise HubError("nothing can be asked offline", ONLINE) from None
        if "TimeoutException" in kinds:
            hint = "try again; HF_HUB_DOWNLOAD_TIMEOUT sets how many seconds are waited"
            raise TransientError(f"{host} did not answer within {self.timeout:g} s", hint) from None
        if "ertificate" in text or "SSL" in text:
            hint = "check the date and the certificates; SSL_CERT_FILE names those that are trusted"
            raise HubError(f"{host} cannot be trusted: {shown(text)}", hint) from None
        if "ProxyError" in kinds or "UnsupportedProtocol" in kinds or "InvalidURL" in kinds:
            raise HubError(
                f"{host} cannot be asked: {shown(text)}", "check HF_ENDPOINT and the proxy settings"
            ) from None
        if "ConnectError" in kinds:
            raise TransientError(f"{host} cannot be reached: {shown(text)}", NETWORK) from None
        closed = isinstance(error, RuntimeError) and "closed" in text
        if closed or kinds & {"NetworkError", "RemoteProtocolError", "StreamError", "OSError"}:
            raise TransientError(f"{host} broke the connection off", "try again") from None
        if kinds & {"HTTPError", "RequestError"}:
            raise HubError(f"{host} cannot be asked: {type(error).__name__}: {shown(text)}", PROXY) from None
        raise error

    def _without_token(self, text: str) -> str:
        for value in self.headers.values():
            token = value.removeprefix("Bearer ")
            if token != value:
                text = text.replace(token, "***")
        return text


_PLAIN: Mapping[str, str] = {"Accept-Encoding": "identity"}


def connect(*, token: str | None = None, offline: bool = False) -> Hub:
    """Return the Hub that the environment names (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE …), as its client reads it.

    Raises UsageError for a token or an endpoint that cannot be one.
    """
    from huggingface_hub import __version__ as client
    from huggingface_hub import constants, get_token

    endpoint = constants.ENDPOINT.rstrip("/")
    split = urlsplit(endpoint)
    if split.scheme not in PORTS or not split.hostname or split.query or split.fragment:
        raise UsageError(f"HF_ENDPOINT is {shown(endpoint)}, which is not the address of a Hub", "write https://…")
    if token is not None and not _is_token(token):
        raise UsageError("the token holds characters that no token has", "pass it as `hf auth token` prints it")
    offline = offline or bool(constants.HF_HUB_OFFLINE)
    headers = {"user-agent": f"mtpfix/{__version__}; hf_hub/{client}"}
    if not offline and token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        try:
            token = get_token()
        except (OSError, ValueError) as error:
            raise UsageError(f"no token can be had: {type(error).__name__}", "log in with `hf auth login`") from None
        if token is not None and not _is_token(token):
            raise UsageError("the saved token holds characters that no token has", "log in with `hf auth login`")
    if token is not None and not offline:
        headers["authorization"] = f"Bearer {token}"
    return Hub(endpoint, headers, float(constants.HF_HUB_DOWNLOAD_TIMEOUT), offline)


def assets_folder() -> Path:
    """Return the folder for what is kept of the Hub: `mtpfix` in the assets of the Hugging Face cache."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE).expanduser() / "mtpfix"


def downloads_folder(repository: str) -> Path:
    """Return the folder in which the Hugging Face cache holds downloads of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _anonymous(headers: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() in ("user-agent", "accept")}


def _pause(response: Any) -> float | None:
    """Return how many seconds a server asks to wait, by the draft of rate limits or by Retry-After."""
    from email.utils import parsedate_to_datetime

    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    said = response.headers.get("retry-after", "").strip()
    if number_of(said) >= 0:
        return float(said)
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
