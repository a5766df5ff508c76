"""Taking entries out of an archive again, to anywhere or into a new state. Each object is checked against its digest."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import msgspec

from poller.archive import Place
from poller.core.answers import parse_page
from poller.core.errors import PollerError
from poller.core.events import Event
from poller.core.evidence.batches import HOUR_SECONDS, Head
from poller.core.evidence.digest import (
    DIGESTS,
    Digest,
    DigestError,
    Object,
    decode,
    digest_key,
    number_of,
    sha256,
    unpack_identities,
)
from poller.core.windows import Window
from poller.pipeline.verify import seconds_of
from poller.store.protocols import State
from poller.store.rows import Prepared as StorePrepared
from poller.store.rows import WindowRead

_GZIP_FORMAT = 31
_AT_ONCE = 5000  # entries parsed at once


class DamagedArchiveError(PollerError):
    """What is in the archive is not what was written."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}", hint="`ionos-poller archive verify` names all that is wrong")


def digests_of(place: Place) -> Iterator[tuple[int, str, Digest]]:
    """The digests in order: number, SHA-256, content.

    Raises: PlaceError; DamagedArchiveError where the chain is broken, or there is none.
    """
    numbers = sorted(
        found[0] for listed in place.listing(DIGESTS) if (found := number_of(listed.key)) and found[1] == "json"
    )
    previous = ""
    for expected, number in enumerate(numbers or [0], start=1):
        content = place.get(digest_key(expected)) if number == expected else None
        if content is None:
            raise DamagedArchiveError(f"{place.url}/{digest_key(expected)}", "is missing")
        try:
            digest = decode(content)
        except DigestError as error:
            raise DamagedArchiveError(digest_key(number), str(error)) from error
        if digest.number != number or digest.previous != previous:
            raise DamagedArchiveError(digest_key(number), "does not follow the one before")
        previous = sha256(content)
        yield number, previous, digest


def chosen_objects(digest: Digest, span: Window | None, contracts: Collection[str]) -> Iterator[Object]:
    """The objects of a digest that can hold entries of the span (None: any) and of the contracts (empty: all)."""
    for entry in digest.objects:
        start = seconds_of(entry.hour)
        is_inside = span is None or (span.start < start + HOUR_SECONDS and start < span.end)
        if is_inside and (not contracts or entry.contract in contracts):
            yield entry


def lines_in(place: Place, entry: Object) -> list[bytes]:
    """The entries of an object, in order.  Raises: PlaceError, DamagedArchiveError."""
    content = place.get(entry.key)
    if content is None:
        raise DamagedArchiveError(entry.key, "is missing")
    if sha256(content) != entry.sha256:
        raise DamagedArchiveError(entry.key, "was changed")
    try:
        return zlib.decompress(content, _GZIP_FORMAT).split(b"\n")[:-1]
    except zlib.error as error:
        raise DamagedArchiveError(entry.key, "is no gzip file") from error


def events_in(place: Place, entry: Object) -> list[Event]:
    """The entries of an object as events, with the identities that they had.  Raises: PlaceError, DamagedArchiveError."""
    known = unpack_identities(entry.identities)
    lines = lines_in(place, entry)
    start_us = seconds_of(entry.hour) * 1_000_000
    events: list[Event] = []
    for first in range(0, len(lines), _AT_ONCE):
        page = parse_page(b"[%s]" % b",".join(lines[first : first + _AT_ONCE]))
        if len(page.events) != len(lines[first : first + _AT_ONCE]):
            raise DamagedArchiveError(entry.key, "holds what is no entry")
        for index, event in enumerate(page.events, start=first):
            whole = event if index not in known else msgspec.structs.replace(event, identity=known[index])
            events.append(whole if whole.is_timed else whole.at(start_us))
    return events


class Rebuilt(NamedTuple):
    """What a new state was made of."""

    contracts: int
    entries: int
    number: int


class Rebuilder:
    """Makes a new state of an archive: what is in it counts as collected, and its chain goes on from its last digest."""

    def __init__(self, place: Place, sink: str, account: str, now: int) -> None:
        self._place = place
        self._sink = sink
        self._account = account
        self._now = now

    def into(
        self,
        state: State,
        on_object: Callable[[], None] = lambda: None,
        close: Callable[[Head], Head] = lambda head: head,
    ) -> Rebuilt:
        """Fill an empty state. `close` gives the head to go on from, once all that is archived is in the state.

        Raises: PlaceError, DamagedArchiveError, StateError.
        """
        head: Head | None = None
        held: dict[tuple[str, int], int] = {}
        complete: dict[str, Window] = {}
        objects: list[Object] = []
        for number, digest_sha256, digest in digests_of(self._place):
            if digest.entry_format != "raw":
                what = f"its entries are in the format {digest.entry_format}, from which none can be recognised"
                raise DamagedArchiveError(digest_key(number), what)
            key = digest.next_key or digest.key
            head = Head(digest.archive, number, digest_sha256, key, digest.entries, 0, float(self._now))
            objects += digest.objects
            for entry in digest.objects:
                place = (entry.contract, seconds_of(entry.hour))
                held[place] = held.get(place, 0) + entry.entries
            for contract, books in digest.books.contracts.items():
                start, end = seconds_of(books.complete_from), seconds_of(books.complete_to)
                before = complete.get(contract)
                # Only where nothing waited for the archive is all up to there in it.
                sure = end if digest.books.is_all else before.end if before else start
                complete[contract] = Window(start, max(sure, start))
        assert head is not None  # noqa: S101 - `digests_of` raises where there is none
        by_run = set(complete)
        for contract, begins in sorted(held):
            if (
                contract not in by_run
            ):  # but by a backfill: it goes on from the last hour, of which the ledger knows all
                complete[contract] = Window(begins, begins)
        for contract, span in complete.items():
            state.contracts.enrol([contract], self._account, span.start, self._now)
        for entry in objects:
            self._enter(state, entry)
            on_object()
        for contract, span in complete.items():
            state.contracts.skip_to(contract, span.end, 0)
        head = close(head)
        state.archives.adopt(self._sink, head, held)
        return Rebuilt(len(complete), head.entries, head.number)

    def _enter(self, state: State, entry: Object) -> None:
        """Enter the entries of an object in the ledger, and send them to nobody."""
        events = events_in(self._place, entry)
        start = seconds_of(entry.hour)
        read = WindowRead(
            window=Window(start, start + HOUR_SECONDS),
            events=events,
            fetched=len(events),
            now=self._now,
            elsewhere={event.identity for event in events},
        )
        (claim,) = state.contracts.claim([entry.contract])
        try:
            claim.commit(read, StorePrepared)
        finally:
            claim.release()
