"""The queues of a sink: one for each contract that waits alone, and one for all others. Sends nothing and writes nothing."""

from __future__ import annotations

from collections.abc import Collection

from poller.core.delivery import BatchSize
from poller.core.events import OutboxEvent
from poller.pipeline.pieces import Key, Piece, key_of
from poller.store.parts import Place
from poller.store.rows import DeadLetter

_LOOK_SECONDS = 5.0  # how often to look for contracts that another process postponed


class Queue:
    """Events that are sent in order: those of one contract that waits alone, or (None) those of all others."""

    def __init__(self, contract: str | None, most: int) -> None:
        """`most` is how many events are sent at once. A contract that waits alone starts with one event: this repeats least."""
        self.contract = contract
        self.size = BatchSize(most, most if contract is None else 1)
        self.attempts = 0
        """How many times in a row it was postponed."""


class Queues:
    """All queues of a sink, and the one that is being sent."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.others = self.current = Queue(None, most)
        self._own: dict[str, Queue] = {}
        self._is_own_turn = True
        self._looked_at: float | None = None
        # Events that were accepted or refused behind a postponed event. They are not settled, and must not be sent again.
        self._done: dict[Key, DeadLetter | None] = {}
        # The contracts that were not accepted while others were, how many times in a row, and their first event.
        self._stuck: set[str] = set()
        self._stuck_times = 0
        self._first_stuck: Key | None = None

    def begin(self, attempts: int) -> None:
        """Forget the events in hand: the place of the sink was taken again, after this number of attempts."""
        self.others.attempts = attempts
        self.current = self.others
        self._own, self._looked_at, self._done = {}, None, {}
        self.taken_whole()

    @property
    def has_own(self) -> bool:
        """Whether any contract waits alone."""
        return bool(self._own)

    @property
    def is_any_stuck(self) -> bool:
        """Whether a contract was not accepted the last time, while others were."""
        return self._first_stuck is not None

    def note_stuck(self, contracts: Collection[str], taken: Collection[str], first: OutboxEvent) -> int:
        """Note contracts that were not accepted while others were. Returns: how many times in a row, with this `first` event.

        If a batch was only too large, its first event is accepted the next time.
        """
        if key_of(first) != self._first_stuck:
            self._first_stuck, self._stuck_times, self._stuck = key_of(first), 0, set(contracts)
        self._stuck_times += 1
        self._stuck = self._stuck.intersection(contracts).difference(taken) or {first.contract}
        return self._stuck_times

    def long_stuck(self) -> set[str]:
        """The contracts of which nothing was accepted during that time. They wait alone from now on."""
        stuck = self._stuck
        self.taken_whole()
        return stuck

    def take_up(self, queue: Queue) -> None:
        """Send from this queue from now on."""
        self.current = queue
        self._is_own_turn = queue is self.others

    def part(self, contract: str) -> Queue:
        """The queue of a contract that waits alone, created if needed. All others are sent before it."""
        self._is_own_turn = False
        if contract not in self._own:
            self._own[contract] = Queue(contract, self._most)
        return self._own[contract]

    def turns(self, place: Place, now: float) -> tuple[list[Queue], list[float]]:
        """The queues to send from, in order, and the waits of those that are not due.

        Queues of single contracts and the queue of all others take turns, so that neither blocks the other.
        """
        due, waits = [], []
        if self._own or self._looked_at is None or not 0 <= now - self._looked_at < _LOOK_SECONDS:
            self._looked_at = now
            known, self._own = self._own, {}
            for row in place.postponed():
                queue = self._own[row.contract] = known.get(row.contract) or Queue(row.contract, self._most)
                queue.attempts = row.attempts
                # A time before the postponement means that the clock was set back: then it is due.
                if row.postponed_at <= now < row.retry_at:
                    waits.append(row.retry_at - now)
                else:
                    due.append(queue)
        return ([*due, self.others] if self._is_own_turn else [self.others, *due]), waits

    def knowing(self, piece: Piece) -> Piece:
        """A piece with the known outcomes of an earlier send."""
        return piece.knowing(self._done)

    def remember(self, piece: Piece, contracts: Collection[str]) -> None:
        """Remember the outcomes of the events of a piece whose contracts are postponed."""
        self._done |= {key_of(event): letter for event, letter in piece.done() if event.contract in contracts}

    def settled(self, piece: Piece) -> None:
        """A piece of the current queue is settled, so the next failure counts as the first one."""
        for event in piece.events if self._done else ():
            self._done.pop(key_of(event), None)
        self.current.attempts = self.others.attempts = 0

    def taken_whole(self) -> None:
        """The sink accepted everything that was sent."""
        self._stuck, self._stuck_times, self._first_stuck = set(), 0, None
