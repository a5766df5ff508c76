"""A Kafka broker on loopback with real transactions. Unlike librdkafka's mock cluster it fences producers, aborts transactions,
hides uncommitted records from `read_committed` readers, and loses an answer or a connection when a test asks for it.

One broker, one group coordinator, no replication, no login. It speaks the versions of the protocol that have no tagged fields.
Source: the Kafka protocol guide; KIP-98.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 0, 1, 2, 3, 8, 9, 10
API_VERSIONS, INIT_PRODUCER_ID, ADD_PARTITIONS, END_TXN, DESCRIBE_CONFIGS = 18, 22, 24, 26, 32
# Api -> the versions that it speaks.
VERSIONS = {
    PRODUCE: (3, 7), FETCH: (4, 4), LIST_OFFSETS: (1, 2), METADATA: (1, 4), OFFSET_COMMIT: (2, 2), OFFSET_FETCH: (1, 1),
    FIND_COORDINATOR: (0, 1), API_VERSIONS: (0, 0), INIT_PRODUCER_ID: (0, 1), ADD_PARTITIONS: (0, 0), END_TXN: (0, 0),
    DESCRIBE_CONFIGS: (0, 0),
}  # fmt: skip

OK, UNKNOWN_TOPIC, TOO_LARGE, UNSUPPORTED_VERSION, OUT_OF_ORDER, BAD_EPOCH, BAD_STATE = 0, 3, 10, 35, 45, 47, 48
TOPIC_DENIED, INVALID_RECORD, FENCED = 29, 87, 90
_TRANSACTIONAL, _CONTROL = 0x10, 0x20
_BATCH = struct.Struct(">qiibIhiqqqhii")  # the header of a record batch
_SIZE_AT = 8


class Batch(NamedTuple):
    """A batch of records as a partition stores it."""

    offset: int
    count: int
    producer: int
    data: bytes
    is_control: bool = False
    time_ms: int = 0


class Partition:
    """A log. `aborted`: (producer, first offset, offset of its end)."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.end = 0
        self.open: dict[int, int] = {}  # producer -> the first offset of its transaction
        self.aborted: list[tuple[int, int, int]] = []
        self.sequences: dict[int, tuple[int, int, int, int]] = {}  # producer -> epoch, first and next sequence, offset

    @property
    def stable(self) -> int:
        """The last stable offset: every transaction before it is committed or aborted."""
        return min(self.open.values(), default=self.end)

    def append(self, batch: Batch) -> int:
        self.batches.append(batch._replace(offset=self.end))
        self.end += batch.count
        return self.end - batch.count

    def values(self) -> Iterator[bytes]:
        """The values of the records that are committed."""
        for batch in self.batches:
            is_aborted = any(batch.producer == one and first <= batch.offset < end for one, first, end in self.aborted)
            if batch.offset < self.stable and not batch.is_control and not is_aborted:
                yield from _values_in(batch.data)

    def finish(self, producer: int, epoch: int, *, is_commit: bool) -> None:
        first = self.open.pop(producer, None)
        if first is None:
            return
        if not is_commit:
            self.aborted.append((producer, first, self.end))
        self.append(Batch(0, 1, producer, _marker(producer, epoch, is_commit=is_commit), is_control=True))


class Producer:
    """A transactional id: its number, its epoch, and the partitions of its open transaction."""

    def __init__(self, number: int) -> None:
        self.number, self.epoch = number, -1
        self.partitions: set[tuple[str, int]] = set()
        self.began = 0.0


class Reader:
    """Reads values of the protocol."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f">{kind}", self.data, self.at)
        self.at += struct.calcsize(f">{kind}")
        return int(value)

    def text(self) -> str | None:
        size = self.number("h")
        return None if size < 0 else self.take(size).decode()

    def blob(self) -> bytes:
        return self.take(max(0, self.number("i")))

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)

    def each(self) -> Iterator[int]:
        return iter(range(max(0, self.number("i"))))


def _text(value: str | None) -> bytes:
    return struct.pack(">h", -1) if value is None else struct.pack(">h", len(value)) + value.encode()


def _many(items: list[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


def _varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@cache
def _values_in(data: bytes) -> tuple[bytes, ...]:
    """The values of the records in a batch that is not compressed."""
    reader = Reader(data)
    reader.at = _BATCH.size
    found = []
    while reader.at < len(data):
        size = reader.varint()
        end = reader.at + size
        reader.at += 1  # attributes
        reader.varint(), reader.varint()  # time and offset
        reader.take(max(0, reader.varint()))
        found.append(reader.take(max(0, reader.varint())))
        reader.at = end
    return tuple(found)


def _marker(producer: int, epoch: int, *, is_commit: bool) -> bytes:
    """The control batch that ends a transaction."""
    key, value = struct.pack(">hh", 0, int(is_commit)), struct.pack(">hi", 0, 0)
    record = b"\0\0\0" + _varint(len(key)) + key + _varint(len(value)) + value + b"\0"
    record = _varint(len(record)) + record
    head = _BATCH.pack(0, 49 + len(record), 0, 2, 0, _TRANSACTIONAL | _CONTROL, 0, 0, 0, producer, epoch, -1, 1)
    return head + record


class Broker:
    """`losing(api)` is called after a request was carried out. It returns whether its answer and the connection are lost."""

    def __init__(
        self, *topics: str, partitions: int = 3, tls: ssl.SSLContext | None = None, port: int = 0, **settings: str
    ) -> None:
        self.topics = {topic: [Partition() for _ in range(partitions)] for topic in topics}
        self.settings = {"max.message.bytes": "1048588", "min.insync.replicas": "1", **settings}
        self.denied: set[str] = set()
        self.max_bytes = 1_048_588
        self.poison = b""  # a batch that contains it is refused; only for uncompressed batches
        self.losing: Callable[[int], bool] = lambda api: False
        self.is_down = False
        self.transaction_seconds = 5.0  # instead of what a producer asks for
        self.requests: list[int] = []
        self._producers: dict[str, Producer] = {}
        self._numbers = itertools.count(1000)
        self._lock = threading.RLock()
        self._connections: set[socket.socket] = set()
        broker = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    broker._serve(tls.wrap_socket(self.request, server_side=True) if tls else self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Connection)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def values(self, topic: str) -> list[bytes]:
        """The values that a `read_committed` reader finds. Compressed records are left out."""
        with self._lock:
            self._expire()
            return [value for partition in self.topics[topic] for value in partition.values()]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def cut(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # its own thread closes it

    def _serve(self, connection: socket.socket) -> None:
        self._connections.add(connection)
        try:
            while head := _receive(connection, 4):
                body = _receive(connection, struct.unpack(">i", head)[0])
                if self.is_down:
                    return
                reader = Reader(body)
                api, version, number = reader.number("h"), reader.number("h"), reader.number("i")
                reader.text()  # the client's name
                with self._lock:
                    self.requests.append(api)
                    self._expire()
                    answer = self._answer(api, version, reader)
                if self.losing(api):
                    return
                answer = struct.pack(">i", number) + answer
                connection.sendall(struct.pack(">i", len(answer)) + answer)
        except (OSError, struct.error):
            pass
        finally:
            self._connections.discard(connection)
            connection.close()

    def _answer(self, api: int, version: int, reader: Reader) -> bytes:
        answers: dict[int, Callable[[int, Reader], bytes]] = {
            PRODUCE: self._produce, FETCH: self._fetch, LIST_OFFSETS: self._list_offsets, METADATA: self._metadata,
            FIND_COORDINATOR: self._find_coordinator, API_VERSIONS: self._api_versions, DESCRIBE_CONFIGS: self._configs,
            INIT_PRODUCER_ID: self._init_producer, ADD_PARTITIONS: self._add_partitions, END_TXN: self._end,
        }  # fmt: skip
        return answers[api](version, reader)

    # What it is

    def _api_versions(self, version: int, reader: Reader) -> bytes:
        error = OK if version == 0 else UNSUPPORTED_VERSION
        known = [struct.pack(">hhh", api, *versions) for api, versions in VERSIONS.items()]
        return struct.pack(">h", error) + _many(known)

    def _metadata(self, version: int, reader: Reader) -> bytes:
        count = reader.number("i")
        names = [reader.text() or "" for _ in range(count)] if count >= 0 else list(self.topics)
        broker = struct.pack(">i", 1) + _text("127.0.0.1") + struct.pack(">i", self.port) + _text(None)
        found = []
        for name in names:
            error = UNKNOWN_TOPIC if name not in self.topics else TOPIC_DENIED if name in self.denied else OK
            places = [
                struct.pack(">hii", OK, number, 1) + _many([struct.pack(">i", 1)]) * 2
                for number in range(len(self.topics.get(name, ())) if error == OK else 0)
            ]
            found.append(struct.pack(">h", error) + _text(name) + b"\0" + _many(places))
        throttled = struct.pack(">i", 0) if version >= 3 else b""
        cluster = _text("cluster") if version >= 2 else b""
        return throttled + _many([broker]) + cluster + struct.pack(">i", 1) + _many(found)

    def _find_coordinator(self, version: int, reader: Reader) -> bytes:
        told = struct.pack(">ih", 0, OK) + _text(None) if version else struct.pack(">h", OK)
        return told + struct.pack(">i", 1) + _text("127.0.0.1") + struct.pack(">i", self.port)

    def _configs(self, version: int, reader: Reader) -> bytes:
        found = []
        for _ in reader.each():
            kind, name = reader.number("b"), reader.text()
            entries = [_text(key) + _text(value) + b"\0\0\0" for key, value in self.settings.items()]
            found.append(struct.pack(">h", OK) + _text(None) + struct.pack(">b", kind) + _text(name) + _many(entries))
            for _ in reader.each():
                reader.text()
        return struct.pack(">i", 0) + _many(found)

    # Transactions

    def _init_producer(self, version: int, reader: Reader) -> bytes:
        name = reader.text() or ""
        producer = self._producers.setdefault(name, Producer(next(self._numbers)))
        self._finish(producer, is_commit=False)
        producer.epoch += 1
        return struct.pack(">ihqh", 0, OK, producer.number, producer.epoch)

    def _finish(self, producer: Producer, *, is_commit: bool) -> None:
        for topic, number in producer.partitions:
            self.topics[topic][number].finish(producer.number, producer.epoch, is_commit=is_commit)
        producer.partitions.clear()

    def _expire(self) -> None:
        """Abort the transactions that were not ended in time. This fences their producers."""
        for producer in self._producers.values():
            if producer.partitions and time.monotonic() - producer.began > self.transaction_seconds:
                self._finish(producer, is_commit=False)
                producer.epoch += 1

    def _producer_of(self, reader: Reader) -> tuple[Producer, int]:
        """The producer that a request names, and an error code: OK or BAD_EPOCH."""
        producer = self._producers[reader.text() or ""]
        number, epoch = reader.number("q"), reader.number("h")
        is_current = (number, epoch) == (producer.number, producer.epoch)
        return producer, OK if is_current else BAD_EPOCH

    def _add_partitions(self, version: int, reader: Reader) -> bytes:
        producer, error = self._producer_of(reader)
        found = []
        for _ in reader.each():
            topic = reader.text() or ""
            places = []
            for _ in reader.each():
                number = reader.number("i")
                wrong = error or (TOPIC_DENIED if topic in self.denied else OK)
                if not wrong:
                    producer.began = producer.began if producer.partitions else time.monotonic()
                    producer.partitions.add((topic, number))
                    partition = self.topics[topic][number]
                    partition.open.setdefault(producer.number, partition.end)
                places.append(struct.pack(">ih", number, wrong))
            found.append(_text(topic) + _many(places))
        return struct.pack(">i", 0) + _many(found)

    def _end(self, version: int, reader: Reader) -> bytes:
        producer, error = self._producer_of(reader)
        if not error:
            self._finish(producer, is_commit=bool(reader.number("b")))
        return struct.pack(">ih", 0, error)

    # Records

    def _produce(self, version: int, reader: Reader) -> bytes:
        reader.text()  # transactional id
        reader.number("h"), reader.number("i")  # acks, time-out
        found = []
        for _ in reader.each():
            topic, places = reader.text() or "", []
            for _ in reader.each():
                number = reader.number("i")
                error, offset = self._store(topic, number, reader.blob())
                start = struct.pack(">q", 0) if version >= 5 else b""
                places.append(struct.pack(">ihqq", number, error, offset, -1) + start)
            found.append(_text(topic) + _many(places))
        return _many(found) + struct.pack(">i", 0)

    def _store(self, topic: str, number: int, data: bytes) -> tuple[int, int]:
        if len(data) > self.max_bytes:
            return TOO_LARGE, -1
        if self.poison and self.poison in data:
            return INVALID_RECORD, -1
        head = _BATCH.unpack_from(data)
        _, _, _, _, _, _, last, _, newest_ms, pid, epoch, sequence, _ = head
        partition = self.topics[topic][number]
        producer = next(one for one in self._producers.values() if one.number == pid)
        if producer.epoch != epoch:
            return BAD_EPOCH, -1
        if pid not in partition.open:
            return BAD_STATE, -1
        known = partition.sequences.get(pid)
        if known is not None and known[0] == epoch:
            if sequence == known[1]:
                return OK, known[3]  # a repeat, which is not stored again
            if sequence != known[2]:
                return OUT_OF_ORDER, -1
        offset = partition.append(Batch(0, last + 1, pid, data, time_ms=newest_ms))
        partition.sequences[pid] = (epoch, sequence, sequence + last + 1, offset)
        return OK, offset

    def _list_offsets(self, version: int, reader: Reader) -> bytes:
        reader.number("i")
        is_committed = bool(reader.number("b")) if version >= 2 else False
        found = []
        for _ in reader.each():
            topic, places = reader.text() or "", []
            for _ in reader.each():
                number, at = reader.number("i"), reader.number("q")
                partition = self.topics[topic][number]
                end = partition.stable if is_committed else partition.end
                later = (batch.offset for batch in partition.batches if not batch.is_control and batch.time_ms >= at)
                offset = end if at == -1 else 0 if at == -2 else next(later, -1)
                places.append(struct.pack(">ihqq", number, OK, -1, offset))
            found.append(_text(topic) + _many(places))
        return (struct.pack(">i", 0) if version >= 2 else b"") + _many(found)

    def _fetch(self, version: int, reader: Reader) -> bytes:
        reader.number("i")
        wait_ms = reader.number("i")
        reader.number("i"), reader.number("i")
        is_committed = bool(reader.number("b"))
        found, is_empty = [], True
        for _ in reader.each():
            topic, places = reader.text() or "", []
            for _ in reader.each():
                number, offset, _ = reader.number("i"), reader.number("q"), reader.number("i")
                partition = self.topics[topic][number]
                end = partition.stable if is_committed else partition.end
                batches = [one for one in partition.batches if one.offset + one.count > offset and one.offset < end]
                records = b"".join(struct.pack(">q", one.offset) + one.data[_SIZE_AT:] for one in batches)
                aborted = [struct.pack(">qq", pid, first) for pid, first, last in partition.aborted if last >= offset]
                is_empty = is_empty and not records
                head = struct.pack(">ihqq", number, OK, partition.end, partition.stable)
                places.append(head + _many(aborted if is_committed else []) + struct.pack(">i", len(records)) + records)
            found.append(_text(topic) + _many(places))
        if is_empty:
            self._lock.release()
            threading.Event().wait(min(wait_ms, 50) / 1000)
            self._lock.acquire()
        return struct.pack(">i", 0) + _many(found)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


def read_committed(address: str, topic: str, *, isolation: str = "read_committed") -> list[Any]:
    """The messages that a reader with librdkafka finds in a topic, in order of partition and offset."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": address, "group.id": "reader", "isolation.level": isolation, "enable.partition.eof": True,
            "auto.offset.reset": "earliest", "enable.auto.commit": False, "log_level": 0,
        }
    )  # fmt: skip
    try:
        numbers = list(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        found, ended = [], set()
        while len(ended) < len(numbers):
            message = consumer.poll(10)
            assert message is not None, "the reader got nothing for 10 s"
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
        return sorted(found, key=lambda message: (message.partition(), message.offset()))
    finally:
        consumer.close()
