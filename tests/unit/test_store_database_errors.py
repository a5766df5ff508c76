"""Errors of a database that cannot be used: one line with the remedy, and whether to wait or to ask a person."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from poller.config import load
from poller.core.errors import EXIT_INCOMPLETE, EXIT_STATE, StateError, StateFullError, StateUnavailableError
from poller.store.opening import stores_of
from poller.store.postgres.translation import translated
from tests.postgres import Server

_schemas = count()


def stores(url: str, tmp_path: Path, schema: str = "", **options: str) -> Any:
    variables = {
        "STATE__URL": url,
        "STATE__SCHEMA": schema or f"errors_{next(_schemas)}",
        **options,
    }
    return stores_of(
        load(None, {f"IONOS_POLLER_{name}": value for name, value in variables.items()}, state_dir=tmp_path)
    )


@pytest.fixture(scope="module")
def server(postgres_server: Server) -> Server:
    """The server with roles that each lack a right."""
    rules = postgres_server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all secret 127.0.0.1/32 scram-sha-256\n{before}")
    postgres_server.send(signal.SIGHUP)
    postgres_server.sql("CREATE ROLE secret LOGIN PASSWORD 'right'")
    postgres_server.sql("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    postgres_server.sql("CREATE ROLE reading LOGIN SUPERUSER")
    postgres_server.sql("ALTER ROLE reading SET default_transaction_read_only = on")
    postgres_server.sql("CREATE ROLE poor LOGIN")
    return postgres_server


@pytest.mark.parametrize(
    ("user", "database", "exit_code", "words", "hint"),
    [
        ("nobody_here", "postgres", EXIT_STATE, "the login was refused", "check user and password"),
        ("secret:wrong", "postgres", EXIT_STATE, "password authentication failed", "check user and password"),
        ("postgres", "missing", EXIT_STATE, "the database does not exist", "create it"),
        ("crowded", "postgres", EXIT_INCOMPLETE, "no connection left for us", "raise max_connections"),
        ("poor", "postgres", EXIT_STATE, "the role lacks a right", "docs/cluster.md"),
        ("reading", "postgres", EXIT_INCOMPLETE, ": it takes no writes: ", "target_session_attrs=read-write"),
        ("reading", "postgres", EXIT_INCOMPLETE, "read-only transaction", "was set read-only"),
    ],
)
def test_a_refusal_is_told_in_a_line_with_its_remedy(
    server: Server, tmp_path: Path, user: str, database: str, exit_code: int, words: str, hint: str
) -> None:
    with pytest.raises(StateError) as caught:
        stores(server.url(database, user), tmp_path).open("run")
    error = caught.value
    assert (error.exit_code, words in error.message, hint in error.hint) == (exit_code, True, True), str(error)
    assert "\n" not in str(error)
    assert "wrong" not in str(error).replace("wrong password", "")


def test_a_schema_of_a_newer_program_is_not_touched(server: Server, tmp_path: Path) -> None:
    server.sql("CREATE SCHEMA newer")
    server.sql("CREATE TABLE newer.schema_version AS SELECT 9 AS version, 8 AS needs")
    with pytest.raises(StateError, match="is of a newer ionos-poller") as caught:
        stores(server.url(), tmp_path, "newer").open("run")
    assert caught.value.exit_code == EXIT_STATE
    assert server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'newer'") == "1"


def test_a_newer_schema_that_this_program_may_still_use_is_used(server: Server, tmp_path: Path) -> None:
    """As during a rolling upgrade: a new replica has migrated, and the old ones continue."""
    state = stores(server.url(), tmp_path, "expanded").open("run")
    state.close()
    server.sql("UPDATE expanded.schema_version SET version = 9")
    state = stores(server.url(), tmp_path, "expanded").open("run")
    state.remember("a", "b")
    assert state.fact("a") == "b"
    state.close()


def test_a_server_that_is_away_is_waited_for_and_a_connection_that_broke_meanwhile_is_replaced(tmp_path: Path) -> None:
    server = Server(settings={"fsync": "off"})
    try:
        server.create()
        server.start()
        opened = stores(server.url(), tmp_path)
        state = opened.open("run")
        state.remember("a", "b")
        server.kill()
        with pytest.raises(StateUnavailableError, match="cannot be reached"):
            state.fact("a")
        server.start()
        assert state.fact("a") == "b"
        server.stop()
        server.start()
        assert state.fact("a") == "b"
        opened.close()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (psycopg.errors.DiskFull("no"), StateFullError, "free some"),
        (psycopg.errors.DeadlockDetected("no"), StateUnavailableError, "tried again"),
        (psycopg.errors.AdminShutdown("no"), StateUnavailableError, "tried again"),
        (psycopg.errors.QueryCanceled("no"), StateUnavailableError, "load of the server"),
        (psycopg.errors.InvalidSqlStatementName("no"), StateError, "pool_mode"),
        (psycopg.errors.ProtocolViolation("transaction blocks not allowed"), StateError, "pool_mode"),
        (psycopg.errors.ProtocolViolation("query_wait_timeout"), StateUnavailableError, "tried again"),
        (psycopg.errors.ConnectionFailure("no"), StateUnavailableError, "tried again"),
        (psycopg.errors.DataCorrupted("no"), StateError, "restore"),
        (psycopg.errors.SyntaxError("no"), StateError, "log of the server"),
        (psycopg.OperationalError("server certificate for x does not match"), StateError, "ca_file"),
        (psycopg.OperationalError("server does not support SSL, but SSL was required"), StateError, "ssl = on"),
        (psycopg.OperationalError("connection timeout expired"), StateUnavailableError, "check that it runs"),
    ],
)
def test_what_passes_is_told_from_what_needs_a_person(error: psycopg.Error, kind: type[StateError], hint: str) -> None:
    found = translated(error, "postgresql://db/x")
    assert type(found) is kind
    assert hint in found.hint


REFUSED = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
NETWORK = f"{REFUSED}Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?"


@pytest.mark.parametrize(
    ("said", "is_lasting"),
    [
        (NETWORK, False),
        (f"{REFUSED}timeout expired", False),
        (f"{REFUSED}server closed the connection unexpectedly\n\tThis probably means", False),
        (f"{REFUSED}SSL SYSCALL error: EOF detected", False),
        (f"{REFUSED}could not receive data from server: Connection reset by peer", False),
        (f"{REFUSED}session is read-only", False),
        (f"{REFUSED}server is in hot standby mode", False),
        ("connection is bad: connection to server on socket \"/a b/.s\" failed: No such file or directory\n\tIs", False),
        ("failed to resolve host 'db': [Errno -3] Temporary failure in name resolution", False),
        ("connection timeout expired", False),
        ("the connection is closed", False),
        ("consuming input failed: server closed the connection unexpectedly", False),
        (f"{REFUSED}FATAL:  the database system is starting up", False),
        (f"{REFUSED}FATAL:  the database system is not yet accepting connections", False),
        (f"{REFUSED}FATAL:  sorry, too many clients already", False),
        (f"{REFUSED}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", False),
        (f"{REFUSED}FATAL:  canceling authentication due to timeout", False),
        # PgBouncer
        (f"{REFUSED}FATAL:  server login has been failing, try again later (server_login_retry)", False),
        (f"{REFUSED}FATAL:  pgbouncer cannot connect to server", False),
        (f"{REFUSED}FATAL:  client_login_timeout (server down)", False),
        (f"{REFUSED}FATAL:  query_wait_timeout", False),
        (f"{REFUSED}FATAL:  the database system is shutting down", False),
        (f"{REFUSED}FATAL:  no more connections allowed (max_client_conn)", False),
        (f"{REFUSED}FATAL:  server login has been failing, cached error: no such user (server_login_retry)", True),
        (f"{REFUSED}FATAL:  no such database: x", True),
        (f"{REFUSED}FATAL:  no such user: x", True),
        (f"{REFUSED}FATAL:  SASL authentication failed", True),
        (f"{REFUSED}FATAL:  unsupported startup parameter: x", True),
        # in any language, and unknown words
        (f"{REFUSED}FATAL:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen", True),
        (f"{REFUSED}FATAL:  authentification par mot de passe échouée pour l'utilisateur « x »", True),
        (f"{REFUSED}ВАЖНО:  пользователь \"x\" не прошёл проверку подлинности", True),
        (f"{REFUSED}致命错误:  数据库 \"x\" 不存在", True),
        (f"{REFUSED}FATAL:  something new", True),
        (f"{REFUSED}fe_sendauth: no password supplied", True),
        (f'{REFUSED}authentication method requirement "scram-sha-256" failed: server did not complete authentication', True),
        ('connection is bad: invalid integer value "abc" for connection option "port"', True),
        ('connection is bad: weak sslmode "verify-ca" may not be used with sslrootcert=system (use "verify-full")', True),
        (f'{REFUSED}could not read certificate file "/x": No such file or directory', True),
        (f'{REFUSED}private key file "/x" has group or world access', True),
        ("connection is bad: GSSAPI encryption required but no credential cache", True),
    ],
)  # fmt: skip
def test_an_outage_is_what_the_network_does_or_what_is_known_to_pass(said: str, is_lasting: bool) -> None:
    failure = translated(psycopg.OperationalError(said), "postgresql://db/x")
    assert isinstance(failure, StateUnavailableError) is not is_lasting, str(failure)
    assert failure.exit_code == (EXIT_STATE if is_lasting else EXIT_INCOMPLETE)
    assert ("\n" not in str(failure), bool(failure.hint)) == (True, True)
    words = failure.message.partition("postgresql://db/x: ")[2].partition(": ")[2]
    assert words, "the words are there"
    assert words.partition(":  ")[0] == words, "and nothing that says who said them"
    assert "port 5432" not in words


def attempts(*pairs: tuple[str, str]) -> psycopg.OperationalError:
    """The error of psycopg after it tried several addresses: `host` and `hostaddr` with the failure of each."""
    lines = [
        f"- host: {host!r}, port: '5432', hostaddr: {said[:3]!r}: {said}" if host[0] != "/" else
        f"- host: {host!r}, port: '5432', hostaddr: None: {said}"
        for host, said in pairs
    ]  # fmt: skip
    return psycopg.OperationalError(
        "\n".join([pairs[-1][1], "Multiple connection attempts failed. All failures were:", *lines])
    )


WRONG = f"{REFUSED}FATAL:  password authentication failed for user"
STARTING = f"{REFUSED}FATAL:  the database system is starting up"


@pytest.mark.parametrize(
    ("pairs", "words", "is_lasting"),
    [
        ([("localhost", WRONG), ("localhost", NETWORK)], "password authentication failed", True),
        ([("localhost", NETWORK), ("localhost", WRONG)], "password authentication failed", True),
        ([("a", WRONG), ("b", NETWORK)], "Connection refused", False),
        ([("a", NETWORK), ("b", WRONG)], "Connection refused", False),
        ([("/run/a", STARTING), ("b", WRONG)], "starting up", False),
        ([("a", WRONG), ("/run/b", WRONG)], "password authentication failed", True),
        ([("a", NETWORK), ("a", NETWORK), ("b", NETWORK)], "Connection refused", False),
    ],
)
def test_of_several_servers_one_that_may_come_back_is_enough(
    pairs: list[tuple[str, str]], words: str, is_lasting: bool
) -> None:
    failure = translated(attempts(*pairs), "postgresql://db/x")
    assert (words in failure.message, isinstance(failure, StateUnavailableError)) == (True, not is_lasting)
    assert "\n" not in str(failure)


# Refuses every connection. The name of the database contains the code and the words of the refusal.
REFUSING = r"""
import socketserver
class Refuse(socketserver.BaseRequestHandler):
    def handle(self):
        while (asked := self.request.recv(1024))[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
            self.request.sendall(b"N")  # neither TLS nor GSSAPI
        code, words = asked.split(b"\0database\0")[1].split(b"\0")[0].split(b" ", 1)
        fields = b"SFATAL\0VFATAL\0C%s\0M%s\0\0" % (code, words)
        self.request.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


@pytest.fixture(scope="module")
def refusing_port() -> Iterator[int]:
    """The port of a server in another process, because libpq blocks the interpreter while it connects."""
    with subprocess.Popen([sys.executable, "-c", REFUSING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize(
    ("code", "words", "is_lasting"),
    [
        ("57P03", "das Datenbanksystem startet", False),
        ("57P03", "le système de base de données s'arrête", False),
        ("57P03", "the database system is starting up", False),
        ("53300", "sorry, too many clients already", False),
        ("28P01", "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen", True),
        ("3D000", "la base de données « x » n'existe pas", True),
        ("08P01", "no such database: x", True),
    ],
)
def test_a_server_that_starts_is_waited_for_in_whatever_language_it_says_so(
    refusing_port: int, tmp_path: Path, code: str, words: str, is_lasting: bool
) -> None:
    url = f"postgresql://u@127.0.0.1:{refusing_port}/{quote(f'{code} {words}')}"
    with pytest.raises(StateError, match=words) as caught:
        stores(url, tmp_path).prepare()
    assert isinstance(caught.value, StateUnavailableError) is not is_lasting, str(caught.value)


def test_check_says_what_a_database_lacks(server: Server, tmp_path: Path) -> None:
    opened = stores(server.url(), tmp_path, "checked")
    assert "has no tables yet" in "".join(found.message for found in opened.diagnose(1 << 30))
    state = opened.open("run")
    state.contracts.enrol(["1"], "default", 1, 1)
    state.contracts.share(["1"])
    lines = [f"{found.level} {found.message}" for found in opened.diagnose(1 << 30)]
    state.close()
    assert any(line.startswith("ok schema checked, version") for line in lines), lines
    assert any("run: 1 replica: " in line for line in lines), lines
    assert any("fsync" in line and line.startswith("warn") for line in lines), lines
    poor = list(stores(server.url(user="poor"), tmp_path, "checked").diagnose(1 << 30))
    assert (
        any("lacks rights on" in found.message and found.level == "fail" for found in poor) or poor[-1].level == "fail"
    )
    away = list(stores("postgresql://u@127.0.0.1:1/x", tmp_path).diagnose(1 << 30))
    assert [(found.level, found.exit_code) for found in away] == [("fail", EXIT_STATE)]
    opened.close()
