"""The use case behind `backfill`: its order, its range, what is too old for a sink, and what it forgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from poller.cli.backfill import _close_books
from poller.config import Config
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import ConfigError
from poller.core.windows import Window
from poller.pipeline.backfill import Backfill, Order, discard, to_forget
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.protocols import State
from poller.store.sqlite import Stores
from tests.fake_api import BEGAN, H, Log

ASKED = Window(BEGAN - 3 * H, BEGAN - H)
ORDER = Order("3h", "1h", (), "-", (), is_again=False)


class Taking(StdoutSink):
    """Takes everything, and keeps it. `max_age_seconds`: older entries it refuses."""

    def __init__(self, name: str = "out", max_age_seconds: float | None = None) -> None:
        super().__init__(msgspec.structs.replace(PRINTED, name=name))
        self.max_age_seconds = max_age_seconds
        self.lines: list[bytes] = []

    def send(self, events: Any) -> Outcome:
        self.lines.extend(event.line for event in events)
        return Accepted()


@contextmanager
def backfill_of(directory: Path, log: Log, order: Order = ORDER, **options: Any) -> Iterator[tuple[Backfill, State]]:
    stores = Stores(directory)
    accounts: dict[str, Any] = {"default": log}
    with closing(stores.open(order.use)) as state:
        stop = threading.Event()
        yield (
            Backfill(Config(), order, stores, state, accounts, stop, jobs=2, clock=lambda: log.now, **options),
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
        # An hour more than the sink's age: that is how old an entry may become while it waits.
        assert (window, old.entry_count) == (Window(BEGAN - H - H // 2, ASKED.end), 90)
        sink = Taking()
        backfill.export([sink], ["1"], window)
        assert (len(sink.lines), state.fact("skipped")) == (30, "90")


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


def _use(name: str, *, is_done: bool) -> Any:
    return SimpleNamespace(name=name, state=SimpleNamespace(is_done=is_done))


USES = [_use("run", is_done=False), _use("backfill-aa", is_done=True), _use("backfill-bb", is_done=False)]


@pytest.mark.parametrize(
    ("ids", "is_all", "may_be_unfinished", "names"),
    [
        (["aa"], False, False, ["backfill-aa"]),
        (["backfill-aa"], True, False, ["backfill-aa"]),
        ([], True, False, ["backfill-aa"]),
        (["bb"], False, True, ["backfill-bb"]),
        (["bb"], True, True, ["backfill-bb", "backfill-aa"]),
    ],
)
def test_a_backfill_is_forgotten_by_name_or_with_all_that_are_finished(
    ids: list[str], is_all: bool, may_be_unfinished: bool, names: list[str]
) -> None:
    assert to_forget(USES, ids, is_all_finished=is_all, may_be_unfinished=may_be_unfinished) == names


@pytest.mark.parametrize(
    ("ids", "part"),
    [([], "missing"), (["cc"], "no backfill-cc"), (["bb"], "not finished"), (["run"], "no backfill-run")],
)
def test_what_is_not_there_or_not_finished_is_not_forgotten(ids: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        to_forget(USES, ids, is_all_finished=False, may_be_unfinished=False)


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
