"""A Hub to test against: the routes of the Hugging Face Hub that its client uses, on loopback, with scripted faults.

`Hub` listens on two ports, one for the Hub and one for the CDN that large files are redirected to. `reading` and
`writing` hold the endpoints, `repository` what is stored, `exchange` requests, answers and faults, `server` the two
servers. By hand: `python -m tests.hub org/name=FOLDER`. Reads nothing of `mtpfix`.
"""

from __future__ import annotations

from tests.hub.exchange import Answer, Fault, Request
from tests.hub.repository import File, Pull, Repository, file_of
from tests.hub.server import Hub

__all__ = ["Answer", "Fault", "File", "Hub", "Pull", "Repository", "Request", "file_of"]
