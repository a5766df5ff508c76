"""The sink for Kafka: the settings and calls for librdkafka, and which events of a batch in doubt are sent again."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource, OffsetSpec

from poller.config import Config, KafkaSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.core.errors import ConfigError, StoppedError, TransientError
from poller.core.events import OutboxEvent
from poller.sinks import kafka
from poller.sinks.base import Context
from poller.sinks.brokers import Brokers
from poller.system import liveness
from poller.system.liveness import GRACE_SECONDS, Workers

TOPIC = "activity"
NOW = 1_777_621_340.53
NOW_MS = 1_777_621_340_530
WRITER = 0x0ABCD
SETTLED = WRITER << 43
EVENTS = [OutboxEvent(f"3196000{n % 2}", n, 0, n.to_bytes(16), 0, b'{"n":%d}' % n) for n in range(6)]


def error(name: str, words: str | None = None) -> KafkaError:
    return KafkaError(getattr(KafkaError, name), words)


class Message:
    """A record, or the end of a partition."""

    def __init__(self, event: OutboxEvent | None = None, *, tx: bytes = b"", **given: Any) -> None:
        uid = event.identity.hex().encode() if event else b""
        self._headers = given.get("headers", [("uid", uid), ("tx", tx)])
        self._key = event.contract.encode() if event else None
        self._error = given.get("error")
        self._partition, self._offset = given.get("partition", 0), given.get("offset", 0)

    def error(self) -> KafkaError | None:
        return self._error

    def headers(self) -> Any:
        return self._headers

    def key(self) -> bytes | None:
        return self._key

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset


def end(partition: int = 0, offset: int = 0) -> Message:
    return Message(error=error("_PARTITION_EOF"), partition=partition, offset=offset)


class Library:
    """A fake librdkafka: it records settings and calls, fails when a test says so, and has committed records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[Any] = []
        self.told: list[dict[str, Any]] = []
        self.fails: dict[str, Any] = {}
        self.hears: list[KafkaError] = []
        """The errors of connections. The program gets them when it polls."""
        self.refuses: dict[int, KafkaError] = {}
        self.is_slow = False
        self.now = 1000.0
        self.before: Callable[[str], None] = lambda name: None
        self.partitions: dict[int, Any] = {0: SimpleNamespace(isrs=[1, 2])}
        self.topic_error: KafkaError | None = None
        self.limits = {"max.message.bytes": "1048588", "min.insync.replicas": "1"}
        self.first: dict[int, int] = {0: 0}
        self.ends: dict[int, int] = {0: 0}
        self.by_time: dict[int, int] = {0: -1}
        self.records: list[Message | None] = []
        clients = {"Producer": Producer, "Consumer": Consumer}
        for name, kind in clients.items():
            monkeypatch.setattr(confluent_kafka, name, lambda settings, kind=kind: kind(self, settings))
        monkeypatch.setattr(confluent_kafka.admin, "AdminClient", lambda settings: Admin(self, settings))
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: NOW)
        for module in ("poller.sinks.kafka.time", "poller.sinks.brokers.time"):
            monkeypatch.setattr(module, clock)
        monkeypatch.setattr(liveness, "time", clock)

    def do(self, name: str, *arguments: Any) -> None:
        self.did.append((name, *arguments))
        self.before(name)
        if name in self.fails:
            raise self.fails[name] if isinstance(self.fails[name], BaseException) else KafkaException(self.fails[name])

    def done(self, name: str) -> list[Any]:
        return [arguments for did, *arguments in self.did if did == name]

    def names(self) -> list[str]:
        return [did[0] for did in self.did]


class Client:
    def __init__(self, library: Library, settings: dict[str, Any]) -> None:
        self.played = library
        self.settings = settings
        library.told.append(settings)
        library.do(type(self).__name__.lower())

    def poll(self, seconds: float) -> Message | None:
        library = self.played
        if seconds > 0:
            library.do("poll", seconds)
            library.now += 0.0 if library.records else seconds
            return library.records.pop(0) if library.records else None
        for heard in library.hears:
            self.settings["error_cb"](heard)
        return None


class Producer(Client):
    def init_transactions(self, seconds: float) -> None:
        self.played.do("init", self.settings["transactional.id"], seconds)
        self.waiting: list[tuple[int, Any]] = []

    def begin_transaction(self) -> None:
        self.played.do("begin")

    def produce(self, topic: str, value: bytes, **given: Any) -> None:
        self.waiting.append((len(self.played.done("produce")), given.pop("on_delivery")))
        self.played.do("produce", topic, value, given)

    def flush(self, seconds: float) -> int:
        self.played.do("flush", seconds)
        if self.played.is_slow:
            self.played.now += 1
            return len(self.waiting)
        for number, report in self.waiting:
            report(self.played.refuses.get(number), None)
        self.waiting = []
        return 0

    def commit_transaction(self, seconds: float) -> None:
        self.played.do("commit", seconds)

    def purge(self) -> None:
        self.played.do("purge")


class Consumer(Client):
    def list_topics(self, topic: str, seconds: float) -> Any:
        self.played.do("topic", topic, seconds)
        found = SimpleNamespace(error=self.played.topic_error, partitions=self.played.partitions)
        return SimpleNamespace(topics={topic: found})

    def offsets_for_times(self, wanted: list[TopicPartition], seconds: float) -> list[TopicPartition]:
        self.played.do("by time", [(one.topic, one.partition, one.offset) for one in wanted], seconds)
        return [TopicPartition(one.topic, one.partition, self.played.by_time[one.partition]) for one in wanted]

    def get_watermark_offsets(self, place: TopicPartition, seconds: float) -> tuple[int, int]:
        self.played.do("first", place.topic, place.partition, seconds)
        return self.played.first[place.partition], -7

    def assign(self, places: list[TopicPartition]) -> None:
        self.played.do("assign", [(one.topic, one.partition, one.offset) for one in places])

    def close(self) -> None:
        self.played.do("close")


class Admin:
    def __init__(self, library: Library, settings: dict[str, Any]) -> None:
        self.played = library
        library.told.append(settings)

    def describe_configs(self, resources: list[ConfigResource], request_timeout: float) -> dict[Any, Any]:
        (one,) = resources
        self.played.do("limits", one.restype, one.name, request_timeout)
        found = {name: SimpleNamespace(value=value) for name, value in self.played.limits.items()}
        return {one: Future(self.played, found)}

    def list_offsets(self, wanted: dict[TopicPartition, Any], **options: Any) -> dict[TopicPartition, Any]:
        assert all(type(spec) is type(OffsetSpec.latest()) for spec in wanted.values())
        self.played.do("ends", [(one.topic, one.partition) for one in wanted], options)
        ends = self.played.ends
        return {one: Future(self.played, SimpleNamespace(offset=ends[one.partition])) for one in wanted}


class Future:
    def __init__(self, library: Library, found: Any) -> None:
        self.played, self.found = library, found

    def result(self, seconds: float) -> Any:
        self.played.do("result", seconds)
        return self.found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def table_of(**settings: Any) -> KafkaSink:
    return KafkaSink(
        **{"name": "k", "brokers": ("a:9092", "b:9092"), "topic": TOPIC, "timeout_seconds": 7.0, **settings}
    )


class Sink(kafka.KafkaSink):
    """Keeps the noted offset, as the state does."""

    def __init__(self, library: Library, offset: int | None = SETTLED, **settings: Any) -> None:
        self.stop = threading.Event()
        self.seconds = NOW
        super().__init__(table_of(**settings), Context(Config(), self.stop), clock=lambda: self.seconds)
        self.noted: list[int | None] = []
        self.played = library
        self.note_offset = self._note
        self.resume(offset)

    def _note(self, offset: int | None) -> None:
        self.played.do("note")
        self.noted.append(offset)


def sent(library: Library) -> list[bytes]:
    return [value for _, value, _ in library.done("produce")]


# A batch


def test_a_batch_is_one_transaction_of_which_the_state_knows_before_it_begins(library: Library) -> None:
    sink = Sink(library)
    assert sink.send(EVENTS[:2]) == Accepted()
    assert library.names() == ["producer", "init", "note", "begin", "produce", "produce", "flush", "commit"]
    assert library.done("init") == [["ionos-poller-k-0abcd", 7.0]]
    assert library.done("commit") == [[7.0]]
    assert sink.noted == [SETTLED + NOW_MS]
    assert sink.output_offset == SETTLED
    assert library.done("produce") == [
        [
            TOPIC,
            event.line,
            {
                "key": event.contract.encode(),
                "headers": [("uid", event.identity.hex().encode()), ("tx", b"0abcd-%d" % NOW_MS)],
                "timestamp": NOW_MS,
            },
        ]
        for event in EVENTS[:2]
    ]


def test_equal_entries_are_told_by_their_number(library: Library) -> None:
    Sink(library).send([OutboxEvent("1", 0, 0, b"i" * 16, ordinal, b"{}") for ordinal in (0, 1, 12)])
    uids = [given["headers"][0] for _, _, given in library.done("produce")]
    assert uids == [("uid", b"69" * 16 + ending) for ending in (b"", b"-1", b"-12")]


def test_what_is_sent_has_the_format_of_the_table(library: Library) -> None:
    Sink(library, format="ocsf").send(EVENTS[:1])
    assert b'"class_uid"' in sent(library)[0]


def test_each_transaction_has_a_time_of_its_own_also_where_the_clock_stands_or_goes_back(library: Library) -> None:
    sink = Sink(library)
    for seconds in (NOW, NOW, NOW - 5, NOW + 5):
        sink.seconds = seconds
        assert sink.send(EVENTS[:1]) == Accepted()
    assert sink.noted == [SETTLED + NOW_MS + more for more in (0, 1, 2, 5000)]
    assert [given["timestamp"] for _, _, given in library.done("produce")] == [
        NOW_MS + more for more in (0, 1, 2, 5000)
    ]
    assert len(library.done("init")) == 1


def test_a_new_state_draws_one_of_a_million_writers_and_keeps_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for end_, writer in ((0, 1), (1, (1 << 20) - 1)):
        monkeypatch.setattr(random.SystemRandom, "randint", lambda self, *ends, end_=end_: ends[end_])
        sink = Sink(library, None)
        assert sink.send(EVENTS[:1]) == Accepted()
        assert sink.output_offset == writer << 43
        assert sink.output_offset < 1 << 63
    assert [name for name, _ in library.done("init")] == ["ionos-poller-k-00001", "ionos-poller-k-fffff"]


def test_a_batch_that_was_not_taken_ends_the_producer_and_stays_in_doubt(library: Library) -> None:
    sink = Sink(library)
    library.fails["commit"] = error("_TIMED_OUT")
    outcome = sink.send(EVENTS[:2])
    assert isinstance(outcome, RetryAfter)
    assert library.names()[-2:] == ["commit", "purge"]
    assert sink.output_offset == SETTLED + NOW_MS
    library.fails.clear()
    assert sink.send(EVENTS[:2]) == Accepted()
    assert len(library.done("init")) == 2
    assert sink.output_offset == SETTLED
    assert sink.noted == [SETTLED + NOW_MS, SETTLED + NOW_MS + 1]


def test_a_producer_that_cannot_even_be_cleared_is_left(library: Library) -> None:
    sink = Sink(library)
    library.fails = {"commit": error("_TIMED_OUT"), "purge": error("_STATE")}
    assert isinstance(sink.send(EVENTS[:1]), RetryAfter)


def test_to_go_on_from_elsewhere_begins_anew(library: Library) -> None:
    sink = Sink(library)
    sink.send(EVENTS[:1])
    sink.resume(SETTLED)
    assert library.names()[-1] == "purge"
    sink.send(EVENTS[:1])
    assert len(library.done("init")) == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("MSG_SIZE_TOO_LARGE", TooLarge), ("INVALID_RECORD", Refused), ("_MSG_TIMED_OUT", RetryAfter)]
)
def test_a_record_that_is_refused_keeps_the_batch_from_being_committed(library: Library, name: str, kind: type) -> None:
    library.refuses = {1: error(name)}
    sink = Sink(library)
    assert isinstance(sink.send(EVENTS[:3]), kind)
    assert library.done("commit") == []
    assert library.names()[-1] == "purge"
    assert sink.output_offset == SETTLED + NOW_MS


def test_a_batch_that_is_not_taken_within_the_timeout_is_given_up(library: Library) -> None:
    library.is_slow = True
    outcome = Sink(library).send(EVENTS[:2])
    assert outcome == RetryAfter("the brokers did not take the batch within timeout", is_size_suspect=True)
    assert library.done("flush") == [[0.2]] * 8, "one second each, until it is more than seven"
    assert library.done("commit") == []


def test_a_stop_ends_the_wait_for_the_brokers(library: Library) -> None:
    sink = Sink(library)
    library.is_slow = True
    sink.stop.set()
    with pytest.raises(StoppedError):
        sink.send(EVENTS[:1])
    assert library.names()[-2:] == ["flush", "purge"]


def test_a_sink_that_waits_for_brokers_moves_for_as_long_as_five_steps_take(library: Library) -> None:
    workers = Workers()
    seen: list[bool] = []

    def look(name: str) -> None:
        if name == "init":
            library.now += 5 * 7.0 + GRACE_SECONDS
            seen.append(bool(workers.stuck()))
            library.now += 1
            seen.append(bool(workers.stuck()))

    library.before = look
    with workers.busy("sink k"):
        Sink(library).send(EVENTS[:1])
    assert seen == [False, True]


# A transaction in doubt


DOUBT_MS = NOW_MS - 60_000
DOUBT = SETTLED + DOUBT_MS
TX = b"0abcd-%d" % DOUBT_MS


def in_doubt(library: Library, *records: Message | None, **settings: Any) -> Sink:
    """A sink whose transaction is in doubt, and a topic of one partition with these records."""
    library.ends, library.by_time, library.records = {0: 9}, {0: 4}, [*records, end(0, 9)]
    return Sink(library, DOUBT, **settings)


def test_what_was_committed_is_not_sent_again_and_what_goes_with_it_has_the_same_name(library: Library) -> None:
    sink = in_doubt(library, *(Message(event, tx=TX) for event in EVENTS[:2]))
    assert sink.send(EVENTS[:4]) == Accepted()
    assert sent(library) == [event.line for event in EVENTS[2:4]]
    assert {given["headers"][1] for _, _, given in library.done("produce")} == {("tx", TX)}
    assert sink.noted == [], "it is in the state already"
    assert sink.output_offset == SETTLED
    assert library.names().index("init") < library.names().index("consumer"), "the one before has ended first"


def test_a_batch_that_was_committed_whole_needs_no_transaction(library: Library) -> None:
    sink = in_doubt(library, *(Message(event, tx=TX) for event in EVENTS[:2]))
    assert sink.send(EVENTS[:2]) == Accepted()
    assert library.done("begin") == []
    assert sink.output_offset == SETTLED


def test_as_long_as_something_found_is_not_settled_the_doubt_stays(library: Library) -> None:
    sink = in_doubt(library, *(Message(event, tx=TX) for event in EVENTS[:4]))
    assert sink.send(EVENTS[:2]) == Accepted()
    assert (sink.output_offset, sent(library)) == (DOUBT, [])
    assert sink.send(EVENTS[2:4]) == Accepted()
    assert (sink.output_offset, sent(library)) == (SETTLED, [])
    assert len(library.done("init")) == 1
    assert sink.send(EVENTS[4:]) == Accepted()
    assert sent(library) == [event.line for event in EVENTS[4:]]
    assert sink.noted == [SETTLED + NOW_MS]


def test_where_nothing_was_committed_all_of_it_is_sent_under_a_new_name(library: Library) -> None:
    others = (
        Message(EVENTS[0], tx=b"0abcd-1"),
        Message(EVENTS[0], tx=b"0abce-%d" % DOUBT_MS),
        Message(EVENTS[0], headers=None),
        Message(EVENTS[0], headers=[("tx", None)]),
        None,
    )
    sink = in_doubt(library, *others)
    sink.seconds = DOUBT_MS / 1000 - 100
    assert sink.send(EVENTS[:2]) == Accepted()
    assert sent(library) == [event.line for event in EVENTS[:2]]
    assert sink.noted == [DOUBT + 1], "later than the one in doubt, whatever the clock says"


def test_a_record_without_a_key_or_a_uid_is_nobodys(library: Library) -> None:
    nameless = Message(headers=[("tx", TX)])
    sink = in_doubt(library, nameless)
    assert sink.send(EVENTS[:1]) == Accepted()
    assert sent(library) == [EVENTS[0].line]
    # A record of that transaction was found, so no new one is noted. It is not of our events, so the doubt ends with this batch.
    assert sink.noted == []
    assert sink.output_offset == SETTLED


def test_records_are_looked_for_from_ten_minutes_before_the_doubt_and_two_batches_before_the_end(
    library: Library,
) -> None:
    sink = in_doubt(library, batch_events=10)
    library.partitions = dict.fromkeys(range(5))
    library.ends = {0: 100, 1: 100, 2: 30, 3: 5, 4: 100}
    library.by_time = {0: 40, 1: 90, 2: 2, 3: -1, 4: -1}
    library.first = {0: 0, 1: 0, 2: 20, 3: 5, 4: 0}
    library.records = [end(number, library.ends[number]) for number in range(5)]
    assert sink.send(EVENTS[:1]) == Accepted()
    assert library.done("by time") == [[[(TOPIC, number, DOUBT_MS - 600_000) for number in range(5)], 7.0]]
    assert library.done("first") == [[TOPIC, number, 7.0] for number in range(5)]
    assert library.done("ends") == [
        [
            [(TOPIC, number) for number in range(5)],
            {"isolation_level": confluent_kafka.IsolationLevel.READ_UNCOMMITTED, "request_timeout": 7.0},
        ]
    ]
    assert library.done("result") == [[7.0]] * 5
    # 0: by time; 1: two batches before the end; 2: the first kept record; 3: empty, left out; 4: no record is so recent.
    assert library.done("assign") == [[[(TOPIC, 0, 40), (TOPIC, 1, 78), (TOPIC, 2, 20), (TOPIC, 4, 78)]]]
    assert all(told["bootstrap.servers"] == "a:9092,b:9092" for told in library.told)
    assert library.names().count("close") == 2, "the one that asked for the topic, and the one that read"


def test_reading_back_goes_on_until_every_partition_ended_where_it_did_before(library: Library) -> None:
    sink = in_doubt(library)
    library.partitions, library.ends = {0: None, 1: None}, {0: 9, 1: 3}
    library.by_time, library.first = {0: 0, 1: 0}, {0: 0, 1: 0}
    # The end of the committed records comes before the end of all written records: more records may follow.
    library.records = [end(0, 8), end(1, 3), Message(EVENTS[0], tx=TX), end(0, 9), Message(EVENTS[1], tx=TX)]
    assert sink.send(EVENTS[:2]) == Accepted()
    assert sent(library) == [EVENTS[1].line]
    assert library.done("poll") == [[0.2]] * 4


def test_a_topic_that_ends_beyond_what_it_was_is_read_as_well(library: Library) -> None:
    sink = in_doubt(library)
    library.records = [end(0, 10)]
    assert sink.send(EVENTS[:1]) == Accepted()


def test_a_transaction_of_another_program_is_waited_for_and_then_named(library: Library) -> None:
    sink = in_doubt(library)
    library.records = [end(0, 8)]
    outcome = sink.send(EVENTS[:1])
    assert isinstance(outcome, RetryAfter)
    assert outcome.is_size_suspect
    assert "a transaction of another program on this topic is still open" in outcome.reason
    assert 1006.9 < library.now < 1007.3, "timeout after the last record"
    assert sink.output_offset == DOUBT


def test_every_record_that_comes_is_a_reason_to_wait_for_the_next_and_a_sign_of_life(library: Library) -> None:
    workers = Workers()
    stuck: list[bool] = []

    def slowly(name: str) -> None:
        if name == "poll":
            library.now += 6.9
            stuck.append(bool(workers.stuck()))

    library.before = slowly
    sink = in_doubt(library, *[Message(EVENTS[0], tx=TX)] * 20)
    with workers.busy("sink k"):
        assert sink.send(EVENTS[:1]) == Accepted()
    assert len(stuck) == 21
    assert not any(stuck)


def test_a_stop_ends_reading_back(library: Library) -> None:
    sink = in_doubt(library)
    sink.stop.set()
    with pytest.raises(StoppedError):
        sink.send(EVENTS[:1])
    assert library.done("poll") == []


def test_what_keeps_a_reader_from_reading_is_told_and_what_passes_is_not(library: Library) -> None:
    passing = [Message(error=error(name)) for name in ("_TRANSPORT", "GROUP_AUTHORIZATION_FAILED")]
    assert in_doubt(library, *passing).send(EVENTS[:1]) == Accepted()
    denied = in_doubt(library, Message(error=error("TOPIC_AUTHORIZATION_FAILED"))).send(EVENTS[:1])
    assert isinstance(denied, CredentialsRefused)
    assert "let this user write and read the topic" in denied.reason


def test_a_topic_that_is_gone_cannot_be_read_back(library: Library) -> None:
    library.topic_error = error("UNKNOWN_TOPIC_OR_PART")
    outcome = in_doubt(library).send(EVENTS[:1])
    assert isinstance(outcome, RetryAfter)
    assert "create the topic" in outcome.reason


# The settings of clients


def told_to(library: Library, **settings: Any) -> dict[str, Any]:
    """The settings of a sink's producer, without callbacks."""
    Sink(library, **settings).send(EVENTS[:1])
    told = library.told[-1]
    return {name: value for name, value in told.items() if name not in ("error_cb", "logger")}


USUAL = {
    "bootstrap.servers": "a:9092,b:9092",
    "client.id": "ionos-poller",
    "socket.timeout.ms": 7000,
    "enable.metrics.push": False,
    "allow.auto.create.topics": False,
    "log_level": 0,
}
PRODUCER = {
    **USUAL,
    "transactional.id": "ionos-poller-k-0abcd",
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "lz4",
    "linger.ms": 5,
    "queue.buffering.max.messages": 200_000,
    "message.max.bytes": 1000 * 1024 + 1024,
    "transaction.timeout.ms": 60_000,
    "topic.metadata.propagation.max.ms": 3500,
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        (
            {"compression": "none", "max_event_bytes": 2048},
            {"compression.type": "none", "message.max.bytes": 1_000_000},
        ),
        (
            {"timeout_seconds": 100.0},
            {
                "socket.timeout.ms": 100_000,
                "transaction.timeout.ms": 200_000,
                "topic.metadata.propagation.max.ms": 10_000,
            },
        ),
        ({"timeout_seconds": 0.4}, {"socket.timeout.ms": 1000, "topic.metadata.propagation.max.ms": 200}),
    ],
)
def test_a_producer_is_told_what_the_table_says(
    library: Library, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert told_to(library, **settings) == PRODUCER | expected


def test_a_reader_joins_no_group_and_sees_what_is_committed(library: Library) -> None:
    library.topic_error = error("UNKNOWN_TOPIC_OR_PART")
    Sink(library).probe()
    (told,) = library.told
    assert {name: value for name, value in told.items() if name not in ("error_cb", "logger")} == USUAL | {
        "group.id": "ionos-poller-k",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    }


def password(value: str = "canary-password") -> SecretSource:
    return SecretSource("inline", "", path="sinks[0].password", is_text=True, inline=Secret(value))


LOGIN = {"sasl.username": "jane", "sasl.password": "canary-password", "sasl.mechanism": "SCRAM-SHA-512"}
CA, CERT, KEY = Path("/ca.pem"), Path("/client.pem"), Path("/client.key")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"username": "jane", "password": password()}, {**LOGIN, "security.protocol": "SASL_SSL"}),
        (
            {"username": "jane", "password": password(), "security": "plain", "sasl_mechanism": "PLAIN"},
            {**LOGIN, "sasl.mechanism": "PLAIN", "security.protocol": "SASL_PLAINTEXT"},
        ),
        ({"security": "tls"}, {"security.protocol": "SSL"}),
        ({"security": "plain", "ca_file": CA}, {}),
        ({"ca_file": CA}, {"security.protocol": "SSL", "ssl.ca.location": "/ca.pem"}),
        (
            {"cert_file": CERT},
            {
                "security.protocol": "SSL",
                "ssl.certificate.location": "/client.pem",
                "ssl.key.location": "/client.pem",
            },
        ),
        (
            {"ca_file": CA, "cert_file": CERT, "key_file": KEY},
            {
                "security.protocol": "SSL",
                "ssl.ca.location": "/ca.pem",
                "ssl.certificate.location": "/client.pem",
                "ssl.key.location": "/client.key",
            },
        ),
    ],
)
def test_a_login_and_certificates_are_passed_on(
    library: Library, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert told_to(library, **settings) == PRODUCER | expected


def test_librdkafka_writes_to_no_log(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    told_to(library)
    library.told[-1]["logger"].critical("canary")
    assert capfd.readouterr() == ("", "")


# What fails


def test_a_password_that_cannot_be_read_parks_the_sink_and_one_that_cannot_be_read_now_does_not(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = SecretSource("file", str(tmp_path / "gone"), path="sinks[0].password_file")
    outcome = Sink(library, username="jane", password=gone).send(EVENTS[:1])
    assert isinstance(outcome, CredentialsRefused)
    assert str(tmp_path / "gone") in outcome.reason

    def not_now(self: SecretSource) -> Secret:
        raise TransientError("too many open files")

    monkeypatch.setattr(SecretSource, "read", not_now)
    assert Sink(library, username="jane", password=gone).send(EVENTS[:1]) == RetryAfter("too many open files")


def test_a_password_that_an_error_repeats_is_masked(library: Library) -> None:
    library.fails["init"] = error("_FAIL", "cannot use canary-password \u2028 here")
    outcome = Sink(library, username="jane", password=password()).send(EVENTS[:1])
    assert outcome == RetryAfter("cannot use ******** here")


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        (
            "_TIMED_OUT",
            "Local: Timed out",
            RetryAfter("Timed out (check brokers and the network on the way)", None, True),
        ),
        ("_MSG_TIMED_OUT", "Local: Message timed out", RetryAfter("Message timed out", is_size_suspect=True)),
        ("NOT_COORDINATOR", "Broker: Not coordinator", RetryAfter("Not coordinator")),
        ("INVALID_RECORD", "Broker: Broker failed to validate record", Refused("Broker failed to validate record")),
        ("MSG_SIZE_TOO_LARGE", "Broker: Message size too large", TooLarge("Message size too large")),
        (
            "_AUTHENTICATION",
            "no",
            CredentialsRefused("no (check username, password and sasl_mechanism, or cert_file and key_file)"),
        ),
    ],
)
def test_an_error_is_told_in_the_words_of_the_brokers(library: Library, name: str, words: str, expected: Any) -> None:
    library.fails["init"] = error(name, words)
    assert Sink(library).send(EVENTS[:1]) == expected


def test_a_call_that_the_library_gives_up_is_tried_again(library: Library) -> None:
    library.fails["ends"] = TimeoutError()
    assert in_doubt(library).send(EVENTS[:1]) == RetryAfter("the brokers did not answer within timeout")


@pytest.mark.parametrize(
    ("heard", "failed", "words"),
    [
        # The error of a connection says more than a time-out.
        (["_TRANSPORT"], "_TIMED_OUT", "_TRANSPORT"),
        (["_RESOLVE", "_TRANSPORT"], "_TIMED_OUT", "_RESOLVE"),
        (["_TRANSPORT"], "TOPIC_EXCEPTION", "TOPIC_EXCEPTION"),
        # A refused login or certificate says more than anything else.
        (["_TRANSPORT", "_AUTHENTICATION"], "_STATE", "_AUTHENTICATION"),
        (["_TRANSPORT", "_SSL", "_TRANSPORT"], "_STATE", "_SSL"),
        ([], "_TIMED_OUT", "_TIMED_OUT"),
    ],
)
@pytest.mark.parametrize("call", ["init", "topic"])
def test_the_error_that_says_most_is_told(
    library: Library, heard: list[str], failed: str, words: str, call: str
) -> None:
    library.hears = [error(name, f"<{name}>") for name in heard]
    library.fails[call] = error(failed, f"<{failed}>")
    sink = Sink(library)
    outcome = sink.send(EVENTS[:1]) if call == "init" else sink.probe()
    assert f"<{words}>" in outcome.reason  # type: ignore[union-attr]
    assert isinstance(outcome, CredentialsRefused) == (words == "_AUTHENTICATION")
    # The errors of connections belong to one call only.
    library.hears, library.fails = [], {call: error("_TIMED_OUT", "<late>")}
    outcome = sink.send(EVENTS[:1]) if call == "init" else sink.probe()
    assert "<late>" in outcome.reason  # type: ignore[union-attr]


# A probe


def test_a_probe_asks_for_the_topic_and_begins_nothing(library: Library) -> None:
    sink = Sink(library)
    assert sink.probe() == Accepted()
    assert library.names() == ["consumer", "topic", "close", "producer", "init", "limits", "result"]
    assert library.done("topic") == [[TOPIC, 7.0]]
    assert library.done("init") == [["ionos-poller-k-check", 7.0]]
    assert library.done("limits") == [[ConfigResource.Type.TOPIC, TOPIC, 5.0]]
    assert library.done("result") == [[5.0]]
    assert sink.output_offset == SETTLED


@pytest.mark.parametrize(
    ("limits", "replicas", "words"),
    [
        ({"max.message.bytes": "1023999", "min.insync.replicas": "1"}, [2], "records of 1023999 bytes at most"),
        ({"max.message.bytes": "1024000", "min.insync.replicas": "2"}, [2, 3], ""),
        ({"max.message.bytes": "1024000", "min.insync.replicas": "2"}, [3, 1], "has 1 replica in sync, and wants 2"),
        ({"max.message.bytes": "1024000", "min.insync.replicas": "1"}, [], "has 0 replicas in sync, and wants 1"),
        ({"max.message.bytes": "1"}, [0], ""),
        ({"max.message.bytes": "1", "min.insync.replicas": "x"}, [0], ""),
        ({"max.message.bytes": None, "min.insync.replicas": "2"}, [0], ""),
    ],
)
def test_a_probe_tells_of_limits_that_events_would_not_keep_as_far_as_they_are_known(
    library: Library, limits: dict[str, str], replicas: list[int], words: str
) -> None:
    library.limits = limits
    library.partitions = {number: SimpleNamespace(isrs=[0] * count) for number, count in enumerate(replicas)}
    outcome = Sink(library).probe()
    assert isinstance(outcome, RetryAfter if words else Accepted)
    assert words in getattr(outcome, "reason", "")


@pytest.mark.parametrize("failure", [error("CLUSTER_AUTHORIZATION_FAILED"), TimeoutError()])
def test_limits_that_this_user_may_not_know_are_no_trouble(library: Library, failure: Any) -> None:
    for call in ("limits", "result"):
        library.fails = {call: failure}
        assert Sink(library).probe() == Accepted()


def test_limits_are_not_waited_for_longer_than_for_anything_else(library: Library) -> None:
    Sink(library, timeout_seconds=2.0).probe()
    assert library.done("limits") == [[ConfigResource.Type.TOPIC, TOPIC, 2.0]]


def test_without_the_library_it_says_for_which_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError) as caught:
        Brokers(table_of(), threading.Event())
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("sinks.k.type", "kafka needs confluent-kafka")
    assert "[kafka]" in problem.hint
