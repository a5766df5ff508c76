"""The words of the page: rules over the state, the clock and the figures of the daemon. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from poller.config import Config
from poller.core.amounts import duration, plural
from poller.core.gaps import summary
from poller.ionos.api import WARN_EXPIRY_SECONDS
from poller.pipeline.status import Seen, Use, away_host, is_polled, is_stale
from poller.service.readiness import gaps_told
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract, Range

OK, WARN, BAD = "ok", "warn", "bad"
_MOST_PENDING = 3


class View(NamedTuple):
    """All data of the page, at `now` (unix seconds).

    `reasons` say why the daemon is not ready, or makes no progress. `token_expiries` are by account, in unix seconds;
    `per_minute` are the entries collected in each of the last minutes, None if they were not counted.
    """

    now: float
    config: Config
    seen: Seen
    reasons: Sequence[str] = ()
    token_expiries: Mapping[str, float] = {}
    per_minute: Sequence[int | None] = ()

    @property
    def run(self) -> Use | None:
        return next((use for use in self.seen.uses if use.name == "run"), None)

    @property
    def state(self) -> Overview | None:
        return self.run.state if self.run is not None else None

    @property
    def polled(self) -> list[Contract]:
        """The contracts that the configuration does not leave out."""
        return [row for row in self.state.contracts if is_polled(row, self.config)] if self.state else []

    @property
    def pending(self) -> list[Range]:
        """The spans of them that are still to be read besides the present."""
        polled = {row.contract for row in self.polled}
        return [span for span in self.state.pending if span.contract in polled] if self.state else []


class Word(NamedTuple):
    """A state in words, and how good it is."""

    level: str
    text: str
    more: str = ""


def clock(at: float, now: float) -> str:
    """A time in UTC: of today without the date."""
    when, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return f"{when:%H:%M:%S}" if when.date() == today.date() else f"{when:%Y-%m-%d %H:%M:%S}"


def level(view: View) -> str:
    """The worst of all levels."""
    levels = {word.level for word in problems(view)}
    return BAD if BAD in levels else WARN if WARN in levels else OK


def headline(view: View) -> str:
    """The main sentence of the page: whether the collection is complete."""
    if view.state is None:
        return "The state cannot be read"
    rows, pending = view.polled, view.pending
    if not rows:
        return "No contract has been read yet"
    polled = {row.contract for row in rows}
    gaps = [gap.window for gap in view.state.gaps if gap.is_open and gap.contract in polled]
    missing = [summary(gaps)] if gaps else []
    missing += [f"{plural(len(pending), 'span')} still to be read"] if pending else []
    rest = " and ".join(missing)
    up_to = f"Complete up to {clock(min(row.watermark for row in rows), view.now)} UTC"
    return f"{up_to}, but for {rest}" if rest else up_to


def subline(view: View) -> str:
    """Number of contracts, lag, and whether the sinks have all events."""
    if view.state is None or not view.polled:
        return "The list below says why."
    behind = view.now - min(row.watermark for row in view.polled)
    waiting = [row for row in view.state.sinks if row.waiting]
    has = "every sink has all that was collected" if view.state.sinks else "there is no sink"
    if waiting:
        has = f"{plural(len(waiting), 'sink')} of {len(view.state.sinks)} {'has' if len(waiting) == 1 else 'have'} more to take"
    return f"{plural(len(view.polled), 'contract')}, {duration(behind)} behind now; {has}."


def problems(view: View) -> list[Word]:
    """The problems and the notes, the worst first."""
    found = [Word(BAD, str(failure)) for failure in view.seen.failures]
    found += [Word(BAD, reason) for reason in view.reasons]
    if view.state is not None and not view.polled and not view.reasons:
        found.append(Word(WARN, "no contract has been found yet"))
    if view.state is not None:
        found += [Word(BAD, f"the books do not balance: {line}") for line in view.state.imbalances()]
        told = " ".join(view.reasons)
        found += _of_contracts(view, view.state, told)
        found += _of_sinks(view, view.state, told)
    found += _of_tokens(view)
    return sorted(found, key=lambda word: word.level != BAD)


def _of_contracts(view: View, state: Overview, told: str) -> Iterator[Word]:
    for row in view.polled:
        if row.failure and f"contract {row.contract}:" not in told:
            yield Word(WARN, f"contract {row.contract}: the last poll failed and is tried again: {row.failure}")
    for contract, gaps in gaps_told(state.gaps).items():
        yield Word(WARN, f"contract {contract}: complete but for {gaps} (`ionos-poller gaps list`)")
    pending = view.pending
    for span in pending[:_MOST_PENDING]:
        yield Word(WARN, f"contract {span.contract}: not complete yet, {span.window} is still to be read")
    if len(pending) > _MOST_PENDING:
        yield Word(WARN, f"{plural(len(pending) - _MOST_PENDING, 'more span')} still to be read")
    for line in [*state.replica_troubles(), *state.clock_troubles(view.now)]:
        yield Word(WARN, line)


def _of_sinks(view: View, state: Overview, told: str) -> Iterator[Word]:
    for row in state.sinks:
        name = row.sink.name
        if row.dead_letters:
            words = f"sink {name} has refused {plural(row.dead_letters, 'entry')} for good"
            yield Word(WARN, f"{words} (`ionos-poller dead-letters list`)")
        word = sink_word(view, row)
        if word.level != OK and f"sink {name}" not in told:
            yield Word(word.level, f"sink {name}: {word.text}{f': {word.more}' if word.more else ''}")


def _of_tokens(view: View) -> Iterator[Word]:
    for account, expires_at in sorted(view.token_expiries.items()):
        left = expires_at - view.now
        if left <= 0:
            yield Word(
                BAD,
                f"account {account}: the API token has expired; make a new one and put it where this one comes from",
            )
        elif left < WARN_EXPIRY_SECONDS:
            words = f"account {account}: the API token expires in {duration(left)}"
            yield Word(WARN, f"{words}; make a new one and put it where this one comes from")


def contract_word(view: View, row: Contract) -> Word:
    """The state of a contract in words."""
    if not is_polled(row, view.config):
        return Word(OK, "left out by the configuration")
    ago = f"last good poll {duration(view.now - row.succeeded_at)} ago" if row.succeeded_at else "no good poll yet"
    if row.failure:
        return Word(
            BAD if is_stale(row, view.config.poll, view.now) else WARN, "last poll failed", f"{row.failure}; {ago}"
        )
    behind = f"{duration(view.now - row.watermark)} behind"
    return Word(BAD, behind, ago) if is_stale(row, view.config.poll, view.now) else Word(OK, behind)


def sink_word(view: View, row: SinkOverview) -> Word:
    """The state of a sink in words."""
    sink = row.sink
    if sink.name not in {configured.name for configured in view.config.sinks}:
        what = f"`ionos-poller sinks forget {sink.name}` deletes what waits for it"
        return Word(WARN, "no longer in the configuration", what)
    if view.run is not None and (host := away_host(view.config, row, view.run)):
        return Word(WARN, f"{host} is away", "it alone writes this sink: start `run` there, or change `host`")
    again = f"next try in {duration((sink.retry_at or view.now) - view.now)}"
    at_once = f"{sink.failure} (`ionos-poller sinks retry {sink.name}` tries it at once)"
    if sink.parked_at is not None:
        return Word(BAD, f"parked for {duration(view.now - sink.parked_at)}, {again}", at_once)
    if sink.retry_at is not None:
        return Word(WARN, f"attempt {sink.attempts}, {again}", at_once)
    if row.postponed:
        first = row.postponed[0]
        own = "waits on its own" if len(row.postponed) == 1 else "wait on their own"
        count = f"{plural(len(row.postponed), 'contract')} {own}"
        again = f"next try in {duration(first.retry_at - view.now)}"
        return Word(WARN, count, f"contract {first.contract}, {again}: {first.failure}")
    return Word(OK, "delivering" if row.waiting else "up to date")
