"""Writing archives: a batch is composed, committed with its digest and signature, written, and only then settled.

Any process that finds a committed batch writes it. So a crash, a takeover or a lost answer leads to the same bytes under the same
keys. A batch is never composed twice, and never sent in halves.
"""

from __future__ import annotations

import logging
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

from poller import __version__
from poller.archive import LostChainError, PlaceError
from poller.archive.signing import Signer, read_signer
from poller.config import Evidence
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Park, Wait, decide, failure_kind
from poller.core.errors import ConfigError
from poller.core.events import OutboxEvent
from poller.core.evidence.batches import HOUR_SECONDS, Head, PreparedBatch, pack
from poller.core.evidence.compose import Facts, compose
from poller.core.evidence.digest import digest_key, encode, fingerprint
from poller.core.windows import Window
from poller.pipeline.audit import Audited
from poller.pipeline.deliver import Deliverer, StepResult
from poller.pipeline.pieces import pieces_of
from poller.sinks.archive import ArchiveSink, compress, outcome_of
from poller.sinks.base import Sink
from poller.store.archives import WRITER
from poller.store.parts import Archives
from poller.store.protocols import State, Stores

log = logging.getLogger(__name__)

# How often to look whether a batch is full before its time.
_LOOK_SECONDS = 5.0
_PACKERS = 2  # threads that compress; the library releases the interpreter's lock


class _NothingToWriteError(Exception):
    """There is no entry and no statement."""


class ArchiveDeliverer(Deliverer):
    """Delivers the waiting events of a state to one archive. The chain is in this state, or in another one (`chain`)."""

    def __init__(
        self,
        state: State,
        sink: ArchiveSink,
        *,
        chain: Archives | None = None,
        writer: str = "",
        redact: Callable[[bytes], bytes] | None = None,
        clock: Callable[[], float] = time.time,
        on_failed: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`writer` names this state for the chain of another state; empty if the chain is its own."""
        super().__init__(state.outbox, sink, redact=redact, clock=clock, on_failed=on_failed)
        self._archive = sink
        self._state = state
        self._outbox = state.outbox
        self._gaps = state.gaps
        self._chain = chain or state.archives
        self._writer = writer
        self._batch: PreparedBatch | None = None
        sink.prepare = self._prepare
        self._chain.begin(sink.name, int(clock()))

    def _step(self, *, is_last: bool) -> StepResult:
        """Write one batch."""
        if (seconds := self._standing.wait_seconds()) > 0:
            return StepResult(0, seconds)
        caught_up = self._catch_up()
        if caught_up:
            return StepResult(caught_up, 0.0)
        try:
            self._find_chain()
        except PlaceError as error:
            return self._failed(outcome_of(error), 1)
        events: Sequence[OutboxEvent] = ()
        self._batch = self._chain.prepared(self._sink.name)
        if self._batch is None:
            found = self._next(is_last=is_last)
            if isinstance(found, StepResult):
                return found
            events = found
        started = time.monotonic()
        try:
            outcome: Outcome = self._archive.write(self._batch) if self._batch else self._sink.send(events)
        except _NothingToWriteError:
            return StepResult(0, None)
        except ConfigError as error:
            outcome = CredentialsRefused("; ".join(map(str, error.problems)))
        if isinstance(outcome, Accepted):
            return self._complete(time.monotonic() - started)
        return self._failed(outcome, self._batch.events if self._batch else len(events))

    def _failed(self, outcome: Outcome, count: int) -> StepResult:
        decision = decide(outcome, max(1, count), self._queues.others.attempts + 1, self._retry, random.random)
        assert isinstance(decision, Wait | Park)  # noqa: S101 - an archive refuses no single event
        self._on_failed(failure_kind(outcome))
        return self._put_off(decision, count)

    def _find_chain(self) -> None:
        """Check that the place has the end of the chain. If a person has set an empty place, a new chain begins there.

        Commits: the place, and the new chain if it is empty.  Raises: PlaceError if neither is true.
        """
        sink, where = self._sink.name, self._archive.where
        if self._chain.place(sink) == where:
            return  # each batch checks that the chain is there
        head = self._head()
        if head.number and self._archive.is_empty_for(head):
            if self._chain.place(sink) is None:  # nobody is known to have changed the place, so the disk may be missing
                raise LostChainError(f"{where}/{digest_key(head.number)}")
            self._chain.begin_anew(sink, head.archive, where, int(self._clock()))
            log.warning("archive.begun_anew", extra={"sink": sink, "digest": head.number})
        else:
            self._chain.remember_place(sink, where)

    def _next(self, *, is_last: bool) -> Sequence[OutboxEvent] | StepResult:
        """The events of the next batch, empty for statements only; or the result of the step without a batch."""
        events, size, since = self._held().weight()
        age_seconds = self._settings.batch_age_seconds
        if since is None:
            written_at = self._head().written_at
            is_due = is_last or written_at is None or not 0 <= self._clock() - written_at < age_seconds
            return () if is_due and self._chain.has_to_state(self._sink.name) else StepResult(0, None)
        age = self._clock() - since
        is_full = events >= self._settings.batch_events or size >= self._archive.batch_bytes
        if not is_last and not is_full and 0 <= age < age_seconds:
            return StepResult(0, min(_LOOK_SECONDS, age_seconds - age))
        batch = self._held().batch(self._settings.batch_events, self._archive.batch_bytes)
        if batch is None:
            return StepResult(0, None)
        (piece,) = pieces_of(self._sink, batch.events, self._redact)
        if not piece.dead:
            return piece.events
        first = min(piece.dead)
        if first:
            return piece.events[:first]
        self._held().settle(1, dead=[piece.dead[0]], now=self._clock())
        self._tell_of_dead([piece.dead[0]])
        return StepResult(1, 0.0)

    def _head(self) -> Head:
        return self._chain.begin(self._sink.name, int(self._clock()))

    def _prepare(self, events: Sequence[OutboxEvent]) -> PreparedBatch:
        """Commit a batch, or find the one that another process committed first.

        Raises: ConfigError if the chain cannot be signed; LeaseLostError if the place was released.
        """
        evidence = self._archive.evidence
        now = int(self._clock())
        events = self._archive.rendered(events)
        while True:
            head = self._head()
            signers = signers_of(evidence, head)
            with ThreadPoolExecutor(_PACKERS, thread_name_prefix="pack") as pool:
                objects = pack(events, head.number + 1, compress, pool.map)
            # The state that has the chain knows its own gaps.
            gaps = [(gap.contract, gap.window, gap.kind) for gap in self._gaps.find()] if self._writer else []

            def seal(facts: Facts, signers: tuple[Signer | None, str | None] = signers) -> tuple[bytes, bytes | None]:
                signer, next_key = signers
                digest = compose(
                    facts.with_gaps(gaps),  # noqa: B023 - called before the next round
                    [packed.entry for packed in objects],  # noqa: B023 - the same
                    written_at=now,
                    program=f"ionos-poller {__version__}",
                    entry_format=self._archive.entry_format,
                    key=signer.key if signer else None,
                    next_key=next_key,
                )
                if not digest.objects and not digest.statements:
                    raise _NothingToWriteError
                content = encode(digest)
                return content, signer.sign(content) if signer else None

            place = self._held()
            place.ensure_held()
            if self._writer:  # the chain counts our events: after a power cut they must be the same, in the same order
                self._state.remember_for_good(WRITER, self._writer)
            self._batch = self._chain.prepare(
                self._sink.name, place, len(events), objects, seal, now, writer=self._writer
            ) or self._chain.prepared(self._sink.name)
            if self._batch is not None:
                return self._batch

    def _complete(self, seconds: float) -> StepResult:
        batch = self._batch
        assert batch is not None  # noqa: S101 - it was written
        self._held().ensure_held()
        is_ours = self._chain.complete(self._sink.name, batch.number, self._clock())
        self._batch = None
        self._queues.others.attempts = 0
        self._standing.end_wait()
        self.refusal = ""
        extra = {"sink": self._sink.name, "events": batch.events, "digest": batch.number, "seconds": round(seconds, 3)}
        if is_ours:
            log.info("batch.sent", extra={**extra, "dead": 0})
        caught_up = self._catch_up()
        return StepResult(max(caught_up, batch.events if batch.writer == self._writer else 0), 0.0)

    def _catch_up(self) -> int:
        """Settle our events that the chain of another state holds already. Returns how many."""
        if not self._writer:
            return 0
        delivered = next(row.delivered for row in self._outbox.sinks() if row.name == self._sink.name)
        count = self._chain.archived(self._sink.name, self._writer) - delivered
        if count > 0:
            self._held().batch(count, sys.maxsize)
            self._held().settle(count, now=self._clock())
        return max(0, count)


def signers_of(evidence: Evidence, head: Head) -> tuple[Signer | None, str | None]:
    """The signer of the next digest, and the key that it announces.  Raises: ConfigError."""
    name = "evidence.signing_key_file"
    if evidence.signing_key_file is None:
        if head.key is None:
            return None, None
        message = "is missing, and the archive is signed"
        raise ConfigError.of(name, message, f"give the key {fingerprint(head.key)[:16]}... again")
    signer = read_signer(evidence.signing_key_file, name)
    if head.key in (None, signer.key):
        return signer, None
    if evidence.previous_signing_key_file is not None:
        before = read_signer(evidence.previous_signing_key_file, "evidence.previous_signing_key_file")
        if before.key == head.key:
            return before, signer.key
    message = f"is not the key of the archive, which is {fingerprint(str(head.key))[:16]}..."
    hint = "name that one in previous_signing_key_file: it signs the change"
    raise ConfigError.of(name, message, hint)


def deliverer_of(state: State, sink: Sink, *, chain: Archives | None = None, **options: Any) -> Deliverer:
    """The deliverer of a sink for the events of a state. `chain`: the state with the archives, if it is another one."""
    if isinstance(sink, ArchiveSink):
        return ArchiveDeliverer(state, sink, chain=chain, writer=writer_of(state) if chain else "", **options)
    return Deliverer(state.outbox, sink, **options)


@contextmanager
def chain_of_run(stores: Stores) -> Iterator[Archives]:
    """The chains of archives. The state of `run` has them for all uses, and is created if it does not exist."""
    if "run" not in stores.uses():
        stores.open("run").close()
    with closing(stores.attach("run")) as state:
        yield state.archives


def writer_of(state: State) -> str:
    """The name of a state for the chain of another state.  Commits: its name, if it has none."""
    name = state.fact(WRITER)
    if name is None:
        name = uuid.uuid4().hex
        state.remember(WRITER, name)
    return name


def archives_in(sinks: Iterable[Sink]) -> list[str]:
    """The names of those that are archives."""
    return [sink.name for sink in sinks if isinstance(sink, ArchiveSink)]


class HourCloser:
    """Passes the results of audits to the archives of a state, so that their next digests state them."""

    def __init__(self, state: State, sinks: Iterable[str], chain: Archives | None = None) -> None:
        """`sinks`: the names of those that are archives.

        `chain`: the state with the archives, if it is another one. This state must then know all hours that it audits.
        """
        self._state = state
        self._chain = chain or state.archives
        self._knows_all = chain is not None
        self._sinks = list(sinks)

    def counts(self, contract: str, span: Window) -> Mapping[int, int]:
        """The collected entries by hour, to be read before an audit; empty without an archive."""
        if not self._sinks:
            return {}
        counts = self._state.contracts.counts(contract, span.start // HOUR_SECONDS * HOUR_SECONDS, span.end)
        return {hour: count.collected for hour, count in counts.items()}

    def close(self, contract: str, before: Mapping[int, int], compared: Window | None, result: Audited) -> None:
        """Commits: the results of an audit for the hours in `compared`. `before` is the result of `counts` before it."""
        if compared is None:
            return
        for sink in self._sinks:
            since = 0 if self._knows_all else self._chain.begin(sink, int(time.time())).since
            gaps = [gap.window for gap in self._state.gaps.find(contract)]
            after = self.counts(contract, compared)
            counted = closed_hours(compared, before, after, result, gaps, since=since)
            self._chain.close_hours(sink, contract, counted)


def closed_hours(
    compared: Window,
    before: Mapping[int, int],
    after: Mapping[int, int],
    result: Audited,
    gaps: Sequence[Window],
    *,
    since: int,
) -> dict[int, int | None]:
    """The result of an audit for each whole hour that it compared: the count of the API, None for an hour with a gap.

    `before` and `after` are the collected entries by hour, before and after the audit. Left out are hours with entries that were
    collected meanwhile, hours that the API refused to count, and hours before `since`.
    """
    at_api = {row.window.start // HOUR_SECONDS * HOUR_SECONDS: row.at_api for row in result.differences}
    counted: dict[int, int | None] = {}
    first = -(-max(compared.start, since) // HOUR_SECONDS) * HOUR_SECONDS
    for start in range(first, compared.end - HOUR_SECONDS + 1, HOUR_SECONDS):
        hour = Window(start, start + HOUR_SECONDS)
        known = before.get(start, 0)
        is_refused = any(hour.overlaps(part.window) for part in result.refused)
        if is_refused or known != after.get(start, 0):
            continue
        counted[start] = None if any(hour.overlaps(gap) for gap in gaps) else at_api.get(start, known)
    return counted
