"""What PostgreSQL and libpq say, as one of our errors: what may pass, and what needs a person. One line each, with the remedy."""

from __future__ import annotations

import psycopg

from poller.core.errors import StateError, StateFullError, StateUnavailableError

RETRIED = (
    "40001",
    "40P01",
    "55P03",
)  # serialization failure, deadlock, lock not available: the whole transaction again

_WAIT = "nothing is lost meanwhile; it is tried again"
# What passes, by SQLSTATE or the class of it.
_PASSING = {
    "08": ("the connection broke", _WAIT),
    "25006": (
        "it is a standby and takes no writes",
        "wait for the failover to end, or name the primary in state.url, or add target_session_attrs=read-write to it",
    ),
    "25P03": ("a transaction stood still for too long, and the server ended it", _WAIT),
    "40": ("the transaction collided with others again and again", _WAIT),
    "53200": ("the server is out of memory", "give it more, or lower its max_connections; nothing is lost meanwhile"),
    "53300": (
        "it has no connection left for us",
        "raise max_connections, or put PgBouncer in front; nothing is lost meanwhile",
    ),
    "53": ("the server is short of resources", _WAIT),
    "55P03": ("a row stayed locked", "look for a long transaction in pg_stat_activity; nothing is lost meanwhile"),
    "57014": ("a statement took too long", "look at the load of the server; nothing is lost meanwhile"),
    "57P03": ("it is starting up or shutting down", _WAIT),
    "57": ("the server ended the connection", _WAIT),
    "58030": ("the server cannot read or write its disk", "check the disk of the database; nothing is lost meanwhile"),
}
# What needs a person.
_LASTING = {
    "26000": ("a prepared statement is gone", "the pooler in front drops them: set its pool_mode to transaction"),
    "28": ("the login was refused", "check user and password in [state], and pg_hba.conf of the server"),
    "3D000": ("the database does not exist", "create it, or correct state.url"),
    "3F000": ("the schema does not exist", "run `ionos-poller state init` as its owner"),
    "42501": (
        "the role lacks a right",
        "grant what docs/cluster.md lists, or run `ionos-poller state init` as the owner",
    ),
    "42P01": ("a table is missing", "run `ionos-poller state init`"),
    "42703": ("a column is missing", "run `ionos-poller state init`"),
    "XX001": ("data of the server is damaged", "restore the database, or run `fetch --since` on a new one"),
    "XX002": ("an index of the server is damaged", "REINDEX it"),
}
# libpq gives no SQLSTATE for what it meets while it connects: the server's own words, which lc_messages may translate.
_WORDS = (
    ("password authentication failed", "28"),
    ("no password supplied", "28"),
    ("no pg_hba.conf entry", "28"),
    ("SASL authentication failed", "28"),
    ("is not permitted to log in", "28"),
    ("wrong password type", "28"),
    ("too many connections", "53300"),
    ("remaining connection slots", "53300"),
    ("no more connections allowed", "53300"),
    ("the database system is", "57P03"),
    ("permission denied for database", "42501"),
)


def translated(error: psycopg.Error, place: str) -> StateError:
    """The error as one of ours. `place` names the database, without secrets."""
    words = _first_line(error)
    code = error.sqlstate or _code_of(words)
    if code == "53100" or "No space left on device" in words:
        return StateFullError(
            f"{place}: no space left on the disk of the database",
            hint="free some, or enlarge it; what was not stored yet is still in the API and will be read again",
        )
    if found := _lookup(_LASTING, code):
        return StateError(f"{place}: {found[0]}: {words}", hint=found[1])
    if found := _lookup(_PASSING, code):
        return StateUnavailableError(f"{place}: {found[0]}: {words}", hint=found[1])
    if code is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        if _is_tls(words):
            if "does not support SSL" in words:
                hint = "turn it on in the server: ssl = on, with a certificate that names the host in state.url"
                return StateError(f"{place}: the server has no TLS: {words}", hint=hint)
            hint = "check ca_file in [state] and the host in state.url: its certificate must name that host"
            return StateError(f"{place}: the TLS connection failed: {words}", hint=hint)
        hint = f"check that it runs, its address, and the network; {_WAIT}"
        return StateUnavailableError(f"{place}: cannot be reached: {words}", hint=hint)
    return StateError(f"{place}: the state cannot be used: {words}", hint="look at the log of the server")


def _lookup(table: dict[str, tuple[str, str]], code: str | None) -> tuple[str, str] | None:
    return None if code is None else table.get(code) or table.get(code[:2])


def _code_of(words: str) -> str | None:
    if "role" in words and "does not exist" in words:
        return "28"
    if "database" in words and "does not exist" in words:
        return "3D000"
    return next((code for text, code in _WORDS if text in words), None)


def _is_tls(words: str) -> bool:
    return "certificate" in words or "SSL was required" in words or "root.crt" in words


def _first_line(error: psycopg.Error) -> str:
    """The server's words without what psycopg says of the address, which the place says already."""
    line = (error.diag.message_primary or str(error)).partition("\n")[0].strip()
    for lead in ("FATAL: ", "ERROR: ", "failed: "):
        line = line.rpartition(lead)[2].strip() or line
    return line[:300] or type(error).__name__
