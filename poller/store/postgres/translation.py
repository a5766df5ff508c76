"""Translates errors of PostgreSQL and libpq into ours, with a remedy: temporary ones, and those that need a person."""

from __future__ import annotations

import errno
import os
import re

import psycopg

from poller.core.errors import StateError, StateFullError, StateUnavailableError

# Serialization failure, deadlock, lock not available: the whole transaction is tried again.
RETRIED = ("40001", "40P01", "55P03")

_WAIT = "nothing is lost meanwhile; it is tried again"
# Temporary errors, by SQLSTATE or its class.
_PASSING = {
    "08": ("the connection broke", _WAIT),
    "25006": (
        "it takes no writes",
        (
            "wait for the failover to end, or name the primary in state.url, or add target_session_attrs=read-write to it;"
            " of one that was set read-only, free its disk and reset default_transaction_read_only"
        ),
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
# Errors that need a person.
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
    "pool_mode": (  # no SQLSTATE of its own
        "the pooler in front takes no transactions",
        "set its pool_mode to transaction",
    ),
    "XX001": ("data of the server is damaged", "restore the database, or run `fetch --since` on a new one"),
    "XX002": ("an index of the server is damaged", "REINDEX it"),
}
# libpq gives no SQLSTATE for errors while it connects. These are the words of an English server, and of PgBouncer, which gives
# 08P01 for most. Errors that need a person are before temporary ones, because PgBouncer may report both in one line.
_WORDS = (
    ("authentication failed", "28"),
    ("no password supplied", "28"),
    ("no such user", "28"),
    ("no pg_hba.conf entry", "28"),
    ("is not permitted to log in", "28"),
    ("wrong password type", "28"),
    ("no such database", "3D000"),
    ("permission denied for database", "42501"),
    ("transaction blocks not allowed", "pool_mode"),
    ("too many connections", "53300"),
    ("too many clients", "53300"),
    ("remaining connection slots", "53300"),
    ("no more connections allowed", "53300"),
    ("client connections exceeded", "53300"),
    ("out of memory", "53200"),
    ("hot standby mode", "25006"),
    ("session is read-only", "25006"),
    ("the database system is", "57P03"),
    ("terminating connection", "57P01"),
    ("shutting down", "57P03"),
    ("server_login_retry", "57P03"),
    ("try again", "57P03"),
    ("cannot connect to server", "57P03"),
    ("server conn crashed", "57P03"),
    ("timeout", "57P03"),
)
# The words of libpq and psycopg for a network that fails: those of the system, and these.
_NETWORK = (
    "timeout expired",
    "could not translate host name",
    "server closed the connection",
    "closed unexpectedly",
    "EOF detected",
    "unexpected eof",
    *map(os.strerror, errno.errorcode),
)
# A failure at one of several servers, as psycopg lists them.
_ATTEMPT = re.compile(r"^- (host: .*?, port: .*?), hostaddr: (?:'[^']*'|None): (.*)", re.MULTILINE)
# The text of psycopg and libpq before the words. `answer`: the words are the server's; their severity is in any language.
_LEAD = re.compile(
    r"(?P<connecting>connection (?:failed|is bad): )?(?:[a-z ]+ failed: )?(?:connection to server .+? failed: )?"
    r"(?P<answer>[^\s:]+(?: [^\s:]+)?:  )?"
)


def translated(error: psycopg.Error, place: str) -> StateError:
    """The error as one of ours. `place` names the database, without secrets."""
    if error.sqlstate is not None:
        return _translated(error, error.diag.message_primary or str(error), place)
    # If a server refuses us at one of its addresses, failures at its other addresses do not matter. With several servers, it is
    # enough that one may come back.
    servers: dict[str, StateError] = {}
    for server, text in _attempts(error):
        if not _is_lasting(servers.get(server)):
            servers[server] = _translated(error, text, place)
    failures = list(servers.values())
    return next((failure for failure in failures if not _is_lasting(failure)), failures[-1])


def has_unknown_answer(error: psycopg.OperationalError) -> bool:
    """Whether a connection failed with an answer of a server that is unknown here, for example in another language."""
    found = [_taken_apart(text) for _, text in _attempts(error)]
    return any(is_answer and _code_of(words) is None for _, is_answer, words in found)


def _attempts(error: psycopg.Error) -> list[tuple[str, str]]:
    """The server and the error text of each attempt to connect."""
    return _ATTEMPT.findall(str(error)) or [("", str(error))]


def _taken_apart(text: str) -> tuple[bool, bool, str]:
    """Whether the text is about a failed connection, whether its words are the server's, and the words."""
    lead = _LEAD.match(text)
    is_connecting, is_answer = (bool(lead["connecting"]), bool(lead["answer"])) if lead else (False, False)
    return is_connecting, is_answer, text[lead.end() if lead else 0 :].partition("\n")[0].strip()[:300]


def _is_lasting(failure: StateError | None) -> bool:
    return failure is not None and not isinstance(failure, StateUnavailableError)


def _translated(error: psycopg.Error, text: str, place: str) -> StateError:
    is_connecting, is_answer, words = _taken_apart(text)
    words = words or type(error).__name__
    code = error.sqlstate
    is_of_network = not is_connecting or any(known in words for known in _NETWORK)
    if (code is None and (is_answer or not is_of_network)) or (code or "").startswith("08"):
        code = _code_of(words) or code
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
        return _unknown(words, place, is_of_network=is_of_network)
    return StateError(f"{place}: the state cannot be used: {words}", hint="look at the log of the server")


def _unknown(words: str, place: str, *, is_of_network: bool) -> StateError:
    """The error for words without a known code."""
    if _is_tls(words):
        if "does not support SSL" in words:
            hint = "turn it on in the server: ssl = on, with a certificate that names the host in state.url"
            return StateError(f"{place}: the server has no TLS: {words}", hint=hint)
        hint = "check ca_file in [state] and the host in state.url: its certificate must name that host"
        return StateError(f"{place}: the TLS connection failed: {words}", hint=hint)
    if is_of_network:
        hint = f"check that it runs, its address, and the network; {_WAIT}"
        return StateUnavailableError(f"{place}: cannot be reached: {words}", hint=hint)
    hint = "check url, user and password in [state]; the log of the server may say more"
    return StateError(f"{place}: the connection was refused: {words}", hint=hint)


def _lookup(table: dict[str, tuple[str, str]], code: str | None) -> tuple[str, str] | None:
    return None if code is None else table.get(code) or table.get(code[:2])


def _code_of(words: str) -> str | None:
    if "role" in words and "does not exist" in words:
        return "28"
    if "database" in words and "does not exist" in words:
        return "3D000"
    return next((code for text, code in _WORDS if text in words), None)


def _is_tls(words: str) -> bool:
    return any(known in words for known in ("certificate", "SSL was required", "root.crt", "private key", "sslmode"))
