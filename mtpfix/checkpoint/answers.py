"""The Hub's answers: what an error means, in a sentence with a next step, and whether an answer is what was asked for.

Knows status codes, headers and the words the Hub puts into them. Sends nothing. The answers are those of the HTTP
library of huggingface_hub, of which only `status_code` and `headers` are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from mtpfix.checkpoint.ref import Reference, shown
from mtpfix.errors import MtpfixError

PORTS: Mapping[str, int] = {"http": 80, "https": 443}
"""The schemes that are followed, and their ports."""

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""What may be better at the next attempt."""

AGAIN = "try again"
ONLINE = "leave out --offline, or unset HF_HUB_OFFLINE, to read it from the Hub"
PROXY = "check HF_ENDPOINT and the proxy settings: something between here and the Hub changes its answers"
PORTAL = "a proxy or the login page of a network stands between here and the Hub: log in there first"
_CHANGED = "scan it again: the file was replaced meanwhile, or something between here and the Hub changes it"
NETWORK = "check the network and the proxy settings; --offline uses what was read before"


class HubError(MtpfixError):
    """Something could not be had from the Hub."""


class EntryAbsentError(HubError):
    """The Hub does not have this one file at this commit."""


class AccessError(HubError):
    """The Hub does not let this user read the repository, or knows no such repository: no file of it can be read."""


class RepositoryAbsentError(AccessError):
    """The Hub has no such repository, or does not tell this user of it."""


class PlaceError(HubError):
    """An address that the Hub redirected to does not give the file, or no longer."""


class TransientError(HubError):
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
class Question:
    """What was asked: of which endpoint, by somebody it knows or not, about which repository, and which file of it."""

    endpoint: str
    known: bool
    about: Reference | None = None
    name: str | None = None


def not_a_hub(endpoint: str, why: str) -> HubError:
    """Return the error of an endpoint that answers what no Hub does."""
    return HubError(f"{host_of(endpoint)} does not answer as the Hub does: {why}", "check HF_ENDPOINT")


def shown_endpoint(endpoint: str) -> str:
    """Return an endpoint's address without who asks."""
    split = urlsplit(endpoint)
    return f"{split.scheme}://{host_of(endpoint)}{split.path}"


def refuse(response: Any, url: str, asked: Question, wait: float | None) -> None:
    """Raise what an answer that is an error means; `wait` is how many seconds the server asks to be left alone."""
    status = response.status_code
    if status in (200, 206):
        return
    about, name, known = asked.about, asked.name, asked.known
    host, what = host_of(url), shown(about.repository) if about else "the list"
    own = origin_of(url) == origin_of(asked.endpoint)
    code, said = response.headers.get("x-error-code", ""), response.headers.get("x-error-message", "")
    if status in TRANSIENT:
        if status == 429:
            asks = f" and asks to wait {wait:.0f} s" if wait is not None else ""
            login = "" if known else ", or log in with `hf auth login`: who is logged in may ask more"
            raise TransientError(f"{host} limits how much is asked (429){asks}", f"try again then{login}", wait)
        raise TransientError(f"{host} answers with an error of its own ({status})", "try again later", wait)
    if not own:
        if status in (401, 403, 404, 410):
            refuses = "does not have" if status in (404, 410) else "refuses"
            raise PlaceError(f"{host}, where the Hub says it is, {refuses} {shown(name or what)} ({status})", AGAIN)
        raise HubError(f"{host} answers {status} for {shown(name or what)}", PROXY)
    if status == 407 or (not code and status != 404 and "html" in response.headers.get("content-type", "")):
        refuse_page(response, url, b"<html")
    page = f"{shown_endpoint(asked.endpoint)}/{what}"
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
        hint = (
            f"make a new one at {shown_endpoint(asked.endpoint)}/settings/tokens, or unset HF_TOKEN to read as nobody"
        )
        raise AccessError(f"{host} does not know the token", hint)
    if "disabled" in said:
        raise AccessError(f"{host} has disabled access to {what}", f"see {page}")
    if code == "RepoNotFound" or status == 401:
        if known:
            hint = "check the name; if it is private, pass a token that may read it"
            raise RepositoryAbsentError(f"{host} has no repository {what} that this token may read", hint)
        hint = "check the name; if it is private or gated, log in with `hf auth login` or pass --token"
        raise RepositoryAbsentError(f"{host} has no repository {what} that everybody may read", hint)
    if status == 403:
        raise AccessError(f"{host} refuses to let {what} be read (403)", "check what the token may read")
    if status == 404:
        raise not_a_hub(asked.endpoint, f"it does not know {urlsplit(url).path} (404)")
    raise HubError(f"{host} answers {status} for {shown(name or what)}", PROXY)


def refuse_odd(response: Any, url: str, name: str) -> None:
    """Raise where the bytes of an answer are not those of the file."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        raise HubError(f"{shown(name)}: {host_of(url)} packs the file ({shown(encoding)}) unasked", PROXY)
    refuse_page(response, url, b"")


def refuse_page(response: Any, url: str, raw: bytes) -> None:
    """Raise where an answer, or the beginning of one, is a web page."""
    kind = response.headers.get("content-type", "")
    if "text/html" in kind or raw.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        raise HubError(f"{host_of(url)} answers with a web page where a file was asked for", PORTAL)


def check_length(response: Any, name: str, size: int) -> None:
    """Raise where a whole file is announced with another size than it is listed with."""
    length = number_of(response.headers.get("content-length"))
    if length not in (-1, size):
        raise HubError(f"{shown(name)} is listed with {size} bytes, and {length} are sent", _CHANGED)


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads; raises HubError where it must not be followed."""
    try:
        target = urljoin(url, location)
        split = urlsplit(target)
        sound = bool(location) and split.scheme in PORTS and bool(split.hostname) and split.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise HubError(f"{host_of(url)} redirects to what is not an address", PROXY)
    if urlsplit(url).scheme == "https" and split.scheme == "http":
        raise HubError(f"{host_of(url)} redirects to {host_of(target)} without encryption", PORTAL)
    return target


def check_linked(response: Any, name: str, entry: Entry) -> None:
    """Raise where the Hub says of a file, before it is read, that it is another than the one it listed."""
    size, etag = response.headers.get("x-linked-size"), response.headers.get("x-linked-etag", "")
    etag = etag.removeprefix("W/").strip('"')
    if size is not None and number_of(size) != entry.size:
        raise HubError(f"{shown(name)} is listed with {entry.size} bytes, and the Hub now says {shown(size)}", _CHANGED)
    if entry.sha256 and is_hash(etag) and len(etag) == 64 and etag != entry.sha256:
        raise HubError(f"{shown(name)} has another content than the one that is listed", _CHANGED)


def check_range(response: Any, name: str, start: int, count: int, size: int) -> None:
    """Raise unless an answer is the range that was asked for, of a file of the size that is listed."""
    said = response.headers.get("content-range", "")
    unit, _, span = said.partition(" ")
    bounds, _, total = span.partition("/")
    first, _, last = bounds.partition("-")
    if unit != "bytes" or number_of(first) != start or number_of(last) != start + count - 1:
        asked = f"bytes {start}-{start + count - 1}"
        raise HubError(f'{shown(name)}: {asked} were asked for, and "{shown(said)}" is answered', PROXY)
    if number_of(total) != size:
        raise HubError(f"{shown(name)} is listed with {size} bytes, and {shown(total)} are there", _CHANGED)


def number_of(text: str | None) -> int:
    """Return a number of bytes, -1 where there is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else -1


def is_hash(text: str) -> bool:
    """Return whether a text is a whole hash as git or LFS write it."""
    return len(text) in (40, 64) and all(character in "0123456789abcdef" for character in text)


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an address."""
    split = urlsplit(url)
    return split.scheme, (split.hostname or "").lower(), split.port or PORTS.get(split.scheme, 0)


def host_of(url: str) -> str:
    """Return host and port of an address, and never who asks."""
    return shown(urlsplit(url).netloc.rpartition("@")[2])
