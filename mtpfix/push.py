"""Send a repair to a repository on the Hub, as a pull request or a commit: only the files that differ from its present.

The one module that writes to the Hub, through huggingface_hub's own client (so Xet, LFS, proxies and certificates are
as a user has set them there). A commit is asked for once: where its answer is lost, the Hub is asked whether it has it.
The plan's digest, in the title and in the description of a pull request, is what it is known by.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mtpfix import __version__
from mtpfix.checkpoint.hub import Hub, HubError, connect, is_hash
from mtpfix.checkpoint.ref import Reference, hub_reference, shown
from mtpfix.checkpoint.repository import open_repository
from mtpfix.errors import MtpfixError, UsageError
from mtpfix.fix.outgoing import MAIN, SHORT, Delivery, Tell, prepare_delivery
from mtpfix.fix.snapshot import check_snapshot

ATTEMPTS = 4
"""How often a commit is asked for that the Hub did refuse for the time being."""

READS = 3
"""How often the pull requests are asked for where a fault may pass."""

LONGEST_WAIT = 90.0
"""Seconds that the Hub may ask to be left alone; where it asks for more, the push ends."""

LOOKS = (0.0, 2.0, 5.0)
"""Seconds that are waited before each look for a commit whose answer was lost."""

SLOWEST = 180.0
"""Seconds that one answer may take; the client itself would wait for ever. Uploads may take as long as they need."""

THREAD = "mtpfix push"
"""What threads are called that may be left to themselves."""

MOST_PULLS = 1000
"""Open pull requests that are looked through."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a push: `pull` is the address of the pull request, `commit` the hash of the commit.

    `already`: it was there before, and nothing was sent. Both are empty where nothing was to be sent.
    """

    delivery: Delivery
    pull: str = ""
    commit: str = ""
    already: bool = False


class LostError(HubError):
    """The Hub may have done what it was asked for, and its answer did not arrive."""


class BusyError(HubError):
    """The Hub did not do it, and may later: `wait` is how many seconds it asks for."""

    def __init__(self, message: str, hint: str, wait: float) -> None:
        super().__init__(message, hint)
        self.wait = wait


def prepare_push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    token: str | None = None,
    create_pr: bool = True,
    card: bool = False,
    title: str | None = None,
    tell: Tell | None = None,
) -> Delivery:
    """Return what a push of a folder to `org/name`, or to a branch `org/name@branch`, would send. Writes nothing.

    Raises UsageError for what cannot be pushed there, HubError where the repository cannot be read.
    """
    reference = hub_reference(repo)
    if reference is None:
        raise UsageError(f"{shown(repo)} names no repository", "write it as org/name")
    if create_pr and reference.revision not in (None, MAIN):
        raise UsageError("a pull request is made against main", "name no revision, or use --no-create-pr")
    if reference.revision is not None and is_hash(reference.revision):
        raise UsageError("a commit cannot be added to a commit", "name a branch")
    hub = connect(token=token)
    if hub.offline:
        raise UsageError("nothing can be sent offline", "unset HF_HUB_OFFLINE")
    repository = open_repository(reference, hub)
    delivery = prepare_delivery(Path(folder), repository, card=card, title=title, tell=tell)
    return replace(delivery, branch=reference.revision or MAIN)


def hide_bars() -> None:
    """Keep the Hub's client from drawing progress bars."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def send(delivery: Delivery, *, create_pr: bool = True) -> Sent:
    """Send a delivery as a pull request, or as a commit to its branch, which is still where it was read.

    Where an open pull request holds it already, that is returned. Raises UsageError where nobody is logged in, HubError
    where the Hub refuses or cannot be asked; what was uploaded until then is not sent again.
    """
    if not delivery.files:
        return Sent(delivery, already=True)
    run = _Push(delivery, create_pr)
    if create_pr and (found := run.find_pull()):
        return Sent(delivery, found[0], found[1], already=True)
    return run.send()


@dataclass(slots=True)
class _Push:
    """One push, and the Hub as this user writes to it."""

    delivery: Delivery
    create_pr: bool

    @property
    def branch(self) -> str:
        return self.delivery.branch

    @property
    def hub(self) -> Hub:
        return self.delivery.repository.hub

    @property
    def name(self) -> str:
        return self.delivery.repository.reference.repository

    def client(self) -> Any:
        from huggingface_hub import HfApi

        token = self.hub.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            raise UsageError(
                "you are not logged in", "log in with `hf auth login`, or pass --token with one that may write"
            )
        return HfApi(self.hub.endpoint, token, library_name="mtpfix", library_version=__version__)

    def send(self) -> Sent:
        """Upload what is large, then ask for the commit, once."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        client = self.client()
        additions = [
            CommitOperationAdd(file.name, file.content if file.content is not None else self._path(file.name))
            for file in self.delivery.files
            if file.change != "removed"
        ]
        gone = [
            CommitOperationDelete(file.name, is_folder=False)
            for file in self.delivery.files
            if file.change == "removed"
        ]
        with self._told("upload to"):
            upload = partial(
                client.preupload_lfs_files,
                self.name,
                additions,
                revision=self.branch,
                create_pr=self.create_pr,
                free_memory=False,
            )
            if any(file.large for file in self.delivery.files):
                upload()
            else:
                self._in_time(upload)
        check_snapshot(self.delivery.before)
        try:
            commit, pull = self._insist(lambda: self._commit(client, [*additions, *gone]))
        except LostError as lost:
            return self._look_again(lost)
        self._check_whole(commit)
        return Sent(self.delivery, pull, commit)

    def _path(self, name: str) -> str:
        return os.fspath(self.delivery.folder / name)

    def _commit(self, client: Any, operations: list[Any]) -> tuple[str, str]:
        with self._told("commit to"):
            info = self._in_time(
                partial(
                    client.create_commit,
                    self.name,
                    operations,
                    commit_message=self.delivery.title,
                    commit_description=self.delivery.description,
                    revision=self.branch,
                    create_pr=self.create_pr,
                    parent_commit=self.delivery.repository.commit,
                )
            )
            commit, pull = info.oid, info.pr_url or ""
            if not isinstance(commit, str) or not is_hash(commit) or bool(pull) != self.create_pr:
                raise LostError(f"{self._host} answers a commit with something else", _LOOK)
        return commit, pull

    def _insist(self, action: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except BusyError as busy:
                if attempt == ATTEMPTS or busy.wait > LONGEST_WAIT:
                    raise
                time.sleep(busy.wait)
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    def _in_time(self, action: Callable[[], T]) -> T:
        """Return what an action returns, or raise LostError where that takes too long; then it is left to itself."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(action())
            except BaseException as error:  # noqa: BLE001 - raised below, where somebody waits
                errors.append(error)

        thread = threading.Thread(target=work, name=THREAD, daemon=True)
        thread.start()
        thread.join(SLOWEST)
        if errors:
            raise errors[0]
        if not results:
            raise LostError(f"{self._host} did not answer within {SLOWEST:g} s", _LOOK)
        return results[0]

    # ------------------------------------------------------------------------------------------- what is there

    def find_pull(self) -> tuple[str, str] | None:
        """Return the address and the commit of an open pull request that holds this delivery, None if none does."""
        for attempt in range(1, READS + 1):
            try:
                with self._told("read the pull requests of"):
                    number = self._in_time(partial(self._number, self.client()))
                return None if number is None else self._pull(number)
            except (LostError, BusyError):
                if attempt == READS:
                    raise
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    def _number(self, client: Any) -> int | None:
        """Return the number of the open pull request whose description names the plan, None if there is none."""
        listing = client.get_repo_discussions(self.name, discussion_type="pull_request", discussion_status="open")
        for listed in islice(listing, MOST_PULLS):
            if self.delivery.digest[:SHORT] in listed.title:
                details = client.get_discussion_details(self.name, listed.num)
                if any(self.delivery.digest in (getattr(event, "content", "") or "") for event in details.events):
                    return int(listed.num)
        return None

    def _pull(self, number: int) -> tuple[str, str]:
        """Return the address and the commit of a pull request, or raise HubError where it holds something else."""
        page = f"{self.hub.endpoint}/{self.name}/discussions/{number}"
        _, commit = self.hub.commit(Reference(self.name, f"refs/pr/{number}"))
        if not self._holds(commit):
            raise HubError(
                f"{page} is open for this very plan, and holds other files", "look at it, and close it to send another"
            )
        return page, commit

    def _holds(self, commit: str) -> bool:
        return not self._lacking(commit)

    def _lacking(self, commit: str) -> list[str]:
        """Return the files of the delivery that a commit does not hold as they were sent."""
        entries = self.hub.tree(self.name, commit)
        return [
            file.name
            for file in self.delivery.files
            if not (
                file.is_at(entries.get(file.name))
                or (not file.keys and file.change != "removed" and file.name in entries)
            )
        ]

    def _check_whole(self, commit: str) -> None:
        """Raise HubError where a commit lacks a file: what a repository's .gitignore names is left out silently."""
        lacking = self._lacking(commit)
        if lacking:
            raise HubError(
                f"{self.name} has the commit {commit}, and in it {shown(lacking[0])} is not as it was sent",
                "see whether the .gitignore of the repository names it",
            )

    def _look_again(self, lost: LostError) -> Sent:
        """Return the commit whose answer was lost if it is there, else raise."""
        for wait in LOOKS:
            time.sleep(wait)
            try:
                if self.create_pr:
                    if found := self.find_pull():
                        return Sent(self.delivery, found[0], found[1])
                else:
                    _, commit = self.hub.commit(Reference(self.name, self.branch))
                    if commit != self.delivery.repository.commit and self._holds(commit):
                        return Sent(self.delivery, "", commit)
            except HubError:
                continue
        raise LostError(f"{lost.message}; whether the commit is there is not known", _LOOK) from None

    # --------------------------------------------------------------------------------------------------- refusals

    @property
    def _host(self) -> str:
        return shown(self.hub.endpoint.partition("://")[2].rpartition("@")[2])

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn what the client raises into a sentence; its HTTP library differs between releases and is not named."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the client's own, and of cards without metadata
                yield
        except MtpfixError:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            self._fail(error, f"{doing} {self.name}")

    def _fail(self, error: Exception, doing: str) -> NoReturn:
        for one in _chain(error):
            response = getattr(one, "response", None)
            if response is not None and type(getattr(response, "status_code", None)) is int:
                self._refuse(one, response, doing)
        kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
        said = self._clean(": ".join(str(one) for one in _chain(error)))
        if "ConnectError" in kinds or "ConnectTimeout" in kinds:
            raise HubError(f"cannot {doing}: {self._host} cannot be reached", _NETWORK) from None
        if kinds & {"TimeoutException", "NetworkError", "RemoteProtocolError", "StreamError"}:
            raise LostError(f"{self._host} broke off or did not answer in time, asked to {doing}", _LOOK) from None
        if kinds & {"JSONDecodeError", "KeyError", "TypeError", "AttributeError"}:
            raise LostError(f"{self._host} does not answer as the Hub does, asked to {doing}", _LOOK) from None
        if kinds & {"ValueError", "OSError", "RuntimeError", "HTTPError", "RequestError"}:
            raise HubError(f"cannot {doing}: {said}", "run the same command again") from None
        raise error

    def _refuse(self, error: BaseException, response: Any, doing: str) -> NoReturn:
        """Raise what an answer that is an error means."""
        status: int = response.status_code
        headers: Mapping[str, str] = response.headers
        said = self._clean(headers.get("x-error-message", "") or str(getattr(error, "server_message", "") or ""))
        code = headers.get("x-error-code", "")
        told = f": {said}" if said else ""
        page = f"{self.hub.endpoint}/{self.name}"
        if status == 429:
            wait = _seconds(headers.get("retry-after", ""))
            raise BusyError(f"{self._host} limits how much is asked (429)", "try again later", wait) from None
        if status >= 500 or status == 408:
            raise LostError(
                f"{self._host} answers with an error of its own ({status}), asked to {doing}", _LOOK
            ) from None
        if status == 401 and code != "RepoNotFound":
            hint = "log in with `hf auth login`, or pass --token"
            raise HubError(f"cannot {doing}: {self._host} does not know the token{told}", hint) from None
        if status == 403:
            hint = f"use a token that may write; without the right to write in {self.name}, send a pull request"
            raise HubError(f"cannot {doing}: this token may not{told}", hint) from None
        if status in (401, 404):
            hint = "check the name, and that the token may read it"
            raise HubError(f"cannot {doing}: it is not there for this token{told}", hint) from None
        if status in (409, 412):
            raise HubError(
                f"{self.name} changed while this was prepared{told}", "run the same command again: it reads it anew"
            ) from None
        if status == 413:
            raise HubError(f"cannot {doing}: it is more than the Hub takes at once (413)", f"see {page}") from None
        raise HubError(f"cannot {doing}: {self._host} answers {status}{told}", "see what it says") from None

    def _clean(self, text: str) -> str:
        """Return foreign text in one line, without the token."""
        token = self.hub.headers.get("authorization", "").removeprefix("Bearer ")
        if token:
            text = text.replace(token, "***")
        return shown(" ".join(text.split()), 300)


_LOOK = "run the same command again: it looks first whether it is there, and never sends a second one"
_NETWORK = "check the network and the proxy settings"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _seconds(text: str) -> float:
    """Return how many seconds a server asks to wait, one where it does not say."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1.0
