"""Connections to a PostgreSQL database, and transactions on it.

No transaction depends on another, so that a pooler may run each on a different connection of the server: no session state, no
prepared statements, limits that end with the transaction. Time-outs of the kernel end a connection that hangs. psycopg-pool is
not used: it connects in the background with growing waits, and does not pass on the error of the server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.string import StrDumperUnknown

from poller import __version__
from poller.config import State as StateConfig
from poller.config.state_url import parse_state_url
from poller.core.errors import ConfigError, StateError, StateUnavailableError
from poller.store.postgres.bounded import BoundedConnection
from poller.store.postgres.translation import RETRIED, has_unknown_answer, translated
from poller.system.liveness import moves

if TYPE_CHECKING:
    from psycopg.abc import Buffer

RawConnection = BoundedConnection
T = TypeVar("T")

_MOST_CONNECTIONS = 8
_WAIT_SECONDS = 10.0
_CONNECT_SECONDS = 5
_PING_SECONDS = 2
_IDLE_SECONDS = 60.0
# For a statement: longer than the server's limit (`statement_timeout`), shorter than the watchdog of a service manager.
_ANSWER_SECONDS = 45.0
_TRIES = 4
_ENCODING = "UTF8"
# For transactions that psycopg begins itself. No transaction uses the default of the server, the database or the role.
_LEVEL = psycopg.IsolationLevel.READ_COMMITTED
# Like SET LOCAL, but all in one statement. With extra_float_digits, a number is read exactly as it was written.
_SETTINGS = (
    "SELECT set_config('search_path', '{schema}', true), set_config('lock_timeout', '5s', true),"
    " set_config('statement_timeout', '40s', true), set_config('idle_in_transaction_session_timeout', '{idle}s', true),"
    " set_config('extra_float_digits', '1', true)"
)
# Part of a lease after which the server ends an idle transaction. The lease of a replica that died in a transaction lasts at
# least that long after its last statement, so its locks are free when others take over.
_IDLE = 2 / 3


class _Text(StrDumperUnknown):
    """Converts every text to a form that the server accepts: it stores no NUL, and UTF-8 has no lone surrogates."""

    def dump(self, obj: str) -> Buffer | None:
        if obj.isascii() and "\0" not in obj:  # nearly all
            return super().dump(obj)
        return super().dump(obj.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


class Connection:
    """A connection to the server, for queries. All queries are constants of this package; every value is a parameter."""

    def __init__(self, raw: RawConnection) -> None:
        self.raw = raw

    def execute(
        self, query: str, values: Sequence[object] | Mapping[str, object] | None = None, *, binary: bool = False
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run one statement. `binary`: columns of bytes come as bytes, not as text of twice the length."""
        return self.raw.execute(query, values, binary=binary)

    def value(self, query: str, values: Sequence[object] | Mapping[str, object] | None = None) -> Any:
        """The first column of the first row; None without a row."""
        row = self.execute(query, values).fetchone()
        return row[0] if row else None

    def executemany(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run one statement for each row, without waiting for each answer."""
        if rows:
            with self.raw.cursor() as cursor:
                cursor.executemany(query, rows)


class Database:
    """A database, for up to `_MOST_CONNECTIONS` threads of this process at once."""

    def __init__(self, config: StateConfig, ca_bundle: str | None = None) -> None:
        """`ca_bundle`: certificates of the environment, used if the configuration names none.  Does not connect yet."""
        self.url = parse_state_url(config.url)
        self.schema = config.schema
        self._settings = _SETTINGS.format(schema=config.schema, idle=int(config.lease_seconds * _IDLE))
        self.place = f"postgresql://{self.url.shown}"
        self._config = config
        self._ca_bundle = ca_bundle
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._idle: list[tuple[RawConnection, float]] = []
        self._idle_lock = threading.Lock()
        self._is_closed = False
        self.refusal: StateError | None = None
        """The error of all further work, once a newer program has changed the tables; otherwise None."""

    def write(self, work: Callable[[Connection], T], *, is_of_one_moment: bool = False) -> T:
        """Commits: the changes by `work`, as one transaction. After a collision, `work` is called again in a new transaction.

        `is_of_one_moment`: all queries see the start of the transaction, and a row that was changed since is a collision.

        Raises: StateUnavailableError, also if the answer to COMMIT was lost: the commit may have happened. StateError.
        """
        moves()
        level = "REPEATABLE READ" if is_of_one_moment else "READ COMMITTED"
        return self._run(f"BEGIN ISOLATION LEVEL {level}; {self._settings}", work)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Queries that see one and the same moment.  Raises: StateUnavailableError, StateError."""
        return self._run(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {self._settings}", work)

    def _run(self, begin: str, work: Callable[[Connection], T]) -> T:
        if self.refusal is not None:
            raise StateError(self.refusal.message, hint=self.refusal.hint)
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._attempt(begin, work)
            except psycopg.Error as error:
                if error.sqlstate in RETRIED and tries_left:
                    time.sleep(0.02 * (_TRIES - tries_left))
                    continue
                raise translated(error, self.place) from error
        raise AssertionError  # pragma: no cover  # the last try returned or raised

    def _attempt(self, begin: str, work: Callable[[Connection], T]) -> T:
        with self._connection(begin) as connection:
            try:
                result = work(Connection(connection))
                connection.execute("COMMIT")
            except BaseException:  # even an interrupt must leave no transaction open
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

    @contextmanager
    def _connection(self, begin: str) -> Iterator[RawConnection]:
        """A connection on which a transaction has begun."""
        if not self._slots.acquire(timeout=_WAIT_SECONDS):
            raise StateUnavailableError(f"{self.place}: all {_MOST_CONNECTIONS} connections are busy", hint="wait")
        try:
            connection = self._begun(begin)
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._slots.release()

    def _begun(self, begin: str) -> RawConnection:
        while (connection := self._take_idle()) is not None:
            try:
                connection.execute(begin)
            except psycopg.OperationalError:  # it broke while it was idle
                connection.close()
                self._close_idle()  # so did the others, and each try could take long
                continue
            return connection
        connection = self.connect()
        connection.answer_seconds = _ANSWER_SECONDS
        try:
            connection.execute(begin)
        except BaseException:  # even an interrupt must not leave it open at the server
            connection.close()
            raise
        return connection

    def _take_idle(self) -> RawConnection | None:
        with self._idle_lock:
            while self._idle:
                connection, since = self._idle.pop()
                if time.monotonic() - since < _IDLE_SECONDS:
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: RawConnection) -> None:
        is_sound = connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        with self._idle_lock:
            if is_sound and not self._is_closed:
                self._idle.append((connection, time.monotonic()))
                return
        if connection.closed:  # it broke, and so did the others
            self._close_idle()
        connection.close()

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A new connection for the block, outside of any transaction.  Raises: StateError, also for errors in the block."""
        try:
            with self.connect() as raw:
                yield Connection(raw)
        except psycopg.Error as error:
            raise translated(error, self.place) from error

    def connect(self) -> RawConnection:
        """A new connection, outside of any transaction.

        Raises: psycopg.Error. StateError if a secret cannot be read, or the database is not in UTF-8.
        """
        parameters = self._parameters()
        try:
            connection = BoundedConnection.connect(
                autocommit=True, prepare_threshold=None, connect_timeout=_CONNECT_SECONDS, **parameters
            )
        except psycopg.OperationalError as error:
            if has_unknown_answer(error) and _refuses_all(parameters):
                raise psycopg.errors.CannotConnectNow(str(error)) from error
            raise
        connection.adapters.register_dumper(str, _Text)
        connection.isolation_level = _LEVEL
        encoding = connection.info.parameter_status("server_encoding") or _ENCODING
        if encoding != _ENCODING:
            connection.close()
            message = f"{self.place}: the database is encoded in {encoding}, and must be in {_ENCODING}"
            hint = f"create one, and name it in state.url: createdb -E {_ENCODING} -T template0 --locale C NAME"
            raise StateError(message, hint=hint)
        return connection

    def _parameters(self) -> dict[str, Any]:
        url, mode = self.url, self.url.ssl_mode
        parameters: dict[str, Any] = {
            name: value for name, value in url.parameters.items() if name not in ("host", "port")
        }
        parameters |= {
            "host": ",".join(url.hosts),
            "port": ",".join(url.ports),
            "dbname": url.database,
            "sslmode": mode,
            "client_encoding": _ENCODING,
            "fallback_application_name": f"ionos-poller {__version__}",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }
        if url.user:
            parameters["user"] = url.user
        if mode.startswith("verify") and "sslrootcert" not in parameters:
            parameters["sslrootcert"] = str(self._config.ca_file or self._ca_bundle or "system")
        if self._config.password is not None:
            try:
                parameters["password"] = self._config.password.read().reveal()
            except ConfigError as error:
                raise StateError(f"{self.place}: {error.message}") from error
        return parameters

    def close(self) -> None:
        """Close idle connections now, and the others when they are given back."""
        with self._idle_lock:
            self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with self._idle_lock:
            for connection, _ in self._idle:
                connection.close()
            self._idle.clear()


def _refuses_all(parameters: dict[str, Any]) -> bool:
    """Whether the server refuses every client, for example while it starts. libpq reads a code, in any language of the server.

    All threads are blocked meanwhile, so the limit is short.
    """
    text = make_conninfo("", **parameters, connect_timeout=_PING_SECONDS)
    return psycopg.pq.PGconn.ping(text.encode()) != psycopg.pq.Ping.OK
