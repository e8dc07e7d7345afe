"""What the Hub answers to those who write: preupload, LFS, commits, pull requests, model cards; and its upload host."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tests.hub.exchange import Answer, Request, Routes, document, refusal
from tests.hub.reading import REPO, SIGNATURE, admit
from tests.hub.repository import MAIN, File, Pull, Repository, file_of

if TYPE_CHECKING:
    from tests.hub.server import Hub

routes = Routes()

REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
WHEN = "2026-11-01T00:00:00.000Z"


def allow(hub: Hub, request: Request, name: str, *, pull: bool) -> Repository | Answer:
    """Return the repository, or why the one who asks may not write there; everybody known may open a pull request."""
    repository = admit(hub, request, name)
    if isinstance(repository, Answer):
        return repository
    user = hub.tokens.get(request.token or "")
    if user is None:
        return refusal(401, "", "Invalid username or password.")
    if user in hub.read_only:
        return refusal(403, "", "Forbidden: your token has no write permission for this repository")
    if not pull and user not in repository.writers:
        return refusal(
            403, "", "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request from this change."
        )
    return repository


@routes.add("hub", "POST", rf"/api/models/{REPO}/preupload/{REVISION}")
def preupload(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = allow(hub, request, found["repo"], pull="create_pr" in request.query)
    if isinstance(repository, Answer):
        return repository
    commit = repository.at(found["revision"])
    if commit is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {found['revision']}")
    asked = request.json()
    ignored = asked.get("gitIgnore", "")
    if not ignored and ".gitignore" in commit.files:
        ignored = commit.files[".gitignore"].read().decode()
    rows = []
    for row in asked["files"]:
        present = commit.files.get(row["path"])
        large = file_of(bytes(0), row["path"]).sha256 is not None or row["size"] > hub.regular_limit
        rows.append(
            {
                "path": row["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": any(fnmatchcase(row["path"], line) for line in ignored.split()),
                "oid": present.oid if present else None,
            }
        )
    return document({"files": rows})


# ------------------------------------------------------------------------------------------------------ large files


@routes.add("hub", "POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = allow(hub, request, found["repo"], pull="ref" not in request.json())
    if isinstance(repository, Answer):
        return repository
    rows: list[dict[str, Any]] = []
    for row in request.json()["objects"]:
        told = {"oid": row["oid"], "size": row["size"]}
        if hub.blob(row["oid"]) is None:
            signature = hub.signature(File(b"", row["size"], "", row["oid"]))
            upload = {"href": f"{hub.cdn}/uploads/{row['oid']}?{SIGNATURE}={signature}"}
            verify = {"href": f"{hub.endpoint}/api/complete/{found['repo']}"}
            told["actions"] = {"upload": upload, "verify": verify}
        rows.append(told)
    return document({"transfer": "basic", "objects": rows})


@routes.add("cdn", "PUT", r"/uploads/(?P<digest>[0-9a-f]{64})")
def upload(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    if "authorization" in request.headers:
        return Answer(400, {"Content-Type": "application/xml"}, b"<Error><Code>InvalidArgument</Code></Error>")
    file = file_of(request.body, "upload", lfs=True)
    if request.query.get(SIGNATURE) != hub.signature(File(b"", 0, "", found["digest"])):
        return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
    if file.sha256 != found["digest"]:
        return Answer(400, {"Content-Type": "application/xml"}, b"<Error><Code>BadDigest</Code></Error>")
    hub.uploads[found["digest"]] = file
    return Answer(200, {"ETag": f'"{found["digest"]}"'})


@routes.add("hub", "POST", rf"/api/complete/{REPO}")
def complete(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    file = hub.uploads.get(request.json()["oid"])
    if file is None or file.size != request.json()["size"]:
        return refusal(400, "", "the upload is not whole")
    return document({"success": True})


# ---------------------------------------------------------------------------------------------------------- commits


@routes.add("hub", "POST", rf"/api/models/{REPO}/commit/{REVISION}")
def commit(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    pull = "create_pr" in request.query
    repository = allow(hub, request, found["repo"], pull=pull)
    if isinstance(repository, Answer):
        return repository
    rows = [json.loads(line) for line in request.body.splitlines()]
    header = next(row["value"] for row in rows if row["key"] == "header")
    changes: dict[str, File | None] = {}
    for row in rows:
        value = row["value"]
        path = value.get("path", "")
        if any(part in ("", ".", "..") for part in path.split("/")) and row["key"] != "header":
            return refusal(422, "", f"Invalid path: {path}")
        match row["key"]:
            case "file":
                changes[path] = file_of(base64.b64decode(value["content"]), path, lfs=False)
            case "lfsFile":
                held = hub.blob(value["oid"])
                if held is None:
                    return refusal(
                        400, "", "Your push was rejected: an LFS pointer pointed to a file that does not exist"
                    )
                changes[path] = held
            case "deletedFile":
                changes[path] = None
            case _:
                pass
    if not header["summary"]:
        return refusal(400, "", "The commit needs a summary")
    with hub.lock:
        head, parent = repository.refs.get(found["revision"]), header.get("parentCommit")
        if not pull and parent is not None and parent != head:
            return refusal(412, "", "A commit has happened since. Please refresh and try again.")
        if parent is not None and parent not in repository.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {parent}")
        number = len(repository.pulls) + 1
        made = repository.commit(
            changes,
            to=f"refs/pr/{number}" if pull else found["revision"],
            parent=parent or head,
            title=header["summary"],
            description=header["description"],
        )
        page = f"{hub.endpoint}/{repository.name}"
        answer: dict[str, Any] = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
        if pull:
            author = hub.tokens[request.token or ""]
            repository.pulls.append(Pull(number, header["summary"], header["description"], author, made.sha))
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    return document(answer)


@routes.add("hub", "POST", r"/api/validate-yaml")
def validate(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    content = request.json()["content"]
    if content.startswith("---") and "license: [" in content:
        return document({"errors": [{"message": '"license" must be one of the known ones'}], "warnings": []}, 400)
    return document({"errors": [], "warnings": []})


# ---------------------------------------------------------------------------------------------------- pull requests


@routes.add("hub", "GET", rf"/api/models/{REPO}/discussions")
def discussions(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"])
    if isinstance(repository, Answer):
        return repository
    wanted = request.query.get("status", "all")
    shown = [pull for pull in repository.pulls if wanted in ("all", pull.status)]
    begin = int(request.query.get("p", "0")) * hub.page
    rows = [_listed(repository, pull) for pull in shown[begin : begin + hub.page]]
    return document({"discussions": rows, "count": len(shown), "start": begin})


@routes.add("hub", "GET", rf"/api/models/{REPO}/discussions/(?P<number>\d+)")
def discussion(hub: Hub, request: Request, found: Mapping[str, str]) -> Answer:
    repository = admit(hub, request, found["repo"])
    if isinstance(repository, Answer):
        return repository
    number = int(found["number"])
    if not 0 < number <= len(repository.pulls):
        return refusal(404, "", "Discussion not found")
    pull = repository.pulls[number - 1]
    said = {"edited": False, "hidden": False, "latest": {"raw": pull.description, "html": ""}, "history": []}
    events = [
        {"id": "0" * 24, "type": "comment", "createdAt": WHEN, "author": {"name": pull.author}, "data": said},
        {
            "id": "1" * 24,
            "type": "commit",
            "createdAt": WHEN,
            "author": {"name": pull.author},
            "data": {"subject": pull.title, "oid": pull.commit},
        },
    ]
    more = {"events": events, "changes": {"base": f"refs/heads/{MAIN}"}, "filesWithConflicts": [], "diff": ""}
    return document(_listed(repository, pull) | more)


def _listed(repository: Repository, pull: Pull) -> dict[str, Any]:
    return {
        "num": pull.number,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": WHEN,
        "status": pull.status,
        "repo": {"name": repository.name, "type": "model"},
        "isPullRequest": True,
    }
