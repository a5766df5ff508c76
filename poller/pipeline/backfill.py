"""A backfill: exporting a past range once, to a file, to stdout or to sinks. It continues after an interruption.

Its state belongs to an order, which is the request of the user: the same order again continues with the same state. Nothing here
prints; results for the user are returned.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from poller.config import AnySink, Config
from poller.config.sink_base import Format
from poller.core.errors import ASKING_ERRORS, AuthError, ConfigError, PollerError, Problem, StateError, StateHeldError
from poller.core.events import Event
from poller.core.windows import Window, format_time, tile
from poller.ionos.api import ActivityLog
from poller.pipeline.archive import HourCloser, archives_in, chain_of_run, deliverer_of
from poller.pipeline.audit import Auditor
from poller.pipeline.collect import Collector, PollResult, WindowCommitted
from poller.pipeline.deliver import Deliverer
from poller.pipeline.discovery import Discovery
from poller.pipeline.elsewhere import Elsewhere
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.pipeline.loop import Loop
from poller.pipeline.restore import RESTORES
from poller.pipeline.room import by_delivery
from poller.pipeline.status import Use
from poller.pipeline.transfer import Transfer
from poller.sinks.archive import ArchiveSink
from poller.sinks.base import Sink, TooOld
from poller.sinks.build import build_sink
from poller.sinks.output import OutputFile
from poller.sinks.redaction import redactions_of
from poller.sinks.render import chosen_render
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.overview import FINISHED
from poller.store.parts import Archives
from poller.store.protocols import State, Stores
from poller.store.rows import Prepared, Replica

log = logging.getLogger(__name__)

PREFIX = "backfill-"  # start of the name of its use

# A backfill has no later poll, so it tries all due gaps.
_ALL_GAPS = 1000

# Larger windows take fewer requests; this much is well within what a backfill may take.
_JOB_BYTES = 3 * 1024 * 1024
_ALL_JOBS_BYTES = 24 * 1024 * 1024

# Entries that become too old within this time would be refused while the backfill runs.
_AGE_MARGIN_SECONDS = 3600

_RANGE = "range"


class Order(NamedTuple):
    """The request of the user, as typed."""

    start: str
    end: str
    contracts: tuple[str, ...]
    output: str
    sinks: tuple[str, ...]
    is_again: bool
    format: Format = "raw"

    @classmethod
    def of(
        cls,
        start: str,
        end: str,
        *,
        contracts: Collection[str] = (),
        output: str | None = None,
        sinks: Collection[str] = (),
        is_again: bool = False,
        format: Format = "raw",  # noqa: A002 - the option's name
    ) -> Order:
        """The order of these options. Another sequence of contracts or sinks, or another path of the file, is the same order."""
        place = output if output == "-" else str(Path(output).absolute()) if output else ""
        return cls(start, end, tuple(sorted(set(contracts))), place, tuple(sorted(set(sinks))), is_again, format)

    @property
    def digest(self) -> str:
        # `raw` is left out, so that the digest is the same as before there were formats.
        words = tuple(self) if self.format != "raw" else tuple(self)[:-1]
        return hashlib.blake2b(repr(words).encode(), digest_size=6).hexdigest()

    @property
    def use(self) -> str:
        return f"{PREFIX}{self.digest}"


class Span(NamedTuple):
    """The range of an order, set by its first run, so that an age means the same time in every run."""

    window: Window
    is_cut: bool  # `--to` was in the future at the first run, so the range ends at that time
    is_first: bool


class TooOldEntries(NamedTuple):
    """Entries of a window that are older than these sinks accept, by the API's count."""

    sinks: tuple[str, ...]
    window: Window
    entry_count: int


class Export(NamedTuple):
    """The result of an export."""

    polls: list[PollResult]
    left_out: int  # entries that `run` has collected, or will collect, for the same sinks
    delivered: int


class Backfill:
    """One run of one order: `span`, then `discover`, `limit_age` and `export`, and `finish` once all of it is exported."""

    def __init__(
        self,
        config: Config,
        order: Order,
        stores: Stores,
        state: State,
        accounts: Mapping[str, ActivityLog],
        stop: threading.Event,
        *,
        jobs: int,
        too_old: TooOld = "dead-letter",
        prepare: Callable[[str, Sequence[Event]], Prepared] = lambda contract, events: Prepared(events),
        trusted_now: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`prepare`: see `Collector`. `trusted_now`: see `build_sink`."""
        window_bytes = max(config.api.window_bytes, min(jobs * _JOB_BYTES, _ALL_JOBS_BYTES))
        api = msgspec.structs.replace(config.api, concurrency=jobs, window_bytes=window_bytes)
        poll = msgspec.structs.replace(config.poll, overlap_seconds=0)
        self._config = msgspec.structs.replace(config, api=api, poll=poll)
        self._poll = config.poll
        self._order = order
        self._stores = stores
        self._state = state
        self._accounts = accounts
        self._stop = stop
        self._jobs = jobs
        self._too_old = too_old
        self._prepare = prepare
        self._trusted_now = trusted_now
        self._clock = clock
        self._discovery = discovery = Discovery(state, accounts, self._config, clock)
        self._collector = partial(Collector, state, accounts, self._config, stop=stop, clock=clock, discovery=discovery)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do. After it was complete, replayed dead letters may wait."""
        return bool(self._state.fact(FINISHED)) and not any(row.waiting for row in self._state.overview().sinks)

    def span(self, asked: Window) -> Span:
        """The range to export.  Commits: the range, at the first run."""
        if known := self._state.fact(_RANGE):
            start, end, *cut = known.split("/")
            return Span(Window(int(start), int(end)), is_cut=bool(cut), is_first=False)
        now = int(self._clock())
        is_cut = asked.end > now
        window = Window(asked.start, min(asked.end, now))
        self._state.remember(_RANGE, f"{window.start}/{window.end}{'/cut' if is_cut else ''}")
        return Span(window, is_cut, is_first=True)

    def sinks(self) -> list[Sink]:
        """The sinks of the order."""
        render = chosen_render(self._order.format, self._config.sinks)
        if self._order.output == "-":
            return [StdoutSink(PRINTED, render)]
        if self._order.output:
            return [OutputFile(Path(self._order.output), self._order.digest, render)]
        return [
            build_sink(settings, self._config, self._stop, too_old=self._too_old, trusted_now=self._trusted_now)
            for settings in self._chosen()
        ]

    def _chosen(self) -> list[AnySink]:
        return [settings for settings in self._config.sinks if settings.name in self._order.sinks]

    def discover(self, window: Window) -> tuple[list[str], list[PollerError]]:
        """The contracts to export, and the failures for others.

        Raises: ConfigError when every account was asked and none of them sees a contract of the order.
        """
        found, failures = self._discovery.discover(window.start, self._order.contracts)
        left_out = {*found, *self._config.poll.exclude_contracts}
        for row in self._state.contracts.all():
            if row.contract in left_out:
                continue
            if row.account in self._accounts:
                message = "the API does not list it any more, and none of it was read"
                hint = "run the same command again when the API lists it, or add it to poll.exclude_contracts"
            else:
                message = "its account is not configured any more"
                hint = "put the account back into the configuration, or add the contract to poll.exclude_contracts"
            failures.append(PollerError(message, contract=row.contract, hint=hint))
        unknown = set(self._order.contracts) - set(found)
        if unknown and all(error.contract for error in failures):  # every account could be asked
            hint = "check the number, and which contracts the token may see with `ionos-poller check`"
            raise ConfigError.of("--contract", f"no account sees {', '.join(sorted(unknown))}", hint)
        return found, failures

    def limit_age(
        self, sinks: Sequence[Sink], contracts: Sequence[str], window: Window
    ) -> tuple[Window, list[TooOldEntries]]:
        """The window to read, and the entries of the range that are older than the sinks accept.

        Commits: with `skip`, that reading begins at the oldest time that the sinks accept.
        Raises: ConfigError if `skip` would leave out entries that some of the sinks accept.
        """
        ages = {sink.name: sink.max_age_seconds for sink in sinks if sink.max_age_seconds is not None}
        now = self._clock()
        if not ages or self._too_old != "skip":
            limits = {name: min(int(now - age), window.end) for name, age in ages.items()}
            old = {end: sum(self._count(contract, end) for contract in contracts) for end in {*limits.values()}}
            spans = [(name, Window(window.start, end), old[end]) for name, end in limits.items() if old[end]]
            return window, [TooOldEntries((name,), span, count) for name, span, count in spans]
        if len(ages) < len(sinks) or len(set(ages.values())) > 1:
            hint = "run one backfill for each sink: skipping would leave out entries that some of them take"
            raise ConfigError.of("--too-old skip", "these sinks do not take entries equally old", hint)
        limit = min(int(now - min(ages.values())) + _AGE_MARGIN_SECONDS, window.end)
        counts = {contract: self._count(contract, limit) for contract in contracts}
        for contract, count in counts.items():
            self._state.contracts.skip_to(contract, limit, count)
        skipped = TooOldEntries(tuple(ages), Window(window.start, limit), sum(counts.values()))
        return Window(max(window.start, limit), window.end), [skipped] if skipped.entry_count else []

    def _count(self, contract: str, end: int) -> int:
        """How many entries the API serves from the watermark up to `end`."""
        row = self._state.contracts.get(contract)
        if row is None or row.watermark >= end:
            return 0
        limits, months = self._config.api.limits(), list(tile(Window(row.watermark, end)))
        question = lambda api: Auditor(api, contract, limits).count_served(months)  # noqa: E731
        return self._discovery.ask(
            contract, row.account, question, refused=0
        )  # that it is refused is told when it is read

    def export(
        self,
        sinks: Sequence[Sink],
        contracts: Sequence[str],
        window: Window,
        *,
        on_window: Callable[[WindowCommitted], None] = lambda done: None,
        tick: Callable[[int], None] = lambda delivered: None,
        tick_seconds: float = 60.0,
    ) -> Export:
        """Read the contracts up to the window's end and send new events. `tick` is called now and then with the delivered number.

        Raises: what `Transfer.run` does.
        """
        left_out: list[int] = []  # from several threads

        def after_window(done: WindowCommitted) -> None:
            transfer.after_window(done)
            left_out.append(done.left_out)
            on_window(done)

        with ExitStack() as others:
            has_archive = any(isinstance(sink, ArchiveSink) for sink in sinks)
            chain = others.enter_context(chain_of_run(self._stores)) if has_archive else None
            deliverers = [self._deliverer(sink, chain) for sink in sinks]
            transfer = Transfer(deliverers, self._stop)
            collector = self._collector(
                prepare=self._prepare,
                elsewhere=others.enter_context(closing(self._elsewhere())).collected,
                on_window=after_window,
                until=window.end,
                gaps_at_once=_ALL_GAPS,
                room_may_come=by_delivery,
            )
            polls = transfer.run(
                collector, lambda: contracts, self._jobs, lambda: tick(transfer.delivered), tick_seconds
            )
            if chain is not None:
                self._state_hours(chain, sinks, window)
        return Export(polls, sum(left_out), transfer.delivered)

    def _deliverer(self, sink: Sink, chain: Archives | None) -> Deliverer:
        """The deliverer of a sink, with its redaction."""
        redact = self._redactions.get(sink.name)
        return deliverer_of(self._state, sink, chain=chain, redact=redact, clock=self._clock)

    @cached_property
    def _redactions(self) -> dict[str, Callable[[bytes], bytes]]:
        return redactions_of(self._chosen(), self._config)

    def _state_hours(self, chain: Archives, sinks: Sequence[Sink], window: Window) -> None:
        """Let the archives state the API's count of each hour of the range, now that all of it is in them.

        Hours that ended recently are left to the audits of `run`, because entries may still arrive.
        """
        settled = int(self._clock()) - self._poll.overlap_seconds
        hours = HourCloser(self._state, archives_in(sinks), chain)
        auditor = LedgerAuditor(self._state, self._accounts, self._config, hours=hours, clock=self._clock)
        for row in self._state.contracts.all():
            span = Window(window.start, min(window.end, row.watermark, settled))
            if row.failure or span.end <= span.start:
                continue
            try:
                auditor.audit(row.contract, span)
            except ASKING_ERRORS as error:  # what is archived is archived
                log.warning("audit.failed", extra={"contract": row.contract, "why": str(error)})
        for sink in sinks:
            if isinstance(sink, ArchiveSink):
                deliverer = self._deliverer(sink, chain)
                loop = Loop(deliverer, self._stop, is_alone=True)
                loop.end()
                try:
                    with suppress(AuthError):  # what is archived is archived
                        loop.run()
                finally:
                    deliverer.abandon()

    def _elsewhere(self) -> Elsewhere:
        """The events that `run` delivers to these sinks; empty if the order sends them again."""
        return Elsewhere(self._stores, () if self._order.is_again else self._order.sinks, self._poll, self._clock)

    def forgotten(self, contracts: Sequence[str], window: Window) -> int:
        """How many entries there `run` has collected and forgotten since: sinks that had them get them again."""
        with closing(self._elsewhere()) as elsewhere:
            return elsewhere.forgotten(contracts, window)

    def finish(self, sinks: Sequence[Sink]) -> None:
        """Finish a complete export: the file gets its name.  Commits: that it is complete."""
        for sink in sinks:
            if isinstance(sink, OutputFile):
                sink.finish()
        self._state.remember(FINISHED, format_time(int(self._clock())))
        self._state.shrink()


def open_state(stores: Stores, order: Order) -> tuple[State, bool]:
    """The state of an order, and whether it is new.

    Raises: StateHeldError while another process works on it; for a file, also on another machine: each would write a part.
    """
    is_new = order.use not in stores.uses()
    replicas: Sequence[Replica] = ()
    with suppress(StateError):  # `open` upgrades it, or says what is wrong
        replicas = stores.snapshot(order.use).replicas if order.output and not is_new else ()
    for replica in replicas:
        hint = "wait until it has ended, or export to a sink, which several machines can share"
        raise StateHeldError(f"{replica.host} works on this backfill (process {replica.pid})", hint=hint)
    return stores.open(order.use), is_new


def discard(stores: Stores, order: Order) -> None:
    """Forget an export, and delete its file if we wrote it; another file of that name is kept."""
    if order.use not in stores.uses():
        stores.discard(order.use)  # it may have been deleted by hand
        return
    with closing(stores.open(order.use)) as state:
        offset = next((sink.output_offset for sink in state.outbox.sinks()), None)
        is_finished = state.fact(FINISHED) is not None
    stores.discard(order.use)
    if order.output not in ("", "-"):
        OutputFile(Path(order.output), order.digest).discard(offset, is_finished=is_finished)


def to_forget(uses: Sequence[Use], ids: Sequence[str], *, is_all_finished: bool, may_be_unfinished: bool) -> list[str]:
    """The uses to be deleted: those named, and with `is_all_finished` every finished one.

    Raises: ConfigError for each name that does not exist, and for each unfinished use unless `may_be_unfinished`.
    """
    known = {use.name: use for use in uses if use.name.startswith((PREFIX, RESTORES))}
    listed = f"there are: {', '.join(known) or 'none'}"
    names = [id_ if id_.startswith(RESTORES) else PREFIX + id_.removeprefix(PREFIX) for id_ in ids]
    names += [name for name, use in known.items() if is_all_finished and use.state.is_done and name not in names]
    if not names and not is_all_finished:
        raise ConfigError.of("ID", "missing", f"name one, or give --finished; {listed}")
    problems = [Problem("ID", f"there is no {name}", listed) for name in names if name not in known]
    hint = "run it again to go on, or give --yes to forget it anyway"
    problems += [
        Problem(name, "is not finished, or has dead letters", hint)
        for name in names
        if name in known and not known[name].state.is_done and not may_be_unfinished
    ]
    if problems:
        raise ConfigError(problems)
    return names
