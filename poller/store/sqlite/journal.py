"""The table `journal`: the lines that `poller.store.journal` describes, each written in the transaction of its action."""

from __future__ import annotations

import sqlite3

from poller.store.journal import Action, JournalEntry
from poller.store.sqlite.database import Database


def record(connection: sqlite3.Connection, action: Action | None, count: int | None = None) -> None:
    """Write the line of an action, or add to its count, inside the caller's transaction. None: no person acted."""
    if action is None:
        return
    if action.entry is None:
        entry = action.new_entry()
        columns, values = JournalEntry._fields[1:], entry[1:]
        query = f"INSERT INTO journal ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        action.entry = entry._replace(id=connection.execute(query, values).lastrowid or 0)
    if count is not None:
        action.entry = action.entry._replace(affected=(action.entry.affected or 0) + count)
        connection.execute("UPDATE journal SET affected = ? WHERE id = ?", (action.entry.affected, action.entry.id))


class Journal:
    """The table `journal`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen_id = 0

    def unseen(self) -> list[JournalEntry]:
        with self._database.reading() as connection:
            entries = read_journal(connection, after_id=self._seen_id)
        self._seen_id = max([self._seen_id, *(entry.id for entry in entries)])
        return entries

    def add(self, action: Action) -> None:
        with self._database.transaction() as connection:
            record(connection, action)


def read_journal(
    connection: sqlite3.Connection, *, since: int = 0, after_id: int = 0, limit: int | None = None
) -> list[JournalEntry]:
    """The lines from `since` (unix seconds) on and after `after_id`, oldest first; with `limit` only the latest."""
    rows = connection.execute(
        f"SELECT {', '.join(JournalEntry._fields)} FROM journal WHERE at >= ? AND id > ? ORDER BY id DESC LIMIT ?",
        (since, after_id, -1 if limit is None else limit),
    ).fetchall()
    return [JournalEntry(*row) for row in reversed(rows)]
