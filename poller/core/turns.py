"""Which contract may ask next, where only a few requests are sent at once. Pure: the caller brings the time.

A request that hangs is not counted for long: others may be sent beside it. A contract of which a request was not answered is slow
until one is answered: only a share of the requests, and of the polls, may be those of slow contracts. One of which a request
was tried several times and given up spends its polls waiting: for the polls it counts as slow, until a request is served.
"""

from __future__ import annotations

from typing import NamedTuple

PATIENCE_SECONDS = 2.0
# How many requests may be open for each that counts, and how many polls may wait for their turn.
MOST_OPEN = 3
_FORGOTTEN_SECONDS = 600.0


class _Open(NamedTuple):
    contract: str
    began: float


class Turns:
    """The turns of all contracts. For one thread at a time: the caller holds a lock. Times are monotonic seconds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._share = max(1, count // 2)
        self._waiting: dict[object, str] = {}
        self._open: dict[object, _Open] = {}
        self._served: dict[str, int] = {}  # the turn that a contract had last
        self._turn = 0
        self._slow: set[str] = set()
        self._failing: set[str] = set()
        self._slow_polls: set[str] = set()
        self._put_off: dict[str, tuple[float, float]] = {}  # slow contract -> since when, and when it asked last

    def queue_up(self, ticket: object, contract: str) -> None:
        """Wait for a turn of this contract."""
        self._waiting[ticket] = contract

    def leave(self, ticket: object) -> None:
        """Wait no longer."""
        self._waiting.pop(ticket, None)

    def wait_seconds(self, ticket: object, now: float) -> float:
        """0 when it is its turn, which begins now; else how long to wait at most before asking again."""
        counted = [request for request in self._open.values() if now - request.began < PATIENCE_SECONDS]
        is_full = len(counted) >= self._count or len(self._open) >= self._count * MOST_OPEN
        if is_full or self._next() is not ticket:
            oldest = min((request.began for request in counted), default=now)
            return max(0.01, oldest + PATIENCE_SECONDS - now)
        contract = self._waiting.pop(ticket)
        self._open[ticket] = _Open(contract, now)
        self._turn += 1
        self._served[contract] = self._turn
        return 0.0

    def _next(self) -> object:
        """The ticket whose turn it is: of the contract with the fewest open requests, and of these the one served longest ago."""
        open_by_contract: dict[str, int] = {}
        for request in self._open.values():
            open_by_contract[request.contract] = open_by_contract.get(request.contract, 0) + 1
        slow_open = sum(count for contract, count in open_by_contract.items() if contract in self._slow)
        allowed = [
            (open_by_contract.get(contract, 0), self._served.get(contract, 0), ticket)
            for ticket, contract in self._waiting.items()
            if contract not in self._slow or slow_open < self._share
        ]
        return min(allowed, key=lambda item: item[:2])[2] if allowed else None

    def end(self, ticket: object, now: float, *, is_answered: bool) -> None:
        """The request is over. One that was not answered within the patience makes its contract a slow one."""
        contract, began = self._open.pop(ticket)
        if is_answered:
            self._slow.discard(contract)
            self._put_off.pop(contract, None)
        elif now - began >= PATIENCE_SECONDS:
            self._slow.add(contract)

    def is_slow(self, contract: str) -> bool:
        """Whether its last request was not answered in time."""
        return contract in self._slow

    def ended_after(self, contract: str, tries: int) -> None:
        """A request of a contract was given up after so many tries; 0 where it was served.

        Where one is served that failed before, the others may be as well: each begins its next poll as any contract.
        """
        if tries > 1:
            self._failing.add(contract)
        elif not tries and contract in self._failing:
            for name in self._failing - self._slow:
                self._put_off.pop(name, None)
            self._failing.clear()

    def hanging_count(self, now: float) -> int:
        """How many open requests are not counted any more."""
        return sum(now - request.began >= PATIENCE_SECONDS for request in self._open.values())

    def admit(self, contract: str, now: float) -> bool:
        """Whether a poll of this contract may begin; always, unless it is slow or fails, and the share of these is taken.

        Of these contracts, those come first that were put off first.
        """
        if contract not in self._slow and contract not in self._failing:
            return True
        since, _ = self._put_off.get(contract, (now, now))
        self._put_off[contract] = since, now
        self._put_off = {name: times for name, times in self._put_off.items() if now - times[1] < _FORGOTTEN_SECONDS}
        room = self._share - len(self._slow_polls)
        first = sorted(self._put_off, key=lambda name: self._put_off[name][0])[: max(0, room)]
        if contract not in first:
            return False
        del self._put_off[contract]
        self._slow_polls.add(contract)
        return True

    def dismiss(self, contract: str) -> None:
        """Its poll is over."""
        self._slow_polls.discard(contract)
