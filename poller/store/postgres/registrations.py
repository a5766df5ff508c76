"""The sinks that this process has registered. They must stay registered until a person forgets them.

A failover to a standby that lacks the last commits can undo a registration. Then no event waits for the sink, and events that the
other sinks have finished are deleted. So every transaction that deletes from the outbox checks at its end that all these sinks
exist. If one is missing, nothing is written until it is registered again, at a place before everything in the outbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, TypeVar

from poller.core.errors import StateUnavailableError
from poller.store.journal import FORGET_SINK
from poller.store.postgres.database import Connection, Database

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_SECONDS = 5.0  # how often to check while nothing waits
_BEHIND_EVERYTHING = (
    "INSERT INTO places (use_id, sink, contract, segment, base, ledger_number)"
    " SELECT use_id, %(sink)s, contract, segment, put_events, commits FROM contracts WHERE use_id = %(use)s"
)
_BEFORE_WHAT_LIES_THERE = (
    "INSERT INTO places (use_id, sink, contract, segment, base, ledger_number)"
    " SELECT c.use_id, %(sink)s, c.contract, coalesce(s.first - 1, c.segment), c.put_events - coalesce(s.events, 0), c.commits"
    " FROM contracts c LEFT JOIN (SELECT contract, min(number) AS first, sum(events) AS events FROM segments"
    "  WHERE use_id = %(use)s AND sink IS NULL GROUP BY contract) s USING (contract) WHERE c.use_id = %(use)s"
)
_ANEW = (
    " ON CONFLICT (use_id, sink, contract) DO UPDATE SET segment = excluded.segment, position = 0, base = excluded.base,"
    " ledger_number = excluded.ledger_number, delivered = 0, dead = 0, settled_by = NULL, succeeded_at = NULL"
)


class _Registration(NamedTuple):
    type: str
    forgettings: frozenset[tuple[int, int]]  # earlier journal lines about its removal


class _UndoneError(StateUnavailableError):
    """A sink of this process is not registered any more, although nobody has forgotten it."""


class Registrations:
    """The sinks of one use to which this process delivers."""

    def __init__(self, database: Database, use: int) -> None:
        self._database = database
        self._use = use
        self._lock = threading.Lock()
        self._known: dict[str, _Registration] = {}
        self._looked_at = time.monotonic()

    def register(self, name: str, type_: str) -> bool:
        """Register a sink. A new one begins after everything that was collected so far.  Commits: the sink.

        Returns: whether it is new.
        """

        def work(connection: Connection) -> tuple[bool, _Registration]:
            row = connection.execute(
                "INSERT INTO sinks (use_id, name, type) VALUES (%s, %s, %s)"
                " ON CONFLICT (use_id, name) DO UPDATE SET type = excluded.type WHERE sinks.type <> excluded.type"
                " RETURNING xmax = 0",
                (self._use, name, type_),
            ).fetchone()
            is_new = bool(row and row[0])
            if is_new:
                self._give_places(connection, name, _BEHIND_EVERYTHING)
            forgettings = self._forgettings(connection, [name]).get(name, ())
            return is_new, _Registration(type_, frozenset(forgettings))

        is_new, registration = self._database.write(work)
        with self._lock:
            self._known[name] = registration
        return is_new

    def drop(self, name: str) -> None:
        """Stop checking for a sink, because a person forgets it."""
        with self._lock:
            self._known.pop(name, None)

    def write(self, work: Callable[[Connection], T]) -> T:
        """`Database.write` for deletions from the outbox: only if all sinks of this process are registered."""

        def whole(connection: Connection) -> T:
            result = work(connection)
            if undone := self._undone(connection):
                raise _UndoneError(
                    f"the database does not know {', '.join(undone)} any more", hint="it is made known again"
                )
            return result

        try:
            return self._database.write(whole)
        except _UndoneError:
            self.restore()
            return self._database.write(whole)

    def look(self) -> None:
        """Make the same check every few seconds, for times when nothing waits to be written.  Commits: as `restore`."""
        with self._lock:
            if time.monotonic() - self._looked_at < _LOOK_SECONDS:
                return
            self._looked_at = time.monotonic()
        if self._database.read(self._undone):
            self.restore()

    def restore(self) -> None:
        """Commits: registrations that a failover has undone, each with a place before everything in the outbox."""

        def work(connection: Connection, name: str, type_: str) -> bool:
            inserted = connection.execute(
                "INSERT INTO sinks (use_id, name, type) VALUES (%s, %s, %s) ON CONFLICT (use_id, name) DO NOTHING",
                (self._use, name, type_),
            )
            if inserted.rowcount:
                self._give_places(connection, name, _BEFORE_WHAT_LIES_THERE)
            return bool(inserted.rowcount)

        for name in self._database.read(self._undone):
            with self._lock:
                registration = self._known.get(name)
            if registration is None:
                continue
            if self._database.write(partial(work, name=name, type_=registration.type)):
                why = "the database has lost its last commits; what was sent since then is sent again"
                log.error("sink.registered_again", extra={"sink": name, "why": why})

    def _give_places(self, connection: Connection, name: str, where: str) -> None:
        # Other transactions wait for a moment: their commits and deletions would miss this sink.
        connection.execute("LOCK TABLE contracts IN SHARE MODE")
        connection.execute(where + _ANEW, {"sink": name, "use": self._use})

    def _undone(self, connection: Connection) -> list[str]:
        """The sinks of this process that are not registered any more. Those that a person has forgotten are dropped."""
        with self._lock:
            known = dict(self._known)
        rows = connection.execute(
            "SELECT name FROM sinks WHERE use_id = %s AND name = ANY(%s)", (self._use, sorted(known))
        )
        missing = sorted(known.keys() - {name for (name,) in rows})
        if not missing:
            return []
        told = self._forgettings(connection, missing)
        forgotten = {name for name in missing if told.get(name, set()) - known[name].forgettings}
        for name in forgotten:
            self.drop(name)
        return [name for name in missing if name not in forgotten]

    def _forgettings(self, connection: Connection, names: Iterable[str]) -> dict[str, set[tuple[int, int]]]:
        found: dict[str, set[tuple[int, int]]] = {}
        for name, id_, at in connection.execute(
            "SELECT subject, id, at FROM journal WHERE use_id = %s AND action = %s AND subject = ANY(%s)",
            (self._use, FORGET_SINK, list(names)),
        ):
            found.setdefault(name, set()).add((id_, at))
        return found
