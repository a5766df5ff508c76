"""The rows that every backend of the state shares: contracts, windows, sinks and what waits for them. Pure values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from poller.core.errors import EXIT_OK, StateError
from poller.core.events import Event, OutboxEvent
from poller.core.gaps import Unread
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.gaps import Gap

HOUR_SECONDS = 3600


class Contract(NamedTuple):
    """What the state knows of a contract. Times in unix seconds; `failure` is empty when the last poll succeeded.

    All that was visible a span before `audited_at` has been compared with the API's counts, or collecting had not begun then.
    `holder` names the replica that collects it (`host:pid`); empty where the state belongs to one machine, or nobody holds it.
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
    holder: str = ""

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


class Count(NamedTuple):
    """How many entries of an hour were collected, and of how many of them the identity is no longer known."""

    collected: int
    forgotten: int


class Prepared(NamedTuple):
    """The events to keep, perhaps rewritten, and how many of the others were left out for which reason."""

    kept: Sequence[Event]
    filtered: Mapping[str, int] = {}


Prepare = Callable[[Sequence[Event]], Prepared]
"""Filters and rewrites the new events of a contract. It is called inside a transaction: it computes, and asks nobody."""


class WindowRead(NamedTuple):
    """A window as it was read. Times in unix seconds.

    `events` are all that came, each once and oldest first; `fetched` counts what the API sent. `advance_to` moves the
    watermark, but never past the window's end (None: it stays). `of_range` is the span that the window is the next piece of
    (None: of none).
    `is_repair`: an audit asked for it. `unread` is what could not be read of it, which is tried again at `next_try_at`.
    `elsewhere` are the identities that another use has delivered to the same sinks: they are entered, and not sent again.
    """

    window: Window
    events: Sequence[Event]
    fetched: int
    now: int
    advance_to: int | None = None
    of_range: int | None = None
    is_repair: bool = False
    unread: Sequence[Unread] = ()
    next_try_at: int = 0
    elsewhere: Collection[bytes] = ()

    @property
    def watermark(self) -> int:
        """Up to where the contract is complete with it; 0 where it says nothing of that."""
        return 0 if self.advance_to is None else min(self.advance_to, self.window.end)


class Committed(NamedTuple):
    """What a window brought, as the transaction decided it.

    `unseen` are the events that the ledger did not know, `new_count` how many of them nobody else has delivered either,
    `kept_count` how many of those went to the outbox. `late` of them lie before the watermark; `repaired` were missing, as an
    audit said.
    """

    unseen: Sequence[Event]
    new_count: int
    kept_count: int
    late: int = 0
    repaired: int = 0
    opened: Sequence[Gap] = ()
    closed: Sequence[Gap] = ()


def late_and_repaired(
    unseen: Sequence[Event], watermark: int, pending: Sequence[Range], read: WindowRead
) -> tuple[int, int]:
    """How many of the new entries of a window are late, and how many an audit asked for.

    Only a window of the present can bring late ones. What lies in a span that is still to be read is not late: nobody called that
    complete.
    """
    repaired = len(unseen) if read.is_repair else 0
    if read.advance_to is None:
        return 0, repaired
    old = [event.time_us // 1_000_000 for event in unseen if event.is_timed and event.time_us < watermark * 1_000_000]
    if not old:
        return 0, repaired
    asked = [{span.purpose for span in pending if span.window.start <= second < span.window.end} for second in old]
    return sum(not purposes for purposes in asked), sum("repair" in purposes for purposes in asked)


class Sink(NamedTuple):
    """What the state knows of a sink. `retry_at`, `postponed_at`, `parked_at`, `succeeded_at` in unix seconds.

    `output_offset` is how many bytes of its own output are settled, where it has one.
    """

    name: str
    type: str
    assigned: int = 0
    delivered: int = 0
    dead: int = 0
    attempts: int = 0
    retry_at: float | None = None
    postponed_at: float | None = None
    parked_at: float | None = None
    failure: str = ""
    succeeded_at: float | None = None
    output_offset: int | None = None


SINK_COLUMNS = tuple("mark" if name == "output_offset" else name for name in Sink._fields)
"""The columns of those fields in a state: one kept its first name."""


def unknown_sink(sink: str) -> StateError:
    """Of a sink that a person has forgotten while we worked for it."""
    return StateError(f"the state does not know the sink {sink} any more", hint="it was forgotten: start again")


class Postponed(NamedTuple):
    """A contract that waits on its own at a sink, which takes others: when it is tried again, and why. Times in unix seconds.

    `attempts` is how often in a row it was not taken; 0 while it catches up with the others.
    """

    contract: str
    attempts: int
    postponed_at: float
    retry_at: float
    failure: str
    since: float


class Batch(NamedTuple):
    """Events to send next, in order, and whether more wait behind them."""

    events: Sequence[OutboxEvent]
    has_more: bool


class Weight(NamedTuple):
    """What waits for a sink: events, their bytes at most, and when the first was collected (None: nothing waits)."""

    events: int
    bytes: int
    since: int | None


class DeadLetter(NamedTuple):
    """An event that a sink refused for good, and why: the server's words, without secrets."""

    event: OutboxEvent
    status: int | None
    reason: str


class Size(NamedTuple):
    """What lies in the outbox, and what the dead letters weigh: both count against `outbox.max_bytes`."""

    events: int
    bytes: int
    letter_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        return self.bytes + self.letter_bytes


class Replica(NamedTuple):
    """A process that works on a state with others. Times in unix seconds, by the clock of the state; `contracts` is a count.

    `config` is a fingerprint of its configuration: replicas with different ones treat the same entry differently.
    """

    host: str
    pid: int
    version: str
    since: float
    seen_at: float
    contracts: int
    config: str


class Diagnosis(NamedTuple):
    """What a look at a state found: `name` says where, `hint` is the remedy, `exit_code` that of a command it would stop.

    `use` is set where the state of that use can be read as it is.
    """

    level: Literal["ok", "warn", "fail"]
    name: str
    message: str
    hint: str = ""
    exit_code: int = EXIT_OK
    use: str = ""
