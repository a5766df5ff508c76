"""The use case behind `backfill`: its order, its range, entries that are too old for a sink, and how it is forgotten."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from poller.cli.backfill import _close_books
from poller.config import ArchiveSink as ArchiveSettings
from poller.config import Config, FileSink, Outbox, Poll, Redact
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import (
    AuthError,
    ConfigError,
    PollerError,
    RejectedError,
    StateHeldError,
    StateUnavailableError,
    TransientError,
)
from poller.core.gaps import REFUSED, Unread
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.backfill import Backfill, Order, discard, open_state, to_forget
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.sinks.archive import ArchiveSink
from poller.sinks.base import Context, TooOld
from poller.sinks.output import OutputFile
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.protocols import State
from poller.store.rows import DeadLetter, Prepared
from poller.store.sqlite import Stores
from tests import views
from tests.archives import MemoryPlace, verify
from tests.fake_api import BEGAN, H, Log
from tests.states import commit, event, first_schema, next_batch, settle

ASKED = Window(BEGAN - 3 * H, BEGAN - H)
ORDER = Order("3h", "1h", (), "-", (), is_again=False)


class Taking(StdoutSink):
    """Accepts and keeps everything. `max_age_seconds`: the greatest age that it claims to accept."""

    def __init__(self, name: str = "out", max_age_seconds: float | None = None) -> None:
        super().__init__(msgspec.structs.replace(PRINTED, name=name))
        self.max_age_seconds = max_age_seconds
        self.lines: list[bytes] = []

    def send(self, events: Any) -> Outcome:
        self.lines.extend(event.line for event in events)
        return Accepted()


@contextmanager
def backfill_of(
    directory: Path, log: Log, order: Order = ORDER, config: Config | None = None, **options: Any
) -> Iterator[tuple[Backfill, State]]:
    stores = Stores(directory)
    accounts: dict[str, Any] = {"default": log} | options.pop("accounts", {})
    with closing(stores.open(order.use)) as state:
        stop = threading.Event()
        yield (
            Backfill(
                config or Config(), order, stores, state, accounts, stop, jobs=2, clock=lambda: log.now, **options
            ),
            state,
        )
        stop.set()


def test_an_order_is_the_same_whenever_it_is_given_and_another_with_another_word() -> None:
    assert ORDER.use == Order("3h", "1h", (), "-", (), is_again=False).use
    others = [
        ORDER._replace(start="2h"),
        ORDER._replace(end="now"),
        ORDER._replace(contracts=("1",)),
        ORDER._replace(output="/x"),
        ORDER._replace(sinks=("loki",)),
        ORDER._replace(is_again=True),
        ORDER._replace(format="ecs"),
    ]
    assert len({order.use for order in [ORDER, *others]}) == len(others) + 1


def test_the_range_is_that_of_the_first_run_however_late_the_next_one_is(tmp_path: Path) -> None:
    log = Log("1")
    with backfill_of(tmp_path, log) as (backfill, _):
        first = backfill.span(ASKED)
        again = backfill.span(Window(ASKED.start + 500, ASKED.end + 500))
    assert (first.window, first.is_first, first.is_cut) == (ASKED, True, False)
    assert (again.window, again.is_first, again.is_cut) == (ASKED, False, False)


def test_an_end_in_the_future_is_the_time_of_the_first_run(tmp_path: Path) -> None:
    log = Log("1")
    with backfill_of(tmp_path, log) as (backfill, _):
        first = backfill.span(Window(BEGAN - H, BEGAN + H))
        log.now += 600
        again = backfill.span(Window(BEGAN - H, BEGAN + H))
    assert (first.window, first.is_cut, first.is_first) == (Window(BEGAN - H, BEGAN), True, True)
    assert (again.window, again.is_cut, again.is_first) == (Window(BEGAN - H, BEGAN), True, False)


@pytest.mark.parametrize(("end", "is_cut"), [(BEGAN, False), (BEGAN + 1, True)])
def test_an_end_that_is_now_is_not_in_the_future(tmp_path: Path, end: int, is_cut: bool) -> None:
    with backfill_of(tmp_path, Log("1")) as (backfill, _):
        assert backfill.span(Window(BEGAN - H, end)) == (Window(BEGAN - H, BEGAN), is_cut, True)


def test_all_of_the_range_is_exported_once_and_then_it_is_finished(tmp_path: Path) -> None:
    log = Log("1", "2")
    with backfill_of(tmp_path, log) as (backfill, state):
        window = backfill.span(ASKED).window
        found, failures = backfill.discover(window)
        sink = Taking()
        seen: list[int] = []
        export = backfill.export([sink], found, window, on_window=lambda done: seen.append(done.fetched))
        assert (found, failures) == (["1", "2"], [])
        assert len(sink.lines) == export.delivered == sum(seen) == 2 * 120
        assert not backfill.is_finished
        backfill.finish([sink])
        assert backfill.is_finished
        assert not state.overview().imbalances()


def test_one_whose_dead_letters_fill_the_outbox_ends(tmp_path: Path) -> None:
    config = Config(outbox=Outbox(max_bytes=1))
    with backfill_of(tmp_path, Log("1"), config=config) as (backfill, state):
        window = backfill.span(ASKED).window
        found, _ = backfill.discover(window)
        state.outbox.register("out", "stdout")
        commit(state, [event(1)], advance=False)
        batch = next_batch(state, "out")
        assert batch is not None
        settle(state, "out", 1, dead=[DeadLetter(batch.events[0], 400, "no")], now=BEGAN)
        with pytest.raises(StateUnavailableError, match="the outbox is full") as raised:
            backfill.export([Taking()], found, window)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [AuthError("denied", is_denied=True), AuthError("refused"), RejectedError("unknown", status=404)],
    ids=["403", "401", "404"],
)
@pytest.mark.parametrize("too_old", ["skip", "dead-letter"])
def test_where_one_account_may_not_read_a_contract_it_is_exported_through_the_other(
    tmp_path: Path, error: PollerError, too_old: TooOld
) -> None:
    first, second = Log("1"), Log("1", "2")
    first.rejection, first.rejected = error, Window(0, 2 * BEGAN)
    with backfill_of(tmp_path, first, accounts={"other": second}, too_old=too_old) as (backfill, state):
        found, failures = backfill.discover(ASKED)
        sinks = [Taking("new", 2 * H)]
        window, (old,) = backfill.limit_age(sinks, found, ASKED)
        export = backfill.export(sinks, found, window)
        assert (found, failures) == (["1", "2"], [])
        assert (old.entry_count, [poll.failure for poll in export.polls]) == (
            2 * 120 if too_old == "skip" else 120,
            [None, None],
        )
        assert len(sinks[0].lines) == (0 if too_old == "skip" else 2 * 120)
        assert {row.account for row in state.contracts.all()} == (
            {"default", "other"} if too_old == "skip" else {"other"}
        )
    second.rejection, second.rejected = error, Window(0, 2 * BEGAN)
    with backfill_of(tmp_path / "none", first, accounts={"other": second}) as (backfill, _):
        found, _ = backfill.discover(ASKED)
        assert backfill.limit_age([Taking("new", 2 * H)], found, ASKED) == (ASKED, []), "it is told when it is read"


def test_a_contract_that_no_account_sees_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    log = Log("1")
    with (
        backfill_of(tmp_path, log, ORDER._replace(contracts=("1", "7"))) as (backfill, _),
        pytest.raises(ConfigError, match="no account sees 7"),
    ):
        backfill.discover(ASKED)
    assert log.requests == 0


def test_a_contract_that_is_not_listed_any_more_is_a_failure_of_its_own(tmp_path: Path) -> None:
    log = Log("1", "2")
    with backfill_of(tmp_path, log) as (backfill, _):
        backfill.discover(ASKED)
        del log.seconds["2"]
        found, failures = backfill.discover(ASKED)
    assert found == ["1"]
    assert [error.contract for error in failures] == ["2"]


def excluding(*contracts: str) -> Config:
    config = Config()
    return msgspec.structs.replace(config, poll=msgspec.structs.replace(config.poll, exclude_contracts=contracts))


def test_why_a_contract_is_not_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    log = Log("1", "2", "3")
    with backfill_of(tmp_path, log, config=excluding("3")) as (backfill, state):
        state.contracts.enrol(["3"], "default", 0, 0)
        state.contracts.enrol(["4"], "gone", 0, 0)
        del log.seconds["2"]
        state.contracts.enrol(["2"], "default", 0, 0)
        found, failures = backfill.discover(ASKED)
    assert found == ["1"]
    assert {error.contract: error.message for error in failures} == {
        "2": "the API does not list it any more, and none of it was read",
        "4": "its account is not configured any more",
    }
    hints = {str(error.contract): error.hint for error in failures}
    assert "lists it, or add it to poll.exclude_contracts" in hints["2"]
    assert "back into the configuration" in hints["4"]


def test_while_an_account_cannot_be_asked_a_contract_is_not_called_unknown(tmp_path: Path) -> None:
    class Away(Log):
        def contracts(self) -> ContractList:
            raise TransientError("no answer")

    order = ORDER._replace(contracts=("7", "1"))
    with backfill_of(tmp_path, Log("1"), order, accounts={"other": Away()}) as (backfill, state):
        found, failures = backfill.discover(ASKED)
        (row,) = state.contracts.all()
    assert (found, row.origin) == (["1"], ASKED.start)
    assert ["no answer" in error.message for error in failures] == [True]


def test_dead_letters_that_were_replayed_are_sent_though_it_was_finished(tmp_path: Path) -> None:
    with backfill_of(tmp_path, Log("1")) as (backfill, state):
        backfill.finish([])
        assert backfill.is_finished
        assert state.fact("finished") == "2027-01-15T08:21:00Z"
        state.contracts.enrol(["1"], "default", 0, 0)
        state.outbox.register("out", "stdout")
        commit(state, [event(1)])
        assert not backfill.is_finished


def test_it_goes_to_stdout_to_a_file_or_to_the_sinks_of_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    def build(settings: Any, config: Config, stop: threading.Event, **options: Any) -> Any:
        made.append((settings.name, config.sinks, stop.is_set(), options))
        return settings.name

    monkeypatch.setattr("poller.pipeline.backfill.build_sink", build)
    tables = tuple(FileSink(name=name, path="a.ndjson") for name in ("one", "two"))
    config = msgspec.structs.replace(Config(), sinks=tables)
    now = lambda: 1.0  # noqa: E731 - it is compared below
    with backfill_of(tmp_path / "a", Log("1"), config=config) as (backfill, _):
        assert [sink.name for sink in backfill.sinks()] == ["stdout"]
    order = ORDER._replace(output=str(tmp_path / "x.ndjson"))
    with backfill_of(tmp_path / "b", Log("1"), order, config) as (backfill, _):
        assert [type(sink) for sink in backfill.sinks()] == [OutputFile]
    order = ORDER._replace(output="", sinks=("two",))
    with backfill_of(tmp_path / "c", Log("1"), order, config, too_old="skip", trusted_now=now) as (backfill, _):
        assert backfill.sinks() == ["two"]
    assert made == [("two", tables, False, {"too_old": "skip", "trusted_now": now})]


@contextmanager
def collected_by_run(directory: Path, log: Log) -> Iterator[State]:
    """The state of `run` with 60 collected entries for the sink `out`."""
    with closing(Stores(directory).open("run")) as run:
        run.contracts.enrol(["1"], "default", BEGAN - 2 * H, 0)
        run.outbox.register("out", "stdout")
        accounts: Any = {"default": log}
        collector = Collector(run, accounts, Config(), stop=threading.Event(), until=BEGAN - H, clock=lambda: BEGAN)
        assert collector.collect("1").new == 60
        collector.close()
        yield run


def test_what_run_has_collected_for_the_same_sinks_is_left_out_unless_it_is_wanted_again(tmp_path: Path) -> None:
    log = Log("1")
    with collected_by_run(tmp_path, log):
        pass
    came = []
    for order in (
        ORDER._replace(output="", sinks=("out",)),
        ORDER._replace(output="", sinks=("out",), is_again=True),
        ORDER._replace(output="", sinks=("other",)),
        ORDER,
    ):
        with backfill_of(tmp_path, log, order) as (backfill, state):
            found, _ = backfill.discover(ASKED)
            sink = Taking(*order.sinks)
            export = backfill.export([sink], found, ASKED)
            came.append((len(sink.lines), export.left_out, state.overview().imbalances()))
    assert came == [(60, 60, []), (120, 0, []), (120, 0, []), (120, 0, [])]


@pytest.mark.parametrize(
    ("poll", "at", "sent"),
    [
        # The 60 entries before its beginning are never its own.
        (Poll(interval_seconds=60), BEGAN + 180, 60),
        # Without audits, what came later than the overlap is not found by it.
        (Poll(audit_interval_seconds=0), BEGAN, 61),
        (Poll(audit_interval_seconds=0, overlap_seconds=0), BEGAN, 62),
        # The audit looks back to just before the entry that came late, and to just behind it.
        (Poll(audit_span_seconds=1799), BEGAN, 60),
        (Poll(audit_span_seconds=1798), BEGAN, 61),
        # It has polled nothing for three intervals.
        (Poll(interval_seconds=60), BEGAN + 181, 122),
        # Its last poll is told by a clock that was ahead. Three entries are not there yet.
        (Poll(interval_seconds=60), BEGAN - 181, 119),
    ],
)
def test_what_run_is_about_to_collect_for_the_same_sinks_is_left_to_it(
    tmp_path: Path, poll: Poll, at: int, sent: int
) -> None:
    # Both sent it: an archive had it twice, and its hour was incomplete for ever.
    log = Log("1")
    with collected_by_run(tmp_path, log) as run:
        run.contracts.record_audit("1", BEGAN - H)
    for second in (BEGAN - H - 7, BEGAN - H - 1799):  # within the overlap of the next poll, and before it
        log.show("1", second)
    log.now = at
    order = ORDER._replace(output="", sinks=("out",))
    config = msgspec.structs.replace(Config(), poll=poll)
    asked = Window(BEGAN - 3 * H, BEGAN)
    with backfill_of(tmp_path, log, order, config) as (backfill, state):
        found, _ = backfill.discover(asked)
        sink = Taking()
        export = backfill.export([sink], found, asked)
        (row,) = state.contracts.all()
        assert (len(sink.lines), export.left_out) == (sent, row.fetched - sent)
        assert not state.overview().imbalances()


def test_what_lies_in_a_gap_is_left_to_run_until_a_person_accepts_the_gap(tmp_path: Path) -> None:
    log = Log("1")
    order = ORDER._replace(output="", sinks=("out",))
    asked = Window(BEGAN - H, BEGAN)
    sent = []
    for is_accepted in (False, True):
        with collected_by_run(tmp_path / str(is_accepted), log) as run:
            gap = Window(BEGAN - H, BEGAN - H + 600)
            commit(run, [], window=gap, now=BEGAN, unread=[Unread(gap, REFUSED, "too old")])
            (row,) = run.gaps.find()
            if is_accepted:
                run.gaps.accept(row.id)
        with backfill_of(tmp_path / str(is_accepted), log, order) as (backfill, _):
            found, _ = backfill.discover(asked)
            sent.append(backfill.export([Taking()], found, asked).delivered)
    assert sent == [0, 10]


def test_what_run_would_not_recognise_any_more_is_told_by_its_number(tmp_path: Path) -> None:
    log = Log("1")
    with collected_by_run(tmp_path, log) as run:
        run.contracts.skip_to("1", BEGAN + 2 * H, 0)
        run.prune(0, 0, BEGAN + 2 * H)
    order = ORDER._replace(output="", sinks=("out",))
    told = []
    for one in (order, order._replace(is_again=True), order._replace(sinks=("other",)), ORDER):
        with backfill_of(tmp_path, log, one) as (backfill, _):
            told.append(backfill.forgotten(["1", "2"], ASKED))
    assert told == [60, 0, 0, 0]
    with backfill_of(tmp_path / "new", log, order) as (backfill, _):
        assert backfill.forgotten(["1"], ASKED) == 0


def test_where_run_has_no_state_all_is_exported(tmp_path: Path) -> None:
    with backfill_of(tmp_path, Log("1"), ORDER._replace(output="", sinks=("out",))) as (backfill, _):
        found, _ = backfill.discover(ASKED)
        assert backfill.export([Taking()], found, ASKED).left_out == 0


def test_each_sink_gets_the_lines_as_it_may_see_them_and_a_filter_is_for_all(tmp_path: Path) -> None:
    hidden = FileSink(name="hidden", path="a.ndjson", redact=Redact(drop=("a",)))
    plain = FileSink(name="plain", path="b.ndjson")
    config = msgspec.structs.replace(Config(), sinks=(plain, hidden))
    order = ORDER._replace(output="", sinks=("plain", "hidden"))

    def prepare(contract: str, events: Any) -> Prepared:
        return Prepared([msgspec.structs.replace(events[0], line=b'{"a":1,"b":2}')], {"rest": len(events) - 1})

    with backfill_of(tmp_path, Log("1"), order, config, prepare=prepare) as (backfill, _):
        found, _ = backfill.discover(ASKED)
        sinks = [Taking("plain"), Taking("hidden")]
        backfill.export(sinks, found, ASKED)
    assert [set(sink.lines) for sink in sinks] == [{b'{"a":1,"b":2}'}, {b'{"b":2}'}]


def test_an_archive_states_what_the_api_counts_of_each_hour_of_the_range(tmp_path: Path) -> None:
    log, place = Log("1", "2"), MemoryPlace()
    hour = BEGAN // H * H
    asked = Window(hour - 3 * H, hour)
    order = ORDER._replace(output="", sinks=("proof",))
    settings = ArchiveSettings(name="proof", url="file:///proc/nowhere")
    with backfill_of(tmp_path, log, order) as (backfill, state):
        found, _ = backfill.discover(asked)
        log.rejected = Window(hour - H, hour - H + 60)
        sink = ArchiveSink(settings, Context(Config(), threading.Event()), place)
        export = backfill.export([sink], found, asked)
        assert (export.delivered, state.overview().imbalances()) == (2 * 179, [])
    report = verify(place)
    assert (report.findings, report.entries, report.complete) == ([], 2 * 179, 4)
    incomplete = [(row.contract, row.start, row.hour.statement.api) for row in report.incomplete if row.hour.statement]
    assert incomplete == [("1", hour - H, None), ("2", hour - H, None)], "the hour with a gap"
    assert report.unstated == []


def test_what_comes_while_an_archive_states_its_hours_is_archived_as_it_may_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Events come late if another machine shares the backfill, or if a person replays dead letters.
    hour = BEGAN // H * H
    asked = Window(hour - 3 * H, hour)
    place = MemoryPlace()
    settings = ArchiveSettings(name="proof", url="file:///proc/nowhere", redact=Redact(drop=("secret",)))
    config = msgspec.structs.replace(Config(), sinks=(settings,))
    with backfill_of(tmp_path, Log("1"), ORDER._replace(output="", sinks=("proof",)), config) as (backfill, state):
        audit = LedgerAuditor.audit

        def audited(*args: Any, **options: Any) -> Any:
            late = msgspec.structs.replace(event(1), line=b'{"secret":1,"b":2}')
            state.contracts.enrol(["2"], "default", 0, 0)
            commit(state, [late], contract="2")
            return audit(*args, **options)

        monkeypatch.setattr(LedgerAuditor, "audit", audited)
        found, _ = backfill.discover(asked)
        backfill.export([ArchiveSink(settings, Context(config, threading.Event()), place)], found, asked)
        assert [row.waiting for row in state.overview().sinks] == [0]
    lines = [gzip.decompress(content) for key, content in place.objects.items() if key.startswith("data/contract=2/")]
    assert lines == [b'{"b":2}\n']


def test_how_much_was_sent_is_told_now_and_then(tmp_path: Path) -> None:
    told: list[int] = []
    has_told = threading.Event()

    def tick(delivered: int) -> None:
        told.append(delivered)
        has_told.set()

    class Slow(Log):
        def page(self, *args: Any, **options: Any) -> Any:
            assert has_told.wait(10)
            return super().page(*args, **options)

    with backfill_of(tmp_path, Slow("1")) as (backfill, _):
        found, _ = backfill.discover(ASKED)
        backfill.export([Taking()], found, ASKED, tick=tick, tick_seconds=0.001)
    assert told[0] == 0


def test_what_is_too_old_for_a_sink_is_counted_and_read_all_the_same(tmp_path: Path) -> None:
    log = Log("1")
    with backfill_of(tmp_path, log) as (backfill, _):
        backfill.discover(ASKED)
        window, old = backfill.limit_age([Taking("new", 2 * H), Taking("any")], ["1"], ASKED)
    assert window == ASKED
    assert [(entries.sinks, entries.entry_count) for entries in old] == [(("new",), 60)]


def test_what_is_skipped_is_counted_and_not_read(tmp_path: Path) -> None:
    log = Log("1")
    with backfill_of(tmp_path, log, too_old="skip") as (backfill, state):
        backfill.discover(ASKED)
        window, (old,) = backfill.limit_age([Taking("new", 2.5 * H)], ["1"], ASKED)
        # The window begins an hour after the sink's limit, because an entry may wait that long.
        assert (window, old.entry_count) == (Window(BEGAN - H - H // 2, ASKED.end), 90)
        sink = Taking()
        backfill.export([sink], ["1"], window)
        assert (len(sink.lines), state.fact("skipped")) == (30, "90")


def test_what_nobody_is_too_old_for_is_neither_counted_nor_skipped(tmp_path: Path) -> None:
    for too_old in ("skip", "dead-letter"):
        with backfill_of(tmp_path / too_old, Log("1"), too_old=too_old) as (backfill, state):
            backfill.discover(ASKED)
            sinks = [Taking("new", 5 * H)]
            assert backfill.limit_age(sinks, ["1"], ASKED) == (ASKED, [])
            assert backfill.limit_age([Taking()], ["1"], ASKED) == (ASKED, [])
            assert state.fact("skipped") is None


def test_no_more_is_skipped_than_the_range_and_of_each_contract_from_where_it_is(tmp_path: Path) -> None:
    log = Log("1", "2")
    with backfill_of(tmp_path, log, too_old="skip") as (backfill, state):
        found, _ = backfill.discover(ASKED)
        state.contracts.skip_to("1", BEGAN - 2 * H, 0)
        window, (old,) = backfill.limit_age([Taking("new", H / 2)], found, ASKED)
        assert (window, old.window, old.entry_count) == (Window(ASKED.end, ASKED.end), ASKED, 60 + 120)
        assert {row.watermark for row in state.contracts.all()} == {ASKED.end}
        assert backfill.limit_age([Taking("new", H / 2)], [*found, "9"], ASKED)[1] == []


def test_entries_equally_old_for_all_sinks_are_skipped_for_all(tmp_path: Path) -> None:
    with backfill_of(tmp_path, Log("1"), too_old="skip") as (backfill, _):
        backfill.discover(ASKED)
        sinks = [Taking("a", 2.5 * H), Taking("b", 2.5 * H)]
        _, (old,) = backfill.limit_age(sinks, ["1"], ASKED)
    assert (old.sinks, old.entry_count) == (("a", "b"), 90)


def test_nothing_is_skipped_that_one_of_the_sinks_takes(tmp_path: Path) -> None:
    log = Log("1")
    with backfill_of(tmp_path, log, too_old="skip") as (backfill, _):
        backfill.discover(ASKED)
        for sinks in ([Taking("new", H), Taking("any")], [Taking("new", H), Taking("newer", H / 2)]):
            with pytest.raises(ConfigError, match="do not take entries equally old"):
                backfill.limit_age(sinks, ["1"], ASKED)


def test_to_begin_anew_deletes_the_state_and_the_file_that_it_wrote(tmp_path: Path) -> None:
    order = ORDER._replace(output=str(tmp_path / "out.ndjson"))
    with backfill_of(tmp_path / "state", Log("1"), order) as (backfill, _):
        window = backfill.span(ASKED).window
        found, _ = backfill.discover(window)
        sinks = backfill.sinks()
        backfill.export(sinks, found, window)
        backfill.finish(sinks)
    assert len((tmp_path / "out.ndjson").read_bytes().splitlines()) == 120
    stores = Stores(tmp_path / "state")
    discard(stores, order)
    assert order.use not in stores.uses()
    assert not (tmp_path / "out.ndjson").exists()
    discard(stores, order)  # there is nothing left to delete


def test_a_file_of_another_order_is_not_deleted(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    file.write_text("another's")
    for order in (ORDER._replace(output=str(file)), ORDER):
        with closing(Stores(tmp_path / "state").open(order.use)):
            pass
        discard(Stores(tmp_path / "state"), order)
    assert file.read_text() == "another's"


def test_the_state_of_an_order_is_new_once(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    for is_new in (True, False):
        state, told = open_state(stores, ORDER)
        state.close()
        assert told == is_new


def test_an_export_to_a_file_goes_on_after_an_upgrade(tmp_path: Path) -> None:
    first_schema(tmp_path / f"{ORDER.use}.db")
    state, is_new = open_state(Stores(tmp_path), ORDER)
    with closing(state):
        assert (is_new, [row.watermark for row in state.contracts.all()]) == (False, [9])


def test_only_an_export_to_sinks_may_be_shared_by_several_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = Stores(tmp_path)
    order = ORDER._replace(output="", sinks=("out",))
    for each in (ORDER, order):
        open_state(stores, each)[0].close()
    monkeypatch.setattr(stores, "snapshot", lambda use: views.state(replicas=[views.replica("elsewhere")]))
    with pytest.raises(StateHeldError, match=r"elsewhere works on this backfill \(process 12\)"):
        open_state(stores, ORDER)
    open_state(stores, order)[0].close()


def _use(name: str, *, is_done: bool) -> Any:
    return SimpleNamespace(name=name, state=SimpleNamespace(is_done=is_done))


USES = [_use("run", is_done=False), _use("backfill-aa", is_done=True), _use("backfill-bb", is_done=False)]
USES.append(_use("restore-cc", is_done=False))


@pytest.mark.parametrize(
    ("ids", "is_all", "may_be_unfinished", "names"),
    [
        (["aa"], False, False, ["backfill-aa"]),
        (["backfill-aa"], True, False, ["backfill-aa"]),
        ([], True, False, ["backfill-aa"]),
        (["bb"], False, True, ["backfill-bb"]),
        (["bb"], True, True, ["backfill-bb", "backfill-aa"]),
        (["restore-cc", "aa"], False, True, ["restore-cc", "backfill-aa"]),
    ],
)
def test_a_backfill_is_forgotten_by_name_or_with_all_that_are_finished(
    ids: list[str], is_all: bool, may_be_unfinished: bool, names: list[str]
) -> None:
    assert to_forget(USES, ids, is_all_finished=is_all, may_be_unfinished=may_be_unfinished) == names


@pytest.mark.parametrize(
    ("ids", "part"),
    [
        ([], "missing"),
        (["cc"], "no backfill-cc"),
        (["bb"], "not finished"),
        (["run"], "no backfill-run"),
        (["restore-cc"], "not finished"),
        (["restore-dd"], "no restore-dd"),
    ],
)
def test_what_is_not_there_or_not_finished_is_not_forgotten(ids: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as raised:
        to_forget(USES, ids, is_all_finished=False, may_be_unfinished=False)
    if part != "not finished":
        assert "there are: backfill-aa, backfill-bb, restore-cc" in raised.value.problems[0].hint
        with pytest.raises(ConfigError) as raised:
            to_forget(USES[:1], ids, is_all_finished=False, may_be_unfinished=False)
        assert "there are: none" in raised.value.problems[0].hint


def test_contracts_and_sinks_in_another_order_and_a_path_from_elsewhere_are_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = Order.of("7d", "now", contracts=("B", "A", "B"), output="x.ndjson", sinks=("loki", "file"))
    other = Order.of("7d", "now", contracts=("A", "B"), output=str(tmp_path / "x.ndjson"), sinks=("file", "loki"))
    assert one.use == other.use
    assert one.use != Order.of("7d", "now", contracts=("A", "B"), output="x.ndjson", sinks=one.sinks, is_again=True).use
    assert Order.of("7d", "now", output="-").output == "-"


@pytest.mark.parametrize(("imbalances", "code"), [([], 0), (["fetched 3, new 2, seen 0, filtered 0"], 1)])
def test_books_that_do_not_balance_are_told_and_reach_the_exit_code(
    imbalances: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    overview = SimpleNamespace(contracts=[], sinks=[], imbalances=lambda: imbalances)
    state: Any = SimpleNamespace(overview=lambda: overview, fact=lambda name: None)
    assert _close_books(state, "backfill-aa") == code
    assert all(line in capsys.readouterr().err for line in imbalances)


@pytest.mark.parametrize(("seconds_since", "complete"), [(599, 2), (600, 3)])
def test_an_hour_that_was_over_only_lately_is_not_stated(tmp_path: Path, seconds_since: int, complete: int) -> None:
    log, place = Log("1"), MemoryPlace()
    hour = BEGAN // H * H
    log.now = float(hour + seconds_since)
    asked = Window(hour - 3 * H, hour)
    settings = ArchiveSettings(name="proof", url="file:///proc/nowhere")
    with backfill_of(tmp_path, log, ORDER._replace(output="", sinks=("proof",))) as (backfill, _):
        found, _ = backfill.discover(asked)
        sink = ArchiveSink(settings, Context(Config(), threading.Event()), place)
        assert backfill.export([sink], found, asked).delivered == 180
    report = verify(place)
    assert (report.complete, len(report.unstated), report.incomplete) == (complete, 3 - complete, [])
