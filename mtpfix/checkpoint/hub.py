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
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit

from mtpfix import __version__
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
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}

T = TypeVar("T")


class HubError(MtpfixError):
    """Something could not be had from the Hub."""


class EntryAbsentError(HubError):
    """The Hub does not have this one file at this commit."""


class AccessError(HubError):
    """The Hub does not let this user read the repository, or knows no such repository: no file of it can be read."""


class PlaceError(HubError):
    """An address that the Hub redirected to does not give the file, or no longer."""


class _TransientError(HubError):
    """A fault that may pass: `wait` is how many seconds the server asks for, None where it says nothing."""

    def __init__(self, message: str, hint: str = "", wait: float | None = None) -> None:
        super().__init__(message, hint)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as the Hub lists it: `oid` names its content in git, `sha256` the content of a large one."""

    size: int
    oid: str
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Return the name of the content: equal names, equal bytes."""
        return self.sha256 or self.oid


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
            self._not_a_hub(f"its answer on {shown(str(reference))} names no commit")
        told = Reference.of_repository(answer.get("id"))
        return (told.repository if told else name), sha

    def tree(self, repository: str, commit: str) -> dict[str, Entry]:
        """Return every file of a commit by its path. Raises HubError where the list is not what a Hub answers."""
        path = f"/api/models/{repository}/tree/{commit}"
        entries: dict[str, Entry] = {}
        for row in self._rows(path, {"recursive": "true"}, Reference(repository, commit)):
            if row.get("type") == "file":
                name, entry = self._entry(row)
                entries[name] = entry
        return entries

    def models(self, organization: str) -> list[str]:
        """Return the names of an organization's or a user's model repositories, sorted."""
        names = set()
        for row in self._rows("/api/models", {"author": organization}, None):
            told = Reference.of_repository(row.get("id"))
            if told is None or told.repository.split("/")[0].lower() != organization.lower():
                self._not_a_hub("its list of repositories holds names of others")
            names.add(told.repository)
        return sorted(names)

    def _entry(self, row: Mapping[str, Any]) -> tuple[str, Entry]:
        name, size, oid, lfs = row.get("path"), row.get("size"), row.get("oid"), row.get("lfs")
        try:
            safe_member(name if isinstance(name, str) else "")
        except PathRefusedError as error:
            raise HubError(
                f"the Hub lists a file that cannot be one: {error.message}", "report it to the Hub"
            ) from None
        sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
        sound = (
            type(size) is int
            and size >= 0
            and isinstance(oid, str)
            and is_hash(oid)
            and (lfs is None or (isinstance(sha256, str) and is_hash(sha256)))
        )
        if not isinstance(name, str) or not isinstance(size, int) or not isinstance(oid, str) or not sound:
            self._not_a_hub(f"its list says no size or no hash of {shown(str(name))}")
        return name, Entry(size, oid, sha256)

    def _rows(self, path: str, query: Mapping[str, str], about: Reference | None) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a listing, page after page; of the link to the next page only the query is believed."""
        asked: set[str] = set()
        for _ in range(MOST_PAGES):
            following: list[str] = []
            rows = self._document(path, query, about, following)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                self._not_a_hub(f"its answer to {path} is not a list")
            yield from rows
            if not following:
                return
            if following[0] in asked:
                break
            asked.add(following[0])
            query = dict(parse_qsl(following[0], keep_blank_values=True))
        raise HubError(f"the list of files that {self._host} gives does not end", "try again later")

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
                self._refuse_page(response, url, raw)
                self._not_a_hub(f"its answer to {path} is not JSON")
            if following is not None and (link := response.links.get("next", {}).get("url")):
                following.append(urlsplit(link).query)
            return value

        return self._insist(lambda: self._follow(url, {}, consume))

    # ---------------------------------------------------------------------------------------------------- files

    def whole(self, reference: Reference, name: str, entry: Entry) -> bytes:
        """Return all bytes of a file, as many as its entry says."""

        def consume(response: Any, url: str) -> bytes:
            self._refuse(response, url, reference, name)
            self._refuse_odd(response, url, name)
            self._check_length(response, name, entry.size)
            return self._exactly(response, entry.size, name)

        return self._insist(
            lambda: self._follow(
                self._resolve(reference, name), _PLAIN, consume, lambda one: _check_linked(one, name, entry)
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
                lambda one: _check_linked(one, name, entry),
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
            self._refuse_odd(response, url, name)
            if response.status_code == 206:
                _check_range(response, name, 0, count, entry.size)
                return Beginning(self._exactly(response, count, name), url)
            self._check_length(response, name, entry.size)
            data = bytearray()
            for piece in self._body(response, response.iter_raw(_CHUNK), None):
                data += piece
                if len(data) >= 8 and len(data) >= needed(bytes(data[:8])):
                    return Beginning(bytes(data), url)
            raise _TransientError(f"{shown(name)}: the answer ended after {len(data)} bytes", _AGAIN)

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
            self._refuse_odd(response, url, name)
            if response.status_code != 206:
                raise HubError(
                    f"{shown(name)}: {_host(url)} does not answer requests for part of a file",
                    "download the repository with `hf download` and scan the folder",
                )
            _check_range(response, name, start, count, entry.size)
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
                self._resolve(reference, name), headers, consume, lambda one: _check_linked(one, name, entry)
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
            except _TransientError as fault:
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
            raise HubError("nothing can be asked offline", _ONLINE)
        for _ in range(HOPS):
            own = _origin(url) == _origin(self.endpoint)
            sent = {**(self.headers if own else _anonymous(self.headers)), **headers}
            stream = get_session().stream
            try:
                with stream("GET", url, headers=sent, follow_redirects=False, timeout=self.timeout) as response:
                    if look is not None and response.status_code < 400:
                        look(response)
                        look = None
                    if response.status_code not in _REDIRECTS:
                        return consume(response, url)
                    url = _redirected(url, response.headers.get("location", ""))
                    if 0 <= _number(response.headers.get("content-length")) <= _CHUNK:
                        response.read()  # so that the connection can be used again
                if leave is not None and own and _origin(url) != _origin(self.endpoint):
                    return leave(url)
            except MtpfixError:
                raise
            except Exception as error:  # noqa: BLE001 - the HTTP library's exceptions cannot be named: see above
                self._fail(error, url)
        raise HubError(f"{self._host} redirects in a circle", "check HF_ENDPOINT and the proxy settings")

    def _body(self, response: Any, pieces: Iterator[bytes], largest: int | None) -> Iterator[bytes]:
        """Yield the pieces of a body, as long as it is neither too large nor too slow."""
        begun, count = time.monotonic(), 0
        for piece in pieces:
            count += len(piece)
            if largest is not None and count > largest:
                raise HubError(f"{_host(str(response.url))} answers with more than {largest:,} bytes", _AGAIN)
            if time.monotonic() - begun > SLOWEST or self.stop.is_set():
                raise HubError(f"{_host(str(response.url))} takes more than {SLOWEST:.0f} s for one answer", _AGAIN)
            yield piece

    def _exactly(self, response: Any, count: int, name: str) -> bytes:
        """Return a body of exactly `count` bytes."""
        data = bytearray()
        for piece in self._body(response, response.iter_raw(), None):
            data += piece
            if len(data) > count:
                raise HubError(f"{shown(name)}: the answer is longer than the {count} bytes asked for", _PROXY)
        if len(data) < count:
            raise _TransientError(f"{shown(name)}: the answer ended after {len(data)} of {count} bytes", _AGAIN)
        return bytes(data)

    # --------------------------------------------------------------------------------------------------- refusals

    @property
    def _host(self) -> str:
        return _host(self.endpoint)

    def _refuse(self, response: Any, url: str, about: Reference | None, name: str | None) -> None:
        """Raise what an answer that is an error means, in a sentence."""
        status = response.status_code
        if status in (200, 206):
            return
        host, what = _host(url), shown(about.repository) if about else "the list"
        own = _origin(url) == _origin(self.endpoint)
        code, said = response.headers.get("x-error-code", ""), response.headers.get("x-error-message", "")
        known = "authorization" in {key.lower() for key in self.headers}
        if status in _TRANSIENT:
            wait = _pause(response)
            if status == 429:
                asks = f" and asks to wait {wait:.0f} s" if wait is not None else ""
                login = "" if known else ", or log in with `hf auth login`: who is logged in may ask more"
                raise _TransientError(f"{host} limits how much is asked (429){asks}", f"try again then{login}", wait)
            raise _TransientError(f"{host} answers with an error of its own ({status})", "try again later", wait)
        if not own:
            if status in (401, 403, 404, 410):
                refuses = "does not have" if status in (404, 410) else "refuses"
                raise PlaceError(
                    f"{host}, where the Hub says it is, {refuses} {shown(name or what)} ({status})", _AGAIN
                )
            raise HubError(f"{host} answers {status} for {shown(name or what)}", _PROXY)
        if status == 407 or (not code and status != 404 and "html" in response.headers.get("content-type", "")):
            self._refuse_page(response, url, b"<html")
        page = f"{self._shown_endpoint}/{what}"
        if code == "GatedRepo":
            if not known:
                hint = f"accept its terms at {page}, then log in with `hf auth login` or pass --token"
                raise AccessError(f"{what} is gated, and you are not logged in", hint)
            hint = f"ask for access at {page}; a fine-grained token must be allowed to read gated repositories"
            raise AccessError(f"{what} is gated, and this token has no access to it", hint)
        if code == "RevisionNotFound":
            hint = "pass a branch, a tag, a pull request (refs/pr/1) or a commit's hash"
            raise AccessError(f'{what} has no revision "{shown(about.revision or "main") if about else ""}"', hint)
        if code == "EntryNotFound":
            raise EntryAbsentError(f"{what} has no file {shown(name or '')} at this commit", "scan it again")
        if status == 401 and "Invalid credentials" in said:
            hint = f"make a new one at {self._shown_endpoint}/settings/tokens, or unset HF_TOKEN to read as nobody"
            raise AccessError(f"{host} does not know the token", hint)
        if "disabled" in said:
            raise AccessError(f"{host} has disabled access to {what}", f"see {page}")
        if code == "RepoNotFound" or status == 401:
            if known:
                hint = "check the name; if it is private, pass a token that may read it"
                raise AccessError(f"{host} has no repository {what} that this token may read", hint)
            hint = "check the name; if it is private or gated, log in with `hf auth login` or pass --token"
            raise AccessError(f"{host} has no repository {what} that everybody may read", hint)
        if status == 403:
            raise AccessError(f"{host} refuses to let {what} be read (403)", "check what the token may read")
        if status == 404:
            self._not_a_hub(f"it does not know {urlsplit(url).path} (404)")
        raise HubError(f"{host} answers {status} for {shown(name or what)}", _PROXY)

    def _refuse_odd(self, response: Any, url: str, name: str) -> None:
        """Raise where the bytes of an answer are not those of the file."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding not in ("", "identity"):
            raise HubError(f"{shown(name)}: {_host(url)} packs the file ({shown(encoding)}) unasked", _PROXY)
        self._refuse_page(response, url, b"")

    def _refuse_page(self, response: Any, url: str, raw: bytes) -> None:
        kind = response.headers.get("content-type", "")
        if "text/html" in kind or raw.lstrip()[:5].lower() in (b"<html", b"<!doc"):
            raise HubError(f"{_host(url)} answers with a web page where a file was asked for", _PORTAL)

    def _check_length(self, response: Any, name: str, size: int) -> None:
        """Raise where a whole file is announced with another size than it is listed with."""
        length = _number(response.headers.get("content-length"))
        if length not in (-1, size):
            raise HubError(f"{shown(name)} is listed with {size} bytes, and {length} are sent", _CHANGED)

    def _not_a_hub(self, why: str) -> NoReturn:
        raise HubError(f"{self._host} does not answer as the Hub does: {why}", "check HF_ENDPOINT")

    @property
    def _shown_endpoint(self) -> str:
        split = urlsplit(self.endpoint)
        return f"{split.scheme}://{_host(self.endpoint)}{split.path}"

    def _fail(self, error: Exception, url: str) -> NoReturn:
        """Raise what an exception of the HTTP library means; it is known by the names of its classes alone."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        text, host = self._without_token(str(error)), _host(url)
        if "OfflineModeIsEnabled" in kinds:
            raise HubError("nothing can be asked offline", _ONLINE) from None
        if "TimeoutException" in kinds:
            hint = "try again; HF_HUB_DOWNLOAD_TIMEOUT sets how many seconds are waited"
            raise _TransientError(f"{host} did not answer within {self.timeout:g} s", hint) from None
        if "ertificate" in text or "SSL" in text:
            hint = "check the date and the certificates; SSL_CERT_FILE names those that are trusted"
            raise HubError(f"{host} cannot be trusted: {shown(text)}", hint) from None
        if "ProxyError" in kinds or "UnsupportedProtocol" in kinds or "InvalidURL" in kinds:
            raise HubError(
                f"{host} cannot be asked: {shown(text)}", "check HF_ENDPOINT and the proxy settings"
            ) from None
        if "ConnectError" in kinds:
            raise _TransientError(f"{host} cannot be reached: {shown(text)}", _NETWORK) from None
        closed = isinstance(error, RuntimeError) and "closed" in text
        if closed or kinds & {"NetworkError", "RemoteProtocolError", "StreamError", "OSError"}:
            raise _TransientError(f"{host} broke the connection off", "try again") from None
        if kinds & {"HTTPError", "RequestError"}:
            raise HubError(f"{host} cannot be asked: {type(error).__name__}: {shown(text)}", _PROXY) from None
        raise error

    def _without_token(self, text: str) -> str:
        for value in self.headers.values():
            token = value.removeprefix("Bearer ")
            if token != value:
                text = text.replace(token, "***")
        return text


_PLAIN: Mapping[str, str] = {"Accept-Encoding": "identity"}
_AGAIN = "try again"
_ONLINE = "leave out --offline, or unset HF_HUB_OFFLINE, to read it from the Hub"
_PROXY = "check HF_ENDPOINT and the proxy settings: something between here and the Hub changes its answers"
_PORTAL = "a proxy or the login page of a network stands between here and the Hub: log in there first"
_CHANGED = "scan it again: the file was replaced meanwhile, or something between here and the Hub changes it"
_NETWORK = "check the network and the proxy settings; --offline uses what was read before"


def connect(*, token: str | None = None, offline: bool = False) -> Hub:
    """Return the Hub that the environment names (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE …), as its client reads it.

    Raises UsageError for a token or an endpoint that cannot be one.
    """
    from huggingface_hub import __version__ as client
    from huggingface_hub import constants, get_token

    endpoint = constants.ENDPOINT.rstrip("/")
    split = urlsplit(endpoint)
    if split.scheme not in _PORTS or not split.hostname or split.query or split.fragment:
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


def is_hash(text: str) -> bool:
    """Return whether a text is a whole hash as git or LFS write it."""
    return len(text) in (40, 64) and all(character in "0123456789abcdef" for character in text)


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _origin(url: str) -> tuple[str, str, int]:
    split = urlsplit(url)
    return split.scheme, (split.hostname or "").lower(), split.port or _PORTS.get(split.scheme, 0)


def _host(url: str) -> str:
    """Return host and port of an address, and never who asks."""
    return shown(urlsplit(url).netloc.rpartition("@")[2])


def _anonymous(headers: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() in ("user-agent", "accept")}


def _redirected(url: str, location: str) -> str:
    """Return where a redirect leads; raises HubError where it must not be followed."""
    try:
        target = urljoin(url, location)
        split = urlsplit(target)
        sound = bool(location) and split.scheme in _PORTS and bool(split.hostname) and split.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise HubError(f"{_host(url)} redirects to what is not an address", _PROXY)
    if urlsplit(url).scheme == "https" and split.scheme == "http":
        raise HubError(f"{_host(url)} redirects to {_host(target)} without encryption", _PORTAL)
    return target


def _check_linked(response: Any, name: str, entry: Entry) -> None:
    """Raise where the Hub says of a file, before it is read, that it is another than the one it listed."""
    size, etag = response.headers.get("x-linked-size"), response.headers.get("x-linked-etag", "")
    etag = etag.removeprefix("W/").strip('"')
    if size is not None and _number(size) != entry.size:
        raise HubError(f"{shown(name)} is listed with {entry.size} bytes, and the Hub now says {shown(size)}", _CHANGED)
    if entry.sha256 and is_hash(etag) and len(etag) == 64 and etag != entry.sha256:
        raise HubError(f"{shown(name)} has another content than the one that is listed", _CHANGED)


def _check_range(response: Any, name: str, start: int, count: int, size: int) -> None:
    """Raise unless an answer is the range that was asked for, of a file of the size that is listed."""
    said = response.headers.get("content-range", "")
    unit, _, span = said.partition(" ")
    bounds, _, total = span.partition("/")
    first, _, last = bounds.partition("-")
    if unit != "bytes" or _number(first) != start or _number(last) != start + count - 1:
        asked = f"bytes {start}-{start + count - 1}"
        raise HubError(f'{shown(name)}: {asked} were asked for, and "{shown(said)}" is answered', _PROXY)
    if _number(total) != size:
        raise HubError(f"{shown(name)} is listed with {size} bytes, and {shown(total)} are there", _CHANGED)


def _number(text: str | None) -> int:
    """Return a number of bytes, -1 where there is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else -1


def _pause(response: Any) -> float | None:
    """Return how many seconds a server asks to wait, by the draft of rate limits or by Retry-After."""
    from email.utils import parsedate_to_datetime

    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    said = response.headers.get("retry-after", "").strip()
    if _number(said) >= 0:
        return float(said)
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
