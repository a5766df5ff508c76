"""Rows of a use, in the transaction of the caller: its contracts, the spans that must still be read, and its facts."""

from __future__ import annotations

from poller.core.windows import Window
from poller.store.postgres.database import Connection
from poller.store.postgres.quiet import COLUMNS, Known, known_of
from poller.store.rows import Contract, Range


def read_contracts(connection: Connection, use: int, only: list[str] | None = None) -> list[Contract]:
    """All contracts, by number; with `only`, only these."""
    rows = connection.execute(
        f"SELECT {', '.join(f'c.{name}' for name in Contract._fields[:-1])}, coalesce(r.host || ':' || r.pid, '')"
        " FROM contracts c LEFT JOIN replicas r ON r.token = c.holder AND r.expires_at > clock_timestamp()"
        " WHERE c.use_id = %s AND (%s::text[] IS NULL OR c.contract = ANY(%s)) ORDER BY c.contract",
        (use, only, only),
    )
    return [Contract(*row) for row in rows]


def read_known(connection: Connection, use: int, contract: str) -> Known | None:
    """The current row of a contract, for a claim; None if it is unknown."""
    row = connection.execute(
        f"SELECT {COLUMNS}, coalesce(p.host || ':' || p.pid, '') FROM contracts c"
        " LEFT JOIN replicas p ON p.token = c.holder AND p.expires_at > clock_timestamp()"
        " WHERE c.use_id = %s AND c.contract = %s",
        (use, contract),
    ).fetchone()
    return None if row is None else known_of(row[:-1], row[-1])


def read_ranges(connection: Connection, use: int, contract: str | None = None) -> list[Range]:
    """The spans that must still be read, of one contract or of all, oldest first."""
    rows = connection.execute(
        "SELECT id, contract, start_at, end_at, purpose FROM ranges"
        " WHERE use_id = %s AND (%s::text IS NULL OR contract = %s) ORDER BY start_at, id",
        (use, contract, contract),
    )
    return [Range(id_, name, Window(start, end), purpose) for id_, name, start, end, purpose in rows]


def read_fact(connection: Connection, use: int, name: str) -> str | None:
    """The value of a fact by its name; None if it was never set."""
    value: str | None = connection.value("SELECT value FROM facts WHERE use_id = %s AND name = %s", (use, name))
    return value


def set_fact(connection: Connection, use: int, name: str, value: str) -> None:
    """Set a fact by its name, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO facts VALUES (%s, %s, %s) ON CONFLICT (use_id, name) DO UPDATE SET value = excluded.value",
        (use, name, value),
    )
