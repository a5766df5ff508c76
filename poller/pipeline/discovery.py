"""Discovery: which contracts there are, through which account each is read, and from when a new one is collected."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple, TypeVar

from poller.config import Config
from poller.core.clocks import trusted_now
from poller.core.errors import AuthError, PollerError, RejectedError, is_access_refused
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.ionos.api import ActivityLog
from poller.store.protocols import State
from poller.store.rows import Contract

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK = "look "  # and the account's name


class _Look(NamedTuple):
    """The answer of an account: its contracts (None if it gave no list), and the trusted time of the request.

    `is_answered`: nothing is missing, because the contracts are listed completely or named.
    """

    listed: ContractList | None
    at: int
    is_answered: bool


class _LastLook(NamedTuple):
    """The last look that listed every contract of an account: its time, and the contracts that are not collected."""

    at: int
    left_out: frozenset[str]


class Discovery:
    """Finds contracts, and starts the new ones. For one thread at a time."""

    def __init__(
        self, state: State, accounts: Mapping[str, ActivityLog], config: Config, clock: Callable[[], float]
    ) -> None:
        self._state = state
        self._accounts = accounts
        self._config = config
        self._clock = clock
        self._readers: dict[str, list[str]] = {}
        # One for each process, because a replica with another configuration leaves out other contracts.
        self._last_looks: dict[str, _LastLook] = {}

    def others(self, contract: str, account: str) -> list[str]:
        """The other accounts through which a contract may be read, by the last look."""
        return [name for name in self._readers.get(contract, ()) if name != account]

    def account_of(self, row: Contract) -> str:
        """The account through which a contract is read: its own, or by the last look the first that may read it.

        Its own account may be missing here if only another replica's configuration names it.  Raises: PollerError if none fits.
        """
        for name in (row.account, *self.others(row.contract, row.account)):
            if name in self._accounts:
                return name
        hint = "put it back into the configuration, or name other contracts with --contract"
        raise PollerError(f"its account {row.account} is not configured", contract=row.contract, hint=hint)

    def ask(self, contract: str, account: str, question: Callable[[ActivityLog], T], *, refused: T) -> T:
        """The answer of the first account that may read the contract, its own first; `refused` if none may.

        Raises: any other error of `question`.
        """
        account, *others = [account, *self.others(contract, account)]
        while True:
            try:
                return question(self._accounts[account])
            except PollerError as error:
                if not is_access_refused(error):
                    raise
                if not others:
                    return refused
                account = others.pop(0)

    def discover(self, since: int | None, only: Iterable[str]) -> tuple[list[str], list[PollerError]]:
        """The contracts to collect, longest unpolled first, and the failures by account.

        Commits: the start of each new contract, and the look.
        """
        settings = self._config.poll
        named = set(settings.contracts)
        wanted = set(only) or named
        failures: list[PollerError] = []
        known = {row.contract: row for row in self._state.contracts.all()}
        looks = {name: self._look(name, known.values(), wanted, failures) for name in self._accounts}
        # If the list is complete, it must contain the contracts of the command line. Otherwise a typing error would be polled.
        is_refused = any(look.listed is None and look.is_answered for look in looks.values())
        is_cut = any(look.listed is not None and look.listed.missing for look in looks.values())
        readers = self._readers_by_contract(looks, known, wanted if is_refused or is_cut else wanted & named)
        failures += self._kept(readers, known.values(), looks)
        unlisted = sorted(wanted - set(readers))
        if not failures:  # otherwise an account that failed may have it
            failures += [unseen(contract) for contract in unlisted]
        chosen = {contract: names for contract, names in readers.items() if settings.wants(contract, wanted)}
        for name, look in looks.items():
            self._begin(name, look, [contract for contract, names in chosen.items() if names[0] == name], since, known)
        self._readers = chosen
        return in_turn(chosen, known), failures

    def _look(self, account: str, rows: Iterable[Contract], wanted: set[str], failures: list[PollerError]) -> _Look:
        """Ask an account for its contracts. If it gives none, this is added to `failures`, unless contracts are named."""
        known = {row.contract for row in rows if row.account == account}
        api, before = self._accounts[account], self._clock()
        try:
            listed = api.contracts()
            if not listed and not known and not wanted:
                hint = "use the token of a user of this contract; `ionos-poller check` says more"
                raise PollerError("no contract is visible", hint=hint)
        except PollerError as error:
            if len(self._accounts) > 1:
                error.message = f"account {account}: {error.message}"
            is_refused = isinstance(error, RejectedError) or (isinstance(error, AuthError) and error.is_denied)
            if is_refused and wanted:
                hint = "the contracts of poll.contracts are still polled"
                log.warning("contracts.list_refused", extra={"account": account, "why": error.message, "hint": hint})
            else:
                error.account = account
                failures.append(error)
                log.error("discovery.failed", extra={"account": account, "why": str(error)})
            return _Look(None, int(before), is_answered=is_refused and bool(wanted))
        at = int(trusted_now(api.clock_skew_seconds, before))
        warn_if_incomplete(account, listed)
        if unlisted := sorted(known.difference(listed, self._config.poll.exclude_contracts)):
            hint = "they are still polled; add one that is gone for good to poll.exclude_contracts"
            log.warning("contracts.unlisted", extra={"account": account, "contracts": unlisted, "hint": hint})
        return _Look(listed, at, is_answered=True)

    def _readers_by_contract(
        self, looks: Mapping[str, _Look], known: Mapping[str, Contract], named: Iterable[str]
    ) -> dict[str, list[str]]:
        """The accounts that may read each contract. The first one is asked first."""
        readers: dict[str, list[str]] = {}
        for name, look in looks.items():
            for contract in look.listed or ():
                readers.setdefault(contract, []).append(name)
        # Named is enough: the list may not show it, or be refused.
        for contract in named:
            readers.setdefault(contract, list(looks))
        for row in known.values():
            if row.account not in looks:
                continue
            listed, names = looks[row.account].listed, readers.get(row.contract)
            if names is not None:
                # The previous account stays the first one while it lists the contract.
                names.sort(key=lambda name, account=row.account: name != account)  # type: ignore[misc]
            elif listed is None or row.succeeded_at is not None or row.fetched:
                # A contract that is not listed is still read: the list may be wrong, and only a person ends the collection.
                readers[row.contract] = [row.account]
        return readers

    def _kept(
        self, readers: dict[str, list[str]], rows: Iterable[Contract], looks: Mapping[str, _Look]
    ) -> Iterator[PollerError]:
        """Keep a contract with the account that it was read through. If only other accounts list it, this is a failure.

        Without this, an account that lists a foreign contract and answers "empty" would stop its collection without an error.
        """
        for row in rows:
            names = readers.get(row.contract)
            if names is None or row.succeeded_at is None or row.account not in looks:
                continue
            listed = looks[row.account].listed
            if row.account not in names and listed is not None and not listed.missing:
                claims = ", ".join(names)
                hint = f"check account {claims}; to read the contract through it, remove {row.account} from the configuration"
                log.error("contract.claimed", extra={"contract": row.contract, "account": row.account, "by": claims})
                message = f"account {claims} lists it, and {row.account}, which it was read through, does not"
                yield PollerError(message, contract=row.contract, hint=hint)
            readers[row.contract] = [row.account]

    def _begin(
        self, account: str, look: _Look, contracts: list[str], since: int | None, known: Mapping[str, Contract]
    ) -> None:
        """Start the new ones of these contracts, and read known ones once more if a person requested it."""
        now = int(self._clock())
        asked = self._state.requested_reread(account)
        begin = since if since is not None else asked
        if begin is None:
            skew = self._accounts[account].clock_skew_seconds
            begin = int(trusted_now(skew, now) - self._config.poll.initial_lookback_seconds)
            if (last := self._last_look(account)) is not None and last.at < begin:
                # A contract that is listed for the first time may be as old as the last look without it.
                appeared = set(look.listed or ()).difference(known, last.left_out)
                self._state.contracts.enrol(appeared.intersection(contracts), account, last.at, now)
        self._state.contracts.enrol(contracts, account, begin, now)
        if asked is not None and look.is_answered:  # otherwise contracts may be missing that must begin there
            self._widen([known[contract] for contract in contracts if contract in known], asked)
            self._state.forget_reread(account)
        if look.listed is not None and not look.listed.missing:
            left_out = sorted(set(look.listed).difference(contracts))
            self._state.remember(_LOOK + account, json.dumps({"at": look.at, "left_out": left_out}))
            self._last_looks[account] = _LastLook(look.at, frozenset(left_out))

    def _last_look(self, account: str) -> _LastLook | None:
        if (own := self._last_looks.get(account)) is not None:
            return own
        fact = self._state.fact(_LOOK + account)
        if fact is None:
            return None
        look = json.loads(fact)
        return _LastLook(look["at"], frozenset(look["left_out"]))

    def _widen(self, contracts: Iterable[Contract], since: int) -> None:
        """Request another reading from `since` up to the start of the next ordinary window."""
        for row in contracts:
            end = max(row.origin, row.watermark - self._config.poll.overlap_seconds)
            if since < end:
                self._state.contracts.add_range(row.contract, Window(since, end), "since")


def in_turn(contracts: Iterable[str], known: Mapping[str, Contract]) -> list[str]:
    """The order of polling: contracts that were read before and others alternate, the longest waiting first.

    So neither thousands of unreadable contracts nor a rate limit makes any contract wait without end.
    """
    waiting: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], [])
    for contract in contracts:
        row = known.get(contract)
        is_read = row is not None and row.succeeded_at is not None
        at = (row.succeeded_at if is_read else row.failed_at) if row is not None else None
        waiting[not is_read].append((at or 0, contract))
    pairs = zip_longest(*map(sorted, waiting))
    return [found[1] for pair in pairs for found in pair if found is not None]


def warn_if_incomplete(account: str, listed: ContractList) -> None:
    """Log what is missing in a list of contracts, because entries of these contracts are not collected."""
    if listed.missing:
        hint = "name the others in poll.contracts, and report it to IONOS"
        log.warning("contracts.list_incomplete", extra={"account": account, "why": listed.missing, "hint": hint})


def unseen(contract: str) -> PollerError:
    """The failure of a requested contract that no account lists."""
    hint = "check the number, and which contracts the token may see with `ionos-poller check`"
    return PollerError("no account sees this contract", contract=contract, hint=hint)
