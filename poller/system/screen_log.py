"""The log as a terminal shows it: one line per event that fits, in colours, and an outage once.

Whatever is cut or left out here is whole with `--log-format text` and `json`. Pure but for the width of the terminal and the
clock, which are given.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping

MAX_COLUMNS = 100
_OUTAGE_SECONDS = 180.0  # repeats that are further apart are told again
_SUBJECTS = ("sink", "contract", "account", "action", "subject")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "35", "ERROR": "1;31", "CRITICAL": "1;31"}  # none is lost on white


class OncePerOutage(logging.Filter):
    """Lets a failure pass once, and again when its reason changes, when it worked in between, or after minutes without it.

    The same reason for several contracts is one failure: it is the API's.
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
        """It works again."""
        for key, contracts in list(self._failing.items()):
            if key[0] == sink:
                contracts.discard(contract)
                if not contracts:
                    del self._failing[key], self._seen_at[key]


def fitted(event: Mapping[str, object], text: Callable[[object], str], width: int, *, is_coloured: bool) -> str:
    """An event in one line of at most `width` columns: when, how grave, what, whom it concerns, why, and what else has room.

    `text` gives a value as the log writes it.
    """
    fields = dict(event)
    time = str(fields.pop("time"))[:19].replace("T", " ")
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
        for field in rest:  # a long one makes room for those behind it
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
    """Cut to the columns, between words where there is a word to keep."""
    if len(text) <= width:
        return text
    kept = text[: width - 1]
    if not text[width - 1].isspace() and " " in kept:
        kept = kept[: kept.rindex(" ")]
    return kept.rstrip() + "…"
