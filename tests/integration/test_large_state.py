"""A state of 1 GB: no command is slow, the write-ahead log stays small, and a command needs little memory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from poller.store.sqlite import State
from poller.store.sqlite.schema import with_functions
from tests.states import START, open_state, with_a_sink
from tests.support import COMMAND, UNMEASURED, clean_environment

SEGMENTS = 870  # of 1 MiB
GONE = 100  # the first ones: they wait only for a sink that is gone
LETTERS = 25_000
LETTER_BYTES = 4_000
# The pages of a transaction and of the next checkpoint. The freed segments are ten times as large.
LOG_BYTES = 16 * 1024 * 1024
MEMORY_BYTES = 90_000_000  # the program itself needs half of it; the letters have 100 MB


def fill(directory: Path) -> Path:
    """Make a state of 1 GB: events that wait for a sink, events that wait for a sink that is gone, and dead letters."""
    with closing(with_a_sink(directory)) as state:
        state.outbox.register("gone", "file")
    path = directory / "fetch.db"
    with closing(with_functions(sqlite3.connect(path, isolation_level=None))) as raw:
        raw.execute("PRAGMA journal_mode = OFF")
        raw.execute("PRAGMA synchronous = OFF")
        raw.execute("BEGIN")
        raw.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO segments (contract, collected_at, events, bytes, first_us, checksum, directory, lines)"
            " SELECT '1', 0, 1, 1048576, 0, 0, x'', zeroblob(1048576) FROM n",
            (SEGMENTS,),
        )
        raw.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO dead_letters (sink, contract, time_us, collected_at, identity, ordinal, line, reason, died_at)"
            " SELECT 'out', '1', i, 0, CAST(printf('%016d', i) AS BLOB), 0, CAST(printf('%*d', ?, i) AS BLOB), 'bad', 0.0"
            " FROM n",
            (LETTERS, LETTER_BYTES),
        )
        raw.execute("INSERT INTO letter_books (sink, written) VALUES ('out', ?)", (LETTERS,))
        raw.execute(
            "UPDATE sinks SET assigned = ?, dead = ?, segment = ? WHERE name = 'out'",
            (LETTERS + SEGMENTS - GONE, LETTERS, GONE),
        )
        raw.execute("UPDATE sinks SET assigned = ? WHERE name = 'gone'", (SEGMENTS,))
        raw.execute("UPDATE outbox_size SET (events, bytes) = (SELECT sum(events), sum(bytes) FROM segments)")
        raw.execute("COMMIT")
        raw.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 1_000_000_000
    return path


def largest_log(state: State, path: Path, work: Callable[[], object]) -> int:
    """The largest size in bytes of the write-ahead log between transactions."""
    sizes = [0]
    log = path.with_name(f"{path.name}-wal")

    def look(sql: str) -> None:
        if sql.startswith("BEGIN") and log.exists():
            sizes.append(log.stat().st_size)

    state._database._connection.set_trace_callback(look)
    work()
    state._database._connection.set_trace_callback(None)
    return max(*sizes, log.stat().st_size)


def replay(directory: Path) -> int:
    """Replay the dead letters.  Returns: the command's peak memory in bytes."""
    # A small process in between: the peak memory of a child includes that of its parent at the fork.
    meter = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [*COMMAND, "--state-dir", str(directory), "dead-letters", "replay", "--use", "fetch"]
    done = subprocess.run(
        [sys.executable, "-c", meter, *command],
        env=clean_environment(UNMEASURED),
        cwd=directory,
        capture_output=True,
        check=True,
    )
    told, peak_kib = done.stdout.splitlines()
    assert told == b"%d of %d put back; `fetch` sends them within seconds" % (LETTERS, LETTERS)
    return int(peak_kib) * 1024


def test_a_state_of_a_gigabyte_is_worked_on_in_small_pieces(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    path = fill(directory)
    size = path.stat().st_size
    with closing(open_state(directory)) as state:
        assert state.overview().imbalances() == []
        assert replay(directory) < MEMORY_BYTES
        assert largest_log(state, path, lambda: state.outbox.forget("gone")) < LOG_BYTES
        assert largest_log(state, path, lambda: state.prune(0, 0, START)) < LOG_BYTES
        assert state.overview().imbalances() == []
        assert state.outbox.size().events == SEGMENTS - GONE + LETTERS
    assert size - path.stat().st_size > GONE * 1024 * 1024
