"""What the Hub answers to those who write."""

from __future__ import annotations

from tests.hub.exchange import Routes

routes = Routes()
