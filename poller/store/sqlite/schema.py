"""The tables on disk, version by version, and the checksums (seals) of their rows."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from functools import cache

from poller.store.sqlite.soundness import Schema, read_schema

APPLICATION_ID = 0x494F4E50  # "IONP"

# The values that a seal protects against flipped bits. SQLite itself checks only the structure of a page, not its content.
SEALED_CONTRACT = "contract || ' ' || account || ' ' || origin || ' ' || watermark"
SEALED_RANGE = "contract || ' ' || start || ' ' || end || ' ' || purpose"
SEALED_GAP = "id || ' ' || contract || ' ' || start || ' ' || end"
SEALED_SINK = "name || ' ' || segment || ' ' || position || ' ' || ledger_id || ' ' || coalesce(mark, '')"
SEALED_POSTPONED = "sink || ' ' || contract || ' ' || segment || ' ' || position"
SEALED_ARCHIVE = (
    "sink || ' ' || archive || ' ' || number || ' ' || sha256 || ' ' || coalesce(key, '') || ' ' || entries"
)

# One script for each schema version, in order. `PRAGMA user_version` is the number of applied ones. Never edit a released one.
MIGRATIONS = (
    f"""
    CREATE TABLE contracts (
        contract TEXT PRIMARY KEY, account TEXT NOT NULL,
        origin INTEGER NOT NULL,     -- the earliest second ever asked for
        watermark INTEGER NOT NULL,  -- complete up to this second
        fetched INTEGER NOT NULL DEFAULT 0, new INTEGER NOT NULL DEFAULT 0, seen INTEGER NOT NULL DEFAULT 0,
        filtered INTEGER NOT NULL DEFAULT 0, late INTEGER NOT NULL DEFAULT 0, repaired INTEGER NOT NULL DEFAULT 0,
        succeeded_at INTEGER, failed_at INTEGER, failure TEXT NOT NULL DEFAULT '',
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_CONTRACT})) STORED
    ) WITHOUT ROWID;
    CREATE TABLE ranges (
        id INTEGER PRIMARY KEY, contract TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_RANGE})) STORED
    );
    CREATE TABLE filtered (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE ledger (
        id INTEGER PRIMARY KEY, contract TEXT NOT NULL, hour INTEGER NOT NULL, is_timed INTEGER NOT NULL,
        first_us INTEGER NOT NULL, last_us INTEGER NOT NULL, updated_at INTEGER NOT NULL, identities BLOB NOT NULL,
        forgotten INTEGER NOT NULL DEFAULT 0  -- how many identities were in it before they were pruned
    );
    CREATE INDEX ledger_hours ON ledger (contract, hour);
    CREATE INDEX ledger_age ON ledger (updated_at) WHERE forgotten = 0;
    CREATE INDEX ledger_untimed ON ledger (contract) WHERE is_timed = 0;
    CREATE TABLE segments (
        id INTEGER PRIMARY KEY AUTOINCREMENT, contract TEXT NOT NULL,
        sink TEXT,                   -- only for this sink; NULL: for all
        collected_at INTEGER NOT NULL, events INTEGER NOT NULL, bytes INTEGER NOT NULL, first_us INTEGER NOT NULL,
        checksum INTEGER NOT NULL, directory BLOB NOT NULL, lines BLOB NOT NULL
    );
    CREATE INDEX segments_sink ON segments (sink) WHERE sink IS NOT NULL;
    CREATE TABLE outbox_size (events INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO outbox_size VALUES (0, 0);
    CREATE TABLE sinks (
        name TEXT PRIMARY KEY, type TEXT NOT NULL,
        segment INTEGER NOT NULL,    -- the last segment it is done with
        position INTEGER NOT NULL,   -- and how many events of the next one
        assigned INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0, retry_at REAL, postponed_at REAL, parked_at REAL,
        failure TEXT NOT NULL DEFAULT '',
        succeeded_at REAL,
        mark INTEGER,                -- bytes of its own output that belong to what is delivered
        ledger_id INTEGER NOT NULL,  -- rows of the ledger up to here were collected before it was known
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_SINK})) STORED
    ) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, contract TEXT NOT NULL, time_us INTEGER NOT NULL,
        collected_at INTEGER NOT NULL, identity BLOB NOT NULL, ordinal INTEGER NOT NULL, line BLOB NOT NULL,
        status INTEGER, reason TEXT NOT NULL, died_at REAL NOT NULL
    );
    CREATE INDEX dead_letters_sink ON dead_letters (sink);
    """,
    """
    ALTER TABLE contracts ADD COLUMN audited_at INTEGER NOT NULL DEFAULT 0;  -- unix seconds of the last self-audit
    """,
    """
    -- What became of the dead letters of a sink, also of one that was forgotten: written = at hand + replayed + purged.
    CREATE TABLE letter_books (
        sink TEXT PRIMARY KEY, written INTEGER NOT NULL DEFAULT 0, replayed INTEGER NOT NULL DEFAULT 0,
        purged INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    INSERT INTO letter_books (sink, written, purged)
        SELECT sink, max(dead, at_hand), max(dead, at_hand) - at_hand FROM (
            SELECT name AS sink, dead, (SELECT count(*) FROM dead_letters WHERE sink = name) AS at_hand FROM sinks
            UNION ALL
            SELECT sink, 0, count(*) FROM dead_letters WHERE sink NOT IN (SELECT name FROM sinks) GROUP BY sink
        ) WHERE dead + at_hand > 0;
    """,
    """
    -- How many entries of the hours of a day are known by number alone: 24 unsigned numbers of 32 bits, compressed (zlib).
    CREATE TABLE forgotten (
        contract TEXT NOT NULL, day INTEGER NOT NULL, counts BLOB NOT NULL, PRIMARY KEY (contract, day)
    ) WITHOUT ROWID;
    DROP INDEX ledger_age;
    """,
    f"""
    CREATE TABLE gaps (
        id INTEGER PRIMARY KEY AUTOINCREMENT, contract TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
        kind TEXT NOT NULL, reason TEXT NOT NULL, first_seen INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
        next_try_at INTEGER NOT NULL,
        is_accepted INTEGER NOT NULL DEFAULT 0,  -- by a person
        is_narrow INTEGER NOT NULL DEFAULT 1,
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_GAP})) STORED
    );
    CREATE INDEX gaps_contract ON gaps (contract, start);
    CREATE TABLE gap_entries (
        id INTEGER PRIMARY KEY AUTOINCREMENT, gap INTEGER NOT NULL,
        size INTEGER NOT NULL,       -- bytes that came
        content BLOB NOT NULL        -- the first of them
    );
    CREATE INDEX gap_entries_gap ON gap_entries (gap);
    ALTER TABLE contracts ADD COLUMN sharing INTEGER NOT NULL DEFAULT 0;  -- entries that share an id with another one
    """,
    """
    CREATE TABLE journal (           -- what people did by hand
        id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL,
        uid INTEGER,                 -- NULL where the system does not say
        login TEXT NOT NULL, sudo_user TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL,
        affected INTEGER,            -- how many; NULL where nothing is counted
        reason TEXT NOT NULL,
        export TEXT                  -- the file with what was deleted
    );
    """,
    """
    -- What the dead letters weigh, which counts against the same limit as the outbox.
    ALTER TABLE outbox_size ADD COLUMN letter_bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE outbox_size SET letter_bytes = (SELECT coalesce(sum(length(line)), 0) FROM dead_letters);
    CREATE TRIGGER letter_written AFTER INSERT ON dead_letters BEGIN
        UPDATE outbox_size SET letter_bytes = letter_bytes + length(NEW.line);
    END;
    CREATE TRIGGER letter_gone AFTER DELETE ON dead_letters BEGIN
        UPDATE outbox_size SET letter_bytes = letter_bytes - length(OLD.line);
    END;
    """,
    """
    -- What the last self-audit compared by the API's counts; and the starts of the hours in which these did not agree.
    ALTER TABLE contracts ADD COLUMN compared_start INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE contracts ADD COLUMN compared_end INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE contracts ADD COLUMN differing TEXT NOT NULL DEFAULT '';
    """,
    f"""
    CREATE TABLE archives (          -- how far the archive of a sink is: its newest complete digest
        sink TEXT PRIMARY KEY, archive TEXT NOT NULL, number INTEGER NOT NULL DEFAULT 0, sha256 TEXT NOT NULL DEFAULT '',
        key TEXT,                    -- the public key that signs the next one; NULL: none does
        entries INTEGER NOT NULL DEFAULT 0,
        since INTEGER NOT NULL,      -- what was collected from then on is in it
        written_at REAL,
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_ARCHIVE})) STORED
    ) WITHOUT ROWID;
    CREATE TABLE archive_batches (   -- the batch that is being written, as it was committed
        sink TEXT PRIMARY KEY, number INTEGER NOT NULL,
        writer TEXT NOT NULL,        -- whose events: empty for this state's
        events INTEGER NOT NULL, written_at INTEGER NOT NULL, digest BLOB NOT NULL, signature BLOB,
        segment INTEGER, position INTEGER  -- where the sink was in the outbox
    );
    CREATE TABLE archive_objects (
        sink TEXT NOT NULL, key TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (sink, key)
    );
    CREATE TABLE archive_writers (   -- how many events of other states are in the archive
        sink TEXT NOT NULL, writer TEXT NOT NULL, events INTEGER NOT NULL, PRIMARY KEY (sink, writer)
    ) WITHOUT ROWID;
    CREATE TABLE archive_days (      -- by hour: what it holds, what the API counted, what was stated; see core.evidence.hours
        sink TEXT NOT NULL, contract TEXT NOT NULL, day INTEGER NOT NULL, counts BLOB NOT NULL, is_open INTEGER NOT NULL,
        PRIMARY KEY (sink, contract, day)
    ) WITHOUT ROWID;
    CREATE INDEX archive_days_open ON archive_days (sink) WHERE is_open;
    """,
    f"""
    CREATE TABLE postponed (         -- contracts that a sink does not take while it takes others: each has its own place
        sink TEXT NOT NULL, contract TEXT NOT NULL,
        segment INTEGER NOT NULL,    -- the last segment of the contract that it is done with
        position INTEGER NOT NULL,   -- and how many events of the contract's next one
        attempts INTEGER NOT NULL, postponed_at REAL NOT NULL, retry_at REAL NOT NULL, failure TEXT NOT NULL,
        since REAL NOT NULL,
        seal INTEGER GENERATED ALWAYS AS (crc32({SEALED_POSTPONED})) STORED,
        PRIMARY KEY (sink, contract)
    ) WITHOUT ROWID;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)


def with_functions(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, with the function that the schema uses to compute seals."""
    connection.create_function("crc32", 1, _crc32, deterministic=True)
    return connection


def _crc32(text: object) -> int:
    return zlib.crc32(str(text).encode("utf-8", "surrogatepass"))


@cache
def schema_at(version: int) -> Schema:
    """The schema after the first `version` migrations."""
    with closing(with_functions(sqlite3.connect(":memory:"))) as connection:
        migrate(connection, version)
        return read_schema(connection)


def migrate(connection: sqlite3.Connection, until: int = SCHEMA_VERSION) -> None:
    """Upgrade a file from its version to version `until`.  Commits: each step."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number in range(version, until):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;")
