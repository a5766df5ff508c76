"""A state at one moment, as plain values: the data of `status`, `/metrics` and the books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from poller.core.evidence.batches import Head
from poller.core.windows import format_time
from poller.store.gaps import Gap
from poller.store.journal import JournalEntry
from poller.store.letters import LetterBooks
from poller.store.rows import Contract, Postponed, Range, Replica, Sink, Size

FINISHED = "finished"
"""The fact of a complete backfill."""
_AHEAD_SECONDS = 60
_SHOWN_SECONDS = 7 * 86_400
_MOST_LINES = 5


class SinkOverview(NamedTuple):
    """A sink, what waits for it (counted, not derived from its books), since when, and its dead letters at hand.

    `postponed` are the contracts that it does not accept while it accepts others. `holder` names the only replica that delivers
    it (`host:pid`); empty if each replica delivers its own contracts.
    """

    sink: Sink
    waiting: int
    waiting_since: int | None
    dead_letters: int
    postponed: Sequence[Postponed] = ()
    holder: str = ""

    @property
    def is_balanced(self) -> bool:
        """Whether each assigned event is delivered, dead or waiting."""
        return self.sink.assigned == self.sink.delivered + self.sink.dead + self.waiting


class TakenBack(NamedTuple):
    """When a watermark was last taken back because a clock was ahead, and to which time. In unix seconds."""

    at: int
    watermark: int

    @classmethod
    def of(cls, fact: str | None) -> TakenBack | None:
        """As the fact `taken_back` tells it."""
        return cls(*map(int, fact.split())) if fact else None


class Overview(NamedTuple):
    """The whole state, read in one transaction. `pending` are the spans that are still to be read besides the present.

    `letters` are the books of dead letters by sink, also of sinks that were forgotten. `created_at` is when the state was made,
    in unix seconds; None where a program made it that did not note it. `last_action` is what a person did last. `finished` is
    when a backfill had exported all of its range; None for what goes on. `replicas` are the processes that share the state; none
    if it belongs to one machine. `archives` says, by sink, how far each archive is.
    """

    contracts: list[Contract]
    sinks: list[SinkOverview]
    outbox: Size
    filtered: dict[str, int]
    pending: Sequence[Range]
    letters: Mapping[str, LetterBooks]
    taken_back: TakenBack | None
    gaps: Sequence[Gap]
    created_at: int | None
    last_action: JournalEntry | None
    finished: str | None
    replicas: Sequence[Replica]
    archives: Mapping[str, Head]

    @property
    def is_done(self) -> bool:
        """Whether it is a finished backfill without anything that needs a person."""
        has_rest = any(row.waiting or row.dead_letters for row in self.sinks) or any(gap.is_open for gap in self.gaps)
        return self.finished is not None and not has_rest and not self.imbalances()

    def replica_troubles(self) -> list[str]:
        """Problems among the replicas, one line each: different configurations treat the same entry differently."""
        configs: dict[str, list[str]] = {}
        for row in self.replicas:
            configs.setdefault(row.config, []).append(f"{row.host}:{row.pid}")
        if len(configs) < 2:
            return []
        groups = " | ".join(", ".join(names) for names in sorted(configs.values(), key=len, reverse=True))
        return [f"replicas have different configurations: {groups}; give all of them the same one, and reload"]

    def clock_troubles(self, now: float) -> list[str]:
        """Signs in the state that our clock is or was ahead, one line each. `now` in unix seconds."""
        ahead = [row for row in self.contracts if row.watermark > now + _AHEAD_SECONDS]
        lines = [
            f"contract {row.contract}: complete up to {format_time(row.watermark)}, which lies ahead of this machine's clock:"
            " one of the two is wrong, and the next poll takes it back"
            for row in ahead[:_MOST_LINES]
        ]
        if self.taken_back and 0 <= now - self.taken_back.at < _SHOWN_SECONDS:
            at, watermark = map(format_time, self.taken_back)
            lines.append(
                f"this machine's clock was wrong: on {at} what was complete was taken back to {watermark}, and read again"
            )
        return lines

    def imbalances(self) -> list[str]:
        """The imbalances, one line each; empty if the books balance."""
        lines = [
            f"contract {row.contract}: fetched {row.fetched}, but new {row.new} + seen before {row.seen}"
            f" + filtered {row.filtered} = {row.new + row.seen + row.filtered}"
            for row in self.contracts
            if row.fetched != row.new + row.seen + row.filtered
        ]
        lines += [
            f"sink {row.sink.name}: assigned {row.sink.assigned}, but delivered {row.sink.delivered} + dead {row.sink.dead}"
            f" + waiting {row.waiting} = {row.sink.delivered + row.sink.dead + row.waiting}"
            for row in self.sinks
            if not row.is_balanced
        ]
        lines += [
            f"dead letters of {sink}: written {row.written}, but at hand {row.at_hand} + replayed {row.replayed}"
            f" + purged {row.purged} = {row.at_hand + row.replayed + row.purged}"
            for sink, row in self.letters.items()
            if not row.is_balanced
        ]
        by_contract, by_reason = sum(row.filtered for row in self.contracts), sum(self.filtered.values())
        if by_contract != by_reason:
            lines.append(f"filtered: {by_contract} by contract, but {by_reason} by reason")
        return lines
