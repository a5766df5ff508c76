"""Checks that a state file is as it was written: its tables, its pages, and the types of its values.

SQLite's own check finds only pages that do not fit together. Flipped bits elsewhere need other checks. The types are checked
here: a number that became text would crash every start. Rows that progress depends on have seals (`schema`), and segments
have checksums. `connection` checks the format number: with a wrong one, SQLite reports the file as read-only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# In a larger file, the check of every page takes too long for a start.
QUICK_CHECK_BYTES = 64 * 1024 * 1024


Schema = list[tuple[bytes, bytes]]
"""The name and the SQL of every table and index."""


def read_schema(connection: sqlite3.Connection) -> Schema:
    """The schema, as bytes: in a damaged file it may not be valid text.  Raises: sqlite3.Error."""
    return connection.execute(
        "SELECT CAST(name AS BLOB), CAST(coalesce(sql, '') AS BLOB) FROM sqlite_master ORDER BY 1"
    ).fetchall()


def is_sound(connection: sqlite3.Connection, path: Path, schema: Schema) -> bool:
    """Whether quick checks find nothing wrong with the file.  Raises: sqlite3.Error."""
    connection.execute("PRAGMA shrink_memory")  # empties the cache, so that the checks read the disk
    if read_schema(connection) != schema:
        return False
    if path.stat().st_size > QUICK_CHECK_BYTES:
        return True
    return connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok" and has_usual_types(connection)


def has_usual_types(connection: sqlite3.Connection) -> bool:
    """Whether every value is of the type that its column declares.  Raises: sqlite3.Error."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (table,) in tables.fetchall():
        columns = connection.execute(
            "SELECT name, lower(type), [notnull] OR pk FROM pragma_table_info(?)", (table,)
        ).fetchall()
        odd = " OR ".join(
            f"typeof({name}) <> '{kind}'" if is_needed else f"typeof({name}) NOT IN ('{kind}', 'null')"
            for name, kind, is_needed in columns
        )
        if connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {odd})").fetchone()[0]:
            return False
    return True


class DamagedRowError(sqlite3.DatabaseError):
    """A row is not as it was written, although SQLite finds no error in the file."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def whole_rows(rows: Iterable[tuple[Any, ...]], what: str) -> list[list[Any]]:
    """The rows without their last column, which says whether the seal fits.  Raises: DamagedRowError if one does not."""
    found = []
    for *values, is_whole in rows:
        if not is_whole:
            raise DamagedRowError(f"{what} fails its checksum")
        found.append(values)
    return found
