"""A process opens a state file once, with one connection: closing a second descriptor would release every lock on the file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from poller.checks.state import check_state
from poller.core.errors import StateError, StateHeldError
from poller.store.sqlite import State, Stores
from poller.store.sqlite.database import Database
from poller.store.sqlite.inspection import holder_of, missing_in, schema_of
from poller.store.sqlite.overview import Collected, overview_of
from tests.states import commit, events, open_state, waiting, with_a_sink
from tests.support import TOP, clean_environment


def descriptors_on(path: Path) -> list[str]:
    """The descriptors with which this process has a file open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of this listing
            if link.readlink() == path:
                found.append(link.name)
    return found


def locks_on(path: Path) -> set[str]:
    """The locks of this process on a file, according to the kernel: kind, mode and bytes.

    They are read from the file's descriptors. The list of all locks of the machine is read in pieces: changes by other
    processes can repeat or omit its lines.
    """
    locks = set()
    for descriptor in descriptors_on(path):
        for line in Path("/proc/self/fdinfo", descriptor).read_text().splitlines():
            if line.startswith("lock:"):
                _, _, kind, _, mode, _, _, first, last = line.split()
                locks.add(f"{kind} {mode} {first} {last}")
    return locks


def descriptors_of(path: Path) -> int:
    """How often this process has a file open."""
    return len(descriptors_on(path))


def attach(directory: Path) -> None:
    Stores(directory).attach("fetch").close()


def attach_and_hold(directory: Path) -> None:
    with closing(Stores(directory).attach("fetch")) as state, suppress(StateHeldError), state.held():
        state.remember("held", "yes")


def open_again(directory: Path) -> None:
    with suppress(StateHeldError):
        State.open(directory, "fetch").close()


def look_at_the_ledger(directory: Path) -> None:
    with closing(Stores(directory).collected("fetch", ["out"])) as other:
        other.unseen("1", events(1, 2))


def check(directory: Path) -> None:
    list(check_state(Stores(directory), 1))
    schema_of(directory / "fetch.db")
    missing_in(directory)
    holder_of(directory / "fetch.lock")


def overview(directory: Path) -> None:
    overview_of(directory / "fetch.db")


def try_to_discard(directory: Path) -> None:
    with suppress(StateHeldError):
        lock = directory / "fetch.lock"
        if holder_of(lock):
            Stores(directory).discard("fetch")


WAYS: list[Callable[[Path], None]] = [
    attach,
    attach_and_hold,
    open_again,
    look_at_the_ledger,
    check,
    overview,
    try_to_discard,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_to_open_a_state_leaves_the_locks_that_were_held(
    directory: Path, way: Callable[[Path], None]
) -> None:
    state = with_a_sink(directory)
    commit(state, events(1, 2))
    path = directory / "fetch.db"
    before = locks_on(path)
    assert before
    for _ in range(2):
        way(directory)
        assert locks_on(path) == before
        assert descriptors_of(path) == 1
    assert waiting(state, "out") == [1, 2]
    state.close()
    assert (locks_on(path), descriptors_of(path)) == (set(), 0)


@pytest.mark.parametrize("way", WAYS[:-1], ids=lambda way: way.__name__)
def test_a_state_that_is_only_attached_or_read_keeps_its_locks_as_well(
    directory: Path, way: Callable[[Path], None]
) -> None:
    with_a_sink(directory).close()
    path = directory / "fetch.db"
    keepers: list[Callable[[], State | Collected]] = [
        lambda: Stores(directory).attach("fetch"),
        lambda: Collected(path, []),
    ]
    for keeper in keepers:
        with closing(keeper()):
            before = locks_on(path)
            assert before
            way(directory)
            assert locks_on(path) == before
            assert descriptors_of(path) == 1
        assert descriptors_of(path) == 0


def test_what_is_read_and_then_opened_to_write_is_one_connection_that_writes(directory: Path) -> None:
    with_a_sink(directory).close()
    with closing(Collected(directory / "fetch.db", ["out"])) as other:
        with closing(open_state(directory)) as state:
            commit(state, events(1))
            assert other.unseen("1", events(1, 2)) == events(2)
            assert descriptors_of(directory / "fetch.db") == 1
        assert other.unseen("1", events(1, 2)) == events(2)


def test_an_attached_state_can_be_held_and_let_go_again(directory: Path) -> None:
    with_a_sink(directory).close()
    with closing(Stores(directory).attach("fetch")) as state:
        with state.held():
            assert holder_of(directory / "fetch.lock") == os.getpid()
            with pytest.raises(StateHeldError):
                open_state(directory)
            commit(state, events(1))
        assert holder_of(directory / "fetch.lock") is None
        open_state(directory).close()
        assert waiting(state, "out") == [1]


def test_an_attached_state_is_not_held_while_another_process_holds_it(directory: Path) -> None:
    held = with_a_sink(directory)
    with closing(Stores(directory).attach("fetch")) as state:
        with pytest.raises(StateHeldError), state.held():
            pass
        held.close()
        with state.held():
            pass


REPLAY = """
import sys
from contextlib import closing
from pathlib import Path
from poller.store.sqlite import State, Stores
with closing(Stores(Path(sys.argv[1])).attach("fetch")) as state:
    state.remember(sys.argv[2], "yes")
"""


def test_who_comes_and_goes_beside_it_leaves_the_write_ahead_log(directory: Path) -> None:
    # If our locks were lost, another process would consider itself the last user and delete our write-ahead log.
    with_a_sink(directory).close()
    with closing(Stores(directory).attach("fetch")) as state:
        for number, way in enumerate(WAYS[:-1]):
            way(directory)
            command = [sys.executable, "-c", REPLAY, str(directory), f"theirs-{number}"]
            subprocess.run(command, cwd=TOP, env=clean_environment(), check=True)
            assert (directory / "fetch.db-wal").exists()
            state.remember(f"ours-{number}", "yes")
    with closing(open_state(directory)) as again:
        for number in range(len(WAYS) - 1):
            assert (again.fact(f"ours-{number}"), again.fact(f"theirs-{number}")) == ("yes", "yes")


def test_an_interrupt_while_a_state_is_opened_leaves_nothing_open(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_sink(directory).close()

    def interrupted(self: Database, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Database, "_check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_state(directory)
    assert descriptors_of(directory / "fetch.db") == 0
    with pytest.raises(StateError):
        Collected(directory / "missing.db", [])


def connections_made() -> Iterator[str]:
    for path in sorted((TOP / "poller").rglob("*.py")):
        for found in re.findall(r"sqlite3\.connect\((?!\":memory:\").{0,40}", path.read_text(), re.DOTALL):
            yield f"{path.relative_to(TOP)}: {found}"


def test_only_one_place_opens_a_state_file() -> None:
    made = list(connections_made())
    assert len(made) == 1, made
    assert made[0].startswith("poller/store/sqlite/connection.py")
