"""The table `journal`: the lines that `poller.store.journal` describes, each written in the transaction of its action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from poller.store.journal import Action, JournalEntry
from poller.store.postgres.database import Connection, Database

T = TypeVar("T")

# Lines may be committed in another order than that of their numbers: a line up to this far before the newest may still come.
_LATE_LINES = 1000


def record(connection: Connection, use: int, action: Action, count: int | None = None) -> JournalEntry:
    """Write the line of an action, or add to its count, inside the caller's transaction.

    Returns: the line. After the commit, the caller sets it as `action.entry`.
    """
    entry = action.entry
    if entry is None:
        entry = action.new_entry()
        columns, values = JournalEntry._fields[1:], entry[1:]
        id_ = connection.value(
            f"INSERT INTO journal (use_id, {', '.join(columns)}) VALUES (%s{', %s' * len(columns)}) RETURNING id",
            (use, *values),
        )
        entry = entry._replace(id=id_)
    if count is not None:
        entry = entry._replace(affected=(entry.affected or 0) + count)
        connection.execute("UPDATE journal SET affected = %s WHERE id = %s", (entry.affected, entry.id))
    return entry


class Acted(NamedTuple, Generic[T]):
    """The result of a transaction of a person, the number of affected items (None: not counted), and whether it gets a line."""

    result: T
    affected: int | None = None
    is_recorded: bool = True


def write_by(database: Database, use: int, by: Action | None, work: Callable[[Connection], Acted[T]]) -> T:
    """Commits: the changes by `work`, and the line of the person (None: no person acted).  Returns: the result of `work`."""

    def whole(connection: Connection) -> tuple[T, JournalEntry | None]:
        acted = work(connection)
        if by is None:
            return acted.result, None
        return acted.result, record(connection, use, by, acted.affected) if acted.is_recorded else by.entry

    result, entry = database.write(whole)
    if by is not None:  # only after the commit: a rollback leaves no line
        by.entry = entry
    return result


class Journal:
    """The table `journal` of one use."""

    def __init__(self, database: Database, use: int) -> None:
        self._database = database
        self._use = use
        self._seen: set[int] = set()

    def unseen(self) -> list[JournalEntry]:
        after = max(self._seen, default=0) - _LATE_LINES
        entries = self._database.read(lambda connection: read_journal(connection, self._use, after_id=after))
        found = [entry for entry in entries if entry.id not in self._seen]
        self._seen = {entry.id for entry in entries}
        return found

    def add(self, action: Action) -> None:
        write_by(self._database, self._use, action, lambda _connection: Acted(None))


def read_journal(
    connection: Connection, use: int, *, since: int = 0, after_id: int = 0, limit: int | None = None
) -> list[JournalEntry]:
    """The lines from `since` (unix seconds) on and after `after_id`, oldest first; with `limit` only the latest."""
    rows = connection.execute(
        f"SELECT {', '.join(JournalEntry._fields)} FROM journal WHERE use_id = %s AND at >= %s AND id > %s"
        " ORDER BY id DESC LIMIT %s",
        (use, since, after_id, limit),
    ).fetchall()
    return [JournalEntry(*row) for row in reversed(rows)]
