"""The findings of `check` on a database. Nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from poller.config.values import format_duration, format_size
from poller.core.amounts import plural
from poller.core.errors import EXIT_STATE, StateError
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.overview import read_replicas
from poller.store.postgres.schema import SCHEMA_VERSION, check_version, version_of
from poller.store.rows import Diagnosis

_OLDEST_SERVER = 14
_OLD_TRANSACTION_SECONDS = 600
_CLOCK_SECONDS = 5
_NAME = "state"
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def diagnose(database: Database, max_bytes: int) -> Iterator[Diagnosis]:
    """One finding for each check. A failed connection ends them.  Raises: nothing."""
    started = time.monotonic()
    try:
        with database.connected() as connection:
            yield _server(connection, database, time.monotonic() - started)
            for look in (_tls, _schema, _writing, _pooler, _durability, _transactions, _clock, _uses):
                yield from look(connection, database)
            yield from _outbox(connection, database, max_bytes)
    except StateError as error:
        yield _failed(error)


def _server(connection: Connection, database: Database, seconds: float) -> Diagnosis:
    version = connection.raw.info.server_version // 10_000
    message = f"{database.place}: PostgreSQL {version}, connected in {seconds * 1000:.0f} ms"
    if version < _OLDEST_SERVER:
        return Diagnosis("warn", _NAME, message, f"use PostgreSQL {_OLDEST_SERVER} or newer")
    return Diagnosis("ok", _NAME, message)


def _failed(error: StateError) -> Diagnosis:
    return Diagnosis("fail", _NAME, error.message, error.hint, EXIT_STATE)


def _tls(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    if connection.raw.pgconn.ssl_in_use:
        is_verified = database.url.ssl_mode == "verify-full"
        message = f"encrypted with TLS, {'the certificate is verified' if is_verified else 'not verified'}"
        if is_verified or database.url.is_local:
            yield Diagnosis("ok", _NAME, message)
        else:
            yield Diagnosis("warn", _NAME, message, "remove sslmode from state.url")
    elif database.url.is_local:
        yield Diagnosis("ok", _NAME, "not encrypted: the server is this machine")
    else:
        hint = "remove sslmode from state.url"
        yield Diagnosis("warn", _NAME, "not encrypted: passwords and entries cross the network in clear text", hint)


def _schema(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    found, needs = version_of(connection, database.schema)
    if not found:
        may_create = connection.value("SELECT has_database_privilege(current_database(), 'CREATE')")
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
    lacking = connection.value(
        "SELECT string_agg(DISTINCT c.relname, ', ') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,"
        " unnest(%s::text[]) needed WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname <> 'schema_version'"
        " AND NOT has_table_privilege(c.oid, needed)",
        (list(_RIGHTS), database.schema),
    )
    if lacking:
        hint = f"grant {', '.join(_RIGHTS)} on them: see docs/cluster.md"
        yield Diagnosis("fail", _NAME, f"the role lacks rights on {lacking}", hint, EXIT_STATE)
    else:
        yield Diagnosis("ok", _NAME, f"schema {database.schema}, version {found}; the role has the rights it needs")


def _writing(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    if connection.value("SELECT pg_is_in_recovery()"):
        hint = "name the primary in state.url, or add target_session_attrs=read-write to it"
        yield Diagnosis("fail", _NAME, "it is a standby and takes no writes", hint, EXIT_STATE)
    elif connection.value("SHOW transaction_read_only") == "on":
        hint = "free its disk if it is full; then reset default_transaction_read_only of the role, the database or the server"
        yield Diagnosis("fail", _NAME, "transactions of this role are read-only", hint, EXIT_STATE)


def _pooler(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    """Try transactions of several statements, and check whether the same process of the server runs all of them.

    Raises: psycopg.Error if such transactions are refused.
    """
    backends = set()
    for _ in range(3):
        with connection.raw.transaction():
            backends |= {connection.value("SELECT pg_backend_pid()") for _ in range(2)}
    if backends != {connection.raw.info.backend_pid}:
        yield Diagnosis("ok", _NAME, "behind a pooler; transaction mode is enough")


def _durability(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    off = [name for name in ("fsync", "full_page_writes") if connection.value(f"SHOW {name}") == "off"]
    if off:
        hint = "turn it on: a power cut can damage the database, and what was sent is sent again"
        yield Diagnosis("warn", _NAME, f"{' and '.join(off)} off", hint)
    elif connection.value("SHOW synchronous_commit") == "off":
        hint = "a crash of the server undoes the last commits; they are read and sent again"
        yield Diagnosis("warn", _NAME, "synchronous_commit is off", hint)


def _transactions(connection: Connection, _database: Database) -> Iterator[Diagnosis]:
    """The oldest transaction that the role may see. Of other roles, the server shows only that there are sessions."""
    hidden = connection.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NOT NULL"
        " AND query = '<insufficient privilege>'",
    )
    if hidden:
        message = f"open transactions of other roles cannot be seen ({plural(hidden, 'session')})"
        yield Diagnosis("warn", _NAME, message, "as a superuser: GRANT pg_read_all_stats TO the role in state.url")
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
    difference = before - connection.value("SELECT extract(epoch FROM clock_timestamp())::float8")
    if abs(difference) > _CLOCK_SECONDS:
        side = "ahead of" if difference > 0 else "behind"
        message = f"this machine's clock is {format_duration(round(abs(difference)))} {side} the database's"
        yield Diagnosis("warn", _NAME, message, "set both by NTP")


def _uses(connection: Connection, database: Database) -> Iterator[Diagnosis]:
    """Each use and its replicas. The configurations of the replicas and the books are checked later, from the whole state."""
    version, needs = version_of(connection, database.schema)
    if not version:
        return
    with connection.raw.transaction():
        connection.execute(f"SET LOCAL search_path TO {database.schema}")
        uses = connection.execute("SELECT id, name FROM uses ORDER BY name").fetchall()
        replicas = {name: read_replicas(connection, use_id) for use_id, name in uses}
    is_readable = version >= SCHEMA_VERSION >= needs
    for name, found in replicas.items():
        hosts = ", ".join(f"{replica.host}:{replica.pid}" for replica in found)
        held = f"{plural(len(found), 'replica')}: {hosts}" if found else "not in use"
        yield Diagnosis("ok", _NAME, f"{name}: {held}", use=name if is_readable else "")


def _outbox(connection: Connection, database: Database, max_bytes: int) -> Iterator[Diagnosis]:
    if not version_of(connection, database.schema)[0]:
        return
    size = connection.value("SELECT pg_database_size(current_database())")
    limit = format_size(max_bytes)
    yield Diagnosis("ok", _NAME, f"the database has {size // (1 << 20)} MiB; the outbox may grow to {limit}")
