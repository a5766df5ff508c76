"""Quiet polls, which have no new entries. They are decided from memory, and one statement writes those of many contracts.

The memory of a contract is valid while its replica holds it, because nobody else commits to it. It is checked all the same: the
statement names the holder, the watermark and the number of commits that the decision was based on. A contract in which one of
these differs is not changed, and is forgotten here. A crash loses only the last seconds of such polls: they had no new entries,
and their windows are read again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

from poller.core.errors import StateUnavailableError
from poller.core.events import Event
from poller.store.postgres.database import Connection, Database
from poller.store.rows import Contract, WindowRead
from poller.system.liveness import waiting_for_others

_GATHERED_SECONDS = 2.0
_MOST_GATHERED = 1000
_LOCK_TIMEOUT = "200ms"  # more than a commit of ours takes
_MOST_SEEN = 32  # entries of a contract: with more of them in its overlap, it is not quiet

_FIELDS = Contract._fields[:-1]
COLUMNS = (
    f"{', '.join(f'c.{name}' for name in _FIELDS)}, c.commits,"
    " NOT EXISTS (SELECT 1 FROM ranges r WHERE r.use_id = c.use_id AND r.contract = c.contract)"
    " AND NOT EXISTS (SELECT 1 FROM gaps g WHERE g.use_id = c.use_id AND g.contract = c.contract)"
)
"""The columns of a row `c` of `contracts` for `known_of`, without the holder."""


class Known(NamedTuple):
    """A contract as it was read. `commits` is the number of its last commit: the version of its ledger.

    `is_plain`: it had no gaps and no spans that must still be read.
    """

    row: Contract
    commits: int
    is_plain: bool


class _Poll(NamedTuple):
    """The unwritten result of polls of a contract: by which token, and based on which watermark and number of commits."""

    token: UUID
    watermark: int
    commits: int
    holder: str
    advance_to: int = 0
    fetched: int = 0
    polled_at: int | None = None


def known_of(columns: Sequence[Any], holder: str) -> Known:
    """The contract in a row with these `COLUMNS`."""
    *fields, commits, is_plain = columns
    return Known(Contract._make((*fields, holder)), int(commits), bool(is_plain))


class Quiet:
    """The memory of the contracts that this process holds, and the unwritten quiet polls."""

    def __init__(self, database: Database, use: int) -> None:
        self._database = database
        self._use = use
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._token: UUID | None = None
        self._known: dict[str, Known] = {}
        self._seen: dict[str, tuple[int, frozenset[bytes]]] = {}
        self._polls: dict[str, _Poll] = {}
        self._written: set[str] = set()  # contracts that a running statement writes
        self._fresh: set[str] = set()  # those of them that nobody has written to since it began
        self._since = 0.0

    # The memory

    def of(self, token: UUID) -> None:
        """Set the token of this memory. The memory of another token is forgotten."""
        with self._lock:
            if token != self._token:
                self._token = token
                self._known.clear()
                self._seen.clear()
                self._fresh.clear()

    def known(self, contract: str) -> Known | None:
        """The remembered contract, if there is one."""
        with self._lock:
            return self._known.get(contract)

    def settle(self, contract: str) -> None:
        """Commits: all unwritten polls, if this contract has one.  Raises: StateUnavailableError."""
        with self._lock:
            is_behind = contract in self._polls or contract in self._written
        if is_behind:
            self.flush()

    def learn(self, known: Known) -> None:
        """Remember a contract as its holder has read it."""
        with self._lock:
            self._known[known.row.contract] = known

    def note_seen(self, known: Known, events: Collection[Event]) -> None:
        """Remember a contract after a commit: all these events are in its ledger."""
        contract = known.row.contract
        with self._lock:
            self._known[contract] = known
            self._seen.pop(contract, None)
            if len(events) <= _MOST_SEEN:
                self._seen[contract] = known.commits, frozenset(event.identity for event in events)

    def forget(self, contracts: Iterable[str]) -> None:
        """Forget contracts that somebody wrote to, or whose last commit has an unknown result: they are read again."""
        with self._lock:
            for contract in contracts:
                self._known.pop(contract, None)
                self._seen.pop(contract, None)
                self._fresh.discard(contract)

    def keep(self, contracts: Collection[str]) -> None:
        """Forget all others: another replica may have changed them."""
        with self._lock:
            others = (self._known.keys() | self._seen.keys()).difference(contracts)
        self.forget(others)

    def is_quiet(self, known: Known, read: WindowRead) -> bool:
        """Whether all events of a window are in the ledger, and nobody has written to the contract since it was read."""
        contract = known.row.contract
        if not known.is_plain or read.unread or read.of_range is not None or read.is_repair:
            return False
        with self._lock:
            commits, identities = self._seen.get(contract, (known.commits, frozenset()))
            is_known = contract in self._known
        return is_known and commits == known.commits and all(event.identity in identities for event in read.events)

    # Unwritten polls

    def add(
        self, token: UUID, known: Known, *, advance_to: int = 0, fetched: int = 0, polled_at: int | None = None
    ) -> None:
        """Note a window without new events, or the time of a successful poll.

        Commits: within a few seconds, with the others; at once if that is due.  Raises: StateUnavailableError.
        """
        row = known.row
        with self._lock:
            before = self._polls.get(row.contract)
            if before is None or before.token != token or before.commits != known.commits:
                before = _Poll(token, row.watermark, known.commits, row.holder)
            self._polls[row.contract] = before._replace(
                advance_to=max(before.advance_to, advance_to),
                fetched=before.fetched + fetched,
                polled_at=before.polled_at if polled_at is None else polled_at,
            )
            now = time.monotonic()
            if len(self._polls) == 1:
                self._since = now
            is_due = now - self._since >= _GATHERED_SECONDS or len(self._polls) >= _MOST_GATHERED
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Commits: all unwritten quiet polls.  Raises: StateUnavailableError; then their windows are read again."""
        with waiting_for_others():  # the thread that writes is watched itself, and may wait for the server
            self._writing.acquire()
        try:
            with self._lock:
                polls, self._polls = self._polls, {}
                self._written, self._fresh = set(polls), set(polls)
            found: list[Known] = []
            try:
                if polls:
                    found = self._database.write(lambda connection: self._write(connection, polls, "SKIP LOCKED"))
                written = {known.row.contract for known in found}
                locked = {contract: poll for contract, poll in polls.items() if contract not in written}
                if locked:  # or changed since
                    with suppress(StateUnavailableError):  # a longer lock must not delay other contracts
                        found += self._database.write(lambda connection: self._write_soon(connection, locked))
            finally:
                self.forget(polls.keys() - {known.row.contract for known in found})
                with self._lock:
                    self._known |= {known.row.contract: known for known in found if known.row.contract in self._fresh}
                    self._written, self._fresh = set(), set()
        finally:
            self._writing.release()

    def _write_soon(self, connection: Connection, polls: dict[str, _Poll]) -> list[Known]:
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
        return self._write(connection, polls, "")

    def _write(self, connection: Connection, polls: dict[str, _Poll], how: str) -> list[Known]:
        columns = zip(*(poll for _, poll in sorted(polls.items())), strict=True)
        tokens, watermarks, commits, _, advances, fetched, polled = map(list, columns)
        rows = connection.execute(
            "WITH polls AS (SELECT q.* FROM contracts c JOIN unnest(%s::text[], %s::uuid[], %s::bigint[],"
            " %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
            " AS q(contract, token, watermark, commits, advance_to, fetched, polled_at) ON c.contract = q.contract"
            " WHERE c.use_id = %s AND c.holder = q.token AND c.watermark = q.watermark AND c.commits = q.commits"
            f" ORDER BY c.contract FOR UPDATE OF c {how})"
            " UPDATE contracts c SET watermark = greatest(c.watermark, q.advance_to), fetched = c.fetched + q.fetched,"
            " seen = c.seen + q.fetched, succeeded_at = coalesce(q.polled_at, c.succeeded_at),"
            " failure = CASE WHEN q.polled_at IS NULL THEN c.failure ELSE '' END"
            f" FROM polls q WHERE c.use_id = %s AND c.contract = q.contract RETURNING {COLUMNS}",
            (sorted(polls), tokens, watermarks, commits, advances, fetched, polled, self._use, self._use),
        )
        return [known_of(row, polls[str(row[0])].holder) for row in rows]
