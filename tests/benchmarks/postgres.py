"""The cost of a state in PostgreSQL: one replica against a file, bytes written, size of the tables, and several replicas.

The server is Debian's if installed, because that counts statements. It is durable, with almost default settings. It runs on this
machine and uses part of its processor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from tests.benchmarks.measure import cost_of_idling, environment, ours, run, simulator, state_of
from tests.benchmarks.row import REPEATS, Row, middle
from tests.benchmarks.rows import export, sink_config
from tests.postgres import Server, debian_programs
from tests.scale import QUIET_WAL_BYTES, Load, database_load
from tests.support import TOP, clean_environment, wait_until

_COUNTED = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}
_MB = 1024 * 1024


@contextmanager
def _server() -> Iterator[Server]:
    programs = debian_programs()
    server = Server(programs=programs, settings={"shared_buffers": "128MB", **(_COUNTED if programs else {})})
    try:
        server.create()
        server.start()
        if programs is not None:
            server.sql("CREATE EXTENSION pg_stat_statements")
        yield server
    finally:
        server.remove()


def _in_database(url: str, room: Path, server: Server, **more: str) -> dict[str, str]:
    return environment(url, room, IONOS_POLLER_STATE__URL=server.url(), IONOS_POLLER_HTTP__LISTEN="", **more)


def _wal_bytes(server: Server) -> int:
    return int(server.sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))


class _Counts(NamedTuple):
    """Counts of the server and the simulator so far."""

    statements: int
    transactions: int
    wal_bytes: int
    polls: int


def _counts(server: Server, url: str) -> _Counts:
    statements = int(server.sql("SELECT sum(calls) FROM pg_stat_statements"))
    transactions = int(server.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"))
    return _Counts(statements, transactions, _wal_bytes(server), _polls(url))


def idle(room: Path, scale: int) -> Iterator[Row]:
    """A minute of `run` without new entries, with the default configuration, after the first polls."""
    for contracts, has_goal in ((1000 // scale, True), (2000 // scale, False)):
        with _server() as server, simulator(contracts=contracts, events=10, span="1h") as url:
            if not server.sql("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'"):
                yield Row("PostgreSQL, idle", note="not measured: this server has no pg_stat_statements")
                return
            env = _in_database(url, room / f"postgres-idle-{contracts}", server)
            command = ours("--config", str(sink_config(room, url)), "run")
            counts: list[_Counts] = []
            look = lambda: counts.append(_counts(server, url))  # noqa: B023, E731 - called before the next round
            mine = cost_of_idling(command, 60, env=env, cwd=TOP, settling_seconds=65.0, look=look)
        found = _Counts(*(after - before for before, after in zip(*counts, strict=True)))
        seconds, share = mine.seconds, mine.cpu_seconds / mine.seconds
        rate = found.statements / seconds
        name = f"PostgreSQL, idle, {contracts:,} contracts"
        note = f"{rate:.1f} statements/s, {share:.1%} of a core"
        if has_goal:
            note += "; goal: 20 and 5 %"
            yield Row(name, min(20 / rate, 0.05 / share), ">= 1", seconds, peak_mb=mine.peak_mb, note=note)
            continue
        yield Row(name, None, "", seconds, peak_mb=mine.peak_mb, note=note)
        predicted = database_load(Load(contracts))
        transactions = found.transactions / seconds
        note = f"{transactions:.1f} transactions/s, {predicted.transactions_per_second:.1f} predicted"
        yield Row(f"{name}: transactions", predicted.transactions_per_second / transactions, "0.75 to 1.33", note=note)
        per_poll = found.wal_bytes / found.polls
        note = f"{per_poll:,.0f} bytes a poll, {QUIET_WAL_BYTES:,} predicted"
        yield Row(f"{name}: WAL", QUIET_WAL_BYTES / per_poll, "0.5 to 2", note=note)


def end_to_end(room: Path, scale: int) -> Iterator[Row]:
    """Collect, commit durably, deliver over HTTP: with the state in PostgreSQL against one in a file."""
    events = 200_000 // scale
    pairs, per_byte = [], []
    with _server() as server, simulator(contracts=1, events=events, span="3h") as url:
        lines = room / "lines.ndjson"
        run(ours("backfill", "--from", "4h", "--to", "0s", "--output", str(lines)), env=environment(url, room), cwd=TOP)
        payload_bytes = lines.stat().st_size
        lines.unlink()
        for number in range(REPEATS):
            theirs = run(export(room, url, jobs=4), env=environment(url, room / f"file-{number}"), cwd=TOP)
            before = _wal_bytes(server)
            env = _in_database(url, room / f"database-{number}", server, IONOS_POLLER_STATE__SCHEMA=f"run_{number}")
            pairs.append((run(export(room, url, jobs=4), env=env, cwd=TOP), theirs))
            per_byte.append((_wal_bytes(server) - before) / payload_bytes)
        accepted = state_of(url)["intakes"]["logging"]["accepted"]
        assert accepted == 2 * REPEATS * events, accepted
    mine, theirs = middle(pairs)
    name = f"PostgreSQL, end to end {events:,}, against a file"
    yield Row(name, theirs.seconds / mine.seconds, ">= 0.5", mine.seconds, theirs.seconds, mine.peak_mb)
    wal = sorted(per_byte)[REPEATS // 2]
    yield Row(
        f"PostgreSQL, WAL of {events:,}", 3 / wal, ">= 1", note=f"{wal:.2f} bytes per byte of the entries; goal: 3"
    )
    yield Row(
        f"PostgreSQL, memory of {events:,}", 110 / mine.peak_mb, ">= 1", peak_mb=mine.peak_mb, note="goal: 110 MB"
    )


def growth(room: Path, scale: int) -> Iterator[Row]:
    """A million entries collected and delivered: the size of the tables, and the speed of commits, also with an open snapshot."""
    commits, size, contracts = 2000 // scale, 500, 20
    for is_held in (False, True):
        with _server() as server, ExitStack() as stack:
            if is_held:
                reader = stack.enter_context(psycopg.connect(server.url(), autocommit=True))
                reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                reader.execute("SELECT 1")
            command = [sys.executable, "-m", "tests.benchmarks.churn", server.url(), "run"]
            numbers = [str(commits), str(size), str(contracts)]
            mine = run([*command, *numbers], env=clean_environment({"PYTHONPATH": str(TOP)}), cwd=TOP)
            found = json.loads(mine.last_line)
            what = f"{commits * size:,} entries" + (", a snapshot held open" if is_held else "")
            note = (
                f"{found['first'] * 1000:.1f} ms a commit of {size} at first, {found['last'] * 1000:.1f} ms in the end"
            )
            goal = ">= 0.9"
            yield Row(f"PostgreSQL, commits, {what}", found["first"] / found["last"], goal, found["seconds"], note=note)
            if not is_held:
                kept = _table_bytes(server)
                rest = sum(count for table, count in kept.items() if table != "ledger")
                note = f"{rest / _MB:.0f} MB, and {kept['ledger'] / _MB:.0f} MB of ledger; goal: 64 MB"
                yield Row(f"PostgreSQL, tables after {what}", 64 * _MB / rest, ">= 1", note=note)


def _table_bytes(server: Server) -> dict[str, int]:
    """Table -> its bytes with indexes, after a VACUUM."""
    # An ANALYZE of autovacuum may hold a snapshot. VACUUM would then keep rows that were deleted since.
    held = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    wait_until(lambda: server.sql(held).strip() == "0", 60)
    server.sql("VACUUM")  # autovacuum does this within a minute by default
    query = (
        "SELECT relname, pg_total_relation_size(oid) FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = 'ionos_poller'::regnamespace"
    )
    return {name: int(size) for name, size in (row.split("|") for row in server.sql(query).splitlines())}


def replicas(room: Path, scale: int) -> Iterator[Row]:
    """Contracts polled as fast as possible, by one replica and by three. The API answers in 50 ms."""
    contracts, seconds = 1000 // scale, 20
    rates = []
    with _server() as server, simulator(contracts=contracts, events=1, span="1h", latency_ms=50) as url:
        for count in (1, 3):
            more = {"IONOS_POLLER_POLL__INTERVAL": "1s", "IONOS_POLLER_API__CONCURRENCY": "4"}
            env = _in_database(url, room / f"replicas-{count}", server, **more)
            command = ours("--config", str(sink_config(room, url)), "run")
            all_polled = _polls(url) + contracts
            processes = [subprocess.Popen(command, env=env, cwd=TOP, stderr=subprocess.DEVNULL) for _ in range(count)]
            try:
                wait_until(lambda: _polls(url) >= all_polled, 120, what="a poll of each contract")  # noqa: B023
                wait_until(lambda: _are_shared_out(server, count), what="even shares")  # noqa: B023
                before, started = _polls(url), time.monotonic()
                time.sleep(seconds)  # the polls in this time are measured
                rates.append((_polls(url) - before) / (time.monotonic() - started))
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()
    note = f"{rates[0]:.0f} and {rates[1]:.0f} polls/s; goal: 2.5 times as many"
    yield Row(
        f"PostgreSQL, three replicas against one, {contracts:,} contracts", rates[1] / rates[0], ">= 2.5", note=note
    )


def _are_shared_out(server: Server, replicas: int) -> bool:
    """Whether `replicas` replicas hold all contracts, and none holds more than its share."""
    counted = server.sql("SELECT count(*) FROM ionos_poller.contracts GROUP BY coalesce(holder::text, '')").split()
    held = [int(count) for count in counted]
    return len(held) == replicas and max(held) <= -(-sum(held) // replicas)


def _polls(url: str) -> int:
    return int(sum(state_of(url)["api"]["requests"].get("entries", {}).values()))


BENCHMARKS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "postgres-idle": idle,
    "postgres-end-to-end": end_to_end,
    "postgres-growth": growth,
    "postgres-replicas": replicas,
}
