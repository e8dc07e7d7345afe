"""What the Hub answers to those who read: info, tree, paths-info, listings, files; and what its CDN answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tests.hub.exchange import Answer, Request, Routes, Slice, document, refusal
from tests.hub.repository import MAIN, Commit, File, Repository

if TYPE_CHECKING:
    from tests.hub.server import Hub

routes = Routes()

REPO = r"(?P<repo>[^/]+/[^/]+)"
SIGNATURE = "Signature"


# -------------------------------------------------------------------------------------------------- who may


def admit(hub: Hub, request: Request, name: str, *, files: bool = False) -> Repository | Answer:
    """Return the repository, or why the one who asks may not see it; `files` asks for what it holds."""
    user = None
    if request.token is not None:
        user = hub.tokens.get(request.token)
        if user is None:
            return refusal(401, "", "Invalid credentials in Authorization header")
    repository = hub.repositories.get(hub.renamed.get(name, name))
    insider = repository is not None and user is not None and user in repository.readers | repository.writers
    if repository is None or (repository.private and not insider):
        return refusal(401 if user is None else 404, "RepoNotFound", "Repository not found")
    if repository.disabled:
        return refusal(403, "", "Access to this resource is disabled.")
    if files and repository.gated and not insider:
        if user is None:
            return refusal(401, "GatedRepo", f"Access to model {name} is restricted. You must be authenticated.")
        return refusal(403, "GatedRepo", f"Access to model {name} is restricted: ask for access on its page.")
    return repository


def commit_of(repository: Repository, revision: str) -> Commit | Answer:
    """Return the commit a revision names, or that there is none."""
    return repository.at(revision) or refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


# --------------------------------------------------------------------------------------------------- the API


@routes.add("hub", "GET", rf"/api/models/{REPO}")
@routes.add("hub", "GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)")
def info(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"])
    if isinstance(repository, Answer):
        return repository
    if found["repo"] in hub.renamed:
        place = request.path.replace(found["repo"], repository.name)
        return Answer(307, {"Location": place})
    commit = commit_of(repository, found.get("revision") or MAIN)
    if isinstance(commit, Answer):
        return commit
    return document(described(repository, commit))


def described(repository: Repository, commit: Commit) -> dict[str, Any]:
    """Return what the Hub says of a repository."""
    return {
        "_id": "0" * 24,
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.sha,
        "lastModified": "2026-11-01T00:00:00.000Z",
        "createdAt": "2026-10-01T00:00:00.000Z",
        "private": repository.private,
        "gated": repository.gated,
        "disabled": repository.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": ["safetensors"],
        "siblings": [{"rfilename": path} for path in commit.files],
    }


@routes.add("hub", "GET", r"/api/models")
def listing(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    author = request.query.get("author", "")
    names = [
        repository.name
        for repository in hub.repositories.values()
        if repository.name.split("/")[0] == author and not isinstance(admit(hub, request, repository.name), Answer)
    ]
    rows = []
    for name in names:
        repository = hub.repositories[name]
        commit = repository.at(MAIN)
        if commit:
            rows.append(described(repository, commit))
    return page(hub, request, rows)


@routes.add("hub", "GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+|refs/pr/\d+)(?:/(?P<under>.*))?")
def tree(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"])
    commit = repository if isinstance(repository, Answer) else commit_of(repository, found["revision"])
    if isinstance(commit, Answer):
        return commit
    recursive = request.query.get("recursive", "").lower() in ("1", "true")
    under = f"{found['under'].strip('/')}/" if found["under"] else ""
    rows: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(under):
            continue
        parts = path.removeprefix(under).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = under + "/".join(parts[:depth])
            rows.setdefault(folder, {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
        if recursive or len(parts) == 1:
            rows[path] = entry(path, file)
    if under and not rows:
        return refusal(404, "EntryNotFound", f"{under} does not exist on {found['revision']!r}")
    return page(hub, request, list(rows.values()))


def entry(path: str, file: File) -> dict[str, Any]:
    """Return one file as a tree lists it."""
    row: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 135}
    return row


def page(hub: Hub, request: Request, rows: list[dict[str, Any]]) -> Answer:
    """Return one page of rows, and where the next one is."""
    begin = int(request.query.get("cursor", "0"))
    size = min(int(request.query.get("limit", hub.page)), hub.page)
    chosen = rows[begin : begin + size]
    if begin + size >= len(rows):
        return document(chosen)
    query = urlencode({**request.query, "cursor": str(begin + size)})
    return document(chosen, Link=f'<{hub.endpoint}{quote(request.path)}?{query}>; rel="next"')


@routes.add("hub", "POST", rf"/api/models/{REPO}/paths-info/(?P<revision>.+)")
def paths_info(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"])
    commit = repository if isinstance(repository, Answer) else commit_of(repository, found["revision"])
    if isinstance(commit, Answer):
        return commit
    asked = request.json() if "json" in request.headers.get("content-type", "") else request.form()
    rows = [entry(path, commit.files[path]) for path in asked.get("paths", ()) if path in commit.files]
    return document(rows)


# --------------------------------------------------------------------------------------------------- the files


@routes.add("hub", "GET HEAD", rf"/{REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)")
def resolve(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"], files=True)
    commit = repository if isinstance(repository, Answer) else commit_of(repository, found["revision"])
    if isinstance(commit, Answer):
        return commit
    file = commit.files.get(found["path"])
    if file is None:
        missing = refusal(404, "EntryNotFound", "Entry not found")
        return Answer(404, {**missing.headers, "X-Repo-Commit": commit.sha}, missing.body)
    about = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.sha256 is None:
        if hub.redirect_regular:
            place = f"/api/resolve-cache/models/{found['repo']}/{commit.sha}/{quote(found['path'])}"
            return Answer(307, {**about, "X-Linked-Size": str(file.size), "Location": place})
        return serve(file, request, about)
    about |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"', "ETag": f'"{file.oid}"'}
    place = f"{hub.cdn}/blobs/{file.sha256}?{urlencode({SIGNATURE: hub.signature(file), 'Expires': '3600'})}"
    return Answer(302, {**about, "Location": place})


@routes.add("hub", "GET HEAD", rf"/api/resolve-cache/models/{REPO}/(?P<revision>[0-9a-f]+)/(?P<path>.+)")
def resolve_cache(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"], files=True)
    commit = repository if isinstance(repository, Answer) else commit_of(repository, found["revision"])
    if isinstance(commit, Answer):
        return commit
    file = commit.files.get(found["path"])
    if file is None:
        return refusal(404, "EntryNotFound", "Entry not found")
    return serve(file, request, {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"})


@routes.add("cdn", "GET HEAD", r"/blobs/(?P<digest>[0-9a-f]{64})")
def blob(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    if "authorization" in request.headers:  # as S3 does: two ways to prove who asks are one too many
        return Answer(400, {"Content-Type": "application/xml"}, b"<Error><Code>InvalidArgument</Code></Error>")
    file = hub.blob(found["digest"])
    if file is None or request.query.get(SIGNATURE) != hub.signature(file):
        return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
    return serve(file, request, {"ETag": f'"{found["digest"]}"', "Accept-Ranges": "bytes"})


def serve(file: File, request: Request, headers: Mapping[str, str]) -> Answer:
    """Return a file, or the range of it that was asked for."""
    told = {"Content-Type": "application/octet-stream", **headers}
    wanted = request.headers.get("range", "")
    kind, _, span = wanted.partition("=")
    if kind.strip() != "bytes" or "," in span:
        return Answer(200, told, Slice(file, 0, file.size))
    first, _, last = span.strip().partition("-")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else file.size, file.size)
    else:
        start, stop = max(file.size - int(last), 0), file.size
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{file.size}"})
    told["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return Answer(206, told, Slice(file, start, stop - start))
