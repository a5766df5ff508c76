"""Whether a state file is as it was written: its pages, and the types of its values, which SQLite itself takes as they come."""

from __future__ import annotations

import sqlite3
from pathlib import Path

# Beyond that, looking at every page takes longer than a start may.
QUICK_CHECK_BYTES = 64 * 1024 * 1024


def is_sound(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether nothing is wrong with the file, as far as can be told in a moment.  Raises: sqlite3.Error."""
    if path.stat().st_size > QUICK_CHECK_BYTES:
        return True
    return connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok" and has_usual_types(connection)


def has_usual_types(connection: sqlite3.Connection) -> bool:
    """Whether every value is of the type that its column declares.  Raises: sqlite3.Error."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
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
