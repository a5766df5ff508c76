"""The states at one moment, for `status`, the page and `/status.json`. Reads only."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NamedTuple

from poller.config import Config, Poll
from poller.config.sink_base import LocalSink
from poller.core import hours
from poller.core.errors import StateError
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import fingerprint
from poller.core.mapping import escaped
from poller.core.windows import format_time
from poller.store.gaps import Gap
from poller.store.journal import JournalEntry
from poller.store.letters import NO_LETTERS, LetterBooks
from poller.store.overview import Overview, SinkOverview
from poller.store.protocols import Stores
from poller.store.rows import Contract, Postponed, Replica

STALE_INTERVALS = 3  # after so many without a successful poll, something is wrong
_TOLD_BY_HOURS = ("compared_start", "compared_end", "differing")


class Seen(NamedTuple):
    """All states and their place: the readable ones, and the problems of the others."""

    uses: list[Use]
    failures: list[StateError]
    place: str = ""


class Use(NamedTuple):
    """The state of one use: its place, its content, and the process of this machine that works on it, if any."""

    name: str
    where: str
    state: Overview
    process: int | None


def read_status(stores: Stores) -> Seen:
    """All states.  Raises: StateError if there is none, or it cannot be read."""
    seen = Seen([], [], stores.place)
    for use in sorted(stores.uses(), key=_by_use):
        try:
            seen.uses.append(read_use(stores, use))
        except StateError as error:
            seen.failures.append(error)
    seen.failures.extend(stores.missing().values())
    if not seen.uses and not seen.failures:
        other = "state.url" if "://" in stores.place else "--state-dir"
        hint = f"run `ionos-poller fetch` or `run` first, or name another {other}"
        raise StateError(f"no state in {stores.place}", hint=hint)
    return seen


def read_use(stores: Stores, use: str) -> Use:
    """The state of one use.  Raises: StateError if it does not exist, or cannot be read."""
    return Use(use, stores.where(use), stores.snapshot(use), stores.holder(use))


def _by_use(use: str) -> tuple[int, str]:
    """The daemon's first, the backfills' last."""
    return {"run": 0, "fetch": 1}.get(use, 2), use


def is_polled(row: Contract, config: Config) -> bool:
    """Whether the configuration includes a contract and its account."""
    return config.poll.wants(row.contract) and any(account.name == row.account for account in config.accounts)


def is_stale(row: Contract, poll: Poll, now: float) -> bool:
    """Whether the last successful poll of a contract is too old. `now` in unix seconds."""
    return now - (row.succeeded_at or 0) > STALE_INTERVALS * poll.interval_seconds


def has_left(config: Config, row: SinkOverview, use: Use) -> bool:
    """Whether a sink is not in the configuration any more. Entries may still wait for it."""
    return use.name == "run" and row.sink.name not in {sink.name for sink in config.sinks}


def away_host(config: Config, row: SinkOverview, use: Use) -> str:
    """The only machine that writes to this sink, if replicas run, but none of them there; else empty."""
    hosts = {replica.host for replica in use.state.replicas} if use.name == "run" else ()
    for sink in config.sinks if hosts else ():
        if sink.name == row.sink.name and isinstance(sink, LocalSink) and sink.host and sink.host not in hosts:
            return sink.host
    return ""


def status_data(seen: Seen, config: Config) -> dict[str, object]:
    """Everything for programs: the output of `status --json`."""
    return {
        "uses": {use.name: _use_data(use, config) for use in seen.uses},
        "gaps": [{"use": use.name, **gap_data(gap)} for use in seen.uses for gap in use.state.gaps],
        "replicas": [{"use": use.name, **replica_data(row)} for use in seen.uses for row in use.state.replicas],
        "failures": [escaped(str(failure)) for failure in seen.failures],
    }


def replica_data(row: Replica) -> dict[str, object]:
    """A replica for programs."""
    return {**row._asdict(), "since": _time(row.since), "seen_at": _time(row.seen_at)}


def gap_data(gap: Gap) -> dict[str, object]:
    """A gap for programs."""
    return {
        "id": gap.id,
        "contract": gap.contract,
        "start": format_time(gap.start),
        "end": format_time(gap.end),
        "seconds": gap.window.seconds,
        "kind": gap.kind,
        "reason": gap.reason,
        "first_seen": format_time(gap.first_seen),
        "tries": gap.tries,
        "next_try": format_time(gap.next_try_at) if gap.is_open else None,
        "accepted": gap.is_accepted,
    }


def action_data(entry: JournalEntry) -> dict[str, object]:
    """An entry of the journal for programs."""
    data = entry._asdict()
    count = data.pop("affected")
    return {**data, "at": format_time(entry.at), "count": count}


def _use_data(use: Use, config: Config) -> dict[str, object]:
    now, state = time.time(), use.state
    # The holder of a contract delivers it, except to sinks that one replica delivers for all.
    holders = ", ".join(sorted({row.holder for row in state.contracts if row.holder}))
    return {
        "process": use.process,
        "created_at": _time(state.created_at),
        "finished_at": state.finished,
        "last_action": action_data(state.last_action) if state.last_action else None,
        "contracts": [
            {
                **{name: value for name, value in row._asdict().items() if name not in _TOLD_BY_HOURS},
                "complete_from": format_time(row.origin),
                "watermark": format_time(row.watermark),
                "lag_seconds": round(now - row.watermark, 3),
                "configured": is_polled(row, config),
                "hours": {"start": format_time(hours.first_hour(now)), "states": hours_of(row, state, now)},
            }
            for row in state.contracts
        ],
        "sinks": [
            {
                "name": row.sink.name,
                "type": row.sink.type,
                "configured": not has_left(config, row, use),
                "assigned": row.sink.assigned,
                "delivered": row.sink.delivered,
                "dead": row.sink.dead,
                "waiting": row.waiting,
                "dead_letters": row.dead_letters,
                **_letters(state.letters.get(row.sink.name, NO_LETTERS)),
                "attempts": row.sink.attempts,
                "retry_at": _time(row.sink.retry_at),
                "parked_at": _time(row.sink.parked_at),
                "failure": row.sink.failure,
                "postponed": [_postponed(one) for one in row.postponed],
                "archive": _archive(state.archives.get(row.sink.name)),
                "holder": "" if away_host(config, row, use) else row.holder or holders,
                "balanced": row.is_balanced and state.letters.get(row.sink.name, NO_LETTERS).is_balanced,
            }
            for row in state.sinks
        ],
        "pending": [
            {
                "contract": span.contract,
                "start": format_time(span.window.start),
                "end": format_time(span.window.end),
                "purpose": span.purpose,
            }
            for span in state.pending
        ],
        "gaps": [gap_data(gap) for gap in state.gaps],
        "letters": {name: {**row._asdict(), "balanced": row.is_balanced} for name, row in state.letters.items()},
        "clock_troubles": state.clock_troubles(now),
        "filtered": state.filtered,
        "outbox": state.outbox._asdict(),
        "balanced": not state.imbalances(),
        "imbalances": state.imbalances(),
    }


def _postponed(row: Postponed) -> dict[str, object]:
    """A contract that a sink does not accept while it accepts others."""
    at = {name: _time(getattr(row, name)) for name in ("since", "postponed_at", "retry_at")}
    return {**row._asdict(), **at}


def _archive(head: Head | None) -> dict[str, object] | None:
    """The head of an archive: its newest digest, for `archive verify --head NUMBER:SHA256`."""
    if head is None or not head.number:
        return None
    return {
        "number": head.number,
        "sha256": head.sha256,
        "entries": head.entries,
        "written_at": _time(head.written_at),
        "key": fingerprint(head.key) if head.key else None,
    }


def hours_of(row: Contract, state: Overview, now: float) -> list[str]:
    """The counts of the last 24 hours of a contract, oldest first."""
    return hours.states(
        now,
        origin=row.origin,
        watermark=row.watermark,
        compared=row.compared,
        gaps=[gap.window for gap in state.gaps if gap.contract == row.contract],
        pending=[span.window for span in state.pending if span.contract == row.contract],
    )


def _letters(books: LetterBooks) -> dict[str, int]:
    return {f"letters_{name}": getattr(books, name) for name in ("written", "replayed", "purged")}


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
