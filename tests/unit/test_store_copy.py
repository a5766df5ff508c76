"""A state is copied from files to a database and back: completely or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from poller.archive import PlaceError
from poller.archive.signing import is_signed_by
from poller.config import ArchiveSink, Config, Evidence, load
from poller.core.errors import StateError, StateHeldError
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.pipeline.archive import ArchiveDeliverer, HourCloser, writer_of
from poller.pipeline.audit import Audited
from poller.pipeline.copy import copy
from poller.pipeline.verify import Verifier
from poller.sinks.archive import ArchiveSink as Archiving
from poller.sinks.base import Context
from poller.store.copying import COLUMNS, differences
from poller.store.journal import Action, Person
from poller.store.overview import FINISHED
from poller.store.rows import DeadLetter
from poller.store.sqlite import Stores as FileStores
from tests.archives import MemoryPlace
from tests.postgres import Server
from tests.states import HOUR, NOW, START, claimed, commit, counts, event, events, next_batch, settle, taken, waiting

_schemas = count()


@pytest.fixture
def database(postgres_server: Server, tmp_path: Path) -> Iterator[Any]:
    """The states in a new schema."""
    from poller.store.postgres import Stores

    variables = {"STATE__URL": postgres_server.url(), "STATE__SCHEMA": f"copy_{next(_schemas)}"}
    stores = Stores(
        load(None, {f"IONOS_POLLER_{name}": value for name, value in variables.items()}, state_dir=tmp_path)
    )
    yield stores
    stores.close()


def fill(state: Any) -> None:
    """Three contracts, and three sinks: one within a segment, one with dead letters (one of them replayed), one added late."""
    state.contracts.enrol(["1", "2", "3"], "default", START, START)
    commit(state, events(90, 91), window=Window(START, START + 60))
    for sink in ("first", "second"):
        state.outbox.register(sink, "loki")
    commit(state, events(1, 2, 3))
    commit(
        state,
        [event(4, START + HOUR)],
        contract="2",
        kept=[],
    )
    gap = Unread(Window(START + 7, START + 8), UNREADABLE, "x", (b"{", b"[" * 100))
    commit(state, events(5, 6), contract="2", unread=[gap])
    batch = next_batch(state, "second", 2)
    assert batch is not None
    settle(
        state,
        "second",
        2,
        dead=[DeadLetter(batch.events[0], 400, "no"), DeadLetter(batch.events[1], None, "no")],
        now=NOW,
    )
    settle(state, "first", 4, now=NOW)
    state.outbox.register("third", "file")
    commit(state, events(7))
    state.dead_letters.replay(state.dead_letters.find(limit=1), NOW)
    state.contracts.add_range("3", Window(START - HOUR, START), "repair")
    state.journal.add(Action(Person(1, "anna"), "test", "x"))
    state.remember("fact", "value")
    state.remember("taken_back", f"{NOW} {START}")


def everything(state: Any) -> dict[str, Any]:
    """Results that must be the same for the copy and the original."""
    state.contracts.share(["1", "2", "3"])
    return {
        "waiting": {sink.name: sorted(waiting(state, sink.name)) for sink in state.outbox.sinks()},
        "unseen": [item.identity for item in state.contracts.unseen("1", events(1, 2, 3, 7, 8, 90))],
        "counts": counts(state, START, START + 2 * HOUR),
        "letters": [letter[1:] for letter in state.dead_letters.find()],
        "entries": [state.gaps.entries(gap.id) for gap in state.gaps.find()],
        "fact": state.fact("fact"),
        "journal": [entry[1:] for entry in state.journal.unseen()],
        "imbalances": state.overview().imbalances(),
    }


def with_state(stores: Any, do: Callable[[Any], Any], use: str = "run") -> Any:
    state = stores.open(use)
    try:
        return do(state)
    finally:
        state.close()


def test_a_state_that_goes_to_a_database_and_back_is_the_same(tmp_path: Path, database: Any) -> None:
    source, back = FileStores(tmp_path / "source"), FileStores(tmp_path / "back")
    with_state(source, fill)
    with_state(source, lambda state: state.contracts.enrol(["9"], "default", START, START), use="fetch")
    told: list[tuple[int, int]] = []
    assert copy(source, database, lambda *numbers: told.append(numbers)) == ["fetch", "run"]
    assert copy(database, back, lambda *numbers: None) == ["fetch", "run"]
    assert told[-1][0] == told[-1][1] > 0
    assert back.uses() == ["fetch", "run"]
    assert differences(source.snapshot("run"), back.snapshot("run")) == []
    before = with_state(source, everything)
    assert with_state(database, everything) == before
    assert with_state(back, everything) == before
    assert before["waiting"] == {"first": [6, 7], "second": [1, 3, 5, 6, 7], "third": [7]}


@pytest.fixture
def another(postgres_server: Server, tmp_path: Path) -> Iterator[Any]:
    """The states in another database, which returns rounded numbers by default."""
    from poller.store.postgres import Stores

    name = f"copied_{next(_schemas)}"
    postgres_server.sql(f"CREATE DATABASE {name}")
    postgres_server.sql(f"ALTER DATABASE {name} SET extra_float_digits = 0")
    stores = Stores(load(None, {"IONOS_POLLER_STATE__URL": postgres_server.url(name)}, state_dir=tmp_path))
    yield stores
    stores.close()
    postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_state_goes_from_one_database_to_another_whatever_came_after_its_sinks(
    tmp_path: Path, database: Any, another: Any
) -> None:
    """Contract 1 was added last, but is first by name. No sink has taken any of its events yet."""

    def begin(state: Any) -> None:
        state.contracts.enrol(["5"], "default", START, START)
        state.outbox.register("one", "loki")
        state.outbox.register("two", "loki")
        commit(state, events(1, 2, 3), contract="5")
        settle(state, "one", 2, now=1764458721.1234567)
        with taken(state, "two") as place:
            place.batch(1, 10**6)
            place.postpone(1, 1764458721.1234567, 1764458799.7654321, "a", parked_at=None)
        state.contracts.enrol(["1"], "default", START, START)
        commit(state, events(7), contract="1")

    with_state(database, begin)
    back = FileStores(tmp_path / "back")
    copy(database, another, lambda *numbers: None)
    copy(another, back, lambda *numbers: None)
    for copied_to in (another, back):
        assert differences(database.snapshot("run"), copied_to.snapshot("run")) == []
        assert with_state(copied_to, lambda state: state.overview().imbalances()) == []

    def left(state: Any) -> dict[str, list[int]]:
        state.contracts.share(["1", "5"])
        return {sink: sorted(waiting(state, sink)) for sink in ("one", "two")}

    assert with_state(another, left) == with_state(back, left) == {"one": [3, 7], "two": [1, 2, 3, 7]}


def test_a_state_without_contracts_is_copied_with_its_sinks(tmp_path: Path, database: Any, another: Any) -> None:
    with_state(database, lambda state: state.outbox.register("one", "loki"))
    copy(database, another, lambda *numbers: None)
    assert differences(database.snapshot("run"), another.snapshot("run")) == []


def test_texts_that_a_file_keeps_and_a_database_does_not_stop_no_copy(tmp_path: Path, database: Any) -> None:
    source = FileStores(tmp_path / "source")

    def begin(state: Any) -> None:
        state.contracts.enrol(["1"], "default", START, START)
        state.outbox.register("one", "loki")
        commit(state, events(1), unread=[Unread(Window(START + 7, START + 8), UNREADABLE, "a\0b")])
        with claimed(state) as claim:
            claim.record_poll(NOW, "a\0b")
        with taken(state, "one") as place:
            place.batch(1, 10**6)
            place.postpone(1, 1.0, 2.0, "a\0b", parked_at=None)
        state.remember("fact", "a\0b")

    with_state(source, begin)
    copy(source, database, lambda *numbers: None)
    assert database.snapshot("run").contracts[0].failure == "a\ufffdb"


def archived(stores: Any, evidence: Evidence, place: MemoryPlace, batches: int | None = None, use: str = "run") -> None:
    """Write the waiting events, or `batches` batches, to the archive of a state, and audit an hour."""

    def work(state: Any) -> None:
        settings = ArchiveSink(name="proof", url="s3://bucket")
        sink = Archiving(settings, Context(Config(evidence=evidence), threading.Event()), place)
        deliverer = ArchiveDeliverer(state, sink, clock=lambda: NOW)
        while deliverer.step(is_last=True).wait_seconds is not None and batches is None:
            pass
        HourCloser(state, ["proof"]).close("1", {START: 3}, Window(START, START + HOUR), Audited([]))

    with_state(stores, work, use)


def test_an_archive_goes_on_in_one_chain_when_its_state_is_copied(tmp_path: Path, database: Any) -> None:
    source, back, place = FileStores(tmp_path / "source"), FileStores(tmp_path / "back"), MemoryPlace()

    def begin(state: Any) -> None:
        state.contracts.enrol(["1"], "default", START, START)
        state.outbox.register("proof", "archive")
        commit(state, events(1, 2, 3))

    with_state(source, begin)
    archived(source, Evidence(), place)
    with_state(source, lambda state: commit(state, events(4)))
    copy(source, database, lambda *numbers: None)
    archived(database, Evidence(), place)
    with_state(database, lambda state: commit(state, events(5)))
    copy(database, back, lambda *numbers: None)
    archived(back, Evidence(), place)
    report = Verifier(place, is_signed_by, workers=1).run()
    assert (report.findings, report.digests, report.entries) == ([], 3, 5)
    assert with_state(back, lambda state: state.overview().imbalances()) == []


def test_a_state_is_not_copied_while_a_batch_of_its_archive_is_being_written(tmp_path: Path, database: Any) -> None:
    source = FileStores(tmp_path / "source")

    class Away(MemoryPlace):
        def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
            raise PlaceError("no connection")

    with_state(source, fill)
    archived(source, Evidence(), MemoryPlace())
    with_state(source, lambda state: commit(state, events(8)))
    archived(source, Evidence(), Away(), batches=1)
    with pytest.raises(StateError, match="a batch of the archive proof is being written"):
        copy(source, database, lambda *numbers: None)


def test_a_backfill_to_an_archive_is_copied_when_it_is_finished(tmp_path: Path, database: Any) -> None:
    source = FileStores(tmp_path / "source")
    with_state(source, writer_of, use="backfill-1")
    with pytest.raises(StateError, match="is not finished"):
        copy(source, database, lambda *numbers: None)
    with_state(source, lambda state: state.remember(FINISHED, "2026-11-28T00:00:00Z"), use="backfill-1")
    assert copy(source, database, lambda *numbers: None) == ["backfill-1"]
    assert with_state(database, lambda state: state.overview().is_done, use="backfill-1")
    assert copy(database, FileStores(tmp_path / "back"), lambda *numbers: None) == ["backfill-1"]


def test_a_state_that_is_in_use_is_not_copied(tmp_path: Path, database: Any) -> None:
    source = FileStores(tmp_path / "source")
    with_state(source, fill)
    state = source.open("run")
    with pytest.raises(StateHeldError):
        copy(source, database, lambda *numbers: None)
    state.close()
    assert database.uses() == []
    copy(source, database, lambda *numbers: None)
    state = database.open("run")
    state.contracts.share(["1"])
    with pytest.raises(StateHeldError):
        copy(database, FileStores(tmp_path / "back"), lambda *numbers: None)
    state.close()


def test_nothing_is_copied_over_a_state_that_is_there_nor_a_part_of_what_is_asked_for(
    tmp_path: Path, database: Any
) -> None:
    source, back = FileStores(tmp_path / "source"), FileStores(tmp_path / "back")
    with_state(source, fill)
    with_state(source, fill, use="fetch")
    with_state(database, lambda state: None)
    with pytest.raises(StateError, match="has a state of `run` already"):
        copy(source, database, lambda *numbers: None)
    assert database.uses() == ["run"]
    with_state(back, lambda state: None)
    with pytest.raises(StateError, match="is there already"):
        copy(source, back, lambda *numbers: None)
    assert back.uses() == ["run"]
    with pytest.raises(StateError, match="no state to copy"):
        copy(FileStores(tmp_path / "empty"), database, lambda *numbers: None)


# From files to files, without conversion


def files_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fill_further(state: Any) -> None:
    """A postponed contract at a sink, an hour of which only the count is known, and an archive with a batch."""
    state.outbox.register("proof", "archive")
    fill(state)
    place = state.outbox.take("third")
    assert place.batch(1, 1000) is not None
    place.postpone_contract("1", 2, NOW, NOW + 60, "not this one")
    place.release()
    commit(
        state,
        [event(50, START + 2 * HOUR, is_timed=False)],
        window=Window(START + 2 * HOUR, START + 2 * HOUR + 60),
        contract="2",
    )
    commit(state, [], window=Window(START, START + 90 * HOUR), contract="3")
    commit(state, [event(60, START - 50 * HOUR)], contract="3", now=START - 40 * HOUR, advance=False)
    state.contracts.prune(30 * HOUR, 600, NOW + 90 * HOUR)
    commit(state, events(8, 9))


def rows_of(stores: FileStores) -> dict[str, list[tuple[Any, ...]]]:
    with stores.dump() as (dump,):
        return {table: list(dump.rows(table)) for table in COLUMNS}


def copied(source: FileStores, target: FileStores) -> list[int]:
    ticks: list[int] = []
    with source.dump() as dumps:
        target.load(dumps, ticks.append)
        assert sum(ticks) == sum(dump.count() for dump in dumps)
    return ticks


def test_a_copy_of_files_is_the_same_and_a_copy_of_it_is_so_to_the_row(tmp_path: Path) -> None:
    source, once, twice = (FileStores(tmp_path / name) for name in ("source", "once", "twice"))
    with_state(source, fill_further)
    archived(source, Evidence(), MemoryPlace())
    assert {*copied(source, once)} == {1}
    assert differences(source.snapshot("run"), once.snapshot("run")) == []
    before, after = rows_of(source), rows_of(once)
    kept = [table for table in COLUMNS if table not in ("segments", "places", "ledger", "cuts")]
    assert {table: after[table] for table in kept} == {table: before[table] for table in kept}
    assert [table for table in kept if not before[table]] == ["archive_batches"], "each has something in it"
    assert sorted(after["ledger"]) == sorted(before["ledger"])
    cuts = [{row[:2]: row[2] for row in rows["cuts"]} for rows in (before, after)]
    assert all(cuts[1][key] >= number for key, number in cuts[0].items()), "rather sent again than taken for sent"
    copied(once, twice)
    assert files_of(twice.directory) == ["run.db", "run.lock"]
    assert rows_of(twice) == rows_of(once)
    expected, found = (with_state(stores, everything) for stores in (source, once))
    assert with_state(twice, everything) == found
    assert found.pop("waiting") == {
        "first": [6, 7, 8, 9, 50, 60],
        "second": [1, 3, 5, 6, 7, 8, 9, 50, 60],
        "third": [7, 8, 9, 50, 60],
        "proof": [],
    }
    assert expected.pop("waiting")["third"] == [50, 60], "contract 1 waits on its own"
    assert found == expected


def test_what_was_collected_before_a_sink_came_is_told_from_what_came_later_in_a_copy_too(tmp_path: Path) -> None:
    source, target = FileStores(tmp_path / "source"), FileStores(tmp_path / "target")
    with_state(source, fill)
    copied(source, target)
    for sinks, contract, numbers in (
        (["first"], "1", [90, 91]),
        (["first", "third"], "1", [1, 2, 3, 90, 91]),
        (["third"], "2", [5, 6]),
    ):
        for stores in (source, target):
            with closing(stores.collected("run", sinks)) as collected:
                asked = events(1, 2, 3, 7, 90, 91) if contract == "1" else events(5, 6)
                assert collected.unseen(contract, asked) == events(*numbers)


def test_a_copy_that_would_differ_or_that_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    source, target = FileStores(tmp_path / "source"), FileStores(tmp_path / "target")
    with_state(source, fill)
    with_state(source, lambda state: None, use="fetch")

    def fail(rows: int) -> None:
        raise KeyboardInterrupt

    with source.dump() as dumps:
        with pytest.raises(KeyboardInterrupt):
            target.load(dumps, fail)
        assert files_of(target.directory) == ["fetch.lock", "run.lock"]
        run = dumps[-1]
        assert run.use == "run"
        run.overview = run.overview._replace(filtered={"other": 1}, created_at=1)
        with pytest.raises(StateError, match=r"the copy of `run` would differ in filtered \(") as error:
            target.load(dumps, lambda rows: None)
        assert error.value.hint
    assert (target.uses(), target.missing()) == ([], {})
    assert files_of(target.directory) == ["fetch.lock", "run.lock"]
    copied(source, target)
    with source.dump() as dumps, pytest.raises(StateError, match=r"fetch\.db is there already"):
        target.load(dumps, lambda rows: None)


def test_nobody_begins_to_work_on_a_state_while_it_is_copied(tmp_path: Path) -> None:
    source, target = FileStores(tmp_path / "source"), FileStores(tmp_path / "target")
    with_state(source, fill)
    with source.dump(), pytest.raises(StateHeldError):
        source.open("run")
    with closing(source.open("run")), pytest.raises(StateHeldError), source.dump():
        pass
    with closing(target.open("run")), source.dump() as dumps, pytest.raises(StateHeldError):
        target.load(dumps, lambda rows: None)
