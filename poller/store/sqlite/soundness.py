"""Whether a state file is as it was written: its tables, its pages, and the types of its values.

SQLite's own check sees pages that do not fit together, and no more. A bit that flips elsewhere is found by what stands beside it:
a type here (a number that became text would end every start in a mistake of ours), a row that progress depends on by its seal
(`schema`), a segment by its checksum, and the format number, for which SQLite calls the file read-only, in `connection`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Beyond that, looking at every page takes longer than a start may.
QUICK_CHECK_BYTES = 64 * 1024 * 1024


Schema = list[tuple[bytes, bytes]]
"""What every table and index is called, and how it was made."""


def read_schema(connection: sqlite3.Connection) -> Schema:
    """As bytes: in a damaged file they may be no text.  Raises: sqlite3.Error."""
    return connection.execute(
        "SELECT CAST(name AS BLOB), CAST(coalesce(sql, '') AS BLOB) FROM sqlite_master ORDER BY 1"
    ).fetchall()


def is_sound(connection: sqlite3.Connection, path: Path, schema: Schema) -> bool:
    """Whether nothing is wrong with the file, as far as can be told in a moment.  Raises: sqlite3.Error."""
    connection.execute("PRAGMA shrink_memory")  # what is on disk is looked at, not what the connection remembers of it
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
    """A row is not what was written, though SQLite finds nothing wrong with the file."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def whole_rows(rows: Iterable[tuple[Any, ...]], what: str) -> list[list[Any]]:
    """The rows without their last column, which says whether the seal fits.  Raises: DamagedRowError, where one does not."""
    found = []
    for *values, is_whole in rows:
        if not is_whole:
            raise DamagedRowError(f"{what} fails its checksum")
        found.append(values)
    return found
