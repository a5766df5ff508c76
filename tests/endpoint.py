"""The daemon's endpoint with answers that a test provides."""

from __future__ import annotations

from typing import Any

from poller.service.health import Answer, Health, Routes


def routes(**answers: Any) -> Routes:
    """Answers for every route: all is well, except for the given `answers`."""
    usual = Routes(
        metrics=lambda: b"up 1\n",
        alive=Health,
        ready=Health,
        page=lambda is_whole: Answer(200, "text/html; charset=utf-8", b"<!doctype html>", {"X-Page": str(is_whole)}),
        status=lambda: b"{}\n",
    )
    return usual._replace(**answers)
