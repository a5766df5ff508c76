"""The brokers of a Kafka cluster: what librdkafka is told, what it is asked, and what its errors mean.

It holds no rules about what is sent, nor about what is delivered: that is the sink's.

Source: docs/facts.md, "Kafka".
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from typing import Any

from poller.config import KafkaSink as Settings
from poller.config.installed import needed
from poller.core.delivery import CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import ConfigError, StoppedError, TransientError
from poller.net.words import said
from poller.system.liveness import moves

# Without one, librdkafka would write to standard error.
_SILENT = logging.Logger("librdkafka")  # noqa: LOG001 - of no one's: nothing it is told goes anywhere
_SILENT.addHandler(logging.NullHandler())

POLL_SECONDS = 0.2
_LIMITS_SECONDS = 5.0
_STEPS = 5  # of a transaction, each with a time-out of its own
_OVERHEAD_BYTES = 1024  # key, headers and framing of a record
_SHUT_OUT = (
    "another process sends as this sink, or a transaction was not ended in time (check that no copy of this state runs)"
)
_OTHERS_TRANSACTION = "a transaction of another program on this topic is still open"

_CREDENTIALS = frozenset(
    {
        *("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE"),
        *("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"),
        *("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "DELEGATION_TOKEN_AUTHORIZATION_FAILED"),
    }
)
_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
_REFUSED = "INVALID_RECORD"
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
    "TOPIC_EXCEPTION": "check topic",
    "SECURITY_DISABLED": "check username: the brokers use no login",
    "UNSUPPORTED_COMPRESSION_TYPE": 'set compression = "none"',
    "INVALID_TRANSACTION_TIMEOUT": "lower timeout, or raise the brokers' transaction.max.timeout.ms",
    "INVALID_TIMESTAMP": "check this machine's clock, and the topic's message.timestamp limits",
    "_SSL": "check ca_file, cert_file and key_file, that the brokers speak TLS at that port, and that their certificate is for"
    " the name in brokers and has not expired",
    "_TRANSPORT": "check brokers, the network on the way, and whether they use TLS",
    "_ALL_BROKERS_DOWN": "check brokers, the network on the way, and whether they use TLS",
    "_RESOLVE": "check brokers",
    "_INVALID_ARG": "check that ca_file, cert_file and key_file are PEM, and belong together",
    "_TIMED_OUT": "check brokers and the network on the way",
    "NOT_ENOUGH_REPLICAS": "the topic has fewer replicas in sync than its min.insync.replicas",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": "the topic has fewer replicas in sync than its min.insync.replicas",
}
# What a broker says of us, in OpenSSL's words.
_ALERT = "alert (.*certificate|unknown ca|handshake failure|access denied|decrypt error)"
_OF_OUR_CERTIFICATE = "check that cert_file and key_file are what the brokers accept"


class UnfinishedError(Exception):
    """What was asked for did not end in time."""


class Brokers:
    """For one thread."""

    def __init__(self, table: Settings, stop: threading.Event) -> None:
        """Raises: ConfigError when confluent-kafka is not installed."""
        with needed("kafka", f"sinks.{table.name}.type", "kafka needs confluent-kafka"):
            import confluent_kafka
        self._kafka: Any = confluent_kafka
        self.error: Any = confluent_kafka.KafkaException
        self._table = table
        self._stop = stop
        self._told: Any = None  # what a connection failed of, which is not in the error of a call
        self._secrets: list[str] = []

    def guarded(self, work: Callable[[], Outcome]) -> Outcome:
        """The outcome of work with librdkafka, whatever it raises.  Raises: StoppedError."""
        moves(_STEPS * self._table.timeout_seconds)
        self._told = None
        try:
            return work()
        except ConfigError as error:
            return CredentialsRefused(str(error))
        except TransientError as error:
            return RetryAfter(str(error))
        except UnfinishedError as error:
            return RetryAfter(str(error), is_size_suspect=True)
        except TimeoutError:
            return RetryAfter("the brokers did not answer within timeout")
        except self._kafka.KafkaException as error:
            return self.outcome(error.args[0])

    # Clients

    def producer(self, transactional_id: str) -> Any:
        """A producer that may begin a transaction: an earlier user of this id is fenced, and what they began has ended."""
        table = self._table
        producer = self._kafka.Producer(
            {
                **self.settings(),
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

    def _consumer(self) -> Any:
        """A reader that joins no group and remembers nothing."""
        return self._kafka.Consumer(
            {
                **self.settings(),
                "group.id": f"ionos-poller-{self._table.name}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )

    def settings(self) -> dict[str, Any]:
        """What every client of librdkafka is told.  Raises: ConfigError, TransientError for a password that cannot be read."""
        table = self._table
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(table.brokers),
            "client.id": "ionos-poller",
            "socket.timeout.ms": max(1000, round(table.timeout_seconds * 1000)),
            "enable.metrics.push": False,
            "allow.auto.create.topics": False,  # a mistyped topic would take the events; a producer creates it by default
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
        is_vague = self._told is None or self._told.name() == "_ALL_BROKERS_DOWN"
        if is_vague or error.name() in _CREDENTIALS | {"_SSL"}:
            self._told = error

    # What a topic is and holds

    def topic(self) -> Any:
        """What the brokers say of the topic: its partitions, or in `error` why not.  Raises: KafkaException."""
        table = self._table
        with closing(self._consumer()) as consumer:
            try:
                return consumer.list_topics(table.topic, table.timeout_seconds).topics[table.topic]
            except self._kafka.KafkaException:
                consumer.poll(0)  # `_hear`, why
                raise

    def limits(self) -> tuple[int | None, int | None]:
        """The topic's max.message.bytes and min.insync.replicas; None where this user may not know."""
        admin_of = self._kafka.admin
        admin = admin_of.AdminClient(self.settings())
        resource = admin_of.ConfigResource(admin_of.ConfigResource.Type.TOPIC, self._table.topic)
        try:
            seconds = min(_LIMITS_SECONDS, self._table.timeout_seconds)
            (answer,) = admin.describe_configs([resource], request_timeout=seconds).values()
            found = answer.result(seconds)
            values = [found[name].value for name in ("max.message.bytes", "min.insync.replicas")]
            return int(values[0]), int(values[1])
        except (self._kafka.KafkaException, KeyError, ValueError, TypeError, TimeoutError):
            return None, None

    def committed_since(self, since_ms: int) -> Iterator[Any]:
        """The committed records of the topic from a time on, and at least as many as a batch has, up to its end as it is now.

        Raises: KafkaException, UnfinishedError, StoppedError.
        """
        topic = self.topic()
        if topic.error is not None:
            raise self._kafka.KafkaException(topic.error)
        with closing(self._consumer()) as consumer:
            yield from self._committed_since(consumer, self._ends(topic.partitions), since_ms)

    def _committed_since(self, consumer: Any, ends: dict[int, int], since_ms: int) -> Iterator[Any]:
        timeout, eof = self._table.timeout_seconds, self._kafka.KafkaError._PARTITION_EOF  # noqa: SLF001 - its public name
        starts = self._starts(consumer, ends, since_ms)
        open_ = {place.partition for place in starts}
        consumer.assign(starts)
        deadline = time.monotonic() + timeout
        while open_:
            if self._stop.is_set():
                raise StoppedError("asked to stop")
            if time.monotonic() > deadline:
                raise UnfinishedError(
                    f"a batch in doubt cannot be read back: {_OTHERS_TRANSACTION}, or it took too long"
                )
            message = consumer.poll(POLL_SECONDS)
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
        admin = admin_of.AdminClient(self.settings())
        place_of, topic = self._kafka.TopicPartition, self._table.topic
        wanted = {place_of(topic, number): admin_of.OffsetSpec.latest() for number in partitions}
        level = self._kafka.IsolationLevel.READ_UNCOMMITTED
        answers = admin.list_offsets(wanted, isolation_level=level, request_timeout=timeout)
        return {place.partition: answer.result(timeout).offset for place, answer in answers.items()}

    # What an error means

    def outcome(self, error: Any) -> Outcome:
        """What an error of librdkafka's or a broker's means."""
        told = self._told
        if told is not None and (
            error.name() in ("_TIMED_OUT", "_TRANSPORT") or told.name() in _CREDENTIALS | {"_SSL"}
        ):
            error = told
        name = error.name()
        words = "no broker can be reached" if name == "_ALL_BROKERS_DOWN" else error.str()  # which counts wrongly
        reason = said(words.replace("Local: ", "").replace("Broker: ", ""), self._secrets)
        remedy = _OF_OUR_CERTIFICATE if re.search(_ALERT, reason) else _REMEDIES.get(name)
        reason = f"{reason} ({remedy})" if remedy else reason
        if name in _CREDENTIALS:
            return CredentialsRefused(reason)
        if name in _TOO_LARGE:
            return TooLarge(reason)
        if name == _REFUSED:
            return Refused(reason)
        if name in _FENCED:
            return RetryAfter(_SHUT_OUT)
        return RetryAfter(reason, is_size_suspect=name in ("_TIMED_OUT", "_MSG_TIMED_OUT"))
