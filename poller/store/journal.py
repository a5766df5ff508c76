"""The journal as rows: who did what to a state by hand, when, and how much of it that concerned. Nothing is ever deleted from it.

What is done and its line are committed together. What is done in pieces has one line, whose count grows with each piece: so it is
right after an interrupt, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from poller.core.windows import format_time

FORGET_SINK = "sinks forget"
"""The name of that action, by which a sink that a person has forgotten is told from one that a database has lost."""


class Person(NamedTuple):
    """Who runs this process: the user, and for root the login that used `sudo`. No `uid` where the system does not say."""

    uid: int | None
    login: str
    sudo_user: str = ""

    def __str__(self) -> str:
        return f"{self.login} (sudo: {self.sudo_user})" if self.sudo_user else self.login


SIGNAL = Person(None, "signal")
"""The sender of a signal, who is unknown: the system tells a program that it came, not from whom."""


class JournalEntry(NamedTuple):
    """A line of the journal. `at` in unix seconds; `affected` is None where nothing is counted.

    `export` is the file in which what was deleted is kept.
    """

    id: int
    at: int
    uid: int | None
    login: str
    sudo_user: str
    action: str
    subject: str
    affected: int | None
    reason: str
    export: str | None

    @property
    def person(self) -> Person:
        return Person(self.uid, self.login, self.sudo_user)

    @property
    def fields(self) -> dict[str, object]:
        """What is in it, for the log."""
        names = {"affected": "count"}
        told = {**self._asdict(), "at": format_time(self.at)}
        return {names.get(name, name): value for name, value in told.items() if value not in (None, "")}


class Action:
    """What a person does now: one line in the journal, written by the transaction that changes something.

    `entry` is that line once a backend has written it; until then None.
    """

    def __init__(
        self,
        person: Person,
        name: str,
        subject: str = "",
        *,
        reason: str = "",
        export: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.person, self.name, self.subject, self.reason, self.export = person, name, subject, reason, export
        self.entry: JournalEntry | None = None
        self._clock = clock

    def new_entry(self) -> JournalEntry:
        """The line to be written, which has no number yet: 0."""
        words = [self.person.login, self.person.sudo_user, self.name, self.subject, self.reason]
        login, sudo_user, name, subject, reason = map(_clean, words)
        export = None if self.export is None else _clean(self.export)
        at = int(self._clock())
        return JournalEntry(0, at, self.person.uid, login, sudo_user, name, subject, None, reason, export)


def _clean(text: str) -> str:
    """What was typed need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()
