"""The queues of a sink: one of each contract that waits on its own, and one of all others. Sends nothing, and writes nothing."""

from __future__ import annotations

from collections.abc import Collection

from poller.core.delivery import BatchSize
from poller.core.events import OutboxEvent
from poller.pipeline.pieces import Key, Piece, key_of
from poller.store.parts import Place
from poller.store.rows import DeadLetter

_LOOK_SECONDS = 5.0  # so soon a contract that waits on its own is found, where another process postponed it


class Queue:
    """Events that are sent in order: those of a contract that waits on its own, or (None) those of all others."""

    def __init__(self, contract: str | None, most: int) -> None:
        """`most` is how many events are sent at once. A contract that was not taken is tried with one: that repeats least."""
        self.contract = contract
        self.size = BatchSize(most, most if contract is None else 1)
        self.attempts = 0
        """How often in a row it was put off."""


class Queues:
    """All queues of a sink, and which of them is being sent."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.others = self.current = Queue(None, most)
        self._own: dict[str, Queue] = {}
        self._is_own_turn = True
        self._looked_at: float | None = None
        # What was taken or refused behind an event that was put off: it is not settled, and must not be sent again.
        self._done: dict[Key, DeadLetter | None] = {}
        # The contracts that were not taken while others were, how often in a row, and the first event of these.
        self._stuck: set[str] = set()
        self._stuck_times = 0
        self._first_stuck: Key | None = None

    def begin(self, attempts: int) -> None:
        """Forget what is in hand: the sink's place was taken, after so many attempts of others."""
        self.others.attempts = attempts
        self.current = self.others
        self._own, self._looked_at, self._done = {}, None, {}
        self.taken_whole()

    @property
    def has_own(self) -> bool:
        """Whether any contract waits on its own."""
        return bool(self._own)

    @property
    def is_any_stuck(self) -> bool:
        """Whether a contract was not taken the last time, while others were."""
        return self._first_stuck is not None

    def note_stuck(self, contracts: Collection[str], taken: Collection[str], first: OutboxEvent) -> int:
        """Contracts were not taken, while others were, or had just been. Returns: how often in a row that began with this event.

        What is sent first is taken the next time, where it was only too much at once.
        """
        if key_of(first) != self._first_stuck:
            self._first_stuck, self._stuck_times, self._stuck = key_of(first), 0, set(contracts)
        self._stuck_times += 1
        self._stuck = self._stuck.intersection(contracts).difference(taken) or {first.contract}
        return self._stuck_times

    def long_stuck(self) -> set[str]:
        """The contracts of which nothing was taken all that time: they wait on their own from now on."""
        stuck = self._stuck
        self.taken_whole()
        return stuck

    def take_up(self, queue: Queue) -> None:
        """Send of this one from now on."""
        self.current = queue
        self._is_own_turn = queue is self.others

    def part(self, contract: str) -> Queue:
        """The queue of a contract that waits on its own, from now on if it does not yet. All others are sent before it is."""
        self._is_own_turn = False
        if contract not in self._own:
            self._own[contract] = Queue(contract, self._most)
        return self._own[contract]

    def turns(self, place: Place, now: float) -> tuple[list[Queue], list[float]]:
        """The queues to look at, in order, and how long those wait whose time has not come.

        Those that wait on their own take turns with all others, so that neither keeps the other from being sent.
        """
        due, waits = [], []
        if self._own or self._looked_at is None or not 0 <= now - self._looked_at < _LOOK_SECONDS:
            self._looked_at = now
            known, self._own = self._own, {}
            for row in place.postponed():
                queue = self._own[row.contract] = known.get(row.contract) or Queue(row.contract, self._most)
                queue.attempts = row.attempts
                # Before the postponement was even made: the clock was set back.
                if row.postponed_at <= now < row.retry_at:
                    waits.append(row.retry_at - now)
                else:
                    due.append(queue)
        return ([*due, self.others] if self._is_own_turn else [self.others, *due]), waits

    def knowing(self, piece: Piece) -> Piece:
        """A piece with what is known of its events from an earlier send."""
        return piece.knowing(self._done)

    def remember(self, piece: Piece, contracts: Collection[str]) -> None:
        """Remember what became of those events of a piece whose contracts are put off."""
        self._done |= {key_of(event): letter for event, letter in piece.done() if event.contract in contracts}

    def settled(self, piece: Piece) -> None:
        """A piece of the current queue is settled: what fails next is a first failure."""
        for event in piece.events if self._done else ():
            self._done.pop(key_of(event), None)
        self.current.attempts = self.others.attempts = 0

    def taken_whole(self) -> None:
        """The sink took all that it was sent."""
        self._stuck, self._stuck_times, self._first_stuck = set(), 0, None
