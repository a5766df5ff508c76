"""The right of one thread to collect one contract, and its commits.

A commit makes its decisions under the lock of its contract's row, whose `holder` must be its own token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from poller.core.errors import LeaseLostError
from poller.core.windows import Window
from poller.store.gaps import Gap
from poller.store.postgres import gaps, ledger, outbox
from poller.store.postgres.contract_rows import read_ranges
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.quiet import Known, Quiet
from poller.store.postgres.replicas import Replica
from poller.store.rows import Committed, Contract, Prepare, Prepared, Range, WindowRead, late_and_repaired


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
        # The spans that must still be read, as known to this claim; None: not read from the database yet.
        self._spans: dict[int, Window] | None = None

    def begin(self, known: Known) -> None:
        """Begin with the contract as it is now, and keep the replica from giving it back."""
        self.row, self._known = known.row, known
        self._replica.take_in_hand([self.row.contract])

    def taken_back(self, watermark: int) -> None:
        """Note that the watermark was set to an earlier time on purpose."""
        self._known = self._known._replace(row=self._known.row._replace(watermark=watermark))

    def ranges(self) -> Sequence[Range]:
        if self._known.is_plain:
            return ()
        ranges = self._database.read(lambda connection: read_ranges(connection, self._use, self.row.contract))
        self._spans = {span.id: span.window for span in ranges}
        return ranges

    def _known_spans(self) -> dict[int, Window]:
        if self._spans is None:
            self._spans = {span.id: span.window for span in self.ranges()}
        return self._spans

    def gaps(self) -> Sequence[Gap]:
        if self._known.is_plain:
            return ()
        return self._database.read(lambda connection: gaps.read_gaps(connection, self._use, self.row.contract))

    def commit(self, read: WindowRead, prepare: Prepare) -> Committed:
        self._ensure_held()
        row = self._known.row
        if self._quiet.is_quiet(self._known, read):
            self._quiet.add(self._token, self._known, advance_to=read.watermark, fetched=read.fetched)
            self._known = self._known._replace(row=row._replace(watermark=max(row.watermark, read.watermark)))
            return Committed((), 0, 0)
        self._quiet.settle(row.contract)
        spans = self._known_spans() if read.of_range is not None else {}
        try:
            done, self._known = self._database.write(lambda connection: self._commit(connection, read, prepare))
        except BaseException:  # also an interrupt
            self._quiet.forget([row.contract])  # the commit may have happened
            raise
        if read.of_range is not None:
            span = spans.pop(read.of_range)
            if read.window.end < span.end:
                spans[read.of_range] = Window(read.window.end, span.end)
        self._quiet.note_seen(self._known, read.events)
        self._note_put(sum(len(event.line) for event in done.unseen))
        return done

    def _commit(self, connection: Connection, read: WindowRead, prepare: Prepare) -> tuple[Committed, Known]:
        use, contract = self._use, self.row.contract
        locked = connection.execute(
            "SELECT watermark, commits, segment, sharing > 0, EXISTS (SELECT 1 FROM gaps WHERE use_id = %s AND contract = %s)"
            " FROM contracts WHERE use_id = %s AND contract = %s AND holder = %s FOR UPDATE",
            (use, contract, use, contract, self._token),
        ).fetchone()
        # Fewer commits, or an earlier watermark: a failover has lost commits of this claim. Their windows are read again.
        if (
            locked is None
            or not self._is_held
            or locked[0] < self._known.row.watermark
            or locked[1] < self._known.commits
        ):
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
                read.watermark, read.fetched, new, read.fetched - len(fresh), len(fresh) - new, late, repaired,
                sum(bool(event.shared_id) for event in unseen), commits + 1, size.segments, new, new,
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
            self._move_range(connection, read.of_range, read.window.end)
        opened, closed = gaps.settle(connection, use, contract, read, has_gaps=has_gaps)
        row = self._known.row._replace(watermark=max(watermark, read.watermark))
        known = Known(row, commits + 1, self._known.is_plain and not has_gaps and not opened)
        return Committed(unseen, len(fresh), new, late, repaired, opened, closed), known

    def end_range(self, id_: int) -> None:
        def work(connection: Connection) -> None:
            query = "SELECT commits FROM contracts WHERE use_id = %s AND contract = %s AND holder = %s FOR UPDATE"
            locked = connection.execute(query, (self._use, self.row.contract, self._token)).fetchone()
            if locked is None or locked[0] < self._known.commits:  # as in `_commit`
                raise self._lost()
            self._move_range(connection, id_, spans[id_].end)

        self._ensure_held()
        spans = self._known_spans()
        if id_ in spans:
            self._database.write(work)
            del spans[id_]

    def _move_range(self, connection: Connection, id_: int, upto: int) -> None:
        """Note that a span was read up to `upto`; a span that was read to its end is deleted.

        All columns must match, because after a failover its number may be another span's.
        """
        known = self._known_spans().get(id_)
        if known is None:
            raise self._lost()
        key = (id_, self._use, self.row.contract, *known)
        where = "WHERE id = %s AND use_id = %s AND contract = %s AND start_at = %s AND end_at = %s"
        if upto < known.end:
            changed = connection.execute(f"UPDATE ranges SET start_at = %s {where}", (upto, *key))
        else:
            changed = connection.execute(f"DELETE FROM ranges {where}", key)
        if changed.rowcount != 1:
            raise self._lost()

    def record_poll(self, now: int, failure: str) -> None:
        self._ensure_held()
        if not failure and self._quiet.known(self.row.contract) is not None:
            self._quiet.add(self._token, self._known, polled_at=now)
            return

        def work(connection: Connection) -> None:
            column = "failed_at" if failure else "succeeded_at"
            query = (
                f"UPDATE contracts SET {column} = %s, failure = %s WHERE use_id = %s AND contract = %s AND holder = %s"
            )
            values = (now, failure, self._use, self.row.contract, self._token)
            if connection.execute(query, values).rowcount != 1:
                raise self._lost()

        self._database.write(work)
        self._quiet.forget([self.row.contract])

    def release(self) -> None:
        """A running commit still completes, or is refused."""
        if self._is_held:
            self._is_held = False
            self._replica.put_down([self.row.contract])
            self._give_back(self)

    def _ensure_held(self) -> None:
        if not self._is_held or self._token != self._replica.token:
            raise self._lost()

    def _lost(self) -> LeaseLostError:
        return LeaseLostError("another replica has it now", contract=self.row.contract)
