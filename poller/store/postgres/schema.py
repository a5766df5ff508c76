"""The tables in PostgreSQL, version by version. Several programs of different versions may use them at once during an upgrade.

A comment says what each table is for. Every row belongs to a use (`run`, `fetch`, `backfill-...`). In the tables that change with
every commit, no indexed column is ever updated, and the pages have free room, so that updates stay on their page (HOT).
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from poller.config.values import format_duration
from poller.core.errors import StateError, StateUnavailableError
from poller.store.postgres.database import Connection, Database

_OFTEN = (
    "WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500,"
    " autovacuum_vacuum_cost_delay = 0)"
)


class Migration(NamedTuple):
    """One step: its script, and the oldest schema version (`needs`) whose programs may still write afterwards."""

    script: str
    needs: int


# Applied in order. Never edit a released one. Expand before contract: a step adds, and a later release removes.
MIGRATIONS = (
    Migration(
        f"""
        CREATE TABLE uses (
            id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, created_at bigint NOT NULL
        );
        CREATE TABLE replicas (          -- a process that works on a use; alive until expires_at, by the database's clock
            token uuid PRIMARY KEY, use_id integer NOT NULL, host text NOT NULL, pid integer NOT NULL,
            version text NOT NULL, config text NOT NULL, since timestamptz NOT NULL, seen_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL
        ) {_OFTEN};
        CREATE TABLE contracts (
            use_id integer NOT NULL, contract text COLLATE "C" NOT NULL, account text NOT NULL,
            origin bigint NOT NULL,      -- the earliest second ever asked for
            watermark bigint NOT NULL,   -- complete up to this second
            fetched bigint NOT NULL DEFAULT 0, new bigint NOT NULL DEFAULT 0, seen bigint NOT NULL DEFAULT 0,
            filtered bigint NOT NULL DEFAULT 0, late bigint NOT NULL DEFAULT 0, repaired bigint NOT NULL DEFAULT 0,
            succeeded_at bigint, failed_at bigint, failure text NOT NULL DEFAULT '',
            audited_at bigint NOT NULL DEFAULT 0, compared_start bigint NOT NULL DEFAULT 0,
            compared_end bigint NOT NULL DEFAULT 0, differing text NOT NULL DEFAULT '',
            sharing bigint NOT NULL DEFAULT 0,
            holder uuid,                 -- the token of the replica that has it; NULL: nobody
            commits bigint NOT NULL DEFAULT 0,        -- numbers the rows of its ledger
            segment bigint NOT NULL DEFAULT 0,        -- the number of its last segment
            put_events bigint NOT NULL DEFAULT 0,     -- ever put into the outbox for all sinks
            outbox_events bigint NOT NULL DEFAULT 0, outbox_bytes bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (use_id, contract)
        ) {_OFTEN};
        CREATE TABLE ranges (            -- spans still to be read, besides what the watermark asks for
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, use_id integer NOT NULL, contract text COLLATE "C" NOT NULL,
            start_at bigint NOT NULL, end_at bigint NOT NULL, purpose text NOT NULL
        );
        CREATE INDEX ranges_contract ON ranges (use_id, contract);
        CREATE TABLE filtered (
            use_id integer NOT NULL, contract text COLLATE "C" NOT NULL, reason text NOT NULL, count bigint NOT NULL,
            PRIMARY KEY (use_id, contract, reason)
        ) {_OFTEN};
        CREATE TABLE ledger (            -- a row for each commit and hour, later one for many; never updated
            use_id integer NOT NULL, contract text COLLATE "C" NOT NULL, hour bigint NOT NULL, is_timed boolean NOT NULL,
            number bigint NOT NULL, first_us bigint NOT NULL, last_us bigint NOT NULL, updated_at bigint NOT NULL,
            identities bytea NOT NULL,
            PRIMARY KEY (use_id, contract, hour, is_timed, number)
        );
        ALTER TABLE ledger ALTER COLUMN identities SET STORAGE EXTERNAL;
        CREATE INDEX ledger_untimed ON ledger (use_id, contract) WHERE NOT is_timed;
        CREATE TABLE forgotten (         -- entries known by number alone: those of a day's hours
            use_id integer NOT NULL, contract text COLLATE "C" NOT NULL, day bigint NOT NULL, counts bytea NOT NULL,
            PRIMARY KEY (use_id, contract, day)
        );
        CREATE TABLE segments (          -- the outbox; numbered by contract, so that no commit appears behind a later one
            use_id integer NOT NULL, contract text COLLATE "C" NOT NULL, number bigint NOT NULL,
            stamp uuid NOT NULL,         -- tells its content from another one's that has the number after a failover
            sink text COLLATE "C",       -- only for this sink; NULL: for all
            collected_at bigint NOT NULL, events integer NOT NULL, bytes bigint NOT NULL, first_us bigint NOT NULL,
            checksum bigint NOT NULL, directory bytea NOT NULL, lines bytea NOT NULL,
            PRIMARY KEY (use_id, contract, number)
        ) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0,
            toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_cost_delay = 0);
        ALTER TABLE segments ALTER COLUMN directory SET STORAGE EXTERNAL;
        ALTER TABLE segments ALTER COLUMN lines SET STORAGE EXTERNAL;
        CREATE TABLE sinks (
            use_id integer NOT NULL, name text COLLATE "C" NOT NULL, type text NOT NULL,
            attempts integer NOT NULL DEFAULT 0, retry_at double precision, postponed_at double precision,
            parked_at double precision, failure text NOT NULL DEFAULT '', mark bigint,
            PRIMARY KEY (use_id, name)
        ) {_OFTEN};
        CREATE TABLE places (            -- where a sink is in a contract's outbox; no row: at its beginning
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, contract text COLLATE "C" NOT NULL,
            segment bigint NOT NULL DEFAULT 0,        -- the last one it is done with
            position integer NOT NULL DEFAULT 0,      -- and how many events of the next one
            base bigint NOT NULL DEFAULT 0,           -- put_events when the sink became known
            ledger_number bigint NOT NULL DEFAULT 0,  -- commits when the sink became known
            delivered bigint NOT NULL DEFAULT 0, dead bigint NOT NULL DEFAULT 0,
            settled_by uuid,             -- which settling made it what it is
            succeeded_at double precision,
            PRIMARY KEY (use_id, sink, contract)
        ) {_OFTEN};
        CREATE TABLE dead_letters (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, use_id integer NOT NULL, sink text COLLATE "C" NOT NULL,
            contract text COLLATE "C" NOT NULL, time_us bigint NOT NULL, collected_at bigint NOT NULL,
            identity bytea NOT NULL, ordinal integer NOT NULL, line bytea NOT NULL, status integer, reason text NOT NULL,
            died_at double precision NOT NULL
        );
        CREATE INDEX dead_letters_sink ON dead_letters (use_id, sink);
        CREATE TABLE letter_books (      -- written = at hand + replayed + purged; bytes are of those at hand
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, written bigint NOT NULL DEFAULT 0,
            replayed bigint NOT NULL DEFAULT 0, purged bigint NOT NULL DEFAULT 0, bytes bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (use_id, sink)
        ) {_OFTEN};
        CREATE TABLE facts (
            use_id integer NOT NULL, name text NOT NULL, value text NOT NULL, PRIMARY KEY (use_id, name)
        ) {_OFTEN};
        CREATE TABLE gaps (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, use_id integer NOT NULL, contract text COLLATE "C" NOT NULL,
            start_at bigint NOT NULL, end_at bigint NOT NULL, kind text NOT NULL, reason text NOT NULL,
            first_seen bigint NOT NULL, tries integer NOT NULL DEFAULT 0, next_try_at bigint NOT NULL,
            is_accepted boolean NOT NULL DEFAULT false, is_narrow boolean NOT NULL DEFAULT true
        );
        CREATE INDEX gaps_contract ON gaps (use_id, contract);
        CREATE TABLE gap_entries (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gap bigint NOT NULL, size bigint NOT NULL,
            content bytea NOT NULL
        );
        CREATE INDEX gap_entries_gap ON gap_entries (gap);
        CREATE TABLE journal (           -- what people did by hand
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, use_id integer NOT NULL, at bigint NOT NULL, uid bigint,
            login text NOT NULL, sudo_user text NOT NULL, action text NOT NULL, subject text NOT NULL, affected bigint,
            reason text NOT NULL, export text
        );
        """,
        needs=1,
    ),
    Migration(
        f"""
        ALTER TABLE sinks ADD COLUMN holder uuid;  -- the replica that alone delivers it; NULL: who has a contract does
        CREATE TABLE archives (          -- how far the archive of a sink is: its newest complete digest
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, archive text NOT NULL, number bigint NOT NULL DEFAULT 0,
            sha256 text NOT NULL DEFAULT '', key text, entries bigint NOT NULL DEFAULT 0, since bigint NOT NULL,
            written_at double precision, PRIMARY KEY (use_id, sink)
        ) {_OFTEN};
        CREATE TABLE archive_batches (   -- the batch that is being written, as it was committed
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, number bigint NOT NULL, writer text NOT NULL,
            events bigint NOT NULL, written_at bigint NOT NULL, digest bytea NOT NULL, signature bytea,
            of_use integer NOT NULL,     -- whose places it moves on when it is written
            moves bytea NOT NULL,        -- and how, as JSON
            PRIMARY KEY (use_id, sink)
        );
        CREATE TABLE archive_objects (
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, content bytea NOT NULL,
            PRIMARY KEY (use_id, sink, key)
        );
        ALTER TABLE archive_objects ALTER COLUMN content SET STORAGE EXTERNAL;
        CREATE TABLE archive_days (      -- by hour: what it holds, what the API counted, what was stated
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, contract text COLLATE "C" NOT NULL, day bigint NOT NULL,
            counts bytea NOT NULL, is_open boolean NOT NULL, PRIMARY KEY (use_id, sink, contract, day)
        ) {_OFTEN};
        CREATE INDEX archive_days_open ON archive_days (use_id, sink) WHERE is_open;
        """,
        needs=1,
    ),
    Migration(
        f"""
        CREATE TABLE postponed (         -- contracts that a sink does not take while it takes others
            use_id integer NOT NULL, sink text COLLATE "C" NOT NULL, contract text COLLATE "C" NOT NULL,
            attempts integer NOT NULL, postponed_at double precision NOT NULL, retry_at double precision NOT NULL,
            failure text NOT NULL, since double precision NOT NULL,
            PRIMARY KEY (use_id, sink, contract)
        ) {_OFTEN};
        """,
        needs=1,
    ),
    Migration(
        """
        ALTER TABLE replicas ADD COLUMN shares boolean NOT NULL DEFAULT true;  -- whether it wants a share of the contracts
        """,
        needs=1,
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)
TABLES = (
    "replicas", "contracts", "ranges", "filtered", "ledger", "forgotten", "segments", "sinks", "places", "dead_letters",
    "letter_books", "facts", "gaps", "journal", "archives", "archive_batches", "archive_objects", "archive_days",
    "postponed",
)  # fmt: skip
"""The tables with the column `use_id`."""

_LOCK = 0x494F4E50  # "IONP"
_OTHERS_SECONDS = 30  # how long to wait for another program that changes the tables
# How long to wait for the lock on a table. Meanwhile, all later users of the table wait as well, also working replicas.
_TABLE_SECONDS = 1
_IN_THE_WAY = (
    "SELECT l.pid, a.application_name, c.relname, extract(epoch FROM clock_timestamp() - a.xact_start)::bigint"
    " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relkind = 'r' JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_stat_activity a ON a.pid = l.pid AND a.datname = current_database()"
    " WHERE n.nspname = %s AND l.granted AND l.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL"
    " ORDER BY a.xact_start, l.pid LIMIT 1"
)


def version_of(connection: Connection, schema: str) -> tuple[int, int]:
    """The version of the tables, and the oldest version of the program that may write to them; (0, 0) without tables."""
    if connection.value("SELECT to_regclass(%s)", (f"{schema}.schema_version",)) is None:
        return 0, 0
    row = connection.execute(f"SELECT version, needs FROM {schema}.schema_version").fetchone()
    return (row[0], row[1]) if row else (0, 0)


def prepare(database: Database) -> list[int]:
    """Create the tables, or upgrade them to this program's version. Does nothing if they have it, or are newer but usable.

    Commits: all steps at once, one process at a time.  Returns: the versions that were applied.
    Raises: StateError if they are too new, or the role may not change them; StateUnavailableError while others use them.
    """
    with database.connected() as connection:
        version = check_version(database, *version_of(connection, database.schema))
        return [] if version >= SCHEMA_VERSION else _migrate(connection, database)


def check(database: Database) -> None:
    """Raises: StateError if a newer program has changed the tables since, so that this one must not write to them."""
    database.read(lambda connection: check_version(database, *version_of(connection, database.schema)))


def check_version(database: Database, version: int, needs: int) -> int:
    """The version.  Raises: StateError if this program must not write to it; `database` then refuses all further work."""
    if needs > SCHEMA_VERSION:
        database.refusal = StateError(
            f"{database.place}: the schema {database.schema} is of a newer ionos-poller"
            f" (version {version}, this one knows {SCHEMA_VERSION})",
            hint="upgrade ionos-poller, or name another schema in [state]",
        )
        raise database.refusal
    return version


def _migrate(connection: Connection, database: Database) -> list[int]:
    try:
        return _apply(connection, database)
    except psycopg.errors.LockNotAvailable as error:
        found = connection.execute(_IN_THE_WAY, (database.schema,)).fetchone()
        pid, who, table, seconds = found or (0, "", "", 0)
        by = (
            f"process {pid} ({who or 'unknown'}) has used {table} for {format_duration(seconds)}"
            if pid
            else "they are in use"
        )
        raise StateUnavailableError(
            f"{database.place}: the tables cannot be changed for this version: {by}",
            hint=f"wait until it ends, or end it: SELECT pg_terminate_backend({pid})" if pid else "it is tried again",
        ) from error


def _apply(connection: Connection, database: Database) -> list[int]:
    with connection.raw.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{_OTHERS_SECONDS}s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version, needs = version_of(connection, database.schema)
        if check_version(database, version, needs) >= SCHEMA_VERSION:
            return []  # another program has done it meanwhile, perhaps a newer one
        connection.execute(f"SET LOCAL lock_timeout = '{_TABLE_SECONDS}s'")
        if not connection.value("SELECT 1 FROM pg_namespace WHERE nspname = %s", (database.schema,)):
            connection.execute(f"CREATE SCHEMA {database.schema}")
        connection.execute(f"SET LOCAL search_path TO {database.schema}")
        if not version:
            connection.execute("CREATE TABLE schema_version (version integer NOT NULL, needs integer NOT NULL)")
            connection.execute("INSERT INTO schema_version VALUES (0, 0)")
        for step in MIGRATIONS[version:]:
            connection.execute(step.script)
        connection.execute(
            "UPDATE schema_version SET version = %s, needs = greatest(needs, %s)",
            (SCHEMA_VERSION, max(step.needs for step in MIGRATIONS)),
        )
    return list(range(version + 1, SCHEMA_VERSION + 1))
