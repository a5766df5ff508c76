"""Verifying an archive: its chain, its signatures, every object, nothing unlisted, nothing missing, counts against statements.

Needs only the place: no API, no state, no token. Digests are read one after the other, objects in parallel. Memory holds the
keys, the counts by hour, and the first findings. Anyone with write access to the place can put anything there, so reading is
bounded: an object is read and inflated up to the size in its digest, a digest and its signature up to their maximum size.

An object that cannot be read is a finding, and the rest goes on. If the place itself cannot be read, the report says so and
contains the findings up to there.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

from poller.archive import Listed, Place, PlaceError
from poller.core.amounts import plural
from poller.core.evidence.batches import HOUR_SECONDS
from poller.core.evidence.chain import Chain, Finding, Hour, Verify
from poller.core.evidence.digest import (
    PROBES,
    Digest,
    Object,
    batch_of,
    digest_key,
    fingerprint,
    number_of,
    sha256,
    signature_key,
    written_for,
)
from poller.core.windows import Window

_GZIP_FORMAT = 31
_CHUNK_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024  # inflated at once; zlib copies the rest each time
# A batch has at most 100,000 entries: with one object for each, its digest has 50 MB.
MAX_DIGEST_BYTES = 64 * 1024 * 1024
_SIGNATURE_BYTES = 64
_AHEAD = 4  # objects that wait for each worker
_MOST_HASHED = 1000  # unlisted objects that are hashed to find the missing ones among them
_MOST_FINDINGS = 10_000  # that are kept; the others are only counted


class HeldHour(NamedTuple):
    """An hour of a contract, in unix seconds, and its counts."""

    contract: str
    start: int
    hour: Hour


class Report(NamedTuple):
    """The result: what was proven, and the findings.

    `first` and `last` are times of entries, as text; empty without entries. `key`: the fingerprint of the key that a person gave;
    None: then `keys` are only claims of the archive itself. `more` counts the findings besides `findings`. `signed_from`: the
    first digest with a signature, or 0. `stopped_by`: why not all could be read, or empty.
    """

    findings: list[Finding]
    more: int
    stopped_by: str
    digests: int
    sha256: str
    objects: int
    entries: int
    contracts: int
    first: str
    last: str
    complete: int
    damaged: int  # hours with a finding in one of their objects
    incomplete: list[HeldHour]
    unstated: list[HeldHour]
    signed_from: int
    keys: list[str]
    key: str | None

    @property
    def is_signed(self) -> bool:
        """Whether a digest has a signature."""
        return self.signed_from > 0

    @property
    def is_proven(self) -> bool:
        """Whether all was read, without a finding."""
        return not self.findings and not self.stopped_by


class Known(NamedTuple):
    """A digest that must be in the archive, from a person or a state: its number and SHA-256."""

    number: int
    sha256: str


class Verifier:
    """One verification of one archive."""

    def __init__(
        self,
        place: Place,
        verify: Verify,
        *,
        key: str | None = None,
        span: Window | None = None,
        known: Known | None = None,
        workers: int = 4,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """`key`: a trusted public key. `span`: only entries of hours that it touches are read; the chain is read whole.

        `on_progress` is called with the number of bytes of objects that were read, and their total.
        """
        self._place = place
        self._chain = Chain(verify, key)
        self._key = key
        self._span = span
        self._known = known
        self._workers = workers
        self._on_progress = on_progress
        self._findings: list[Finding] = []
        self._more = 0
        self._stopped_by = ""
        self._refusal: PlaceError | None = None  # for the first object without the right to read it
        self._has_read = False
        self._unlisted: dict[str, int] = {}
        self._signatures: set[int] = set()  # without a known digest so far
        self._missing: dict[str, Object] = {}  # by SHA-256
        self._waiting: deque[tuple[Object, Future[list[Finding]]]] = deque()
        self._damaged: set[tuple[str, int]] = set()
        self._all_bytes = self._read_bytes = 0
        self._objects = self._entries = 0
        self._contracts: set[str] = set()
        self._first = self._last = ""

    def run(self) -> Report:
        """Verify, as far as the place can be read."""
        try:
            self._run()
        except PlaceError as error:
            self._stopped_by = error.reason
        return self._report()

    def _run(self) -> None:
        numbers = self._list()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="verify")
        try:
            for number in numbers:
                self._read_unlisted(pool, before=number)
                self._read(number, pool)
            self._read_unlisted(pool)
            if not self._chain.number:
                self._find(digest_key(1), "is missing: no digest is here, so nothing is proven")
            self._collect(0)
        finally:  # after an early end or an interrupt, nobody waits for the current reads
            pool.shutdown(wait=False, cancel_futures=True)
        for number in sorted(self._signatures):
            self._find(signature_key(number), "belongs to no digest: the digest is missing, or was never finished")
        self._keep(self._chain.finish())
        self._judge_unlisted()
        self._judge_known()
        if self._refusal is not None and not self._has_read:
            self._findings, self._more = [], 0  # without the right to read anything, there are no findings
            raise self._refusal

    def _find(self, where: str, message: str) -> None:
        self._keep([Finding(where, message)])

    def _keep(self, found: Iterable[Finding]) -> None:
        for finding in found:
            if len(self._findings) < _MOST_FINDINGS:
                self._findings.append(finding)
            else:
                self._more += 1

    def _get(self, key: str, max_bytes: int) -> bytes | Finding | None:
        """The content, at most one byte longer than `max_bytes`; or the finding that it cannot be read.

        Raises: PlaceError if the place itself cannot be read.
        """
        try:
            content = self._place.get(key, max_bytes)
        except PlaceError as error:
            if not error.is_of_object:
                raise
            if error.is_refused:
                self._refusal = self._refusal or error
            why = error.reason.rpartition(f"{key}: ")[2].removeprefix(f"{self._place.url}: ")
            return Finding(key, f"cannot be read: {why}")
        self._has_read = self._has_read or content is not None
        return content

    def _list(self) -> list[int]:
        """List all objects. Returns the numbers of the digests, in order."""
        numbers: set[int] = set()
        signatures: set[int] = set()
        # Objects are listed before digests, because a digest is written after its objects.
        for listed in self._place.listing(""):
            if listed.key.startswith(PROBES) or listed.is_draft:
                continue
            self._judge_listed(listed)
            digest = number_of(listed.key)
            if digest is None:
                self._unlisted[listed.key] = listed.size_bytes
                self._all_bytes += listed.size_bytes
            elif digest[1] == "json":
                numbers.add(digest[0])
            else:
                signatures.add(digest[0])
        self._signatures = signatures - numbers
        return sorted(numbers)

    def _judge_listed(self, listed: Listed) -> None:
        if listed.is_deleted:
            self._find(listed.key, f"was deleted; older versions that are kept: {listed.versions}")
        elif listed.versions > 1:
            self._find(listed.key, f"has {listed.versions} versions: it was written {listed.versions} times")

    def _read_unlisted(self, pool: ThreadPoolExecutor, before: int | None = None) -> None:
        """Read further digests that were not listed: some storages list late, and new ones are written meanwhile."""
        while (before is None or self._chain.number + 1 < before) and self._read(self._chain.number + 1, pool):
            pass

    def _read(self, number: int, pool: ThreadPoolExecutor) -> bool:
        """Read a digest and its objects. Returns whether it exists."""
        content = self._get(digest_key(number), MAX_DIGEST_BYTES)
        if content is None:
            return False  # deleted: the next digest, or the known head, shows it
        self._signatures.discard(number)
        if isinstance(content, bytes) and len(content) > MAX_DIGEST_BYTES:
            content = Finding(digest_key(number), f"is longer than any digest: more than {MAX_DIGEST_BYTES:,} bytes")
        if isinstance(content, Finding):
            self._keep([*self._chain.skip(number), content])
            return True
        name = signature_key(number, content)
        self._unlisted.pop(name, None)  # if it has its own name
        signature = self._get(name, _SIGNATURE_BYTES)
        digest, found = self._chain.add(number, content, signature if isinstance(signature, bytes) else None)
        if isinstance(signature, Finding):  # it exists, so it is not missing
            found = [signature if finding.where == signature.where else finding for finding in found]
        self._keep(found)
        if digest is not None:
            if self._known is not None and self._known.number == number and self._known.sha256 != self._chain.head:
                self._find(digest_key(number), "is not the digest that is known: it was replaced")
            self._read_objects(digest, pool)
        return True

    def _read_objects(self, digest: Digest, pool: ThreadPoolExecutor) -> None:
        for left in digest.abandoned:
            if (size := self._unlisted.pop(left.key, None)) is None:
                continue  # an abandoned object is no part of the archive, and may be deleted
            found = self._get(left.key, left.bytes) if size == left.bytes else None
            if not isinstance(found, bytes) or sha256(found) != left.sha256:
                self._find(left.key, f"was changed since digest {digest.number} named it as abandoned")
        for entry in digest.objects:
            self._unlisted.pop(entry.key, None)
            if not self._is_wanted(seconds_of(entry.hour)):
                continue
            self._objects += 1
            self._entries += entry.entries
            self._contracts.add(entry.contract)
            self._first = min(self._first, entry.first) if self._first else entry.first
            self._last = max(self._last, entry.last)
            self._waiting.append((entry, pool.submit(self._check, digest.number, entry)))
            self._collect(self._workers * _AHEAD)

    def _collect(self, most: int) -> None:
        """Wait until no more than `most` objects wait to be checked."""
        while len(self._waiting) > most:
            entry, future = self._waiting.popleft()
            if found := future.result():
                self._keep(found)
                self._damaged.add((entry.contract, seconds_of(entry.hour)))
            self._read_bytes += entry.bytes
            self._on_progress(self._read_bytes, self._all_bytes)

    def _check(self, number: int, entry: Object) -> list[Finding]:
        if batch_of(entry.key) is None:
            return [Finding(entry.key, f"is no name of an object, though digest {number} names it")]
        content = self._get(entry.key, entry.bytes)
        if isinstance(content, Finding):
            return [content]
        if content is None:
            self._missing[entry.sha256] = entry
            return [Finding(entry.key, f"is missing: digest {number} names it, with {plural(entry.entries, 'entry')}")]
        if len(content) < entry.bytes:
            return [Finding(entry.key, f"was cut or changed: {len(content):,} of {entry.bytes:,} bytes are there")]
        if len(content) > entry.bytes:
            return [Finding(entry.key, f"was changed: it is longer than the {entry.bytes:,} bytes of digest {number}")]
        if sha256(content) != entry.sha256:
            return [Finding(entry.key, f"was changed: its SHA-256 is not the one that digest {number} names")]
        try:
            found = _counted(content, entry.content_bytes)
        except zlib.error:
            return [Finding(entry.key, "is not one gzip member, though it is what was written")]
        if found[1] != entry.content_bytes:
            much = "more" if found[1] > entry.content_bytes else "less"
            return [Finding(entry.key, f"holds {much} text than the {entry.content_bytes:,} bytes of digest {number}")]
        if found[0] != entry.entries:
            held = plural(found[0], "entry")
            return [Finding(entry.key, f"holds {held}, though digest {number} has {entry.entries:,}")]
        return []

    def _judge_unlisted(self) -> None:
        sizes = {entry.bytes for entry in self._missing.values()}
        hashed = 0
        for key, size_bytes in self._unlisted.items():
            number = written_for(key)
            if number is None:
                what = "is no part of the archive: no digest names it"
            elif number == self._chain.number + 1:
                what = f"is named by no digest: digest {number} is being written, was never finished, or was cut off"
            else:
                what = f"is named by no digest, though it looks like a part of digest {number}"
            if key.endswith("/") and not size_bytes:
                what = "is a directory that cannot be read"
            elif size_bytes in sizes and hashed < _MOST_HASHED:
                hashed += 1
                content = self._get(key, size_bytes)
                if isinstance(content, bytes) and (original := self._missing.get(sha256(content))):
                    what = f"is {original.key}, moved"
            self._find(key, what)

    def _judge_known(self) -> None:
        if self._known is not None and self._known.number > self._chain.number:
            what = f"is missing: the archive was cut at its end, it ends with digest {self._chain.number}"
            self._find(digest_key(self._known.number), what)

    def _is_wanted(self, start: int) -> bool:
        return self._span is None or (self._span.start < start + HOUR_SECONDS and start < self._span.end)

    def _report(self) -> Report:
        wanted = [hour for hour in self._hours() if self._is_wanted(hour.start)]
        hours = [hour for hour in wanted if (hour.contract, hour.start) not in self._damaged]
        return Report(
            findings=self._findings,
            more=self._more,
            stopped_by=self._stopped_by,
            digests=self._chain.number,
            sha256=self._chain.head,
            objects=self._objects,
            entries=self._entries,
            contracts=len(self._contracts),
            first=self._first,
            last=self._last,
            complete=sum(hour.hour.is_complete for hour in hours),
            damaged=len(wanted) - len(hours),
            incomplete=[hour for hour in hours if hour.hour.statement is not None and not hour.hour.is_complete],
            unstated=[hour for hour in hours if hour.hour.statement is None],
            signed_from=self._chain.signed_from,
            keys=[fingerprint(key) for key in self._chain.keys],
            key=fingerprint(self._key) if self._key else None,
        )

    def _hours(self) -> Iterator[HeldHour]:
        for (contract, hour), known in sorted(self._chain.hours.items()):
            yield HeldHour(contract, seconds_of(hour), known)


def seconds_of(hour: str) -> int:
    """The start of an hour in the notation of digests, in unix seconds; 0 if invalid, as in a changed digest."""
    try:
        return int(datetime.fromisoformat(hour).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return 0


def inflated(content: bytes, max_bytes: int) -> Iterator[bytes]:
    """The text of an object, piece by piece: one gzip member, at most a piece more than `max_bytes`.  Raises: zlib.error."""
    inflate = zlib.decompressobj(_GZIP_FORMAT)
    size = 0
    for start in range(0, len(content), _PIECE_BYTES):
        pending = content[start : start + _PIECE_BYTES]
        is_hungry = False
        while not is_hungry:
            text = inflate.decompress(pending, _CHUNK_BYTES)
            yield text
            size += len(text)
            if size > max_bytes:
                return
            pending = inflate.unconsumed_tail
            is_hungry = inflate.eof or (not pending and len(text) < _CHUNK_BYTES)
        if inflate.eof:
            if inflate.unused_data or start + _PIECE_BYTES < len(content):
                raise zlib.error("more follows its end")
            return
    raise zlib.error("it ends too early")


def _counted(content: bytes, max_bytes: int) -> tuple[int, int]:
    """The number of lines and bytes in the text of an object, without keeping the text.  Raises: zlib.error."""
    lines = size = 0
    for text in inflated(content, max_bytes):
        lines, size = lines + text.count(b"\n"), size + len(text)
    return lines, size
