"""The table `gaps`: the spans of each contract that cannot be read whole, with what came of them and cannot be used.

A gap opens, shrinks and closes in the transaction that commits its window (`settle`). Rows stay few: what is of one kind and
follows a gap at once makes it longer, and beyond `_MOST` of a contract the nearest one grows over what lies between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poller.core.gaps import KEPT_ENTRIES, Unread, merged, without
from poller.core.windows import Window
from poller.store.database import DamagedRowError, Database
from poller.store.journal import Action
from poller.store.schema import SEALED_GAP

_MOST = 500
_KEPT_BYTES = 64 * 1024


class Gap(NamedTuple):
    """A span that could not be read whole. Times in unix seconds.

    `kind` is one of `poller.core.gaps.KINDS`, `reason` what the API said. It is tried again at `next_try_at`, unless a person has
    accepted it. `is_narrow`: whether its ends were looked for; else all of it could be readable but for a second.
    """

    id: int
    contract: str
    start: int
    end: int
    kind: str
    reason: str
    first_seen: int
    tries: int
    next_try_at: int
    is_accepted: bool
    is_narrow: bool

    @property
    def window(self) -> Window:
        return Window(self.start, self.end)

    @property
    def is_open(self) -> bool:
        """Whether it is tried again, and somebody should look at it."""
        return not self.is_accepted


class Entry(NamedTuple):
    """What came and could not be used: its first bytes, and how many there were."""

    content: bytes
    size_bytes: int


class Settled(NamedTuple):
    """What a window did to the gaps of its contract."""

    opened: Sequence[Gap] = ()
    closed: Sequence[Gap] = ()


class Gaps:
    """Every method is one transaction or one read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, contract: str | None = None) -> list[Gap]:
        """The gaps of a contract (None: of all), oldest first."""
        with self._database.reading() as connection:
            return read_gaps(connection, contract)

    def entries(self, gap: int) -> list[Entry]:
        """What came in it and could not be used, in the order in which it came."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT content, size FROM gap_entries WHERE gap = ? ORDER BY id", (gap,))
            return [Entry(*row) for row in rows.fetchall()]

    def retry(self, gap: int, now: int, *, by: Action | None = None) -> None:
        """Commits: that a gap is due now, and not accepted; who says so."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE gaps SET next_try_at = ?, is_accepted = 0 WHERE id = ?", (now, gap))
            if by is not None:
                by.record(connection, 1)

    def accept(self, gap: int, *, by: Action | None = None) -> None:
        """Commits: that a person takes a gap as it is; who it is."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE gaps SET is_accepted = 1 WHERE id = ?", (gap,))
            if by is not None:
                by.record(connection, 1)

    def record_try(self, gap: int, reason: str, next_try_at: int) -> None:
        """Commits: that it could not be read once more, why, and when it is tried again."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE gaps SET tries = tries + 1, reason = ?, next_try_at = ? WHERE id = ?",
                (reason, next_try_at, gap),
            )


def read_gaps(connection: sqlite3.Connection, contract: str | None = None) -> list[Gap]:
    rows = connection.execute(
        f"SELECT {', '.join(Gap._fields)}, seal = crc32({SEALED_GAP}) FROM gaps"
        " WHERE coalesce(contract = ?, 1) ORDER BY contract, start",
        (contract,),
    ).fetchall()
    if not all(is_whole for *_, is_whole in rows):
        raise DamagedRowError("a gap's row fails its checksum")
    gaps = [Gap(*values) for *values, _ in rows]
    return [gap._replace(is_accepted=bool(gap.is_accepted), is_narrow=bool(gap.is_narrow)) for gap in gaps]


def settle(
    connection: sqlite3.Connection,
    contract: str,
    window: Window,
    unread: Iterable[Unread],
    now: int,
    next_try_at: int,
) -> Settled:
    """Enter what of a window could not be read, inside the caller's transaction.

    Of gaps in the window only that is left, and what is outside of the window. New gaps are due at `next_try_at`, at once
    where they are not narrow.
    """
    left = merged(unread)
    closed = []
    for gap in read_gaps(connection, contract):
        if gap.end <= window.start or window.end <= gap.start:
            continue
        rest = [Unread(part, gap.kind, gap.reason, (), gap.is_narrow) for part in without(gap.window, [window])]
        within = [part for part in left if part.window.start < gap.end and gap.start < part.window.end]
        left = [part for part in left if part not in within]
        parts = merged([*rest, *within])
        if parts:
            _replace(connection, gap, parts)
        else:
            _delete(connection, gap)
            closed.append(gap)
    return Settled(_opened(connection, contract, left, now, next_try_at), closed)


def _replace(connection: sqlite3.Connection, gap: Gap, parts: Sequence[Unread]) -> None:
    """Have the parts, at least one, in place of a gap; the first of them keeps its number."""
    first, *others = parts
    connection.execute(
        "UPDATE gaps SET start = ?, end = ?, kind = ?, reason = ?, is_narrow = ? WHERE id = ?",
        (*first.window, first.kind, first.reason, first.is_narrow, gap.id),
    )
    if first.entries:
        connection.execute("DELETE FROM gap_entries WHERE gap = ?", (gap.id,))
    _keep(connection, gap.id, first.entries)
    for part in others:
        _insert(connection, gap.contract, part, gap.first_seen, gap.next_try_at, tries=gap.tries)


def _delete(connection: sqlite3.Connection, gap: Gap) -> None:
    connection.execute("DELETE FROM gap_entries WHERE gap = ?", (gap.id,))
    connection.execute("DELETE FROM gaps WHERE id = ?", (gap.id,))


def _opened(
    connection: sqlite3.Connection, contract: str, unread: Iterable[Unread], now: int, next_try_at: int
) -> list[Gap]:
    opened: set[int] = set()
    parts = merged(unread)
    gaps = read_gaps(connection, contract) if parts else []
    for part in parts:
        near = [gap for gap in gaps if gap.is_open and gap.kind == part.kind and gap.is_narrow == part.is_narrow]
        touching = [gap for gap in near if gap.start <= part.window.end and part.window.start <= gap.end]
        if not touching and len(gaps) >= _MOST:
            touching = [min(gaps, key=lambda gap, part=part: abs(gap.start - part.window.start))]  # type: ignore[misc]
        if touching:
            gap = touching[0]
            _widen(connection, touching, part)
        else:
            gap = _insert(connection, contract, part, now, next_try_at if part.is_narrow else now)
            opened.add(gap.id)
        gaps = read_gaps(connection, contract)
    return [gap for gap in gaps if gap.id in opened]


def _widen(connection: sqlite3.Connection, gaps: Sequence[Gap], part: Unread) -> None:
    """Make the first of the gaps cover all of them and the part."""
    first, *others = gaps
    start = min(part.window.start, *(gap.start for gap in gaps))
    end = max(part.window.end, *(gap.end for gap in gaps))
    for other in others:
        connection.execute("UPDATE gap_entries SET gap = ? WHERE gap = ?", (first.id, other.id))
        _delete(connection, other)
    connection.execute(
        "UPDATE gaps SET start = ?, end = ?, reason = ? WHERE id = ?", (start, end, part.reason, first.id)
    )
    _keep(connection, first.id, part.entries)


def _insert(
    connection: sqlite3.Connection, contract: str, part: Unread, first_seen: int, next_try_at: int, tries: int = 0
) -> Gap:
    id_ = connection.execute(
        "INSERT INTO gaps (contract, start, end, kind, reason, first_seen, tries, next_try_at, is_narrow)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (contract, *part.window, part.kind, part.reason, first_seen, tries, next_try_at, part.is_narrow),
    ).lastrowid
    assert id_ is not None  # noqa: S101  # of an INSERT there is one
    _keep(connection, id_, part.entries)
    return next(gap for gap in read_gaps(connection, contract) if gap.id == id_)


def _keep(connection: sqlite3.Connection, gap: int, entries: Sequence[bytes]) -> None:
    (held,) = connection.execute("SELECT count(*) FROM gap_entries WHERE gap = ?", (gap,)).fetchone()
    connection.executemany(
        "INSERT INTO gap_entries (gap, size, content) VALUES (?, ?, ?)",
        [(gap, len(entry), entry[:_KEPT_BYTES]) for entry in entries[: max(0, KEPT_ENTRIES - held)]],
    )
