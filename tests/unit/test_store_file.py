"""The state file itself: who may open it, what damages it, and that damage loses and hides nothing."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from poller.core.errors import StateError, StateFullError, StateHeldError, StateUnavailableError, StoppedError
from poller.core.windows import Window
from poller.store.sqlite import State, Stores
from poller.store.sqlite.database import Database
from poller.store.sqlite.inspection import holder_of, schema_of
from poller.store.sqlite.lock import Lock
from poller.store.sqlite.overview import overview_of
from poller.store.sqlite.schema import APPLICATION_ID, SCHEMA_VERSION
from tests.states import HOUR, START, commit, event, events, first_schema, next_batch, open_state
from tests.support import TOP, UNMEASURED, clean_environment

# The file

pytestmark = pytest.mark.backends("sqlite")


def test_the_state_is_readable_by_nobody_else(directory: Path) -> None:
    before = os.umask(0)
    try:
        state = open_state(directory)
        state.contracts.enrol(["1"], "default", START, START)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("fetch.db", "fetch.db-wal", "fetch.db-shm", "fetch.lock"), 0o600)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    state.close()


def test_closing_leaves_one_file_and_its_lock(directory: Path) -> None:
    open_state(directory).close()
    assert sorted(path.name for path in directory.iterdir()) == ["fetch.db", "fetch.lock"]


HOLD = """
import sys
from pathlib import Path
from poller.store.sqlite import State, Stores
state = State.open(Path(sys.argv[1]), "fetch")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the state until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        env=clean_environment(),
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_state_is_held_by_one_process_and_the_other_is_told_by_which(
    directory: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(StateHeldError, match=rf"process {holder.pid}\)") as raised:
        open_state(directory)
    assert "--state-dir" in raised.value.hint
    State.open(directory, "run").close()  # another use is another state


def test_who_waits_gets_it_when_the_other_process_ends_even_by_force(
    directory: Path, holder: subprocess.Popen[str]
) -> None:
    opened: list[State] = []
    waiter = threading.Thread(target=lambda: opened.append(State.open(directory, "fetch", wait=True)))
    waiter.start()
    holder.kill()
    waiter.join(10)
    assert not waiter.is_alive()
    opened[0].close()


def test_waiting_ends_when_asked_to_stop(directory: Path, holder: subprocess.Popen[str]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        State.open(directory, "fetch", wait=True, stop=stop)


def test_a_state_may_be_looked_at_while_it_is_held(state: State, directory: Path) -> None:
    commit(state, events(1))
    assert overview_of(directory / "fetch.db") == state.overview()


# Files that cannot be used


def damage_random(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(50_000))


def damage_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def damage_text(path: Path) -> None:
    path.write_text("not a database\n" * 500)


def damage_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def replace_with_foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


UNUSABLE = [
    damage_random,
    damage_short,
    damage_half,
    damage_empty,
    damage_zeros,
    damage_text,
    damage_middle,
    replace_with_foreign,
]


@pytest.fixture
def closed(directory: Path) -> Path:
    """The path of a state with two events waiting, held by nobody."""
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    commit(state, [event(number, line=b'{"n":%d,"x":"%s"}' % (number, b"x" * 3000)) for number in (1, 2, 3, 4)])
    state.close()
    return directory / "fetch.db"


@pytest.mark.parametrize("damage", UNUSABLE, ids=lambda function: function.__name__)
def test_a_damaged_or_foreign_file_is_set_aside_untouched_and_nothing_starts_in_its_place(
    closed: Path, damage: Callable[[Path], None]
) -> None:
    damage(closed)
    content = closed.read_bytes()
    with pytest.raises(StateError) as raised:
        open_state(closed.parent)
    (aside,) = closed.parent.glob("fetch.db.unusable-*")
    assert aside.read_bytes() == content
    assert not closed.exists()
    assert aside.name in str(raised.value)
    assert "--since" in raised.value.hint
    # The state stays so, with the same hint, until a person decides.
    with pytest.raises(StateError) as again:
        open_state(closed.parent)
    assert aside.name in str(again.value)
    assert "--since" in again.value.hint
    fresh = open_state(closed.parent, since=START)
    assert fresh.contracts.all() == []
    fresh.close()
    open_state(closed.parent).close()
    assert aside.read_bytes() == content


def test_two_files_set_aside_in_one_second_are_both_kept(closed: Path) -> None:
    for _ in range(3):
        damage_text(closed)
        with pytest.raises(StateError):
            open_state(closed.parent)
    assert len(list(closed.parent.glob("fetch.db.unusable-*"))) == 3


def test_deleting_what_was_set_aside_begins_anew_also_where_a_crash_left_side_files(closed: Path) -> None:
    damage_text(closed)
    for suffix in ("-wal", "-shm"):
        closed.with_name(closed.name + suffix).write_bytes(b"left by a crash")
    with pytest.raises(StateError):
        open_state(closed.parent)
    with pytest.raises(StateError) as raised:
        open_state(closed.parent)
    main = next(path for path in closed.parent.glob("fetch.db.unusable-*") if path.name[-4:] not in ("-wal", "-shm"))
    assert f"delete {main} " in raised.value.hint
    main.unlink()
    open_state(closed.parent).close()


def test_a_crash_before_anything_was_written_is_no_damage(directory: Path) -> None:
    # A start that was killed at any moment must not need a person afterwards. One process forks for each moment: each child
    # ends some steps later than the one before, until one finishes.
    script = """
import os, shutil, sys
from pathlib import Path
from poller.store.sqlite import State, database
from tests.states import START

directory = Path(sys.argv[1])

def end_after(steps):
    def trace(frame, event, arg):
        nonlocal steps
        if event == "line" and frame.f_code.co_filename == database.__file__:
            steps -= 1
            if not steps:
                os._exit(9)
        return trace
    sys.settrace(trace)
    State.open(directory, "fetch")
    os._exit(0)

for steps in range(8, 400, 6):
    process = os.fork() or end_after(steps)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    state = State.open(directory, "fetch")
    state.contracts.enrol(["1"], "default", START, START)
    state.close()
    assert list(directory.glob("*unusable*")) == []
    shutil.rmtree(directory)
    if code == 0:
        print(steps)
        break
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env=clean_environment(UNMEASURED),
        cwd=TOP,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stderr == ""
    assert int(done.stdout) > 50


def test_a_state_of_the_first_schema_is_upgraded_with_all_that_is_in_it(directory: Path) -> None:
    first_schema(directory / "fetch.db")
    with pytest.raises(StateError, match="has schema 1") as raised:
        overview_of(directory / "fetch.db")
    assert "which upgrades all states here" in raised.value.hint
    with closing(open_state(directory)) as state:
        (row,) = state.contracts.all()
        assert (state.overview().created_at, state.overview().last_action) == (None, None), "nobody noted it"
    assert (row.contract, row.origin, row.watermark, row.audited_at) == ("1", 5, 9, 0)
    assert list(directory.glob("*unusable*")) == []


def test_a_start_upgrades_the_other_states_of_its_directory_but_none_that_is_in_use_or_damaged(directory: Path) -> None:
    """Nobody opens a finished backfill again, so without the upgrade `status` cannot read it and it cannot be forgotten."""
    for use in ("backfill-old", "backfill-held", "backfill-damaged"):
        first_schema(directory / f"{use}.db")
    with closing(sqlite3.connect(directory / "backfill-damaged.db")) as connection:
        connection.execute("DROP TABLE contracts")
    lock = Lock(directory / "backfill-held.lock")
    stores = Stores(directory)
    stores.open("run").close()
    assert [row.watermark for row in stores.snapshot("backfill-old").contracts] == [9]
    for use in ("backfill-held", "backfill-damaged"):
        with pytest.raises(StateError, match="has schema 1, not"):
            stores.snapshot(use)
    lock.release()
    stores.open("run").close()
    assert [row.watermark for row in stores.snapshot("backfill-held").contracts] == [9]
    assert list(directory.glob("*unusable*")) == []


def test_from_when_a_person_wants_to_read_is_in_a_new_file_from_its_beginning(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object, **options: object) -> None:
        raise StoppedError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(State, "request_reread", die)
        with pytest.raises(StoppedError):
            open_state(directory, since=START)
    with closing(open_state(directory)) as state:
        assert state.requested_reread("default") == START
        state.forget_reread("default")
        assert state.requested_reread("default") is None


def test_a_newer_schema_is_refused_and_left_as_it_is(closed: Path) -> None:
    connection = sqlite3.connect(closed)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    content = closed.read_bytes()
    with pytest.raises(StateError, match="newer") as raised:
        open_state(closed.parent)
    assert "upgrade" in raised.value.hint
    assert sorted(path.name for path in closed.parent.iterdir()) == ["fetch.db", "fetch.lock"]
    assert closed.read_bytes() == content
    connection = sqlite3.connect(closed)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()


def test_a_flipped_bit_in_a_waiting_entry_is_told_from_the_entry(closed: Path) -> None:
    content = closed.read_bytes()
    at = content.index(b'{"n":2,') + 20
    closed.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    state = open_state(closed.parent)
    with pytest.raises(StateError, match="damaged") as raised:
        next_batch(state, "out", 10, 10**6)
    assert "--since" in raised.value.hint
    state.close()


def test_whatever_bits_are_flipped_nothing_but_our_errors_comes_of_it(closed: Path) -> None:
    content = closed.read_bytes()
    chosen = random.Random(11)
    refused = 0
    for number in range(150):
        flipped = bytearray(content)
        # Half of the flips are in the first page, on which everything else depends.
        for _ in range(chosen.choice((1, 1, 40))):
            flipped[chosen.randrange(4096 if number % 2 else len(content))] ^= 1 << chosen.randrange(8)
        directory = closed.parent.parent / str(number)
        directory.mkdir()
        (directory / closed.name).write_bytes(flipped)
        for look in (overview_of, schema_of):
            with suppress(StateError):
                look(directory / closed.name)
        try:
            state = open_state(directory)
            try:
                state.overview()
                state.contracts.unseen("1", events(1, 9))
                state.contracts.ranges("1")
                next_batch(state, "out", 10, 10**6)
                commit(state, events(9))
                state.dead_letters.find()
            finally:
                state.close()
        except StateError:
            refused += 1
    assert refused


def test_a_file_that_is_damaged_while_it_is_used_is_set_aside_at_the_end(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    commit(state, [event(number, START + number * HOUR) for number in range(300)])
    path = directory / "fetch.db"
    state._database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage_middle(path)
    state._database._connection.execute("PRAGMA shrink_memory")

    def use() -> None:
        for number in range(1000, 1100):
            commit(state, [event(number, START + number * HOUR)])
            state.contracts.unseen("1", events(1))
            state.overview()

    with pytest.raises(StateError):
        use()
    state.close()
    with pytest.raises(StateError, match="unusable"):
        open_state(directory)


def test_beside_a_running_process_nothing_is_set_aside_or_migrated(state: State, directory: Path) -> None:
    # Replaying a dead letter must not move the file away from the daemon that writes to it.
    commit(state, events(1))
    state._database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage_middle(directory / "fetch.db")
    with pytest.raises(StateError), closing(Stores(directory).attach("fetch")) as beside:
        beside.overview()
    assert (directory / "fetch.db").exists()


def test_looking_at_a_damaged_file_is_one_of_our_errors(closed: Path) -> None:
    damage_middle(closed)
    with pytest.raises(StateError):
        overview_of(closed)


def test_there_is_nothing_to_look_at_where_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        overview_of(tmp_path / "fetch.db")
    with pytest.raises(StateError, match="does not exist"):
        Stores(tmp_path).attach("fetch")


# Directories and disks that cannot be written


def test_a_file_where_the_directory_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match="cannot be written") as raised:
            open_state(path)
        assert "--state-dir" in raised.value.hint


def test_a_directory_where_the_file_should_be_is_one_clear_error(directory: Path) -> None:
    (directory / "fetch.db").mkdir(parents=True)
    with pytest.raises(StateError):
        open_state(directory)


FILL = """
import json, os, resource, sys
from pathlib import Path
from poller.core.errors import StateError, StateFullError
from poller.core.events import Event
from poller.store.sqlite import State, Stores
from poller.store.rows import Prepared, WindowRead
from poller.core.windows import Window

directory, limit = Path(sys.argv[1]), int(sys.argv[2])
state = State.open(directory, "fetch")
state.contracts.enrol(["1"], "default", 0, 0)
state.outbox.register("out", "stdout")

def commit(number):
    new = [Event(number, number.to_bytes(16, "big"), b'{"n":%d,"x":"%s"}' % (number, os.urandom(5000).hex().encode()))]
    claim = state.contracts.claim("1")
    try:
        claim.commit(WindowRead(Window(number, number + 1), new, 1, 0, advance_to=number + 1), Prepared)
    finally:
        claim.release()

soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
committed, kinds = 0, []
for _ in range(3):  # it stays full, and goes on being the same error
    try:
        while committed < 10_000:
            commit(committed)
            committed += 1
    except StateError as error:
        kinds.append(type(error).__name__)
before = state.overview()
place = state.outbox.take("out")
batch = place.batch(10_000, 10**9)
place.release()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
(directory / "ballast").unlink(missing_ok=True)
commit(committed)  # when there is room again, it goes on
after = state.overview()
state.close()
reopened = State.open(directory, "fetch")
print(json.dumps({
    "kinds": kinds, "committed": committed, "waiting": len(batch.events), "watermark": before.contracts[0].watermark,
    "imbalances": before.imbalances() + after.imbalances(),
    "after": reopened.overview().sinks[0].waiting,
}))
reopened.close()
"""


def assert_intact(output: str) -> dict[str, object]:
    """Check the output of the filling process: the state has everything that was committed, and nothing else."""
    found: dict[str, object] = json.loads(output)
    assert found["committed"] == found["waiting"] == found["watermark"]
    assert found["after"] == int(str(found["committed"])) + 1
    assert found["imbalances"] == []
    assert len(found["kinds"]) == 3  # type: ignore[arg-type]
    return found


def test_a_file_that_may_not_grow_leaves_the_state_as_it_was(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(directory), "600000"],
        env=clean_environment(),
        cwd=TOP,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert assert_intact(done.stdout)["kinds"] == [StateUnavailableError.__name__] * 3


def test_a_full_disk_is_called_so_and_leaves_the_state_as_it_was(directory: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no disk of our own to fill: this machine allows no mount namespaces")
    directory.mkdir(mode=0o700)
    done = subprocess.run(
        [
            *("unshare", "-rm", "sh", "-c"),
            'mount -t tmpfs -o size=2m tmpfs "$1" && head -c 700000 /dev/zero >"$1/ballast" && exec "$2" -c "$3" "$1" 0',
            *("sh", str(directory), sys.executable, FILL),
        ],
        env=clean_environment(),
        cwd=TOP,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert assert_intact(done.stdout)["kinds"] == [StateFullError.__name__] * 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE contracts SET watermark = watermark + 1048576",
        "UPDATE contracts SET origin = origin + 1048576",
        "UPDATE ranges SET start = start - 1048576",
        "UPDATE sinks SET position = position + 1",
        "UPDATE segments SET contract = '31960009'",
        "UPDATE segments SET collected_at = collected_at + 4096",
        "UPDATE segments SET events = events - 1",
    ],
)
def test_a_flipped_bit_that_sqlite_does_not_see_is_seen_and_set_aside(directory: Path, change: str) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    state.contracts.add_range("1", Window(START, START + 60), "repair")
    commit(state, [event(1)])
    state.close()
    # A change that bypasses the program has no valid seal. This one writes a wrong seal, as a flipped bit does.
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as raw:
        raw.create_function("crc32", 1, lambda text: 4711, deterministic=True)
        raw.execute(change)

    damaged = open_state(directory)
    with pytest.raises(StateError, match="damaged"):
        read_all(damaged)
    damaged.close()

    with pytest.raises(StateError, match="set aside"):
        open_state(directory)


def read_all(state: State) -> None:
    state.contracts.all()
    state.contracts.ranges("1")
    next_batch(state, "out", 10, 1000)


def test_a_new_state_that_is_killed_at_once_can_be_looked_at(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Database, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "_check", killed)
    with pytest.raises(KeyboardInterrupt):
        open_state(directory)
    # With a rollback journal, a kill could leave changes that only a writer can roll back.
    assert (directory / "fetch.db").read_bytes()[18:20] == b"\x02\x02"
    assert overview_of(directory / "fetch.db").contracts == []


def test_what_another_process_writes_meanwhile_is_there_and_what_we_write_stays(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    code = (
        "import sys; from pathlib import Path; from poller.store.sqlite import Stores\n"
        "beside = Stores(Path(sys.argv[1])).attach('fetch'); beside.remember('theirs', 'yes'); beside.close()"
    )
    for _ in range(2):  # the last process to close removes the write-ahead log: it must not be the other process
        subprocess.run([sys.executable, "-c", code, str(directory)], cwd=TOP, env=clean_environment(), check=True)
        assert (directory / "fetch.db-wal").exists()
    assert state.fact("theirs") == "yes"
    state.remember("ours", "yes")
    state.close()
    reopened = open_state(directory)
    assert (reopened.fact("theirs"), reopened.fact("ours")) == ("yes", "yes")
    reopened.close()


def test_a_power_cut_undoes_whole_commits_and_breaks_no_page(directory: Path) -> None:
    """SQLite guarantees this only for a write-ahead log that is synced before its pages are copied into the file."""
    with closing(open_state(directory)) as state, state._database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() in ((1,), (2,))


@pytest.mark.parametrize("name", ["fetch.db", "fetch.db-wal", "fetch.db-journal"])
def test_a_link_in_the_place_of_a_file_of_the_state_is_not_followed(directory: Path, name: str) -> None:
    open_state(directory).close()
    precious = directory / "precious"
    (directory / name).unlink(missing_ok=True)
    precious.write_bytes(b"not a database")
    (directory / name).symlink_to("precious")
    with pytest.raises(StateError, match="link"):
        open_state(directory)
    assert precious.read_bytes() == b"not a database"


@pytest.mark.parametrize("name", ["fetch.db", "fetch.db-wal", "fetch.lock"])
def test_a_pipe_in_the_place_of_a_file_of_the_state_is_not_waited_for(directory: Path, name: str) -> None:
    open_state(directory).close()
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name, 0o600)
    if name == "fetch.lock":
        assert holder_of(directory / name) is None
        return
    for use in (lambda: open_state(directory), lambda: overview_of(directory / "fetch.db")):
        with pytest.raises(StateError, match="not a regular file"):
            use()
