"""The journal: who did what to a state by hand, when, and how much of it that concerned. Nothing is ever deleted from it.

What is done and its line are committed together. What is done in pieces has one line, whose count grows with each piece: so it is
right after an interrupt, too.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple

from poller.store.database import Database


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
        return {names.get(name, name): value for name, value in self._asdict().items() if value not in (None, "")}


class Action:
    """What a person does now: one line, which is there once `record` was called in a transaction that changes something."""

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

    def record(self, connection: sqlite3.Connection, count: int | None = None) -> None:
        """Write the line, or add to its count, inside the caller's transaction."""
        if self.entry is None:
            words = [self.person.login, self.person.sudo_user, self.name, self.subject]
            login, sudo_user, name, subject = map(_clean, words)
            export = None if self.export is None else _clean(self.export)
            values = (
                int(self._clock()),
                self.person.uid,
                login,
                sudo_user,
                name,
                subject,
                None,
                _clean(self.reason),
                export,
            )
            id_ = connection.execute(
                f"INSERT INTO journal ({', '.join(JournalEntry._fields[1:])}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
            self.entry = JournalEntry(id_ or 0, *values)
        if count is not None:
            self.entry = self.entry._replace(affected=(self.entry.affected or 0) + count)
            connection.execute("UPDATE journal SET affected = ? WHERE id = ?", (self.entry.affected, self.entry.id))


class Journal:
    """The table `journal`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen_id = 0

    def unseen(self) -> list[JournalEntry]:
        """What was written since the last call, by this process or another."""
        with self._database.reading() as connection:
            entries = read_journal(connection, after_id=self._seen_id)
        self._seen_id = max([self._seen_id, *(entry.id for entry in entries)])
        return entries

    def add(self, action: Action) -> None:
        """Commits: the line of something that changes nothing else in the state."""
        with self._database.transaction() as connection:
            action.record(connection)


def read_journal(
    connection: sqlite3.Connection, *, since: int = 0, after_id: int = 0, limit: int | None = None
) -> list[JournalEntry]:
    """The lines from `since` (unix seconds) on, and after that id, oldest first; with `limit` the latest of them."""
    rows = connection.execute(
        f"SELECT {', '.join(JournalEntry._fields)} FROM journal WHERE at >= ? AND id > ? ORDER BY id DESC LIMIT ?",
        (since, after_id, -1 if limit is None else limit),
    ).fetchall()
    return [JournalEntry(*row) for row in reversed(rows)]


def _clean(text: str) -> str:
    """What was typed need not be UTF-8."""
    return text.encode("utf-8", "replace").decode()
