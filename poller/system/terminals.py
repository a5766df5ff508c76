"""What the terminal of a person can show."""

from __future__ import annotations

from typing import TextIO

from poller.config import process_environment

# Source: terminfo(5): the names of terminals that cannot move the cursor; what Emacs, CI systems and serial lines say they are.
_DUMB = ("dumb", "unknown")


def is_capable(stream: TextIO | None) -> bool:
    """Whether it is a terminal on which text can be shown in another place, and over other text."""
    return stream is not None and stream.isatty() and not _is_dumb()


def allows_colours() -> bool:
    """Whether a terminal may be sent colours: it knows them, and NO_COLOR does not say otherwise."""
    return not process_environment().get("NO_COLOR") and not _is_dumb()


def _is_dumb() -> bool:
    return process_environment().get("TERM", "").lower() in _DUMB
