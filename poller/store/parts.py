"""The parts of a state, for every backend: contracts, outbox, archives, dead letters, gaps, journal.

The rules in `protocols.py` for all methods hold here, too. The classes of a backend document only their differences.
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
    """The collecting half: contracts, watermarks, ledger, and spans that must still be read."""

    def all(self) -> list[Contract]:
        """Every contract, by number."""

    def get(self, contract: str) -> Contract | None: ...

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        """Commits: the start of new contracts at `start`, so that a contract whose first poll fails is later read from there.

        For known contracts only the account changes.
        """

    def skip_to(self, contract: str, start: int, count: int) -> None:
        """Commits: the watermark at `start`, unless it is that far already; the fact `skipped` grows by `count`."""

    def take_back(self, row: Contract, watermark: int, now: int) -> bool:
        """Commits: an earlier watermark, because a clock was ahead, and the fact `taken_back`, for a person.

        Only for a contract in this replica's share, while its watermark is not before that of `row`.  Returns: whether it was
        set.
        """

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        """Request that a span is read once more, by the person `by`, for `count` entries.

        Commits: the request, once. If the span ends where collecting began, the contract begins with the span from now on.
        """

    def ranges(self, contract: str) -> list[Range]:
        """The spans that must still be read, oldest first."""

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        """The events that are not in the ledger, in the same order; each event must be given once. For comparing only."""

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        """Commits: that the contract was audited, and the span that was compared by the API's counts."""

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        """Collected entries by hour, for the hours that begin in `[start, end)`: start of the hour -> count."""

    def take_left_over(self, polled: Collection[str]) -> None:
        """Commits: that this replica delivers the waiting events of contracts that are not polled and that nobody holds."""

    def share(self, wanted: Sequence[str]) -> list[str]:
        """Take this replica's fair share of the contracts in `wanted`, and release the others.

        Call it every few seconds. A contract with a claim is released later. A backend without replicas always has all of them.
        Commits: who holds which contract.  Returns: the held ones, in the order of `wanted`.
        """

    def claim(self, contract: str) -> Claim | None:
        """The right to collect a contract, for one thread until `release`. A contract in nobody's share is taken.

        None if the contract is unknown, another thread has it, or it is in another replica's share.
        """


class Claim(Protocol):
    """The right of one thread to collect one contract. After `release` or a loss, nothing can be written with it."""

    @property
    def row(self) -> Contract:
        """The contract as it was when it was claimed."""

    def ranges(self) -> Sequence[Range]:
        """The spans that must still be read, oldest first, as known when it was claimed."""

    def gaps(self) -> Sequence[Gap]:
        """The gaps of the contract, oldest first, including those that this claim has committed."""

    def commit(self, read: WindowRead, prepare: Prepare) -> Committed:
        """Decide which events of a window are new, and store them.

        Commits, all in one transaction: the new events to ledger and outbox, the books, the unread spans, and the watermark.
        `prepare` is called inside the transaction with the new events that are not `elsewhere`, if there are any.
        A window without new events may be committed some seconds later, together with others: after a crash until then, it is
        read again. This program sees it at once.
        Raises: LeaseLostError.
        """

    def end_range(self, id_: int) -> None:
        """Commits: that a span was read to its end, although its last part is a gap. Gaps are read separately."""

    def record_poll(self, now: int, failure: str) -> None:
        """Commits: the result of the poll; `failure` is empty after a success. A success may be committed later, as above."""

    def release(self) -> None:
        """Release the right. A second call does nothing."""


class Outbox(Protocol):
    """The delivering half: the events that wait for each sink."""

    def register(self, name: str, type_: str) -> None:
        """Commits: a sink. A new sink begins after everything that was collected so far."""

    def sinks(self) -> list[Sink]:
        """The known sinks, by name."""

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        """Commits: that a sink and its contracts that wait alone are tried again now, and who asked.

        Returns: whether the sink waits.
        """

    def retry_at(self, sink: str) -> float | None:
        """When a waiting sink is tried again; None if it does not wait, or is unknown."""

    def size(self, *, below: int = 0) -> Size:
        """The size of the outbox, of all replicas. While it is certainly below `below` bytes, the number may be seconds old."""

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        """Commits: piece by piece, the removal of a sink and of the events that wait for it alone; with the first piece, who did
        it.

        Its dead letters stay.  Returns: whether it was known.
        """

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """The right to deliver to a registered sink, for one thread of this process until `release`; None if another has it.

        `is_whole`: for all contracts, also those of other replicas, for a sink that one replica delivers. Several replicas may
        have such a place: `Place.hold` decides which one delivers.
        """


class Place(Protocol):
    """The position of a sink in the outbox, and the right to move it: for all contracts, or for those in this replica's share.

    After `release` or a loss, nothing can be written with it.
    """

    @property
    def row(self) -> Sink:
        """The sink as it was when the place was taken."""

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        """The next events to send, within these numbers of events and bytes, but at least one event; None if nothing waits.

        With `contract`, from that contract, which waits alone; otherwise from all others. The events of a contract come in the
        order of their commits. Call again only after the last batch is settled, or its contract is postponed.
        """

    def hold(self) -> bool:
        """Whether this replica delivers a sink whose place is whole.

        Commits: that it does, if no other living replica does. A backend without replicas always does.
        """

    def has_others(self, contracts: Collection[str]) -> bool:
        """Whether any event waits of contracts that neither wait alone nor are among these."""

    def postponed(self) -> Sequence[Postponed]:
        """The contracts that wait alone, in the order of their next attempts."""

    def ensure_held(self) -> None:
        """Call it right before sending.  Raises: LeaseLostError if another replica may have these events now."""

    def weight(self) -> Weight:
        """The waiting events as numbers, without reading them."""

    def settle(
        self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None = None
    ) -> None:
        """Move past the next `count` events of the last batch: those in `dead` were refused, all others were accepted.

        `output_offset` is the settled length of the sink's own output in bytes, if it has one.

        Commits: the place, the books, the dead letters, and the removal of events that all sinks have finished. Nothing for a
        sink that was forgotten meanwhile.  Raises: LeaseLostError.
        """

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        """Commits: that nothing was sent, why, and when to try again, so that a restart keeps the backoff."""

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        """Commits: that a contract waits alone from its first unsettled event on, and when it is tried again.

        Its events in the last batch are not settled with that batch. Once all its events before the sink's place are settled, it
        belongs to the others again.
        """

    def note_output_offset(self, output_offset: int | None) -> None:
        """Commits: the settled length of the sink's own output, while nothing else changes."""

    def release(self) -> None:
        """Release the right, also while another thread is in a send. A second call does nothing."""


Seal = Callable[[Facts], tuple[bytes, bytes | None]]
"""Makes the digest of a batch of an archive, and its signature, from facts of the state. It only computes."""


class Archives(Protocol):
    """The archives that sinks write: the head of each, the batch that is being written, and the entries of each hour.

    A batch is committed whole (objects, digest and signature) before anything of it is written. Each archive has one at a time.
    Other states (of a backfill) write to the same chain.
    """

    def begin(self, sink: str, now: int) -> Head:
        """The head of the archive of a sink.  Commits: its beginning, if it is new."""

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        """Commits: the head of an archive that another state wrote, and its entries by contract and start of the hour."""

    def place(self, sink: str) -> str | None:
        """The place of the chain; None if it was never seen."""

    def remember_place(self, sink: str, place: str) -> None:
        """Commits: the place of the chain."""

    def begin_anew(self, sink: str, archive: str, place: str, now: int) -> None:
        """Begin a new chain at `place` after the one named `archive`, unless another process has done so.

        Commits: its beginning and its place. The known hours are removed, and so is the batch that was being written: its events
        wait again.
        """

    def prepared(self, sink: str) -> PreparedBatch | None:
        """The batch that is being written, by this process or another."""

    def prepare(
        self, sink: str, place: Place, events: int, objects: Sequence[Packed], seal: Seal, now: int, *, writer: str = ""
    ) -> PreparedBatch | None:
        """Commit a batch of the first `events` events that `place` returned last. `writer` names their state if it is another
        one.

        `objects` are made for the number after the head's.  Commits: the batch.  Returns: the batch; None without a commit if
        another batch is being written, or was written since the number was read.
        Raises: LeaseLostError if another replica delivers the sink now, or these events do not wait for it any more.
        """

    def complete(self, sink: str, number: int, now: float) -> bool:
        """Note that batch `number` is written.

        Commits, all in one transaction: the head, the entries and statements of the archive, the end of the batch, and that the
        sink, or the other state, is past its events.  Returns: whether this call did it; another process may have done it.
        """

    def archived(self, sink: str, writer: str) -> int:
        """How many events of another state are in the archive; 0 if `complete` has moved their place as well."""

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        """Commits: the result of an audit by start of the hour: the count of the API, None for an hour with a gap."""

    def has_to_state(self, sink: str) -> bool:
        """Whether an hour may have to be stated, even if no event waits."""


class DeadLetters(Protocol):
    """Reads and commits in pieces. Each piece is one transaction."""

    def numbers(self, sink: str | None = None, ids: Sequence[int] = ()) -> list[int]:
        """The numbers of the letters of a sink (None: of all sinks), only those in `ids` if given, oldest first."""

    def each(self, numbers: Sequence[int]) -> Iterator[StoredLetter]:
        """The letters with these numbers, in this order, one piece in memory at a time; without removed ones."""

    def find(self, sink: str | None = None, ids: Sequence[int] = (), limit: int | None = None) -> list[StoredLetter]:
        """Letters of a sink (None: of all sinks), only those in `ids` if given, oldest first, at most `limit`."""

    def replay(self, letters: Iterable[StoredLetter], now: int, *, by: Action | None = None) -> int:
        """Put letters back into the outbox, each for the sink that refused it, as if collected `now`.

        They come after newer ones. Loki needs to know: it uses `collected_at` to detect late events.

        Commits: piece by piece, the events for their sink alone, the books, the end of the letters, and who did it.
        Returns: how many.
        """

    def purge(self, letters: Iterable[StoredLetter], *, by: Action | None = None) -> int:
        """Commits: piece by piece, the final removal of letters, and who did it. The books of the sink still count them as dead.

        Returns: how many.
        """


class Gaps(Protocol):
    """The spans that cannot be read whole. `Claim.commit` opens, shrinks and closes them."""

    def find(self, contract: str | None = None) -> list[Gap]:
        """The gaps of a contract (None: of all), oldest first."""

    def entries(self, gap: int) -> list[Entry]:
        """The unusable entries in it, in the order of arrival."""

    def retry(self, gap: int, now: int, *, by: Action | None = None) -> None:
        """Commits: that a gap is due now and not accepted, and who requested it."""

    def accept(self, gap: int, *, by: Action | None = None) -> None:
        """Commits: that a person accepts a gap, and who."""

    def record_try(self, gap: int, reason: str, next_try_at: int) -> None:
        """Commits: that another attempt to read it failed, why, and when the next one is."""


class Journal(Protocol):
    """The actions of people."""

    def unseen(self) -> list[JournalEntry]:
        """The lines since the last call, of this process or another."""

    def add(self, action: Action) -> None:
        """Commits: the line of an action that changes nothing else in the state."""
