"""A directory with states in files: which states it has, who holds them, and the messages about it."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from poller.cli.options import use_of
from poller.core.errors import (
    EXIT_INCOMPLETE,
    EXIT_STATE,
    StateError,
    StateFullError,
    StateHeldError,
    StateUnavailableError,
    StoppedError,
)
from poller.store.journal import Action, Person
from poller.store.sqlite import State, Stores
from poller.store.sqlite.diagnosis import check_directory, check_files, check_space
from poller.store.sqlite.inspection import holder_of, schema_of
from poller.store.sqlite.lock import Lock, forget_created, lock_of, was_created
from poller.store.sqlite.schema import SCHEMA_VERSION
from poller.store.sqlite.translation import as_passing, translated_os, translated_reading
from tests.states import START

MIB = 1 << 20


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "state")


def make(stores: Stores, *uses: str) -> None:
    for use in uses:
        stores.open(use).close()


# The directory


def test_the_uses_of_a_directory_are_its_state_files(stores: Stores) -> None:
    assert stores.uses() == []
    make(stores, "run", "backfill-1")
    (stores.directory / "run.db.unusable-1").touch()
    (stores.directory / "note").touch()
    assert stores.uses() == ["backfill-1", "run"]
    assert stores.prepare() == []
    assert stores.place == str(stores.directory)
    assert stores.where("run") == str(stores.directory / "run.db")
    assert stores.owner() == os.geteuid()


def test_what_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stores = Stores(tmp_path / "file")
    with pytest.raises(StateError, match="file: cannot be read: Not a directory") as error:
        stores.uses()
    assert error.value.hint
    assert Stores(tmp_path / "missing").owner() is None


def test_a_relative_directory_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Stores(Path("state")).place == str(tmp_path / "state")


def test_a_use_that_never_ran_is_told_from_one_whose_file_is_gone(stores: Stores) -> None:
    make(stores, "run")
    for look in (stores.attach, stores.snapshot, stores.journal):
        with pytest.raises(StateError, match=r"fetch\.db does not exist") as error:
            look("fetch")
        assert "`fetch` has not run" in error.value.hint
    (stores.directory / "run.db").unlink()
    with pytest.raises(StateError, match=r"run\.db is gone: run\.lock says that it was created") as error:
        stores.attach("run")
    assert "run once with --since T" in error.value.hint
    assert list(stores.missing()) == ["run"]
    assert str(stores.missing()["run"]) == str(error.value)
    make_gone = Stores(stores.directory.parent / "other")
    make(make_gone, "backfill-1")
    (make_gone.directory / "backfill-1.db").unlink()
    assert "`backfill` --restart" in make_gone.missing()["backfill-1"].hint


def test_what_was_set_aside_is_missing_until_it_is_begun_anew(stores: Stores) -> None:
    make(stores, "run", "fetch")
    for name in ("run.db.unusable-1", "run.db.unusable-2", "run.db.unusable-2-wal"):
        (stores.directory / name).touch()
    assert stores.missing() == {}
    stores.discard("run")
    assert list(stores.missing()) == ["run"]
    assert "run.db was set aside as run.db.unusable-2" in str(stores.missing()["run"])
    for look in (stores.attach, stores.snapshot, stores.journal):
        with pytest.raises(StateError, match=r"run\.db was set aside as run\.db\.unusable-2"):
            look("run")


def test_the_state_that_is_meant_is_the_daemons_also_where_it_was_set_aside(stores: Stores) -> None:
    assert use_of(None, stores) == "run"
    make(stores, "fetch")
    (stores.directory / "fetch.db").rename(stores.directory / "fetch.db.unusable-1")
    assert use_of(None, stores) == "fetch", "there is no other"
    make(stores, "run")
    assert use_of(None, stores) == "run"
    (stores.directory / "run.db").rename(stores.directory / "run.db.unusable-1")
    assert use_of(None, stores) == "run"
    assert use_of("fetch", stores) == "fetch"


def test_a_state_is_discarded_with_all_that_lies_beside_it(stores: Stores) -> None:
    make(stores, "run")
    for suffix in ("-wal", "-shm", "-journal"):
        (stores.directory / f"run.db{suffix}").touch()
    stores.discard("run")
    assert [path.name for path in stores.directory.iterdir()] == ["run.lock"]
    assert stores.missing() == {}
    with closing(stores.open("run")), pytest.raises(StateHeldError):
        stores.discard("run")


def test_a_state_is_given_to_another_use_and_is_missing_nowhere(stores: Stores) -> None:
    with closing(stores.open("run")) as state:
        state.contracts.enrol(["1"], "default", START, START)
    stores.rename("run", "old")
    assert (stores.uses(), stores.missing()) == (["old"], {})
    assert [row.contract for row in stores.snapshot("old").contracts] == ["1"]
    with pytest.raises(StateError, match=r"run\.db: cannot be written: No such file"):
        stores.rename("run", "old")


def test_a_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    deep = Stores(tmp_path / "a" / "b" / "state")
    make(deep, "run")
    assert stat.S_IMODE(deep.directory.stat().st_mode) == 0o700


def test_what_is_no_state_is_set_aside_under_a_name_of_its_own(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "T")
    make(stores, "run")
    for name in ("run.db.unusable-T", "run.db.unusable-T-1", "run.db.unusable-T-2"):
        (stores.directory / "run.db").write_bytes(b"no state" * 1000)
        with pytest.raises(
            StateError, match=r"run\.db is damaged or not an SQLite file; set aside as run\.db\.unusable-T"
        ):
            stores.open("run")
        assert (stores.directory / name).exists()


def test_a_pipe_in_the_place_of_a_state_is_none(stores: Stores) -> None:
    make(stores, "run")
    (stores.directory / "run.db").unlink()
    os.mkfifo(stores.directory / "run.db")
    with pytest.raises(StateError, match=r"state/run\.db: cannot be read: run\.db is not a regular file"):
        stores.snapshot("run")


# Who holds it


def test_the_process_that_holds_a_state_is_named_and_nobody_else(stores: Stores) -> None:
    assert stores.holder("run") is None
    with closing(stores.open("run")):
        assert stores.holder("run") == os.getpid()
    assert stores.holder("run") is None
    lock = stores.directory / "run.lock"
    held = Lock(lock, wait=False, stop=threading.Event())
    for content, holder in (
        (b"%-19d\n" % 1, 1),
        (b"0", None),
        (b"-5", None),
        (b"x", None),
        (b"", None),
        (b"9" * 20, int("9" * 20)),
    ):
        lock.write_bytes(content)
        assert holder_of(lock) == holder
    held.release()


def test_a_lock_keeps_what_it_says_of_the_state_through_a_start(stores: Stores) -> None:
    make(stores, "run")
    path = stores.directory / "run.db"
    assert was_created(path)
    content = lock_of(path).read_bytes()
    assert re.fullmatch(rb"[0-9]+ +\nstate created\n", content)
    assert content.index(b"\n") == 19
    make(stores, "run")
    assert lock_of(path).read_bytes() == content
    forget_created(path)
    assert not was_created(path)
    assert lock_of(path).stat().st_size == 20
    forget_created(path)
    forget_created(path.with_name("missing.db"))
    assert not lock_of(path.with_name("missing.db")).exists()


def test_who_waits_for_a_lock_stops_when_asked_to(tmp_path: Path) -> None:
    path, stop = tmp_path / "run.lock", threading.Event()
    held = Lock(path, wait=False, stop=stop)
    with pytest.raises(StateHeldError, match=rf"another process holds this state \(process {os.getpid()}\)") as error:
        Lock(path, wait=False, stop=stop)
    assert error.value.hint
    stop.set()
    before = sorted(one.name for one in Path("/proc/self/fd").iterdir())
    with pytest.raises(StoppedError):
        Lock(path, wait=True, stop=stop)
    assert sorted(one.name for one in Path("/proc/self/fd").iterdir()) == before
    held.release()
    Lock(path, wait=True, stop=stop).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_no_file_can_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(descriptor: int, flags: int) -> None:
        raise OSError(number, "no locks here")

    before = sorted(one.name for one in Path("/proc/self/fd").iterdir())
    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StateError, match=r"run\.lock: cannot be locked: no locks here") as error:
        Lock(tmp_path / "run.lock", wait=True, stop=threading.Event())
    assert "a local file system" in error.value.hint
    assert sorted(one.name for one in Path("/proc/self/fd").iterdir()) == before


def test_of_a_journal_each_line_is_told_once(stores: Stores) -> None:
    with closing(stores.open("run")) as state:
        told = []
        for name in ("a", "b", ""):
            if name:
                state.journal.add(Action(Person(1, "anna"), name))
            told.append([entry.action for entry in state.journal.unseen()])
        assert told == [["a"], ["b"], []]


def test_the_latest_lines_of_a_journal_are_given_from_a_time_on(stores: Stores) -> None:
    with closing(stores.open("run")) as state:
        for number in range(4):
            state.journal.add(Action(Person(1, "anna"), str(number), clock=lambda number=number: START + number))
        state.journal.add(Action(Person(1, "anna"), "early", clock=lambda: START - 1))
    assert [entry.action for entry in stores.journal("run")] == ["0", "1", "2", "3", "early"]
    assert [entry.action for entry in stores.journal("run", since=START + 1)] == ["1", "2", "3"]
    assert [entry.action for entry in stores.journal("run", limit=2)] == ["3", "early"]
    assert [entry.action for entry in stores.journal("run", since=START, limit=1)] == ["3"]
    last = stores.snapshot("run").last_action
    assert last is not None
    assert (last.action, last.at) == ("early", START - 1)


def test_who_does_not_say_that_he_waits_is_told_at_once(stores: Stores) -> None:
    with closing(stores.open("run")), pytest.raises(StateHeldError):
        State.open(stores.directory, "run")


# Messages


@pytest.mark.parametrize(
    ("free", "max_bytes", "level", "words"),
    [
        (16 * MIB - 1, 0, "fail", "16.0 MiB free: nearly full"),
        (16 * MIB, 17 * MIB, "warn", "16.0 MiB free, less than outbox.max_bytes, 17MiB"),
        (16 * MIB, 16 * MIB, "warn", "16.0 MiB free: not much"),
        (200 * MIB - 1, 0, "warn", "not much"),
        (200 * MIB, 200 * MIB, "ok", "200.0 MiB free"),
        (3 << 29, 0, "ok", "1.5 GiB free"),
        (1 << 40, 0, "ok", "1.0 TiB free"),
        (MIB - 1024, 0, "fail", "1023 KiB free"),
    ],
)
def test_how_much_room_there_is_is_told_at_its_bounds(
    tmp_path: Path, free: int, max_bytes: int, level: str, words: str
) -> None:
    found = check_space(free, max_bytes, tmp_path)
    assert (found.level, found.name) == (level, "disk")
    assert f"{tmp_path}: " in found.message
    assert words in found.message
    assert bool(found.hint) is (level != "ok")
    assert found.exit_code == (EXIT_STATE if level == "fail" else 0)


def test_a_directory_is_writable_or_can_be_made_or_is_not(tmp_path: Path) -> None:
    assert check_directory(tmp_path) == ("ok", "state", f"{tmp_path}: writable", "", 0, "")
    deep = tmp_path / "a" / "b"
    assert check_directory(deep).message == f"{deep}: writable, will be created"
    (tmp_path / "file").touch()
    found = check_directory(tmp_path / "file" / "a")
    assert (found.level, found.name, found.exit_code) == ("fail", "state", EXIT_STATE)
    assert found.message == f"{tmp_path / 'file'}: cannot be written: it is no directory"
    assert found.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_directory_on_a_full_disk_is_told_as_the_daemon_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", is_full)
    found = check_directory(tmp_path)
    assert (found.level, found.exit_code) == ("fail", EXIT_INCOMPLETE)
    assert found.message == f"{tmp_path}: no space left on the disk"
    assert found.hint.startswith("free some, or raise the quota")


@pytest.mark.parametrize(("mode", "level"), [(0o777, "fail"), (0o1777, "ok"), (0o770, "ok")])
def test_a_directory_that_others_can_change_is_no_place_for_a_state_and_told_as_such(
    stores: Stores, mode: int, level: str
) -> None:
    make(stores, "run")
    stores.directory.chmod(mode)
    found = check_directory(stores.directory)
    assert (found.level, found.exit_code) == (level, EXIT_STATE if level == "fail" else 0)
    if level == "fail":
        with pytest.raises(StateError) as caught:
            stores.open("run")
        assert (found.message, found.hint) == (caught.value.message, caught.value.hint)


def spoil_by_mode(lock: Path) -> None:
    lock.chmod(0o666)


def spoil_by_link(lock: Path) -> None:
    lock.rename(lock.with_name("elsewhere"))
    lock.symlink_to("elsewhere")


def spoil_by_directory(lock: Path) -> None:
    lock.unlink()
    lock.mkdir()


@pytest.mark.parametrize("spoil", [spoil_by_mode, spoil_by_link, spoil_by_directory])
def test_a_lock_file_that_no_start_takes_is_told(stores: Stores, spoil: Callable[[Path], None]) -> None:
    make(stores, "run")
    spoil(stores.directory / "run.lock")
    (found,) = check_files(stores.directory)
    with pytest.raises(StateError) as caught:
        stores.open("run")
    assert found == ("fail", "state run", caught.value.message, caught.value.hint, EXIT_STATE, "")


def test_each_state_is_told_with_its_schema_and_who_holds_it(stores: Stores) -> None:
    make(stores, "run", "fetch", "gone")
    (stores.directory / "gone.db").unlink()
    (stores.directory / "odd.db").write_bytes(b"no state" * 1000)
    with closing(stores.open("run")):
        fetch, odd, run, gone = check_files(stores.directory)
    assert run == (
        "ok",
        "state run",
        f"run.db: sound, schema {SCHEMA_VERSION}; in use by process {os.getpid()}",
        "",
        0,
        "run",
    )
    assert fetch == ("ok", "state fetch", f"fetch.db: sound, schema {SCHEMA_VERSION}; not in use", "", 0, "fetch")
    assert (odd.level, odd.name, odd.exit_code, odd.use) == ("fail", "state odd", EXIT_STATE, "")
    assert "is damaged or not an SQLite file" in odd.message
    assert "run once with --since T" in odd.hint
    assert (gone.level, gone.name) == ("fail", "state gone")
    levels = [found.level for found in stores.diagnose(0)]
    assert levels[-4:] == ["ok", "fail", "ok", "fail"]
    assert len(levels) == 6, "the directory, and its room"


def test_a_file_of_another_program_or_of_a_newer_one_is_told(stores: Stores) -> None:
    make(stores, "run")
    path = stores.directory / "run.db"
    assert schema_of(path) == SCHEMA_VERSION
    for pragma, words in (
        (f"user_version = {SCHEMA_VERSION + 1}", rf"written by a newer ionos-poller \(schema {SCHEMA_VERSION + 1}"),
        ("application_id = 7", "is not a state of ionos-poller"),
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA {pragma}")
        with pytest.raises(StateError, match=words) as error:
            schema_of(path)
        assert error.value.hint
    path.unlink()
    with pytest.raises(StateError, match=r"run\.db: cannot be read"):
        schema_of(path)
    path.symlink_to("elsewhere")
    with pytest.raises(StateError, match=r"run\.db is a link, which is not followed"):
        schema_of(path)


# Errors of SQLite and the system


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "no space left on the disk"),
        (sqlite3.SQLITE_BUSY, "another program has the state locked"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "another program has the state locked"),
        (sqlite3.SQLITE_PROTOCOL, "another program has the state locked"),
        (sqlite3.SQLITE_IOERR_WRITE, "cannot be written: said"),
        (sqlite3.SQLITE_IOERR_FSYNC, "cannot be written: said"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, "cannot be written: said"),
        (sqlite3.SQLITE_IOERR_READ, ""),
        (sqlite3.SQLITE_CANTOPEN, ""),
        (sqlite3.SQLITE_CORRUPT, ""),
        (sqlite3.SQLITE_READONLY, ""),
    ],
)
def test_what_may_be_over_in_a_while_is_told_as_that(tmp_path: Path, code: int, words: str) -> None:
    found = as_passing(tmp_path / "run.db", sqlite_error(code))
    assert (found is None) is (words == "")
    if found is not None:
        assert found.message == f"{tmp_path / 'run.db'}: {words}"
        assert found.hint
        assert isinstance(found, StateFullError) is (code == sqlite3.SQLITE_FULL)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT])
@pytest.mark.parametrize("room", ["none", "a quota", "a megabyte"])
def test_a_disk_that_is_full_is_found_whatever_sqlite_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, room: str
) -> None:
    free = 256 if room != "none" else 255
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 999, 999, free, 9, 9, 9, 0, 255)))
    if room == "a quota":

        def refuse(descriptor: int) -> None:
            raise OSError(errno.EDQUOT, "quota")

        monkeypatch.setattr(os, "fsync", refuse)
    found = as_passing(tmp_path / "run.db", sqlite_error(code))
    is_full = room != "a megabyte" and code != sqlite3.SQLITE_CORRUPT
    assert isinstance(found, StateFullError) is is_full
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, StateFullError, "no space left on the disk"),
        (errno.EDQUOT, StateFullError, "no space left on the disk"),
        (errno.EMFILE, StateUnavailableError, "cannot be opened: words"),
        (errno.ENOMEM, StateUnavailableError, "cannot be opened: words"),
        (errno.EEXIST, StateError, "cannot be written: it is no directory"),
        (errno.ENOTDIR, StateError, "cannot be written: it is no directory"),
        (errno.EACCES, StateError, "cannot be written: words"),
    ],
)
def test_what_the_system_says_of_a_file_is_an_error_of_ours(number: int, kind: type[StateError], words: str) -> None:
    with pytest.raises(StateError) as error, translated_os(Path("/x")):
        raise OSError(number, "words")
    assert type(error.value) is kind
    assert error.value.message == f"/x: {words}"
    assert error.value.hint
    with pytest.raises(StateError, match=r"^/x: cannot be read: words") as error, translated_reading(Path("/x")):
        raise OSError(number, "words")
