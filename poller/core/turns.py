"""Which contract may send the next request, as only a few are sent at once. Pure: the caller passes the time.

A request that hangs stops counting after a while, so that others can be sent. A contract becomes slow if a request gets no answer
in time, until one is answered. Slow contracts may use only a share of the requests and of the polls. A contract whose request
failed several times and was given up spends its polls waiting, so for polls it counts as slow until a request succeeds.
"""

from __future__ import annotations

from typing import NamedTuple

PATIENCE_SECONDS = 2.0
# How many requests may be open, and how many polls may run, for each request that may count.
MOST_OPEN = 3
_FORGOTTEN_SECONDS = 600.0


class _Open(NamedTuple):
    contract: str
    began: float


class Turns:
    """The turns of all contracts. Not thread-safe: the caller holds a lock. Times are monotonic seconds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._share = max(1, count // 2)
        self._waiting: dict[object, str] = {}
        self._open: dict[object, _Open] = {}
        self._served: dict[str, int] = {}  # the number of each contract's last turn
        self._turn = 0
        self._slow: set[str] = set()
        self._failing: set[str] = set()
        self._slow_polls: set[str] = set()
        self._put_off: dict[str, tuple[float, float]] = {}  # slow contract -> since when it waits, when it asked last

    def queue_up(self, ticket: object, contract: str) -> None:
        """Wait for a turn of this contract."""
        self._waiting[ticket] = contract

    def leave(self, ticket: object) -> None:
        """Wait no longer."""
        self._waiting.pop(ticket, None)

    def wait_seconds(self, ticket: object, now: float) -> float:
        """0 if the request may be sent now, which uses its turn; otherwise how long to wait at most before the next call."""
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
        """The next ticket: from the contract with the fewest open requests, and among these the one served longest ago."""
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
        """The request has ended. If it lasted PATIENCE_SECONDS or more and got no answer, its contract becomes slow."""
        contract, began = self._open.pop(ticket)
        if is_answered:
            self._slow.discard(contract)
            self._put_off.pop(contract, None)
        elif now - began >= PATIENCE_SECONDS:
            self._slow.add(contract)

    def is_slow(self, contract: str) -> bool:
        """Whether this contract is slow."""
        return contract in self._slow

    def ended_after(self, contract: str, tries: int) -> None:
        """A request of a contract was given up after this many tries; 0 if it succeeded.

        If it succeeds for a contract that failed before, the other contracts that failed may poll as usual again, too.
        """
        if tries > 1:
            self._failing.add(contract)
        elif not tries and contract in self._failing:
            for name in self._failing - self._slow:
                self._put_off.pop(name, None)
            self._failing.clear()

    def hanging_count(self, now: float) -> int:
        """How many open requests no longer count."""
        return sum(now - request.began >= PATIENCE_SECONDS for request in self._open.values())

    def admit(self, contract: str, now: float) -> bool:
        """Whether a poll of this contract may begin: always, unless it is slow or fails and the share of such polls is used up.

        Among those contracts, the one that waits longest comes first.
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
        """Its poll has ended."""
        self._slow_polls.discard(contract)
