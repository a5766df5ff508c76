"""Archives: compressed objects and a chain of digests, each batch as it was committed before it was sent.

What a batch is made of is decided and committed by who delivers (`pipeline.archive`); here it is written. Objects first, then the
signature, then the digest: a batch whose digest is there is whole. Writing it again changes nothing. Nothing is written at a
place that lacks the digest before: a disk that is not mounted, or a wrong path, must not get a part of a chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from isal import isal_zlib

from poller.archive import LostChainError, Place, PlaceError, TakenError
from poller.archive.places import has_digest, is_empty_for, open_place
from poller.config import ArchiveSink as Settings
from poller.config.installed import needed
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, RetryAfter
from poller.core.events import OutboxEvent
from poller.core.evidence.batches import Head, PreparedBatch
from poller.core.evidence.digest import digest_key, signature_key
from poller.sinks.base import Context, Sink
from poller.sinks.render import build_render
from poller.sinks.side_by_side import side_by_side
from poller.system.liveness import moves

_GZIP_LEVEL = 1
_GZIP_FORMAT = 31  # zlib's word for a gzip member; its header has no time
_WRITERS = 8


def compress(parts: Iterable[bytes | memoryview]) -> bytes:
    """An object's text, in parts, as it is stored: one gzip member."""
    member = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_FORMAT)
    return b"".join([*map(member.compress, parts), member.flush()])


def outcome_of(error: PlaceError) -> Outcome:
    """What it means for delivery that a place did not do what was asked."""
    return CredentialsRefused(error.reason) if error.is_refused else RetryAfter(error.reason)


class ArchiveSink(Sink):
    """Writes to one place."""

    prepare: Callable[[Sequence[OutboxEvent]], PreparedBatch]
    """Commits what a batch of these events is made of. Given by who delivers."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        place: Place | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`place` instead of the one that the table names.  Raises: ConfigError for a library that is not installed."""
        super().__init__(settings)
        self.evidence = context.config.evidence
        self._place = place or open_place(settings, context.config)
        # A batch must become full before the outbox does: else collecting would pause until it is old enough.
        self.batch_bytes = min(settings.batch_bytes, context.config.outbox.max_bytes // 4)
        self.entry_format = settings.format
        self.where = " ".join(filter(None, (settings.url, settings.endpoint_url)))
        """Which place it is, for the state to remember."""
        self._render = build_render(settings)
        self._clock = clock
        self._retain_seconds = settings.retain_seconds if settings.object_lock != "none" else None
        if context.config.evidence.signing_key_file is not None:
            with needed("archive", "evidence.signing_key_file", "needs cryptography"):
                import cryptography  # noqa: F401 - only whether it is there

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Commit a batch and write it."""
        return self.write(self.prepare(events))

    def rendered(self, events: Sequence[OutboxEvent]) -> Sequence[OutboxEvent]:
        """The events with the lines that are archived, as `format` says."""
        render = self._render
        return events if render is None else [event.with_line(render(event)) for event in events]

    def is_empty_for(self, head: Head) -> bool:
        """See `places.is_empty_for`."""
        return is_empty_for(self._place, head)

    def write(self, batch: PreparedBatch) -> Outcome:
        """Write a batch that was committed, now or by somebody before."""
        until: float | None = None
        if self._retain_seconds is not None:
            # A batch may have waited for its place: a storage refuses a lock that is over already.
            until = max(batch.written_at, self._clock()) + self._retain_seconds

        def put(item: tuple[str, bytes]) -> bool:
            moves()
            self._place.put(*item, retain_until=until)
            return True

        try:
            # Where the state lost its last commits, another batch has this number: nothing of this one may come beside it.
            there = self._place.get(digest_key(batch.number))
            if there is not None and there != batch.digest:
                raise TakenError(f"{self._place.url}/{digest_key(batch.number)}")
            if batch.number > 1 and not has_digest(self._place, batch.number - 1, batch.previous):
                raise LostChainError(f"{self._place.url}/{digest_key(batch.number - 1)}")
            side_by_side(put, batch.objects, _WRITERS)
            if batch.signature is not None:
                put((signature_key(batch.number, batch.digest), batch.signature))
            put((digest_key(batch.number), batch.digest))
        except PlaceError as error:
            return outcome_of(error)
        return Accepted()

    def probe(self) -> Outcome:
        """Write an object, read it and delete it; where objects are locked, prove that it cannot be deleted."""
        try:
            self._place.probe()
        except PlaceError as error:
            return outcome_of(error)
        return Accepted()
