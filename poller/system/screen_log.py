"""The log on a terminal: one line per event, which fits the width, in colours; an outage is shown once.

Text that is cut or left out here is complete with `--log-format text` and `json`. Pure: the width of the terminal and the
clock are arguments.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

MAX_COLUMNS = 100
_OUTAGE_SECONDS = 180.0  # repeats that are further apart are shown again
_SUBJECTS = ("sink", "contract", "account", "action", "subject")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "35", "ERROR": "1;31", "CRITICAL": "1;31"}  # readable on white


class OncePerOutage(logging.Filter):
    """Shows a failure once, and again if its reason changes, after a success, or after minutes without it.

    The same reason for several contracts is one failure, because it is a failure of the API.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._failing: dict[tuple[str, str], set[str]] = {}
        self._seen_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        sink, contract, why = (str(getattr(record, name, "")) for name in ("sink", "contract", "why"))
        if record.levelno < logging.WARNING:
            if record.msg in ("batch.sent", "window.collected"):
                self._forget(sink, contract)
            return True
        if not why:
            return True
        key = (sink, re.sub(r"\d+", "#", re.sub(r"^(account|contract) \S+: ", "", why)))
        is_known = self._clock() - self._seen_at.get(key, float("-inf")) < _OUTAGE_SECONDS
        self._seen_at[key] = self._clock()
        self._failing.setdefault(key, set()).add(contract)
        return not is_known

    def _forget(self, sink: str, contract: str) -> None:
        """Forget the failures of a sink or contract that works again."""
        for key, contracts in list(self._failing.items()):
            if key[0] == sink:
                contracts.discard(contract)
                if not contracts:
                    del self._failing[key], self._seen_at[key]


def fitted(event: Mapping[str, object], text: Callable[[object], str], width: int, *, is_coloured: bool) -> str:
    """An event in one line of at most `width` columns: time, level, message, subjects, reason, and other fields that fit.

    `text` writes a value as in the log.
    """
    fields = dict(event)
    time = f"{str(fields.pop('time'))[:19]}Z"
    level, message = str(fields.pop("level")), printable(str(fields.pop("message")))
    subjects = [f"{name}={text(fields.pop(name))}" for name in _SUBJECTS if name in fields]
    why = [printable(str(fields.pop("why")))] if "why" in fields else []
    hint = [f"({printable(str(fields.pop('hint')))})"] if "hint" in fields else []
    head = f"{time} {level:<7} "
    room = max(10, width - len(head))
    words = _cut(" ".join([message, *subjects, *why, *hint]), room)
    rest = [f"{name}={text(value)}" for name, value in fields.items()]
    if len(" ".join([words, *rest])) <= room:
        words = " ".join([words, *rest])
    elif not words.endswith("…"):
        for field in rest:  # a field that is too long is left out, and shorter ones after it may fit
            words += f" {field}" if len(words) + len(field) + 3 <= room else ""
        words += " …" if len(words) + 2 <= room else ""
    if not is_coloured:
        return head + words
    return f"{time} \x1b[{_COLOURS.get(level, '0')}m{level:<7}\x1b[0m {words}"


def printable(text: str) -> str:
    """The text with every character that could move a terminal's cursor, or end the line, escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def _cut(text: str, width: int) -> str:
    """The text, cut to the width; between words if at least one word remains."""
    if len(text) <= width:
        return text
    kept = text[: width - 1]
    if not text[width - 1].isspace() and " " in kept:
        kept = kept[: kept.rindex(" ")]
    return kept.rstrip() + "…"
