"""What a terminal can show."""

from __future__ import annotations

from typing import TextIO

from poller.config import process_environment

# Source: terminfo(5). Terminals that cannot move the cursor. Emacs, CI systems and serial lines use these names.
_DUMB = ("dumb", "unknown")


def is_capable(stream: TextIO | None) -> bool:
    """Whether it is a terminal that can move the cursor and overwrite text."""
    return stream is not None and stream.isatty() and not _is_dumb()


def allows_colours() -> bool:
    """Whether colours may be sent to a terminal: it supports them, and NO_COLOR is not set."""
    return not process_environment().get("NO_COLOR") and not _is_dumb()


def _is_dumb() -> bool:
    return process_environment().get("TERM", "").lower() in _DUMB
