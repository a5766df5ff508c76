"""Reading entries back from an archive, for any output or for a new state. Each object is checked against its digest."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from poller.archive import Place
from poller.core.answers import parse_page
from poller.core.errors import PollerError, StateHeldError
from poller.core.events import Event
from poller.core.evidence.batches import HOUR_SECONDS, Head
from poller.core.evidence.digest import (
    DIGESTS,
    ContractBooks,
    Digest,
    DigestError,
    Object,
    Statement,
    decode,
    digest_key,
    number_of,
    sha256,
    unpack_identities,
)
from poller.core.gaps import Unread, without
from poller.core.mapping.fields import Fields
from poller.core.mapping.redact import is_redacted
from poller.core.windows import Window
from poller.pipeline.verify import MAX_DIGEST_BYTES, inflated, seconds_of
from poller.store.parts import Claim
from poller.store.protocols import State
from poller.store.rows import Prepared as StorePrepared
from poller.store.rows import WindowRead

RESTORES = "restore-"  # start of the names of uses for restores to sinks

_AGAIN = "repair"  # the purpose of reading a span again, as in an audit
_AT_ONCE = 5000  # entries parsed at once
_read_uuid = Fields(["@uuid"]).read


class DamagedArchiveError(PollerError):
    """The content of the archive is not what was written."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}", hint="`ionos-poller archive verify` names all that is wrong")


def digests_of(place: Place) -> Iterator[tuple[int, str, Digest]]:
    """The digests in order: number, SHA-256, content. Includes digests that the place does not list yet.

    Raises: PlaceError; DamagedArchiveError if the chain is broken, or does not exist.
    """
    listed = (number_of(one.key) for one in place.listing(DIGESTS))
    last = max((found[0] for found in listed if found and found[1] == "json"), default=1)
    previous = ""
    for number in itertools.count(1):
        content = place.get(digest_key(number), MAX_DIGEST_BYTES)
        if content is None and number > last:
            return
        if content is None:
            raise DamagedArchiveError(f"{place.url}/{digest_key(number)}", "is missing")
        if len(content) > MAX_DIGEST_BYTES:
            raise DamagedArchiveError(digest_key(number), "is longer than any digest")
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
    content = place.get(entry.key, entry.bytes)
    if content is None:
        raise DamagedArchiveError(entry.key, "is missing")
    if sha256(content) != entry.sha256:
        raise DamagedArchiveError(entry.key, "was changed")
    try:
        text = b"".join(inflated(content, entry.content_bytes))
    except zlib.error as error:
        raise DamagedArchiveError(entry.key, "is not one gzip member") from error
    if len(text) > entry.content_bytes:
        raise DamagedArchiveError(entry.key, "holds more than its digest counts")
    return text.split(b"\n")[:-1]


def events_in(place: Place, entry: Object) -> list[Event]:
    """The entries of an object as events, with their original identities. Equal entries are told apart again.

    Raises: PlaceError, DamagedArchiveError.
    """
    known = unpack_identities(entry.identities)
    equals: Counter[bytes] = Counter()
    lines = lines_in(place, entry)
    start_us = seconds_of(entry.hour) * 1_000_000
    events: list[Event] = []
    for first in range(0, len(lines), _AT_ONCE):
        page = parse_page(b"[%s]" % b",".join(lines[first : first + _AT_ONCE]))
        if len(page.events) != len(lines[first : first + _AT_ONCE]):
            raise DamagedArchiveError(entry.key, "holds something that is not an entry")
        for index, event in enumerate(page.events, start=first):
            whole = event
            if index in known:
                ordinal = int(_shares_id(event)) if event.has_id else equals[event.identity]
                equals[event.identity] += 1
                whole = msgspec.structs.replace(event, identity=known[index], ordinal=ordinal)
            # A time outside of this hour means that the entry had no usable time.
            is_own = whole.is_timed and start_us <= whole.time_us < start_us + HOUR_SECONDS * 1_000_000
            events.append(whole if is_own else whole.at(start_us))
    return events


def _shares_id(event: Event) -> bool:
    """Whether other entries have the same `@uuid`, so that it did not identify this one. A redacted `@uuid` counts as none."""
    (uuid,) = _read_uuid(event.line)
    return not (isinstance(uuid, str) and is_redacted(uuid))


class Rebuilt(NamedTuple):
    """The content of a new state. `gaps` are tried again, `ranges` are read again."""

    contracts: int
    entries: int
    number: int
    gaps: int
    ranges: int


Spans = frozenset[tuple[Window, str]]


class _Complete(NamedTuple):
    """The span of a contract in an archive, its gaps, and the spans that were still to be read, with kinds and purposes.

    `is_told`: whether the digests name gaps and spans; those of earlier versions do not.
    """

    span: Window
    gaps: Spans = frozenset()
    ranges: Spans = frozenset()
    is_told: bool = True

    def after(self, books: ContractBooks, *, is_all: bool) -> _Complete:
        """The same with the facts of a later digest. `is_all`: no event waited, so the archive has all up to there."""
        start = seconds_of(books.complete_from)
        gaps = frozenset((_window(gap.start, gap.end), gap.kind) for gap in books.gaps or ())
        ranges = frozenset((_window(span.start, span.end), span.purpose) for span in books.ranges or ())
        is_told = books.gaps is not None
        if is_all:
            return _Complete(Window(start, max(start, seconds_of(books.complete_to))), gaps, ranges, is_told)
        if start < self.span.start:  # events that were read there by then may be the ones that waited
            ranges |= {(Window(start, self.span.start), _AGAIN)}
        span = Window(start, max(start, self.span.end))
        return _Complete(span, self.gaps | gaps, self.ranges | ranges, self.is_told and is_told)


class _Contents:
    """The joined facts of the digests of an archive, added in order."""

    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.held: dict[tuple[str, int], int] = {}  # entries, by contract and hour's start
        self.complete: dict[str, _Complete] = {}
        self._stated: dict[str, dict[int, Statement]] = {}

    def add(self, digest: Digest) -> None:
        self.objects += digest.objects
        for entry in digest.objects:
            place = (entry.contract, seconds_of(entry.hour))
            self.held[place] = self.held.get(place, 0) + entry.entries
        for statement in digest.statements:
            self._stated.setdefault(statement.contract, {})[seconds_of(statement.hour)] = statement
        for contract, books in digest.books.contracts.items():
            start = seconds_of(books.complete_from)
            before = self.complete.get(contract, _Complete(Window(start, start)))
            self.complete[contract] = before.after(books, is_all=digest.books.is_all)

    def contracts(self) -> dict[str, _Complete]:
        """The contracts. One that only a backfill collected continues from its last hour, which the ledger knows completely."""
        last = {contract: Window(start, start) for contract, start in sorted(self.held)}
        return {**{contract: _Complete(span) for contract, span in last.items()}, **self.complete}

    def ranges(self, contract: str, known: _Complete) -> list[tuple[Window, str]]:
        """The spans to be read again. If no digest names them, all spans that no statement proves complete."""
        if known.is_told:
            return _inside(known.span, known.ranges)
        proven = [
            Window(start, start + HOUR_SECONDS)
            for start, hour in self._stated.get(contract, {}).items()
            if hour.api == hour.archived == self.held.get((contract, start), 0)
        ]
        return [(span, _AGAIN) for span in without(known.span, proven)]


class Rebuilder:
    """Makes a new state from an archive: its entries count as collected, and its chain continues after its last digest."""

    def __init__(self, place: Place, sink: str, account: str, now: int) -> None:
        self._place = place
        self._sink = sink
        self._account = account
        self._now = now

    def into(self, state: State, close: Callable[[Head], Head] = lambda head: head) -> Rebuilt:
        """Fill an empty state. `close` returns the head to continue from, once all archived entries are in the state.

        Raises: PlaceError, DamagedArchiveError, StateError.
        """
        head: Head | None = None
        contents = _Contents()
        for number, digest_sha256, digest in digests_of(self._place):
            if digest.entry_format != "raw":
                what = f"its entries are in the format {digest.entry_format}, from which none can be recognised"
                raise DamagedArchiveError(digest_key(number), what)
            key = digest.next_key or digest.key
            head = Head(digest.archive, number, digest_sha256, key, digest.entries, 0, float(self._now))
            contents.add(digest)
        assert head is not None  # noqa: S101 - `digests_of` raises where there is none
        contracts = contents.contracts()
        for contract, known in contracts.items():
            state.contracts.enrol([contract], self._account, known.span.start, self._now)
        for entry in contents.objects:
            self._enter(state, entry)
        for contract, known in contracts.items():
            state.contracts.skip_to(contract, known.span.end, 0)
            self._enter_gaps(state, contract, known)
            for span, purpose in contents.ranges(contract, known):
                state.contracts.add_range(contract, span, purpose)
        head = close(head)
        state.archives.adopt(self._sink, head, contents.held)
        found = state.overview()
        return Rebuilt(len(contracts), head.entries, head.number, len(found.gaps), len(found.pending))

    def _enter_gaps(self, state: State, contract: str, known: _Complete) -> None:
        """Enter the gaps of a contract, due at once. The words of the API about them are lost."""
        with claimed(state, contract) as claim:
            for window, kind in _inside(known.span, known.gaps):
                unread = Unread(window, kind, "it was open when the archive was written", is_narrow=False)
                claim.commit(WindowRead(window, [], 0, self._now, unread=[unread]), StorePrepared)

    def _enter(self, state: State, entry: Object) -> None:
        """Enter the entries of an object in the ledger, without sending them."""
        events = events_in(self._place, entry)
        start = seconds_of(entry.hour)
        read = WindowRead(
            window=Window(start, start + HOUR_SECONDS),
            events=events,
            fetched=len(events),
            now=self._now,
            elsewhere={event.identity for event in events},
        )
        with claimed(state, entry.contract) as claim:
            claim.commit(read, StorePrepared)


@contextmanager
def claimed(state: State, contract: str) -> Iterator[Claim]:
    """The claim on a contract during the block.  Raises: StateHeldError if another process has it."""
    claim = state.contracts.claim(contract)
    if claim is None:  # with a state in a database
        hint = "wait until that process has ended, or, if it was killed, for its lease; then run the same command again"
        raise StateHeldError("another process has it", contract=contract, hint=hint)
    try:
        yield claim
    finally:
        claim.release()


def _window(start: str, end: str) -> Window:
    return Window(seconds_of(start), seconds_of(end))


def _inside(span: Window, parts: Spans) -> list[tuple[Window, str]]:
    """The parts inside the span, oldest first."""
    cut = [(Window(max(part.start, span.start), min(part.end, span.end)), word) for part, word in sorted(parts)]
    return [(part, word) for part, word in cut if part.start < part.end]
