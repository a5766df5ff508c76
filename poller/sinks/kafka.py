"""Apache Kafka, and what speaks its protocol, such as IONOS Event Streams. librdkafka does the work.

Invariants:
- A batch is one transaction: `read_committed` readers see all of it or nothing. A record's key is the contract, so that the
  order of a contract's entries holds.
- `output_offset` holds who writes (20 bits, drawn once for a state) and which transaction is in doubt (milliseconds since 1970,
  0 for none). It is in the state before the transaction begins, and without the doubt in the commit that settles the batch.
- A transaction in doubt, after a kill or a lost answer, is ended first: to begin with the same `transactional.id` fences its last
  user, and waits until what that one began is committed or aborted. Then the records of that transaction are read back, and what
  is there is not sent again.

Source: docs/facts.md, "Kafka".
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from poller.config import KafkaSink as Settings
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import ConfigError, Problem, StoppedError, TransientError
from poller.core.events import OutboxEvent
from poller.net.transport import Response
from poller.net.words import words_of
from poller.sinks.base import Context, OwnOutput
from poller.sinks.render import build_render
from poller.system.liveness import moves

log = logging.getLogger(__name__)
# Without one, librdkafka would write to standard error.
_SILENT = logging.Logger("librdkafka")  # noqa: LOG001 - of no one's: nothing it is told goes anywhere
_SILENT.addHandler(logging.NullHandler())

_DOUBT_BITS = 43
_DOUBT_MASK = (1 << _DOUBT_BITS) - 1
_MAX_WRITER = (1 << 20) - 1
# Clocks of brokers that stamp records themselves may be so far from ours.
_MARGIN_MS = 10 * 60 * 1000
_POLL_SECONDS = 0.2
_LIMITS_SECONDS = 5.0
_STEPS = 5  # of a transaction, each with a time-out of its own
_OVERHEAD_BYTES = 1024  # key, headers and framing of a record
_OTHERS_TRANSACTION = "a transaction of another program on this topic is still open"

Uid = tuple[bytes, bytes]
"""What a record is known by: its key, and the text of its header `uid`."""

_CREDENTIALS = frozenset(
    {
        *("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE"),
        *("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"),
        *("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "DELEGATION_TOKEN_AUTHORIZATION_FAILED"),
    }
)
_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
_REFUSED = frozenset({"INVALID_RECORD", "INVALID_MSG", "_BAD_MSG"})
_FENCED = frozenset({"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH"})
_REMEDIES = {
    "_AUTHENTICATION": "check username, password and sasl_mechanism, or cert_file and key_file",
    "SASL_AUTHENTICATION_FAILED": "check username, password and sasl_mechanism",
    "UNSUPPORTED_SASL_MECHANISM": "check sasl_mechanism",
    "TOPIC_AUTHORIZATION_FAILED": "let this user write and read the topic",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "let this user write transactional ids that begin with ionos-poller-",
    "CLUSTER_AUTHORIZATION_FAILED": "let this user write idempotently (IdempotentWrite)",
    "UNKNOWN_TOPIC_OR_PART": "create the topic, or check topic",
    "_UNKNOWN_TOPIC": "create the topic, or check topic",
    "_SSL": "check ca_file, cert_file and key_file, and that the brokers speak TLS at that port",
    "_TRANSPORT": "check brokers, the network on the way, and whether they want TLS",
    "_ALL_BROKERS_DOWN": "check brokers, the network on the way, and whether they want TLS",
    "_RESOLVE": "check brokers",
    "_INVALID_ARG": "check that ca_file, cert_file and key_file are PEM, and belong together",
    "_TIMED_OUT": "check brokers and the network on the way",
    "NOT_ENOUGH_REPLICAS": "the topic has fewer replicas in sync than its min.insync.replicas",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": "the topic has fewer replicas in sync than its min.insync.replicas",
}


class Position(NamedTuple):
    """What is kept in the state, as one number: who writes, and which transaction is in doubt (0: none)."""

    writer: int
    doubt_ms: int

    @classmethod
    def of(cls, offset: int | None) -> Position:
        """Of a state without one, a new writer."""
        if offset is None:
            return cls(random.SystemRandom().randint(1, _MAX_WRITER), 0)
        return cls(offset >> _DOUBT_BITS, offset & _DOUBT_MASK)

    @property
    def offset(self) -> int:
        return self.writer << _DOUBT_BITS | self.doubt_ms

    @property
    def transaction(self) -> bytes:
        """The header `tx` of the records of the transaction in doubt."""
        return f"{self.writer:05x}-{self.doubt_ms}".encode()


class _UnfinishedError(Exception):
    """What was asked for did not end in time."""


class KafkaSink(OwnOutput):
    """Produces to one topic. For one thread."""

    def __init__(self, settings: Settings, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        """Raises: ConfigError when confluent-kafka is not installed."""
        super().__init__(settings)
        try:
            import confluent_kafka
        except ImportError as error:
            hint = "pip install 'ionos-poller[kafka]'"
            raise ConfigError([Problem(f"sinks.{settings.name}.type", "kafka needs confluent-kafka", hint)]) from error
        self._kafka: Any = confluent_kafka
        self._table = settings
        self._stop = context.stop
        self._clock = clock
        self._render = build_render(settings)
        self._producer: Any = None
        self._told: Any = None  # what a connection failed of, which is not in the error of a call
        self._found: set[Uid] = set()  # of the transaction in doubt, and not settled yet
        self._secrets: list[str] = []
        self._last_ms = 0

    def resume(self, offset: int | None) -> None:
        """Go on from there. What was known of a transaction may not hold any more: another process may have been here."""
        super().resume(offset)
        self._disconnect()

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch as one transaction, without what a transaction in doubt brought already.

        Raises: StoppedError; what `note_offset` raises.
        """
        return self._guarded(lambda: self._send(events))

    def _send(self, events: Sequence[OutboxEvent]) -> Outcome:
        position = Position.of(self.output_offset)
        if self._producer is None:
            self._producer = self._connect(f"ionos-poller-{self.name}-{position.writer:05x}")
            self._found = self._read_back(position) if position.doubt_ms else set()
        rest = [event for event in events if _uid_of(event) not in self._found]
        if len(rest) < len(events):
            log.info("kafka.batch_found", extra={"sink": self.name, "events": len(events) - len(rest)})
            self._found.difference_update(map(_uid_of, events))
        if rest:
            self._last_ms = max(round(self._clock() * 1000), position.doubt_ms + 1, self._last_ms + 1)
            position = position._replace(doubt_ms=self._last_ms)
            self.output_offset = position.offset
            self.note_offset(position.offset)
            refusal = self._transact(rest, position)
            if refusal is not None:
                self._disconnect()
                return refusal
            self._found = set()
        if not self._found:
            self.output_offset = position._replace(doubt_ms=0).offset
        return Accepted()

    def _transact(self, events: Sequence[OutboxEvent], position: Position) -> Outcome | None:
        """Write the events in one transaction; why not, where a record was refused."""
        producer, table, render = self._producer, self._table, self._render
        failed: list[Any] = []

        def report(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        producer.begin_transaction()
        for event in events:
            key, uid = _uid_of(event)
            producer.produce(
                table.topic,
                render(event) if render else event.line,
                key=key,
                headers=[("uid", uid), ("tx", position.transaction)],
                # Of sending, by which a batch in doubt is found. By the entry's own, retention would delete late ones at once.
                timestamp=position.doubt_ms,
                on_delivery=report,
            )
        deadline = time.monotonic() + table.timeout_seconds
        while producer.flush(_POLL_SECONDS) and not failed:
            if self._stop.is_set():
                raise StoppedError("asked to stop")
            if time.monotonic() > deadline:
                raise _UnfinishedError("the brokers did not take the batch within timeout")
        if failed:
            return self._outcome(failed[0])
        producer.commit_transaction(table.timeout_seconds)
        return None

    def probe(self) -> Outcome:
        """Look at the topic, and begin as a transactional producer of another name. Writes nothing."""
        return self._guarded(self._probe)

    def _probe(self) -> Outcome:
        table = self._table
        with closing(self._consumer()) as consumer:
            try:
                topic = consumer.list_topics(table.topic, table.timeout_seconds).topics[table.topic]
            except self._kafka.KafkaException:
                consumer.poll(0)  # `_hear`, why
                raise
        if topic.error is not None:
            return self._outcome(topic.error)
        self._connect(f"ionos-poller-{self.name}-check")
        limit, replicas = self._limits()
        if limit is not None and limit < table.max_event_bytes:
            what = f"the topic takes records of {limit} bytes at most"
            return RetryAfter(
                f"{what}, less than max_event_bytes (raise its max.message.bytes, or lower max_event_bytes)"
            )
        in_sync = min((len(partition.isrs) for partition in topic.partitions.values()), default=0)
        if replicas is not None and in_sync < replicas:
            return RetryAfter(
                f"the topic has {in_sync} replicas in sync, and wants {replicas} (see min.insync.replicas)"
            )
        return Accepted()

    def _limits(self) -> tuple[int | None, int | None]:
        """The topic's max.message.bytes and min.insync.replicas; None where this user may not know."""
        admin_of = self._kafka.admin
        admin = admin_of.AdminClient(self._settings_of_client())
        resource = admin_of.ConfigResource(admin_of.ConfigResource.Type.TOPIC, self._table.topic)
        try:
            seconds = min(_LIMITS_SECONDS, self._table.timeout_seconds)
            (answer,) = admin.describe_configs([resource], request_timeout=seconds).values()
            found = answer.result(seconds)
            values = [found[name].value for name in ("max.message.bytes", "min.insync.replicas")]
            return int(values[0]), int(values[1])
        except (self._kafka.KafkaException, KeyError, ValueError, TypeError, TimeoutError):
            return None, None

    # Connections

    def _guarded(self, work: Callable[[], Outcome]) -> Outcome:
        """The outcome of work with librdkafka, whatever it raises. After a failure, the next one begins anew."""
        moves(_STEPS * self._table.timeout_seconds)
        self._told = None
        try:
            return work()
        except ConfigError as error:
            outcome: Outcome = CredentialsRefused(str(error))
        except TransientError as error:
            outcome = RetryAfter(str(error))
        except _UnfinishedError as error:
            outcome = RetryAfter(str(error), is_size_suspect=True)
        except TimeoutError:
            outcome = RetryAfter("the brokers did not answer within timeout")
        except self._kafka.KafkaException as error:
            outcome = self._outcome(error.args[0])
        except StoppedError:
            self._disconnect()
            raise
        self._disconnect()
        return outcome

    def _connect(self, transactional_id: str) -> Any:
        """A producer that may begin a transaction: an earlier user of this id is fenced, and what they began has ended."""
        table = self._table
        producer = self._kafka.Producer(
            {
                **self._settings_of_client(),
                "transactional.id": transactional_id,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": table.compression,
                "linger.ms": 5,
                "queue.buffering.max.messages": 200_000,  # more than any batch
                "message.max.bytes": max(1_000_000, table.max_event_bytes + _OVERHEAD_BYTES),
                "transaction.timeout.ms": max(60_000, round(2000 * table.timeout_seconds)),
                "topic.metadata.propagation.max.ms": min(10_000, round(1000 * table.timeout_seconds / 2)),
            }
        )
        try:
            producer.init_transactions(table.timeout_seconds)
        except self._kafka.KafkaException:
            producer.poll(0)  # `_hear`, why
            raise
        return producer

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(self._kafka.KafkaException):
                producer.purge()

    def _consumer(self) -> Any:
        """A reader that joins no group and remembers nothing."""
        return self._kafka.Consumer(
            {
                **self._settings_of_client(),
                "group.id": f"ionos-poller-{self.name}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "allow.auto.create.topics": False,
            }
        )

    def _settings_of_client(self) -> dict[str, Any]:
        """What every client of librdkafka is told.  Raises: ConfigError, TransientError for a password that cannot be read."""
        table = self._table
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(table.brokers),
            "client.id": "ionos-poller",
            "socket.timeout.ms": max(1000, round(table.timeout_seconds * 1000)),
            "enable.metrics.push": False,
            "error_cb": self._hear,
            "log_level": 0,  # what matters comes by `error_cb`
            "logger": _SILENT,
        }
        if table.username is not None and table.password is not None:
            password = table.password.read().reveal()
            self._secrets = [password]
            login = {"sasl.username": table.username, "sasl.password": password}
            settings.update({"sasl.mechanism": table.sasl_mechanism, **login})
        words = (
            ("SASL_SSL" if table.username else "SSL") if table.is_tls else "SASL_PLAINTEXT" if table.username else ""
        )
        if words:
            settings["security.protocol"] = words
        if table.is_tls:
            key_file = table.key_file or table.cert_file
            files = {
                "ssl.ca.location": table.ca_file,
                "ssl.certificate.location": table.cert_file,
                "ssl.key.location": key_file,
            }
            settings.update({name: str(path) for name, path in files.items() if path is not None})
        return settings

    def _hear(self, error: Any) -> None:
        """Keep what a connection failed of: a refused login says more than that nobody answered in time."""
        if self._told is None or error.name() in _CREDENTIALS | {"_SSL"}:
            self._told = error

    # What a transaction in doubt left

    def _read_back(self, position: Position) -> set[Uid]:
        """The records of the transaction in doubt that are committed.  Raises: KafkaException, _UnfinishedError, StoppedError."""
        found: set[Uid] = set()
        with closing(self._consumer()) as consumer:
            for message in self._committed_since(consumer, position.doubt_ms - _MARGIN_MS):
                headers = dict(message.headers() or ())
                if headers.get("tx") == position.transaction:
                    found.add((message.key() or b"", headers.get("uid") or b""))
        return found

    def _committed_since(self, consumer: Any, since_ms: int) -> Iterator[Any]:
        """The committed records of the topic from a time on, and at least as many as a batch has, up to its end as it is now."""
        timeout, eof = self._table.timeout_seconds, self._kafka.KafkaError._PARTITION_EOF  # noqa: SLF001 - its public name
        ends = self._ends(self._partitions(consumer))
        starts = self._starts(consumer, ends, since_ms)
        open_ = {place.partition for place in starts}
        consumer.assign(starts)
        deadline = time.monotonic() + timeout
        while open_:
            if self._stop.is_set():
                raise StoppedError("asked to stop")
            if time.monotonic() > deadline:
                raise _UnfinishedError(
                    f"a batch in doubt cannot be read back: {_OTHERS_TRANSACTION}, or it took too long"
                )
            message = consumer.poll(_POLL_SECONDS)
            error = message.error() if message is not None else None
            if message is not None and error is None:
                moves(_STEPS * timeout)
                deadline = time.monotonic() + timeout
                yield message
            elif error is not None and error.code() == eof:
                # The end for readers of what is committed may come before the end of what is written.
                open_ -= {message.partition()} if message.offset() >= ends[message.partition()] else set()
            elif error is not None and error.name() in _CREDENTIALS - {"GROUP_AUTHORIZATION_FAILED"}:
                raise self._kafka.KafkaException(error)

    def _partitions(self, consumer: Any) -> Collection[int]:
        """The partitions of the topic.  Raises: KafkaException."""
        topic = consumer.list_topics(self._table.topic, self._table.timeout_seconds).topics[self._table.topic]
        if topic.error is not None:
            raise self._kafka.KafkaException(topic.error)
        return list(topic.partitions)

    def _starts(self, consumer: Any, ends: dict[int, int], since_ms: int) -> list[Any]:
        """Where to begin in each partition that holds anything from there on."""
        table, place_of = self._table, self._kafka.TopicPartition
        wanted = [place_of(table.topic, number, since_ms) for number in ends]
        starts = []
        for found in consumer.offsets_for_times(wanted, table.timeout_seconds):
            end = ends[found.partition]
            first, _ = consumer.get_watermark_offsets(place_of(table.topic, found.partition), table.timeout_seconds)
            by_time = found.offset if found.offset >= 0 else end
            start = max(first, min(by_time, end - 2 * table.batch_events - 2))
            starts += [place_of(table.topic, found.partition, start)] if start < end else []
        return starts

    def _ends(self, partitions: Collection[int]) -> dict[int, int]:
        """The end of each partition, with what is not committed."""
        admin_of, timeout = self._kafka.admin, self._table.timeout_seconds
        admin = admin_of.AdminClient(self._settings_of_client())
        place_of, topic = self._kafka.TopicPartition, self._table.topic
        wanted = {place_of(topic, number): admin_of.OffsetSpec.latest() for number in partitions}
        level = self._kafka.IsolationLevel.READ_UNCOMMITTED
        answers = admin.list_offsets(wanted, isolation_level=level, request_timeout=timeout)
        return {place.partition: answer.result(timeout).offset for place, answer in answers.items()}

    # What an error means

    def _outcome(self, error: Any) -> Outcome:
        """What an error of librdkafka's or a broker's means."""
        told = self._told
        if told is not None and (error.name() == "_TIMED_OUT" or told.name() in _CREDENTIALS | {"_SSL"}):
            error = told
        name = error.name()
        reason = self._words(error.str().replace("Local: ", "").replace("Broker: ", ""))
        if remedy := _REMEDIES.get(name):
            reason = f"{reason} ({remedy})"
        if name in _CREDENTIALS:
            return CredentialsRefused(reason)
        if name in _TOO_LARGE:
            return TooLarge(reason)
        if name in _REFUSED:
            return Refused(reason)
        if name in _FENCED:
            return RetryAfter("another process sends as this sink: does a copy of this state run elsewhere?")
        return RetryAfter(reason, is_size_suspect=name in ("_TIMED_OUT", "_MSG_TIMED_OUT"))

    def _words(self, text: str) -> str:
        return words_of(Response(0, {}, text.encode("utf-8", "replace")), self._secrets, b"")


def _uid_of(event: OutboxEvent) -> Uid:
    ordinal = f"-{event.ordinal}" if event.ordinal else ""
    return event.contract.encode(), f"{event.identity.hex()}{ordinal}".encode()
