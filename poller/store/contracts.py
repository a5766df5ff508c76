"""The collecting half of the state: contracts, their watermarks and books, and the spans still to be read.

The heart is `commit_window`: what a window brought, and that it was read, become true together or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from poller.core.events import Event
from poller.core.gaps import Unread
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store import gaps, ledger, outbox
from poller.store.database import DamagedRowError, Database
from poller.store.journal import Action
from poller.store.schema import SEALED_CONTRACT, SEALED_RANGE


class Contract(NamedTuple):
    """What the state knows of a contract. Times in unix seconds; `failure` is empty when the last poll succeeded.

    All that was visible a span before `audited_at` has been compared with the API's counts, or collecting had not begun then.
    """

    contract: str
    account: str
    origin: int
    watermark: int
    fetched: int
    new: int
    seen: int
    filtered: int
    late: int
    repaired: int
    succeeded_at: int | None
    failed_at: int | None
    failure: str
    audited_at: int
    sharing: int = 0
    compared_start: int = 0
    compared_end: int = 0
    differing: str = ""

    @property
    def compared(self) -> Compared | None:
        """What the last self-audit compared; None where there was none."""
        if self.compared_start >= self.compared_end:
            return None
        return Compared(Window(self.compared_start, self.compared_end), tuple(map(int, self.differing.split())))


class Range(NamedTuple):
    """A span to be read besides what the watermark asks for; `start` moves on as windows of it are committed."""

    id: int
    contract: str
    window: Window
    purpose: str


class Commit(NamedTuple):
    """What one window means to the state.

    `fetched` is how many entries the API sent for it, `unseen` its events that the ledger did not know, `new_count` how many of
    them nobody else has delivered either, `kept` those of them that go to the outbox, perhaps rewritten, `filtered` how many of
    the others were left out for which reason. `advance_to` moves the watermark (None: it stays), `of_range` is the span that
    the window is the next piece of (None: of none). `unread` is what could not be read of the window, which is tried again at
    `next_try_at`.
    """

    contract: str
    window: Window
    fetched: int
    unseen: Sequence[Event]
    new_count: int
    kept: Sequence[Event]
    now: int
    advance_to: int | None = None
    of_range: int | None = None
    late: int = 0
    repaired: int = 0
    filtered: Mapping[str, int] = {}
    unread: Sequence[Unread] = ()
    next_try_at: int = 0


class Contracts:
    """The tables `contracts`, `ranges`, `ledger` and `filtered`, and the fact `skipped`.

    Every method is one transaction or one read, but for `prune`, which commits piece by piece.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Contract]:
        with self._database.reading() as connection:
            return read_contracts(connection)

    def get(self, contract: str) -> Contract | None:
        with self._database.reading() as connection:
            rows = connection.execute(f"{_SELECT} WHERE contract = ?", (contract,)).fetchall()
            return _checked(rows[0]) if rows else None

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        """Begin with contracts that are new, from `start` (unix seconds); known ones stay as they are.

        Commits: the start, so that a contract whose first poll fails is later read from there.
        """
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO contracts (contract, account, origin, watermark, audited_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (contract) DO UPDATE SET account = excluded.account WHERE account <> excluded.account",
                [(contract, account, start, start, now) for contract in contracts],
            )

    def skip_to(self, contract: str, start: int, count: int) -> None:
        """Leave out what lies between the watermark and `start`: so many entries.

        Commits: the watermark, if it is not behind that already, and with it the fact `skipped`, the sum of all such counts.
        """
        with self._database.transaction() as connection:
            query = "UPDATE contracts SET watermark = ? WHERE contract = ? AND watermark < ?"
            if connection.execute(query, (start, contract, start)).rowcount:
                connection.execute(
                    "INSERT INTO facts VALUES ('skipped', ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = CAST(value AS INTEGER) + excluded.value",
                    (str(count),),
                )

    def take_back(self, contract: str, watermark: int, now: int) -> None:
        """Commits: an earlier watermark, because a clock that was ahead made it, and the fact `taken_back`, for a person."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE contracts SET watermark = ?, origin = min(origin, ?) WHERE contract = ?",
                (watermark, watermark, contract),
            )
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('taken_back', ?)", (f"{now} {watermark}",))

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        """Have a span read once more. `by` a person, `count` is of how many entries.

        Commits: the wish, so that it outlives a crash; it is not doubled. And where the span reaches up to where collecting
        began, that it began with the span: what lies between is complete but for what `ranges` gives.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO ranges (contract, start, end, purpose) SELECT ?, ?, ?, ? WHERE NOT EXISTS"
                " (SELECT 1 FROM ranges WHERE contract = ?1 AND start <= ?2 AND end >= ?3)",
                (contract, window.start, window.end, purpose),
            )
            connection.execute(
                "UPDATE contracts SET origin = ? WHERE contract = ? AND origin BETWEEN ? AND ?",
                (window.start, contract, window.start, window.end),
            )
            if by is not None:
                by.record(connection, count)

    def ranges(self, contract: str) -> list[Range]:
        """The spans still to be read, oldest first."""
        with self._database.reading() as connection:
            return read_ranges(connection, contract)

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        """Those of the events, each given once, that have not been collected before, in the same order."""
        with self._database.reading() as connection:
            return ledger.unseen(connection, contract, events)

    def commit_window(self, commit: Commit) -> gaps.Settled:
        """Commits: the new events to ledger and outbox, the books, what could not be read, and the progress, all in one
        transaction. Returns what that did to the gaps.
        """
        segments = outbox.encode(commit.kept)  # before the transaction: it is the work of it
        with self._database.transaction() as connection:
            ledger.add(connection, commit.contract, commit.unseen, commit.now)
            outbox.put(connection, commit.contract, segments, commit.now)
            new = len(commit.kept)
            connection.execute(
                "UPDATE contracts SET watermark = max(watermark, ?), fetched = fetched + ?, new = new + ?, seen = seen + ?,"
                " filtered = filtered + ?, late = late + ?, repaired = repaired + ?, sharing = sharing + ? WHERE contract = ?",
                (
                    min(commit.advance_to, commit.window.end) if commit.advance_to is not None else 0,
                    commit.fetched,
                    new,
                    commit.fetched - commit.new_count,
                    commit.new_count - new,
                    commit.late,
                    commit.repaired,
                    sum(bool(event.shared_id) for event in commit.unseen),
                    commit.contract,
                ),
            )
            connection.executemany(
                "INSERT INTO filtered (reason, count) VALUES (?, ?)"
                " ON CONFLICT (reason) DO UPDATE SET count = count + excluded.count",
                list(commit.filtered.items()),
            )
            if commit.of_range is not None:
                connection.execute("UPDATE ranges SET start = ? WHERE id = ?", (commit.window.end, commit.of_range))
                connection.execute("DELETE FROM ranges WHERE id = ? AND start >= end", (commit.of_range,))
            return gaps.settle(
                connection, commit.contract, commit.window, commit.unread, commit.now, commit.next_try_at
            )

    def end_range(self, id_: int) -> None:
        """Commits: that a span was read to its end, though what lay last in it is a gap, which is read on its own."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM ranges WHERE id = ?", (id_,))

    def record_poll(self, contract: str, now: int, failure: str) -> None:
        """Commits: how the poll of a contract ended; `failure` is empty when it succeeded."""
        column = "failed_at" if failure else "succeeded_at"
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE contracts SET {column} = ?, failure = ? WHERE contract = ?",  # one of two constants
                (now, failure, contract),
            )

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        """Commits: that the contract was audited, and what of it was compared by the API's counts."""
        window, differing = compared or Compared(Window(0, 0))
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE contracts SET audited_at = ?, compared_start = ?, compared_end = ?, differing = ?"
                " WHERE contract = ?",
                (now, *window, " ".join(map(str, differing)), contract),
            )

    def counts(self, contract: str, start: int, end: int) -> dict[int, ledger.Count]:
        """Entries collected by hour, of the hours that begin in `[start, end)`: the hour's start to the count."""
        with self._database.reading() as connection:
            return ledger.counts(connection, contract, start, end)

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Forget identities older than the retention, but never those that a pending read may meet again.

        Counted from the watermark where that is earlier than `now`: our clock alone may be wrong by years.
        """
        for contract in self.all():
            pending = [span.window.start for span in self.ranges(contract.contract)]
            watermark = contract.watermark
            before = min(min(now, watermark) - retention_seconds, watermark - overlap_seconds, *pending)
            self._prune(contract.contract, before)

    def _prune(self, contract: str, before: int) -> None:
        with self._database.reading() as connection:
            if not ledger.has_outdated(connection, contract, before):
                return
        for _ in self._database.in_pieces(repeat(None)):
            with self._database.transaction() as connection:
                if not ledger.prune(connection, contract, before):
                    return


_SELECT = f"SELECT {', '.join(Contract._fields)}, seal = crc32({SEALED_CONTRACT}) FROM contracts"


def _checked(row: tuple[Any, ...]) -> Contract:
    """The row, if it is what was written.  Raises: DamagedRowError."""
    *values, is_whole = row
    if not is_whole:
        raise DamagedRowError("a contract's row fails its checksum")
    return Contract(*values)


def read_filtered(connection: sqlite3.Connection) -> dict[str, int]:
    """How many events were left out for which reason, ever."""
    return dict(connection.execute("SELECT reason, count FROM filtered ORDER BY reason").fetchall())


def read_ranges(connection: sqlite3.Connection, contract: str | None = None) -> list[Range]:
    """The spans still to be read, of one contract or of all, oldest first.  Raises: DamagedRowError."""
    rows = connection.execute(
        f"SELECT id, contract, start, end, purpose, seal = crc32({SEALED_RANGE}) FROM ranges"
        " WHERE ?1 IS NULL OR contract = ?1 ORDER BY start, id",
        (contract,),
    ).fetchall()
    if not all(is_whole for *_, is_whole in rows):
        raise DamagedRowError("a span still to be read fails its checksum")
    return [Range(id_, name, Window(start, end), purpose) for id_, name, start, end, purpose, _ in rows]


def read_contracts(connection: sqlite3.Connection) -> list[Contract]:
    return [_checked(row) for row in connection.execute(f"{_SELECT} ORDER BY contract")]
