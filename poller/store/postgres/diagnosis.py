"""What `check` tells of a database, without changing anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg

from poller.config.values import format_duration, format_size
from poller.core.amounts import plural
from poller.core.errors import EXIT_STATE, StateError
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.overview import read_replicas
from poller.store.postgres.schema import SCHEMA_VERSION, check_version, version_of
from poller.store.postgres.translation import translated
from poller.store.rows import Diagnosis

_OLDEST_SERVER = 14
_OLD_TRANSACTION_SECONDS = 600
_CLOCK_SECONDS = 5
_NAME = "state"


def diagnose(database: Database, max_bytes: int) -> Iterator[Diagnosis]:
    """One line for each thing looked at; a connection that fails ends it.  Raises: nothing."""
    started = time.monotonic()
    try:
        raw = database.connect()
    except psycopg.Error as error:
        yield _failed(translated(error, database.place))
        return
    except StateError as error:
        yield _failed(error)
        return
    milliseconds = (time.monotonic() - started) * 1000
    connection = Connection(raw)
    try:
        version = raw.info.server_version // 10_000
        message = f"{database.place}: PostgreSQL {version}, connected in {milliseconds:.0f} ms"
        if version < _OLDEST_SERVER:
            yield Diagnosis("warn", _NAME, message, f"use PostgreSQL {_OLDEST_SERVER} or newer")
        else:
            yield Diagnosis("ok", _NAME, message)
        looks: tuple[Callable[[Connection, Database], Iterator[Diagnosis]], ...] = (
            _tls, _schema, _writing, _pooler, _durability, _transactions, _clock, _replicas,
        )  # fmt: skip
        for look in looks:
            yield from look(connection, database)
        yield from _outbox(connection, database, max_bytes)
    except psycopg.Error as error:
        yield _failed(translated(error, database.place))
    finally:
        raw.close()


def _failed(error: StateError) -> Diagnosis:
    return Diagnosis("fail", _NAME, error.message, error.hint, EXIT_STATE)


def _one(connection: Connection, query: str, *values: object) -> object:
    row = connection.execute(query, values or None).fetchone()
    return row[0] if row else None


def _tls(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    if connection.raw.pgconn.ssl_in_use:
        verified = "the certificate is verified" if database.url.ssl_mode == "verify-full" else "not verified"
        level = "ok" if database.url.ssl_mode == "verify-full" or database.url.is_local else "warn"
        hint = "" if level == "ok" else "remove sslmode from state.url"
        yield Diagnosis("ok" if level == "ok" else "warn", _NAME, f"encrypted with TLS, {verified}", hint)
    elif database.url.is_local:
        yield Diagnosis("ok", _NAME, "not encrypted: the server is this machine")
    else:
        hint = "remove sslmode from state.url"
        yield Diagnosis("warn", _NAME, "not encrypted: passwords and entries cross the network in clear text", hint)


def _schema(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    found, needs = version_of(connection, database.schema)
    if not found:
        may_create = _one(connection, "SELECT has_database_privilege(current_database(), 'CREATE')")
        hint = "" if may_create else "run `ionos-poller state init` as the owner of the database"
        message = f"the schema {database.schema} has no tables yet" + (
            "; the first start creates them" if may_create else ""
        )
        yield Diagnosis("ok" if may_create else "fail", _NAME, message, hint, 0 if may_create else EXIT_STATE)
        return
    try:
        check_version(database, found, needs)
    except StateError as error:
        yield _failed(error)
        return
    if found < SCHEMA_VERSION:
        message = f"schema {database.schema}, version {found} of {SCHEMA_VERSION}"
        yield Diagnosis("warn", _NAME, message, "run `ionos-poller state init`")
        return
    lacking = _one(
        connection,
        "SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind = 'r' AND NOT has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE')"
        " AND c.relname <> 'schema_version'",
        database.schema,
    )
    if lacking:
        hint = "grant SELECT, INSERT, UPDATE, DELETE on them: see docs/cluster.md"
        yield Diagnosis("fail", _NAME, f"the role lacks rights on {lacking}", hint, EXIT_STATE)
    else:
        yield Diagnosis("ok", _NAME, f"schema {database.schema}, version {found}; the role has the rights it needs")


def _writing(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    if _one(connection, "SELECT pg_is_in_recovery()"):
        hint = "name the primary in state.url, or add target_session_attrs=read-write to it"
        yield Diagnosis("fail", _NAME, "it is a standby and takes no writes", hint, EXIT_STATE)
    elif _one(connection, "SHOW transaction_read_only") == "on":
        hint = "ALTER ROLE ... RESET default_transaction_read_only"
        yield Diagnosis("fail", _NAME, "transactions of this role are read-only", hint, EXIT_STATE)


def _pooler(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    """Found by trying: whether a setting outlives its transaction, and whether every transaction has the same process."""
    backends = {_one(connection, "SELECT pg_backend_pid()") for _ in range(3)}
    is_pooled = connection.raw.info.backend_pid not in backends or len(backends) > 1
    if is_pooled:
        yield Diagnosis("ok", _NAME, "behind a pooler; transaction mode is enough")


def _durability(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    off = [name for name in ("fsync", "full_page_writes") if _one(connection, f"SHOW {name}") == "off"]
    if off:
        hint = "turn it on: a power cut can damage the database, and what was sent is sent again"
        yield Diagnosis("warn", _NAME, f"{' and '.join(off)} off", hint)
    elif _one(connection, "SHOW synchronous_commit") == "off":
        hint = "a crash of the server undoes the last commits; they are read and sent again"
        yield Diagnosis("warn", _NAME, "synchronous_commit is off", hint)


def _transactions(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    row = connection.execute(
        "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint FROM pg_stat_activity"
        " WHERE xact_start IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()"
        " ORDER BY xact_start LIMIT 1"
    ).fetchone()
    if row is None:
        return
    pid, seconds = row
    message = f"the oldest open transaction is {format_duration(seconds)} old (process {pid})"
    if seconds >= _OLD_TRANSACTION_SECONDS:
        yield Diagnosis("warn", _NAME, message, f"it keeps dead rows: end it, SELECT pg_terminate_backend({pid})")
    else:
        yield Diagnosis("ok", _NAME, message)


def _clock(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    before = time.time()
    theirs = _one(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
    difference = before - float(str(theirs))
    if abs(difference) > _CLOCK_SECONDS:
        side = "ahead of" if difference > 0 else "behind"
        message = f"this machine's clock is {format_duration(round(abs(difference)))} {side} the database's"
        yield Diagnosis("warn", _NAME, message, "set both by NTP")


def _replicas(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    if not version_of(connection, database.schema)[0]:
        return
    with connection.raw.transaction():
        connection.execute(f"SET LOCAL search_path TO {database.schema}")
        uses = connection.execute("SELECT id, name FROM uses ORDER BY name").fetchall()
        replicas = {name: read_replicas(connection, use_id) for use_id, name in uses}
    for name, found in replicas.items():
        if not found:
            continue
        hosts = ", ".join(f"{replica.host}:{replica.pid}" for replica in found)
        if len({replica.config for replica in found}) > 1:
            hint = "give all of them the same configuration; `status` shows whose is different"
            yield Diagnosis("warn", _NAME, f"{name}: replicas with different configurations: {hosts}", hint)
        else:
            yield Diagnosis("ok", _NAME, f"{name}: {plural(len(found), 'replica')}: {hosts}")


def _outbox(connection: Connection, database: Database, max_bytes: int) -> Iterator[Diagnosis]:
    if not version_of(connection, database.schema)[0]:
        return
    size = _one(connection, "SELECT pg_database_size(current_database())")
    limit = format_size(max_bytes)
    yield Diagnosis("ok", _NAME, f"the database has {int(str(size)) // (1 << 20)} MiB; the outbox may grow to {limit}")
