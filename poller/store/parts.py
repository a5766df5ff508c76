"""The parts of a state, whatever it is kept in: contracts, outbox, archives, dead letters, gaps, journal.

What `protocols.py` says of all methods holds here, too. A backend's own classes say only what is different there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from poller.core.events import Event
from poller.core.evidence.batches import Head, Packed, PreparedBatch
from poller.core.evidence.compose import Facts
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.gaps import Entry, Gap
from poller.store.journal import Action, JournalEntry
from poller.store.letters import StoredLetter
from poller.store.rows import (
    Batch,
    Committed,
    Contract,
    Count,
    DeadLetter,
    Postponed,
    Prepare,
    Range,
    Sink,
    Size,
    Weight,
    WindowRead,
)


class Contracts(Protocol):
    """The collecting half: contracts, watermarks, ledger, and spans still to be read."""

    def all(self) -> list[Contract]:
        """Every contract, by number."""

    def get(self, contract: str) -> Contract | None: ...

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        """Commits: the start of contracts that are new, at `start`, so that one whose first poll fails is later read from there.

        Of known ones only the account changes.
        """

    def skip_to(self, contract: str, start: int, count: int) -> None:
        """Commits: the watermark at `start`, unless it is there already; the fact `skipped` grows by `count`."""

    def take_back(self, row: Contract, watermark: int, now: int) -> bool:
        """Commits: an earlier watermark, because a clock that was ahead made it, and the fact `taken_back`, for a person.

        Only of a contract in this replica's share, while its watermark is not before that of `row`.  Returns: whether it was set.
        """

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        """Have a span read once more. `by` a person, `count` is of how many entries.

        Commits: the wish, which is not doubled. Where the span reaches up to where collecting began: that it began with the span.
        """

    def ranges(self, contract: str) -> list[Range]:
        """The spans still to be read, oldest first."""

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        """Those of the events, each given once, that are not in the ledger, in the same order. To compare, not to commit."""

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        """Commits: that the contract was audited, and what of it was compared by the API's counts."""

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        """Entries collected by hour, of the hours that begin in `[start, end)`: the hour's start to the count."""

    def take_left_over(self, polled: Collection[str]) -> None:
        """Commits: that what waits of contracts which are not polled, and which nobody holds, is delivered here."""

    def share(self, wanted: Sequence[str]) -> list[str]:
        """Take this replica's fair share of the contracts in `wanted`, and give back what is too much or not wanted.

        To be called every few seconds. A contract with a claim on it is given back later. A backend without replicas has all of
        them, always.  Commits: who holds what.  Returns: those held, in the order of `wanted`.
        """

    def claim(self, contract: str) -> Claim | None:
        """The right to collect a contract, for one thread until `release`; None where it is not known.

        Also where another thread has it, or it is not in our share; one that is in nobody's share is taken.
        """


class Claim(Protocol):
    """The right of one thread to collect one contract. After `release`, or once it is lost, nothing can be written with it."""

    @property
    def row(self) -> Contract:
        """The contract as it was when it was claimed."""

    def ranges(self) -> Sequence[Range]:
        """The spans still to be read, oldest first, as far as they were known when it was claimed."""

    def gaps(self) -> Sequence[Gap]:
        """What could not be read of the contract, oldest first, with what this claim has committed of it."""

    def commit(self, read: WindowRead, prepare: Prepare) -> Committed:
        """Decide what of a window is new, and store it.

        Commits, all in one transaction: the new events to ledger and outbox, the books, what could not be read, and the progress.
        `prepare` is called inside the transaction with those new events that are not `elsewhere`, if there are any.
        Where a window brought nothing new, that may be committed some seconds later, together with others': a crash until then
        means that it is read again. This program sees it at once.
        Raises: LeaseLostError.
        """

    def end_range(self, id_: int) -> None:
        """Commits: that a span was read to its end, though what lay last in it is a gap, which is read on its own."""

    def record_poll(self, now: int, failure: str) -> None:
        """Commits: how the poll ended; `failure` is empty when it succeeded. A success may be committed later, as above."""

    def release(self) -> None:
        """Give the right back. Again: nothing."""


class Outbox(Protocol):
    """The delivering half: what waits for each sink."""

    def register(self, name: str, type_: str) -> None:
        """Commits: a sink. A new one begins behind everything collected so far."""

    def sinks(self) -> list[Sink]:
        """The sinks that are known, by name."""

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        """Commits: that a sink which waits after a failure is tried again now, and who asked.  Returns: whether it waits.

        So are the contracts that wait on their own.
        """

    def retry_at(self, sink: str) -> float | None:
        """When a sink that waits is tried again; None if it does not wait, or is not known."""

    def size(self, *, below: int = 0) -> Size:
        """What lies in the outbox, of all replicas. As long as it is surely below so many bytes, it may be seconds old."""

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        """Commits: piece by piece, the end of a sink and of what waited for it alone; with the first piece who did it.

        Its dead letters stay.  Returns: whether it was known.
        """

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """The right to deliver to a registered sink, for one thread of this process until `release`; None if another has it.

        `is_whole`: of all contracts, also of those that another replica holds; for a sink that one replica delivers. Several
        may have such a place: `Place.hold` says whose turn it is.
        """


class Place(Protocol):
    """Where a sink is in the outbox, and the right to move it on: of all contracts, or of those in this replica's share.

    After `release`, or once it is lost, nothing can be written with it.
    """

    @property
    def row(self) -> Sink:
        """The sink as it was when the place was taken."""

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        """What to send next, within these numbers of events and bytes, but at least one event; None if nothing waits.

        Of a contract that waits on its own, if one is named; else of all others. The events of a contract come in the order of
        their commits. Ask again only when the last batch is settled, or its contract was postponed.
        """

    def hold(self) -> bool:
        """Whether this replica is the one that delivers a sink of which the place is whole.

        Commits: that it is, if no other replica that lives is. A backend without replicas has one, always.
        """

    def has_others(self, contracts: Collection[str]) -> bool:
        """Whether anything waits of contracts that neither wait on their own nor are among these."""

    def postponed(self) -> Sequence[Postponed]:
        """The contracts that wait on their own, in the order of their next tries."""

    def ensure_held(self) -> None:
        """To be called right before sending.  Raises: LeaseLostError when what was read may be another replica's by now."""

    def weight(self) -> Weight:
        """What waits, without reading it."""

    def settle(
        self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None = None
    ) -> None:
        """Move on past the next `count` events of the last batch: those in `dead` were refused for good, all others accepted.

        `output_offset` is how many bytes of the sink's own output that makes, if it has one.

        Commits: the place, the books, the dead letters, and the end of events that all sinks are done with. Nothing for a sink
        that was forgotten meanwhile.  Raises: LeaseLostError.
        """

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        """Commits: that nothing was sent, why, and when to try again, so that a restart loses no backoff."""

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        """Commits: that a contract waits on its own from its first event that is not settled, and when it is tried again.

        What the last batch has of it is not settled with that batch. Once all that waits of it before the sink's place is
        settled, it is one of all again.
        """

    def note_output_offset(self, output_offset: int | None) -> None:
        """Commits: where the sink's own output that is not settled begins, while nothing else changes."""

    def release(self) -> None:
        """Give the right back, also while another thread is in a send. Again: nothing."""


Seal = Callable[[Facts], tuple[bytes, bytes | None]]
"""Makes of what the state says the digest of a batch of an archive, and its signature. It computes, and asks nobody."""


class Archives(Protocol):
    """The archives that sinks write: how far each is, the batch that is being written, and what it holds of each hour.

    A batch is committed whole, objects, digest and signature, before anything of it is written; there is one at a time for each
    archive. Other states (a backfill's) write to the same chain.
    """

    def begin(self, sink: str, now: int) -> Head:
        """How far the archive of a sink is.  Commits: its beginning, if it is new."""

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        """Commits: the head of an archive that another state wrote, and what it holds, by contract and hour's start."""

    def place(self, sink: str) -> str | None:
        """Where the chain is; None if that was never seen."""

    def remember_place(self, sink: str, place: str) -> None:
        """Commits: where the chain is."""

    def begin_anew(self, sink: str, archive: str, place: str, now: int) -> None:
        """Have a new chain at `place` follow the one named `archive`, unless another process has done so.

        Commits: its beginning, its place, the end of what was known of the hours, and of the batch that was being written: its
        events wait again.
        """

    def prepared(self, sink: str) -> PreparedBatch | None:
        """The batch that is being written, by this process or another."""

    def prepare(
        self, sink: str, place: Place, events: int, objects: Sequence[Packed], seal: Seal, now: int, *, writer: str = ""
    ) -> PreparedBatch | None:
        """Commit a batch of the first `events` events that `place` gave last; they are another state's if `writer` names it.

        `objects` are made for the number after the head's.  Commits: the batch.  Returns: it; None, and nothing is committed, if
        another one is being written, or was since the number was looked up.
        Raises: LeaseLostError where another replica delivers the sink now, or these events are not what waits for it any more.
        """

    def complete(self, sink: str, number: int, now: float) -> bool:
        """Batch `number` is written.

        Commits, all in one transaction: the head, what the archive holds and has stated, the end of the batch, and that the sink,
        or the other state whose they are, is past its events.  Returns: whether this call did it; another process may have.
        """

    def archived(self, sink: str, writer: str) -> int:
        """How many events of another state are in the archive; 0 where `complete` has moved on their place, too."""

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        """Commits: what an audit said of hours, by their start: what the API counted, None where a gap lies in the hour."""

    def has_to_state(self, sink: str) -> bool:
        """Whether an hour may have to be stated, though nothing else waits."""


class DeadLetters(Protocol):
    """Reads and commits in pieces; each piece is whole or did not happen."""

    def numbers(self, sink: str | None = None, ids: Sequence[int] = ()) -> list[int]:
        """The numbers of the letters of a sink (None: of all), and of these only `ids` if given, oldest first."""

    def each(self, numbers: Sequence[int]) -> Iterator[StoredLetter]:
        """The letters of these numbers, in this order, one piece in memory at a time; without those that are gone."""

    def find(self, sink: str | None = None, ids: Sequence[int] = (), limit: int | None = None) -> list[StoredLetter]:
        """Letters of a sink (None: of all), and of these only `ids` if given, oldest first, at most `limit`."""

    def replay(self, letters: Iterable[StoredLetter], now: int, *, by: Action | None = None) -> int:
        """Put letters back into the outbox, each for the sink that refused it, as if collected `now`.

        They come after newer ones. Loki needs to know: it uses `collected_at` to detect late events.

        Commits: piece by piece, the events for their sink alone, the books, the end of the letters, and who did it.
        Returns: how many.
        """

    def purge(self, letters: Iterable[StoredLetter], *, by: Action | None = None) -> int:
        """Commits: piece by piece, the end of letters, for good, and who did it. Their sink's books go on counting them as dead.

        Returns: how many.
        """


class Gaps(Protocol):
    """The spans that cannot be read whole. `Claim.commit` opens, shrinks and closes them."""

    def find(self, contract: str | None = None) -> list[Gap]:
        """The gaps of a contract (None: of all), oldest first."""

    def entries(self, gap: int) -> list[Entry]:
        """What came in it and could not be used, in the order in which it came."""

    def retry(self, gap: int, now: int, *, by: Action | None = None) -> None:
        """Commits: that a gap is due now, and not accepted; who says so."""

    def accept(self, gap: int, *, by: Action | None = None) -> None:
        """Commits: that a person takes a gap as it is; who it is."""

    def record_try(self, gap: int, reason: str, next_try_at: int) -> None:
        """Commits: that it could not be read once more, why, and when it is tried again."""


class Journal(Protocol):
    """What people did by hand."""

    def unseen(self) -> list[JournalEntry]:
        """What was written since the last call, by this process or another."""

    def add(self, action: Action) -> None:
        """Commits: the line of something that changes nothing else in the state."""
