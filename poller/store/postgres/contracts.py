"""The collecting half of the state: contracts, their watermarks and books, and the spans still to be read.

Order of locks, of every transaction on this database: rows of `contracts` by number, then `places` by contract, then all else.
What a commit decides it decides under the lock of its contract's row, whose `holder` must be its own token.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from uuid import UUID

from poller.core.errors import LeaseLostError
from poller.core.events import Event
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.gaps import Gap
from poller.store.journal import Action
from poller.store.postgres import gaps, ledger, outbox
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by
from poller.store.postgres.quiet import COLUMNS, Known, Quiet, known_of
from poller.store.postgres.replicas import Replica
from poller.store.rows import Committed, Contract, Count, Prepare, Prepared, Range, WindowRead, late_and_repaired

_PRUNED_AT_ONCE = 500


class Contracts:
    """The tables `contracts`, `ranges`, `ledger` and `filtered`, and the fact `skipped`, of one use."""

    def __init__(
        self, database: Database, use: int, replica: Callable[[], Replica], note_put: Callable[[int], None]
    ) -> None:
        """`replica` is this process among the replicas: asked for only where something is claimed.

        `note_put` is told how many bytes a commit has put into the outbox.
        """
        self._database = database
        self._use = use
        self._replica = replica
        self._note_put = note_put
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._quiet = Quiet(database, use)

    def flush(self) -> None:
        """Commits: what polls that brought nothing new have still to write."""
        self._quiet.flush()

    def all(self) -> list[Contract]:
        self.flush()
        return self._database.read(lambda connection: read_contracts(connection, self._use))

    def get(self, contract: str) -> Contract | None:
        self._quiet.settle(contract)
        rows = self._database.read(lambda connection: read_contracts(connection, self._use, [contract]))
        return rows[0] if rows else None

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        """Commits: the start of contracts that are new. Of known ones only the account changes."""

        def work(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO contracts (use_id, contract, account, origin, watermark, audited_at)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (use_id, contract) DO UPDATE"
                " SET account = excluded.account WHERE contracts.account <> excluded.account",
                [(self._use, contract, account, start, start, now) for contract in chosen],
            )

        chosen = sorted(contracts)
        if chosen:
            self._database.write(work)
            self._quiet.forget(chosen)

    def skip_to(self, contract: str, start: int, count: int) -> None:
        """Commits: the watermark at `start`, unless it is there already; the fact `skipped` grows by `count`."""

        def work(connection: Connection) -> None:
            query = "UPDATE contracts SET watermark = %s WHERE use_id = %s AND contract = %s AND watermark < %s"
            if connection.execute(query, (start, self._use, contract, start)).rowcount:
                connection.execute(
                    "INSERT INTO facts VALUES (%s, 'skipped', %s) ON CONFLICT (use_id, name) DO UPDATE"
                    " SET value = (facts.value::bigint + excluded.value::bigint)::text",
                    (self._use, str(count)),
                )

        self._database.write(work)
        self._quiet.forget([contract])

    def take_back(self, contract: str, watermark: int, now: int) -> None:
        """Commits: an earlier watermark, because a clock that was ahead made it, and the fact `taken_back`, for a person."""

        def work(connection: Connection) -> None:
            connection.execute(
                "UPDATE contracts SET watermark = %s, origin = least(origin, %s) WHERE use_id = %s AND contract = %s",
                (watermark, watermark, self._use, contract),
            )
            set_fact(connection, self._use, "taken_back", f"{now} {watermark}")

        self._database.write(work)
        self._quiet.forget([contract])

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        """Have a span read once more. `by` a person, `count` is of how many entries.

        Commits: the wish, which is not doubled. Where the span reaches up to where collecting began: that it began with the span.
        """

        def work(connection: Connection) -> Acted[None]:
            connection.execute(
                "SELECT 1 FROM contracts WHERE use_id = %s AND contract = %s FOR UPDATE", (self._use, contract)
            )
            connection.execute(
                "INSERT INTO ranges (use_id, contract, start_at, end_at, purpose)"
                " SELECT %(use)s, %(contract)s, %(start)s, %(end)s, %(purpose)s WHERE NOT EXISTS (SELECT 1 FROM ranges"
                " WHERE use_id = %(use)s AND contract = %(contract)s AND start_at <= %(start)s AND end_at >= %(end)s)",
                {"use": self._use, "contract": contract, "start": window.start, "end": window.end, "purpose": purpose},
            )
            connection.execute(
                "UPDATE contracts SET origin = %s WHERE use_id = %s AND contract = %s AND origin BETWEEN %s AND %s",
                (window.start, self._use, contract, window.start, window.end),
            )
            return Acted(None, count)

        write_by(self._database, self._use, by, work)
        self._quiet.forget([contract])

    def ranges(self, contract: str) -> list[Range]:
        """The spans still to be read, oldest first."""
        return self._database.read(lambda connection: read_ranges(connection, self._use, contract))

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        """Those of the events, each given once, that have not been collected before, in the same order."""
        return self._database.read(lambda connection: ledger.unseen(connection, self._use, contract, events))

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        """Commits: that the contract was audited, and what of it was compared by the API's counts."""
        window, differing = compared or Compared(Window(0, 0))
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE contracts SET audited_at = %s, compared_start = %s, compared_end = %s, differing = %s"
                " WHERE use_id = %s AND contract = %s",
                (now, *window, " ".join(map(str, differing)), self._use, contract),
            )
        )

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        """Entries collected by hour, of the hours that begin in `[start, end)`: the hour's start to the count."""
        return self._database.read(lambda connection: ledger.counts(connection, self._use, contract, start, end))

    # Who collects

    def share(self, wanted: Sequence[str]) -> list[str]:
        """Take this replica's fair share, and give back what is too much or not wanted. Returns: those held, in that order."""
        replica = self._replica()
        self.flush()
        replica.share(wanted)
        held = replica.held()
        self._quiet.keep(held)
        self._quiet.forget(replica.unsettled)
        return [contract for contract in wanted if contract in held]

    def claim(self, only: Collection[str], limit: int | None = None) -> list[Claim]:
        """The right to collect some of these contracts, each for one thread until `release`."""
        replica = self._replica()
        token = replica.token
        held = replica.held()
        self._quiet.of(token)
        if unheld := [contract for contract in only if contract not in held]:
            self._quiet.forget(unheld)
            replica.take(unheld)
            held = replica.held()
        with self._lock:
            free = [contract for contract in only if contract in held and contract not in self._claims]
            free = [contract for contract in free if contract not in replica.leaving][:limit]
            for contract in free:  # the place is taken before the row is read
                self._claims[contract] = Claim(
                    self._database, self._use, replica, token, self._quiet, self._note_put, self._give_back
                )
        try:
            found = self._read(free, is_trusted=replica.is_trusted(token))
        except BaseException:  # an interrupt, too, must not keep the contracts claimed
            self._drop(free)
            raise
        self._drop([contract for contract in free if contract not in found])
        claims = []
        for contract in free:
            if contract in found:
                claim = self._claims[contract]
                claim.begin(found[contract])
                claims.append(claim)
        return claims

    def _read(self, contracts: Sequence[str], *, is_trusted: bool) -> dict[str, Known]:
        """The contracts as they are: from memory while they are surely held, and from the database."""
        for contract in contracts:
            self._quiet.settle(contract)
        known = {contract: self._quiet.known(contract) for contract in contracts if is_trusted}
        found = {contract: one for contract, one in known.items() if one is not None}
        if rest := [contract for contract in contracts if contract not in found]:
            for one in self._database.read(lambda connection: _read_known(connection, self._use, rest)):
                found[one.row.contract] = one
                self._quiet.learn(one)
        return found

    def _drop(self, contracts: Iterable[str]) -> None:
        with self._lock:
            for contract in contracts:
                self._claims.pop(contract, None)

    def _give_back(self, claim: Claim) -> None:
        with self._lock:
            if self._claims.get(claim.row.contract) is claim:
                del self._claims[claim.row.contract]

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Forget identities older than the retention, but never those that a pending read may meet again; pack the others.

        Counted from the watermark where that is earlier than `now`: our clock alone may be wrong by years. Of contracts in this
        replica's share, if it has one.  Commits: piece by piece.
        """
        held = self._replica().held()
        limits: list[tuple[str, int, int]] = []
        pending: dict[str, int] = {}
        for span in self._database.read(lambda connection: read_ranges(connection, self._use)):
            pending[span.contract] = min(pending.get(span.contract, span.window.start), span.window.start)
        for row in self.all():
            if row.contract in held:
                latest = row.watermark - overlap_seconds
                oldest = min(now, row.watermark) - retention_seconds
                before = min(oldest, latest, pending.get(row.contract, latest))
                limits.append((row.contract, before, latest))
        for start in range(0, len(limits), _PRUNED_AT_ONCE):
            for limit in self._with_work(limits[start : start + _PRUNED_AT_ONCE]):
                self._prune_contract(*limit)

    def _with_work(self, limits: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Those of the contracts that have something to forget or to pack: mostly few, and asked for together."""
        found = self._database.read(lambda connection: ledger.with_work(connection, self._use, limits))
        return [limit for limit in limits if limit[0] in found]

    def _prune_contract(self, contract: str, before: int, packed_before: int) -> None:
        while self._database.write(lambda connection: self._prune(connection, contract, before, packed_before)):
            pass

    def _prune(self, connection: Connection, contract: str, before: int, packed_before: int) -> bool:
        connection.execute(
            "SELECT 1 FROM contracts WHERE use_id = %s AND contract = %s FOR UPDATE", (self._use, contract)
        )
        has_more = ledger.prune(connection, self._use, contract, before)
        if not has_more:
            ledger.pack(connection, self._use, contract, packed_before)
        return has_more


class Claim:
    """The right of one thread to collect one contract, as long as its replica holds the contract."""

    row: Contract

    def __init__(
        self,
        database: Database,
        use: int,
        replica: Replica,
        token: UUID,
        quiet: Quiet,
        note_put: Callable[[int], None],
        give_back: Callable[[Claim], None],
    ) -> None:
        self._database = database
        self._use = use
        self._replica = replica
        self._token = token
        self._quiet = quiet
        self._note_put = note_put
        self._give_back = give_back
        self._is_held = True

    def begin(self, known: Known) -> None:
        """Hold it, with the contract as it is now."""
        self.row, self._known = known.row, known
        self._replica.take_in_hand([self.row.contract])

    def ranges(self) -> Sequence[Range]:
        """The spans still to be read, oldest first."""
        if self._known.is_plain:
            return ()
        return self._database.read(lambda connection: read_ranges(connection, self._use, self.row.contract))

    def gaps(self) -> Sequence[Gap]:
        """What could not be read of the contract, oldest first."""
        if self._known.is_plain:
            return ()
        return self._database.read(lambda connection: gaps.read_gaps(connection, self._use, self.row.contract))

    def commit(self, read: WindowRead, prepare: Prepare) -> Committed:
        """Commits: the new events to ledger and outbox, the books, what could not be read, and the progress."""
        self._ensure_held()
        row = self._known.row
        advance_to = min(read.advance_to, read.window.end) if read.advance_to is not None else 0
        if self._quiet.is_quiet(self._known, read):
            self._quiet.add(self._token, self._known, advance_to=advance_to, fetched=read.fetched)
            self._known = self._known._replace(row=row._replace(watermark=max(row.watermark, advance_to)))
            return Committed((), 0, 0)
        self._quiet.settle(row.contract)
        try:
            done, self._known = self._database.write(
                lambda connection: self._commit(connection, read, prepare, advance_to)
            )
        except BaseException:  # an interrupt, too
            self._quiet.forget([row.contract])  # it may have happened
            raise
        self._quiet.note_seen(self._known, read.events)
        self._note_put(sum(len(event.line) for event in done.unseen))
        return done

    def _commit(
        self, connection: Connection, read: WindowRead, prepare: Prepare, advance_to: int
    ) -> tuple[Committed, Known]:
        use, contract = self._use, self.row.contract
        locked = connection.execute(
            "SELECT watermark, commits, segment, sharing > 0, EXISTS (SELECT 1 FROM gaps WHERE use_id = %s AND contract = %s)"
            " FROM contracts WHERE use_id = %s AND contract = %s AND holder = %s FOR UPDATE",
            (use, contract, use, contract, self._token),
        ).fetchone()
        # Fewer commits: a failover has lost what this claim committed. What its windows held is read again.
        if locked is None or not self._is_held or locked[1] < self._known.commits:
            raise self._lost()
        watermark, commits, segment, is_sharing, has_gaps = locked
        unseen = ledger.unseen(connection, use, contract, read.events, is_sharing=is_sharing) if read.events else []
        fresh = [event for event in unseen if event.identity not in read.elsewhere] if read.elsewhere else unseen
        prepared = prepare(fresh) if fresh else Prepared(fresh)
        late = repaired = 0
        if unseen:
            late, repaired = late_and_repaired(unseen, watermark, read_ranges(connection, use, contract), read)
            ledger.add(connection, use, contract, unseen, read.now, commits + 1)
        size = outbox.put(connection, use, contract, segment, prepared.kept, read.now)
        new = len(prepared.kept)
        connection.execute(
            "UPDATE contracts SET watermark = greatest(watermark, %s), fetched = fetched + %s, new = new + %s,"
            " seen = seen + %s, filtered = filtered + %s, late = late + %s, repaired = repaired + %s,"
            " sharing = sharing + %s, commits = %s, segment = segment + %s, put_events = put_events + %s,"
            " outbox_events = outbox_events + %s, outbox_bytes = outbox_bytes + %s WHERE use_id = %s AND contract = %s",
            (
                advance_to, read.fetched, new, read.fetched - len(fresh), len(fresh) - new, late, repaired,
                sum(bool(event.shared_id) for event in unseen), commits + bool(unseen), size.segments, new, new,
                size.bytes, use, contract,
            ),
        )  # fmt: skip
        if prepared.filtered:
            connection.executemany(
                "INSERT INTO filtered VALUES (%s, %s, %s, %s) ON CONFLICT (use_id, contract, reason)"
                " DO UPDATE SET count = filtered.count + excluded.count",
                [(use, contract, reason, count) for reason, count in sorted(prepared.filtered.items())],
            )
        if read.of_range is not None:
            key = (read.of_range, use, contract)
            connection.execute(
                "UPDATE ranges SET start_at = %s WHERE id = %s AND use_id = %s AND contract = %s",
                (read.window.end, *key),
            )
            connection.execute(
                "DELETE FROM ranges WHERE id = %s AND use_id = %s AND contract = %s AND start_at >= end_at", key
            )
        opened, closed = gaps.settle(connection, use, contract, read, has_gaps=has_gaps)
        row = self._known.row._replace(watermark=max(watermark, advance_to))
        known = Known(row, commits + bool(unseen), self._known.is_plain and not has_gaps and not opened)
        return Committed(unseen, len(fresh), new, late, repaired, opened, closed), known

    def end_range(self, id_: int) -> None:
        """Commits: that a span was read to its end, though what lay last in it is a gap, which is read on its own."""

        def work(connection: Connection) -> None:
            query = "SELECT commits FROM contracts WHERE use_id = %s AND contract = %s AND holder = %s FOR UPDATE"
            locked = connection.execute(query, (self._use, self.row.contract, self._token)).fetchone()
            if locked is None or locked[0] < self._known.commits:  # as in `_commit`
                raise self._lost()
            connection.execute(
                "DELETE FROM ranges WHERE id = %s AND use_id = %s AND contract = %s",
                (id_, self._use, self.row.contract),
            )

        self._ensure_held()
        self._database.write(work)

    def record_poll(self, now: int, failure: str) -> None:
        """Commits: how the poll ended; `failure` is empty when it succeeded."""
        self._ensure_held()
        if not failure and self._quiet.known(self.row.contract) is not None:
            self._quiet.add(self._token, self._known, polled_at=now)
            return

        def work(connection: Connection) -> None:
            column = "failed_at" if failure else "succeeded_at"
            query = (
                f"UPDATE contracts SET {column} = %s, failure = %s WHERE use_id = %s AND contract = %s AND holder = %s"
            )
            values = (now, failure.replace("\0", "\ufffd"), self._use, self.row.contract, self._token)
            if connection.execute(query, values).rowcount != 1:
                raise self._lost()

        self._database.write(work)
        self._quiet.forget([self.row.contract])

    def release(self) -> None:
        """Give the right back. What is being committed ends first, or is refused."""
        if self._is_held:
            self._is_held = False
            self._replica.put_down([self.row.contract])
            self._give_back(self)

    def _ensure_held(self) -> None:
        if not self._is_held or self._token != self._replica.token:
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError("another replica has it now", contract=self.row.contract)


def read_contracts(connection: Connection, use: int, only: Sequence[str] | None = None) -> list[Contract]:
    """The contracts, by number; of these only `only` if given."""
    rows = connection.execute(
        f"SELECT {', '.join(f'c.{name}' for name in Contract._fields[:-1])}, coalesce(r.host || ':' || r.pid, '')"
        " FROM contracts c LEFT JOIN replicas r ON r.token = c.holder AND r.expires_at > clock_timestamp()"
        " WHERE c.use_id = %s AND (%s::text[] IS NULL OR c.contract = ANY(%s)) ORDER BY c.contract",
        (use, only if only is None else list(only), only if only is None else list(only)),
    )
    return [Contract(*row) for row in rows]


def _read_known(connection: Connection, use: int, contracts: Sequence[str]) -> list[Known]:
    """Contracts of this replica as they are, for claims."""
    rows = connection.execute(
        f"SELECT {COLUMNS}, coalesce(p.host || ':' || p.pid, '') FROM contracts c"
        " LEFT JOIN replicas p ON p.token = c.holder AND p.expires_at > clock_timestamp()"
        " WHERE c.use_id = %s AND c.contract = ANY(%s)",
        (use, list(contracts)),
    )
    return [known_of(columns, holder) for *columns, holder in rows]


def read_ranges(connection: Connection, use: int, contract: str | None = None) -> list[Range]:
    """The spans still to be read, of one contract or of all, oldest first."""
    rows = connection.execute(
        "SELECT id, contract, start_at, end_at, purpose FROM ranges"
        " WHERE use_id = %s AND (%s::text IS NULL OR contract = %s) ORDER BY start_at, id",
        (use, contract, contract),
    )
    return [Range(id_, name, Window(start, end), purpose) for id_, name, start, end, purpose in rows]


def read_filtered(connection: Connection, use: int) -> dict[str, int]:
    """How many events were left out for which reason, ever."""
    query = "SELECT reason, sum(count)::bigint FROM filtered WHERE use_id = %s GROUP BY reason ORDER BY reason"
    return dict(connection.execute(query, (use,)).fetchall())


def set_fact(connection: Connection, use: int, name: str, value: str) -> None:
    """Remember something by name, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO facts VALUES (%s, %s, %s) ON CONFLICT (use_id, name) DO UPDATE SET value = excluded.value",
        (use, name, value),
    )
