"""Reads a state from the database: the overview for `status` and `/metrics`, and the events of another use."""

from __future__ import annotations

from collections.abc import Sequence

from poller.core.events import Event
from poller.core.windows import Window
from poller.store.letters import NO_LETTERS
from poller.store.overview import FINISHED, Overview, SinkOverview, TakenBack
from poller.store.postgres import archives, dead_letters, ledger, outbox
from poller.store.postgres.contract_rows import read_contracts, read_fact, read_ranges
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.gaps import read_gaps
from poller.store.postgres.journal import read_journal
from poller.store.rows import Contract, Replica


def read_overview(connection: Connection, use: int) -> Overview:
    """The state of a use, in a transaction that sees one moment."""
    letters = dead_letters.read_books(connection, use)
    waiting = outbox.read_waiting(connection, use)
    postponed = outbox.read_postponed(connection, use)
    holders = dict(
        connection.execute(
            "SELECT k.name, r.host || ':' || r.pid FROM sinks k JOIN replicas r ON r.token = k.holder"
            " AND r.expires_at > clock_timestamp() WHERE k.use_id = %s",
            (use,),
        ).fetchall()
    )
    filtered = "SELECT reason, sum(count)::bigint FROM filtered WHERE use_id = %s GROUP BY reason ORDER BY reason"
    sinks = [
        SinkOverview(
            sink,
            *waiting.get(sink.name, (0, None)),
            dead_letters=letters.get(sink.name, NO_LETTERS).at_hand,
            postponed=postponed.get(sink.name, []),
            holder=holders.get(sink.name, ""),
        )
        for sink in outbox.read_sinks(connection, use)
    ]
    return Overview(
        contracts=read_contracts(connection, use),
        sinks=sinks,
        outbox=outbox.read_size(connection, use),
        filtered=dict(connection.execute(filtered, (use,)).fetchall()),
        pending=read_ranges(connection, use),
        letters=letters,
        taken_back=TakenBack.of(read_fact(connection, use, "taken_back")),
        gaps=read_gaps(connection, use),
        created_at=connection.value("SELECT created_at FROM uses WHERE id = %s", (use,)),
        last_action=next(iter(read_journal(connection, use, limit=1)), None),
        finished=read_fact(connection, use, FINISHED),
        replicas=read_replicas(connection, use),
        archives=archives.read_heads(connection, use),
    )


def read_replicas(connection: Connection, use: int) -> list[Replica]:
    """The live replicas, oldest first."""
    rows = connection.execute(
        "SELECT r.host, r.pid, r.version, extract(epoch FROM r.since)::float8, extract(epoch FROM r.seen_at)::float8,"
        " (SELECT count(*) FROM contracts c WHERE c.use_id = r.use_id AND c.holder = r.token), r.config FROM replicas r"
        " WHERE r.use_id = %s AND r.expires_at > clock_timestamp() ORDER BY r.since, r.host, r.pid",
        (use,),
    )
    return [Replica(*row) for row in rows]


class Collected:
    """The events that another use, such as `run`, has collected and sent to some sinks."""

    def __init__(self, database: Database, use: int, sinks: Sequence[str]) -> None:
        """Only events that were collected after that use knew all these `sinks` count."""
        self._database = database
        self._use = use
        self._sinks = list(sinks)
        known = database.read(lambda connection: {sink.name for sink in outbox.read_sinks(connection, use)})
        self.knows_sinks = known.issuperset(sinks)

    def unseen(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        if not self.knows_sinks:
            return events

        def work(connection: Connection) -> list[Event]:
            after = connection.value(
                "SELECT coalesce(max(ledger_number), 0) FROM places WHERE use_id = %s AND contract = %s AND sink = ANY(%s)",
                (self._use, contract, self._sinks),
            )
            return ledger.unseen(connection, self._use, contract, events, after=after)

        return self._database.read(work)

    def unknown(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        return self._database.read(lambda connection: ledger.unseen(connection, self._use, contract, events))

    def contract(self, contract: str) -> Contract | None:
        rows = self._database.read(lambda connection: read_contracts(connection, self._use, [contract]))
        return next(iter(rows), None)

    def accepted_gaps(self, contract: str) -> Sequence[Window]:
        gaps = self._database.read(lambda connection: read_gaps(connection, self._use, contract))
        return [gap.window for gap in gaps if gap.is_accepted]

    def forgotten(self, contract: str, window: Window) -> int:
        if not self.knows_sinks:
            return 0
        counts = self._database.read(
            lambda connection: ledger.counts(connection, self._use, contract, window.start, window.end)
        )
        return sum(count.forgotten for count in counts.values())

    def close(self) -> None:
        """Does nothing: no resource is held."""
