"""Connections to a PostgreSQL database, and transactions on it.

Every transaction is whole in itself, so that a pooler may give each to another connection of the server: no session state, no
prepared statements, limits that end with the transaction. A connection that hangs ends by time-outs of the kernel. psycopg-pool
is not used: it connects in the background with growing waits, and what the server said stays there.
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
# For a statement: more than the server may take (`statement_timeout`), less than a service manager waits for a sign of life.
_ANSWER_SECONDS = 45.0
_TRIES = 4
_ENCODING = "UTF8"
# Of what psycopg begins itself. No transaction has what the server, the database or the role has as its default.
_LEVEL = psycopg.IsolationLevel.READ_COMMITTED
# As SET LOCAL does, all in one statement. With extra_float_digits a number that is read is the one that was written.
_SETTINGS = (
    "SELECT set_config('search_path', '{schema}', true), set_config('lock_timeout', '5s', true),"
    " set_config('statement_timeout', '40s', true), set_config('idle_in_transaction_session_timeout', '{idle}s', true),"
    " set_config('extra_float_digits', '1', true)"
)
# Of a lease. What a transaction has locked must be free when others take over from a replica that died in it: its lease ends so
# long after its last statement, or later.
_IDLE = 2 / 3


class _Text(StrDumperUnknown):
    """Every text that is sent, in a form that the server takes: it stores no NUL, and UTF-8 has no lone surrogates."""

    def dump(self, obj: str) -> Buffer | None:
        if obj.isascii() and "\0" not in obj:  # nearly all
            return super().dump(obj)
        return super().dump(obj.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


class Connection:
    """A connection of the server, for queries. All of them are constants of this package; what varies is a parameter."""

    def __init__(self, raw: RawConnection) -> None:
        self.raw = raw

    def execute(
        self, query: str, values: Sequence[object] | Mapping[str, object] | None = None, *, binary: bool = False
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Carry out one statement. `binary`: columns of bytes come as such, not as text twice as long."""
        return self.raw.execute(query, values, binary=binary)

    def value(self, query: str, values: Sequence[object] | Mapping[str, object] | None = None) -> Any:
        """The first column of the first row; None where there is no row."""
        row = self.execute(query, values).fetchone()
        return row[0] if row else None

    def executemany(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Carry out one statement for each row, all on the way at once."""
        if rows:
            with self.raw.cursor() as cursor:
                cursor.executemany(query, rows)


class Database:
    """A database as this process uses it: by up to `_MOST_CONNECTIONS` threads at once."""

    def __init__(self, config: StateConfig, ca_bundle: str | None = None) -> None:
        """`ca_bundle`: certificates of the environment, where the configuration names none.  Connects to nothing yet."""
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
        """Why this process must do nothing more with it: a newer program has changed the tables meanwhile."""

    def write(self, work: Callable[[Connection], T], *, is_of_one_moment: bool = False) -> T:
        """Commits: what `work` does, as one transaction. `work` may be called again, on a new one, where it collided with others.

        `is_of_one_moment`: all that it reads is as it was when it began, and a row that was changed since is a collision.

        Raises: StateUnavailableError, also where the answer to COMMIT was lost: then it may have happened. StateError.
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
            except BaseException:  # an interrupt, too, must leave no transaction open
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
                self._close_idle()  # as the others did, where it took long to see that
                continue
            return connection
        connection = self.connect()
        connection.answer_seconds = _ANSWER_SECONDS
        try:
            connection.execute(begin)
        except BaseException:  # an interrupt, too, must not leave it open at the server
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
        """A new connection for the block, outside of any transaction.  Raises: StateError, also for what fails in the block."""
        try:
            with self.connect() as raw:
                yield Connection(raw)
        except psycopg.Error as error:
            raise translated(error, self.place) from error

    def connect(self) -> RawConnection:
        """A new connection, outside of any transaction.

        Raises: psycopg.Error. StateError where a secret cannot be read, or the database cannot hold every text.
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
        """Close what is idle now, and the others when they are given back."""
        with self._idle_lock:
            self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with self._idle_lock:
            for connection, _ in self._idle:
                connection.close()
            self._idle.clear()


def _refuses_all(parameters: dict[str, Any]) -> bool:
    """Whether the server refuses everybody, as while it starts. Libpq looks at its code, in whatever language it says so.

    All threads stand still meanwhile, so it gets little time.
    """
    text = make_conninfo("", **parameters, connect_timeout=_PING_SECONDS)
    return psycopg.pq.PGconn.ping(text.encode()) != psycopg.pq.Ping.OK
