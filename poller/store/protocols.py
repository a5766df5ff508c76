"""What a state can do, for every backend: `sqlite` keeps it in files, `postgres` in a database.

Use cases know only these protocols. Methods are documented here; a backend documents only its differences.

Every method is one transaction or one read unless it says otherwise. Every method may raise:
- `StateUnavailableError`: it does not work now, nothing was changed, wait and try again. `StateFullError` is one of these.
- `LeaseLostError`, also one of these: another replica has the claim, the place or the share now. Nothing was written. Discard
  what is in memory about it, and start again.
- `StateError`: a person is needed.
Methods name only further errors. All times are unix seconds unless a name says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from poller.config import Config
from poller.core.clocks import Trail
from poller.core.errors import StateError
from poller.core.events import Event
from poller.core.windows import Window
from poller.store.copying import Dump, Tick
from poller.store.journal import Action, JournalEntry
from poller.store.overview import Overview
from poller.store.parts import Archives, Contracts, DeadLetters, Gaps, Journal, Outbox
from poller.store.rows import Contract, Diagnosis


class Stores(Protocol):
    """All states: one for each use (`run`, `fetch`, `backfill-...`)."""

    @property
    def place(self) -> str:
        """Their place, for a person: a directory, or a URL without its password."""

    @property
    def directory(self) -> Path:
        """The directory of this machine for files beside them, such as exports of deleted dead letters."""

    def owner(self) -> int | None:
        """The user of this machine who owns the files; None without files, or if it is unknown."""

    def where(self, use: str) -> str:
        """The place of the state of a use, for a person."""

    def prepare(self) -> list[int]:
        """Create the place of the states, or upgrade it to this program's version, if `open` does not do it.

        Returns: the versions that were applied.
        """

    def uses(self) -> list[str]:
        """The uses that have a state, by name."""

    def open(
        self,
        use: str,
        *,
        wait: bool = False,
        stop: threading.Event | None = None,
        since: int | None = None,
        accounts: Iterable[str] = (),
        by: Action | None = None,
    ) -> State:
        """Open the state of a use to work on it, or create it. A backend without replicas gives it to one process at a time.

        With `wait`, wait until another process releases it, or until `stop`. With `since`, the contracts of `accounts` are read
        again from there, as with `State.request_reread`, and a new state may replace one that was quarantined or deleted.
        Raises: StateHeldError, StoppedError.
        """

    def attach(self, use: str) -> State:
        """Open the state of a use that others may work on, for short transactions of a person: replay, purge, forget.

        Raises: StateError if it does not exist.
        """

    def snapshot(self, use: str) -> Overview:
        """The whole state at one moment, without opening it for work.  Raises: StateError if it does not exist."""

    def journal(self, use: str, *, since: int = 0, limit: int | None = None) -> list[JournalEntry]:
        """The actions of people on a state from `since` on, oldest first; with `limit` only the latest.  Raises: StateError."""

    def collected(self, use: str, sinks: Sequence[str]) -> Collected:
        """The events that another use has collected since it knew all of these sinks. Close it at the end.

        Raises: StateError if it does not exist.
        """

    def discard(self, use: str) -> None:
        """Commits: the removal of a state that nobody works on, even if it does not exist.  Raises: StateHeldError."""

    def rename(self, use: str, new: str) -> None:
        """Commits: that the state of a use, which nobody works on, becomes that of another use, which has none."""

    def holder(self, use: str) -> int | None:
        """The process of this machine that works on a state, or None."""

    def missing(self) -> dict[str, StateError]:
        """By use: states that were quarantined or have vanished. None of them is created again before a person decides."""

    def dump(self) -> AbstractContextManager[Sequence[Dump]]:
        """All states at one moment, while nobody can start to work on one.  Raises: StateHeldError if somebody works on one."""

    def load(self, dumps: Sequence[Dump], tick: Tick) -> None:
        """Commits: all these states at once, or none.  Raises: StateError if one exists already."""

    def diagnose(self, max_bytes: int) -> Iterator[Diagnosis]:
        """All findings for `check`, without changing anything. `max_bytes` is the limit of the outbox.  Raises: nothing."""


class Collected(Protocol):
    """The events that another use has collected and sent."""

    @property
    def knows_sinks(self) -> bool:
        """Whether that use knows all requested sinks; otherwise it counts as having collected nothing."""

    def unseen(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        """Those of the events that it has not collected, in the same order."""

    def unknown(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        """The events that it has never collected, even before it knew the sinks."""

    def contract(self, contract: str) -> Contract | None:
        """The contract in this state; None if it is not known there."""

    def accepted_gaps(self, contract: str) -> Sequence[Window]:
        """The spans of a contract's accepted gaps, which are not tried again."""

    def forgotten(self, contract: str, window: Window) -> int:
        """How many entries of the hours that a window touches were pruned, so that only their number is known."""

    def close(self) -> None: ...


class State(Protocol):
    """The state of one use, open until `close`. Safe to use from several threads."""

    @property
    def use(self) -> str: ...
    @property
    def lost_leases(self) -> int:
        """How often this process lost what it held to another replica, and began anew."""

    @property
    def contracts(self) -> Contracts: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def dead_letters(self) -> DeadLetters: ...
    @property
    def gaps(self) -> Gaps: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def archives(self) -> Archives: ...

    def check_in_place(self) -> None:
        """Raises: StateError when what we commit would not be found by the next start."""

    def fact(self, name: str) -> str | None:
        """Something remembered by name; None if it never was."""

    def remember(self, name: str, value: str) -> None:
        """Commits: a fact, in place of what was known by that name."""

    def remember_for_good(self, name: str, value: str) -> None:
        """Commits: a fact. This and all earlier commits also survive a power cut."""

    def adopt_config(self, config: Config) -> None:
        """Have the other replicas told, with the next sign of life, that this configuration is in effect here."""

    def shared_now(self) -> float | None:
        """The time by the clock that all replicas share; None for a backend without replicas: this machine's is the only one."""

    def clock_trail(self) -> Trail:
        """The times of earlier polls, as far as they tell of a clock that was ahead."""

    def remember_clock_trail(self, trail: Trail) -> None:
        """Commits: the times of polls."""

    def request_reread(self, accounts: Iterable[str], since: int, *, by: Action | None = None) -> None:
        """Commits: the wish to read the contracts of these accounts again from `since`, and who asked.

        It holds until they have been found, however often that fails. Of two requests the earlier time holds.
        """

    def requested_reread(self, account: str) -> int | None:
        """From when the contracts of an account will be read again; None if nobody asked, or it is done."""

    def forget_reread(self, account: str) -> None:
        """Commits: that it is done."""

    def overview(self) -> Overview:
        """Everything at one moment, for status, metrics and the books."""

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Commits: piece by piece, the end of old identities; gives free space back."""

    def shrink(self) -> None:
        """Give back all free space: this use has done its work."""

    def held(self) -> AbstractContextManager[None]:
        """Work on an attached state while the block lasts, as after `open`.  Raises: StateHeldError."""

    def close(self) -> None:
        """Give back all that is held, and close it."""
