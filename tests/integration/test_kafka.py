"""Kafka, against librdkafka's mock cluster, and against a broker with real transactions, where a reader must see no repeat."""

from __future__ import annotations

import itertools
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from poller.checks.sinks import check_sink
from poller.config import Config, KafkaSink, Secret, SecretSource
from poller.core.delivery import Accepted, RetryAfter, TooLarge
from poller.core.errors import ConfigError, StoppedError
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks import kafka
from poller.sinks.base import Context
from poller.store.sqlite import State
from poller.store.sqlite.places import Place
from tests.certificates import make_certificate, serving
from tests.kafka_broker import END_TXN, INIT_PRODUCER_ID, PRODUCE, Broker, read_committed
from tests.states import commit

TOPIC = "activity"
CONTRACTS = ("31960001", "31960002", "31960003")
EVENTS = [
    OutboxEvent(CONTRACTS[n % 3], n * 1_000_000, int(time.time()), n.to_bytes(16), 0, b'{"n":%d}' % n)
    for n in range(60)
]
LINES = [event.line for event in EVENTS]


class Killed(Exception):  # noqa: N818 - not an error
    """Stands for a kill of the process."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker(TOPIC)
    yield broker
    broker.close()


class Sink(kafka.KafkaSink):
    """Keeps the offsets that the state would keep. A new one with the last of them is a start after a kill."""

    def __init__(self, address: str, offset: int | None = None, **settings: Any) -> None:
        table = KafkaSink(**{"name": "k", "brokers": (address,), "topic": TOPIC, "timeout_seconds": 5.0, **settings})
        self.stop = threading.Event()
        super().__init__(table, Context(Config(), self.stop))
        self.noted: list[int | None] = []
        self.note_offset = self.noted.append
        self.resume(offset)


def lines(broker: Broker) -> list[bytes]:
    return sorted((message.value() for message in read_committed(broker.address, TOPIC)), key=len_then_text)


def len_then_text(line: bytes) -> tuple[int, bytes]:
    return len(line), line


# The mock cluster of librdkafka


MOCK_TOPICS = ("order-lz4", "order-none", "one", "doubt")


@pytest.fixture(scope="module")
def holder() -> Iterator[Producer]:
    holder = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    for topic in MOCK_TOPICS:
        holder.list_topics(topic, timeout=10)  # this creates the topic
    yield holder
    holder.flush()  # keeps the producer, and with it the cluster, until here


@pytest.fixture(scope="module")
def mock(holder: Producer) -> str:
    (found,) = holder.list_topics(timeout=10).brokers.values()
    return f"{found.host}:{found.port}"


def test_a_topic_that_is_missing_is_not_created(holder: Producer, mock: str) -> None:
    sink = Sink(mock, topic="activty", timeout_seconds=2.0)  # each try waits half of that for the topic
    expected = RetryAfter("Unknown topic or partition (create the topic, or check topic)")
    assert sink.probe() == sink.send(EVENTS[:5]) == sink.send(EVENTS[:5]) == expected
    assert "activty" not in holder.list_topics(timeout=10).topics
    holder.list_topics("activty", timeout=10)
    patient = Sink(mock, sink.output_offset, topic="activty", timeout_seconds=20.0)
    assert patient.probe() == patient.send(EVENTS[:5]) == Accepted()
    assert sorted(message.value() for message in read_committed(mock, "activty")) == sorted(LINES[:5])


@pytest.mark.parametrize("compression", ["lz4", "none"])
def test_a_batch_arrives_in_the_order_of_each_contract(mock: str, compression: str) -> None:
    topic = f"order-{compression}"
    sink = Sink(mock, topic=topic, compression=compression)
    assert sink.send(EVENTS[:30]) == Accepted()
    assert sink.send(EVENTS[30:]) == Accepted()
    messages = read_committed(mock, topic)
    for contract in CONTRACTS:
        of_contract = [message for message in messages if message.key() == contract.encode()]
        assert len({message.partition() for message in of_contract}) == 1
        assert [message.value() for message in of_contract] == [e.line for e in EVENTS if e.contract == contract]


def test_a_record_says_which_entry_it_is_and_when_it_was_sent(mock: str) -> None:
    before = round(time.time() * 1000)
    assert Sink(mock, topic="one").send(EVENTS[5:6]) == Accepted()
    (message,) = read_committed(mock, "one")
    assert dict(message.headers())["uid"] == EVENTS[5].identity.hex().encode()
    assert before <= message.timestamp()[1] <= time.time() * 1000


def test_a_batch_in_doubt_is_found_at_the_mock_cluster_too(mock: str) -> None:
    killed = Sink(mock, topic="doubt")
    assert killed.send(EVENTS[:20]) == Accepted()
    assert Sink(mock, killed.noted[-1], topic="doubt").send(EVENTS[:25]) == Accepted()
    assert sorted((m.value() for m in read_committed(mock, "doubt")), key=len_then_text) == LINES[:25]


# The records that a reader of committed records sees


def test_a_batch_that_was_committed_and_not_settled_is_not_sent_again(broker: Broker) -> None:
    killed = Sink(broker.address)
    killed.send(EVENTS[:10])
    killed.send(EVENTS[10:30])
    again = Sink(broker.address, killed.noted[-1])
    assert again.send(EVENTS[10:40]) == Accepted()
    assert lines(broker) == LINES[:40]


def test_what_was_found_is_not_sent_again_after_a_second_kill_though_more_was_sent_with_it(broker: Broker) -> None:
    noted: list[int | None] = [None]
    for count in (10, 25, 25, 40):  # each is killed before it settles
        killed = Sink(broker.address, noted[-1])
        assert killed.send(EVENTS[:count]) == Accepted()
        noted += killed.noted
    assert lines(broker) == LINES[:40]


def test_it_is_found_behind_many_records_of_others_and_however_long_its_entries_waited(broker: Broker) -> None:
    waited = [event_collected_at(event, 1_000_000) for event in EVENTS[:10]]
    killed = Sink(broker.address, batch_events=10)
    assert killed.send(waited) == Accepted()
    other = Producer({"bootstrap.servers": broker.address, "transactional.id": "other", "log_level": 0})
    other.init_transactions(10)
    other.begin_transaction()
    for number in range(120):
        other.produce(TOPIC, b"other", partition=number % 3)
    other.commit_transaction(10)
    assert Sink(broker.address, killed.noted[-1], batch_events=10).send(waited) == Accepted()
    assert [line for line in lines(broker) if line != b"other"] == LINES[:10]


def event_collected_at(event: OutboxEvent, seconds: int) -> OutboxEvent:
    return msgspec.structs.replace(event, collected_at=seconds)


def test_it_is_not_sent_again_in_smaller_batches_either(broker: Broker) -> None:
    killed = Sink(broker.address)
    killed.send(EVENTS[:30])
    again = Sink(broker.address, killed.noted[-1])
    for start in (0, 10):
        assert again.send(EVENTS[start : start + 10]) == Accepted()
    once_more = Sink(broker.address, again.output_offset)  # killed again: settled events are not sent again
    assert once_more.send(EVENTS[20:30]) == Accepted()
    assert once_more.send(EVENTS[30:40]) == Accepted()
    assert lines(broker) == LINES[:40]


def test_what_was_written_and_not_committed_is_sent_again_and_shows_once(broker: Broker) -> None:
    killed = Sink(broker.address)
    killed.send(EVENTS[:10])
    producer = killed._producer
    producer.begin_transaction()
    for event in EVENTS[10:20]:
        producer.produce(TOPIC, event.line, key=event.contract, headers=[("uid", b"x")])
    producer.flush(5)
    again = Sink(broker.address, killed.output_offset)
    assert again.send(EVENTS[10:20]) == Accepted()
    assert lines(broker) == LINES[:20]
    assert len(read_committed(broker.address, TOPIC, isolation="read_uncommitted")) == 30


@pytest.mark.parametrize("api", [END_TXN, PRODUCE, INIT_PRODUCER_ID])
def test_a_lost_answer_makes_no_repeat(broker: Broker, api: int) -> None:
    sink = Sink(broker.address, timeout_seconds=1.0)
    sink.send(EVENTS[:10])
    lost = itertools.count()
    broker.losing = lambda asked: asked == api and next(lost) < 3
    outcomes = [sink.send(EVENTS[10:30])]
    while not isinstance(outcomes[-1], Accepted):
        outcomes.append(sink.send(EVENTS[10:30]))
        assert len(outcomes) < 10, outcomes
    assert sink.send(EVENTS[30:]) == Accepted()
    assert lines(broker) == LINES


def test_a_commit_that_nobody_answers_is_looked_up_and_not_repeated(broker: Broker) -> None:
    sink = Sink(broker.address, timeout_seconds=2.0)
    assert sink.send(EVENTS[:10]) == Accepted()
    broker.losing = lambda asked: asked == END_TXN
    assert isinstance(sink.send(EVENTS[10:30]), RetryAfter)
    broker.losing = lambda asked: False
    assert sink.send(EVENTS[10:30]) == Accepted()
    assert lines(broker) == LINES[:30]


def test_a_process_that_was_replaced_can_write_no_more(broker: Broker) -> None:
    old = Sink(broker.address)
    old.send(EVENTS[:10])
    new = Sink(broker.address, old.output_offset)
    assert new.send(EVENTS[10:20]) == Accepted()
    outcome = old.send(EVENTS[10:20])
    assert isinstance(outcome, RetryAfter)
    assert "another process sends as this sink" in outcome.reason
    assert lines(broker) == LINES[:20]


def test_two_states_write_side_by_side(broker: Broker) -> None:
    first, second = Sink(broker.address), Sink(broker.address)
    assert first.send(EVENTS[:10]) == Accepted()
    assert second.send(EVENTS[10:20]) == Accepted()
    assert first.send(EVENTS[20:30]) == Accepted()
    assert lines(broker) == LINES[:30]


def test_a_transaction_of_another_program_does_not_hide_what_was_committed(broker: Broker) -> None:
    killed = Sink(broker.address)
    other = Producer({"bootstrap.servers": broker.address, "transactional.id": "other", "log_level": 0})
    other.init_transactions(5)
    other.begin_transaction()
    for number in range(3):
        other.produce(TOPIC, b"other", partition=number)
    other.flush(5)
    assert killed.send(EVENTS[:10]) == Accepted()
    again = Sink(broker.address, killed.noted[-1], timeout_seconds=2.0)
    outcome = again.send(EVENTS[:10])
    assert isinstance(outcome, RetryAfter)
    assert "a transaction of another program on this topic is still open" in outcome.reason
    other.abort_transaction(5)
    assert again.send(EVENTS[:10]) == Accepted()
    assert lines(broker) == LINES[:10]


def test_the_deliverer_settles_and_a_restart_goes_on_behind_it(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(tmp_path, "run")
    state.contracts.enrol([CONTRACTS[0]], "default", 0, 0)
    state.outbox.register("k", "kafka")
    events = [Event(n + 1, n.to_bytes(16), line, True, True) for n, line in enumerate(LINES)]
    commit(state, events, contract=CONTRACTS[0], window=Window(0, 9), now=9)
    settle, kills = Place.settle, itertools.count()

    def killed_before_each_other(*args: Any, **options: Any) -> Any:
        if next(kills) % 2 == 0:
            raise Killed
        return settle(*args, **options)

    monkeypatch.setattr(Place, "settle", killed_before_each_other)
    for batch_events in range(7, 30):
        deliverer = Deliverer(state.outbox, Sink(broker.address, batch_events=batch_events))
        with suppress(Killed):
            while deliverer.step(is_last=True).wait_seconds is not None:
                pass
        deliverer.abandon()
    assert [row.waiting for row in state.overview().sinks] == [0]
    assert lines(broker) == LINES
    state.close()


# Answers of a broker, and the messages for a person


def test_a_record_that_is_too_large_for_the_broker_is_said_to_be(broker: Broker) -> None:
    broker.max_bytes = 2000
    large = EVENTS[1].with_line(b'{"a":"%s"}' % (b"x" * 3000))
    sink = Sink(broker.address, compression="none")
    assert isinstance(sink.send([EVENTS[0], large]), TooLarge)
    assert sink.send([EVENTS[0]]) == Accepted()
    assert isinstance(sink.send([large]), TooLarge)
    assert lines(broker) == LINES[:1]


def test_each_refused_entry_is_a_dead_letter_with_the_brokers_words_and_every_other_is_there_once(
    broker: Broker, tmp_path: Path
) -> None:
    broker.poison = b"poison"
    refused = {b'{"n":%d,"poison":1}' % n for n in (3, 16)}
    events = [
        Event(n + 1, n.to_bytes(16), b'{"n":%d%s}' % (n, b',"poison":1' if n in (3, 16) else b""), True, True)
        for n in range(24)
    ]
    state = State.open(tmp_path, "run")
    state.contracts.enrol([CONTRACTS[0]], "default", 0, 0)
    deliverer = Deliverer(state.outbox, Sink(broker.address, compression="none"))
    commit(state, events, contract=CONTRACTS[0], window=Window(0, 9), now=9)
    while deliverer.step(is_last=True).wait_seconds is not None:
        pass
    letters = state.dead_letters.find()
    assert {letter.line for letter in letters} == refused
    assert all("failed to validate" in letter.reason for letter in letters), letters
    assert lines(broker) == sorted({event.line for event in events} - refused, key=len_then_text)
    state.close()


def told(address: str, **settings: Any) -> Any:
    table = KafkaSink(**{"name": "k", "brokers": (address,), "topic": TOPIC, "timeout_seconds": 2.0, **settings})
    (finding,) = check_sink(table, Config(), threading.Event())
    return finding


def test_check_says_that_the_topic_takes_events(broker: Broker) -> None:
    finding = told(broker.address)
    assert finding.message == f"topic {TOPIC} at {broker.address}: takes events"
    assert lines(broker) == []


def test_check_says_what_is_wrong_with_the_topic(broker: Broker) -> None:
    assert "create the topic" in told(broker.address, topic="missing").hint
    broker.denied.add(TOPIC)
    assert "let this user write and read the topic" in told(broker.address).hint
    broker.denied.clear()
    broker.settings["min.insync.replicas"] = "2"
    assert "1 replica in sync, and wants 2" in told(broker.address).message
    broker.settings["max.message.bytes"] = "1000"
    assert "raise its max.message.bytes" in told(broker.address).hint


def test_check_touches_no_network_when_it_is_not_to() -> None:
    assert not KafkaSink(name="k", brokers=("127.0.0.1:1",), topic=TOPIC).is_local


def test_a_file_that_is_no_certificate_is_told_as_such(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    assert "are PEM" in told(broker.address, ca_file=tmp_path / "ca.pem").hint


def test_brokers_that_are_out_of_reach_are_told_as_such() -> None:
    finding = told("127.0.0.1:1", timeout_seconds=0.5)
    assert "check brokers" in finding.hint


def test_a_client_certificate_and_its_key_are_used(tmp_path: Path) -> None:
    server, client = make_certificate(tmp_path), make_certificate(tmp_path, host="client.example")
    cert, key = split(client)
    context = serving(server)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cert)
    broker = Broker(TOPIC, tls=context)
    try:
        files = {"ca_file": split(server)[0], "cert_file": cert, "key_file": key}
        sink = Sink(broker.address, **files)
        assert sink.send(EVENTS[:3]) == Accepted()
        unknown = Sink(broker.address, timeout_seconds=1.0, ca_file=split(server)[0])
        assert isinstance(unknown.send(EVENTS[:3]), RetryAfter)
        assert (
            "check ca_file"
            in told(broker.address, timeout_seconds=1.0, ca_file=cert, cert_file=cert, key_file=key).hint
        )
        wrong = Sink(broker.address, timeout_seconds=1.0, ca_file=cert, cert_file=cert, key_file=key).send(EVENTS[:3])
        assert isinstance(wrong, RetryAfter)
        assert "check ca_file" in wrong.reason
    finally:
        broker.close()


def split(file: Path) -> tuple[Path, Path]:
    """A certificate and its key in files of their own."""
    begin = "-----BEGIN "
    parts = [begin + part for part in file.read_text().split(begin)[1:]]
    cert, key = file.with_suffix(".cert"), file.with_suffix(".key")
    cert.write_text("".join(part for part in parts if "CERTIFICATE" in part))
    key.write_text("".join(part for part in parts if "PRIVATE KEY" in part))
    return cert, key


def test_a_login_is_given_over_tls_unless_told_otherwise() -> None:
    password = SecretSource("inline", "", path="test", inline=Secret("canary-password"))

    def given(**settings: Any) -> dict[str, Any]:
        return Sink("127.0.0.1:1", **settings)._brokers.settings()

    login = {"username": "jane", "password": password}
    assert given(**login)["security.protocol"] == "SASL_SSL"
    assert given(**login)["sasl.mechanism"] == "SCRAM-SHA-512"
    assert given(**login, security="plain")["security.protocol"] == "SASL_PLAINTEXT"
    assert given(security="tls")["security.protocol"] == "SSL"
    assert "security.protocol" not in given()


def test_a_stop_is_not_held_up_by_brokers_that_take_nothing(broker: Broker) -> None:
    sink = Sink(broker.address, timeout_seconds=30.0)
    assert sink.send(EVENTS[:1]) == Accepted()
    broker.losing = lambda api: api == PRODUCE
    threading.Timer(0.3, sink.stop.set).start()
    started = time.monotonic()
    with pytest.raises(StoppedError):
        sink.send(EVENTS[1:3])
    assert time.monotonic() - started < 5


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError) as caught:
        Sink("127.0.0.1:1")
    assert "pip install 'ionos-poller[kafka]'" in str(caught.value)


def test_it_writes_nothing_to_standard_error(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    old = Sink(broker.address)
    old.send(EVENTS[:1])
    Sink(broker.address, old.output_offset).send(EVENTS[1:2])
    old.send(EVENTS[2:3])
    told("127.0.0.1:1", timeout_seconds=0.3)
    assert capfd.readouterr().err == ""
