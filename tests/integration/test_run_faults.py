"""`run` while the API or the sinks fail: nothing is lost, and at most the batch in flight repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from poller.config import Config, LoggingServiceSink, SecretSource, StdoutSink
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import LeaseLostError
from poller.core.events import Event, OutboxEvent
from poller.pipeline.deliver import Deliverer
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from poller.store.sqlite import State, outbox
from tests.daemon import CONTRACTS, FIRST, LOGGING, LOKI, SECOND, STOPS_WITHIN_SECONDS, MakeDaemon
from tests.support import wait_until

BATCH_EVENTS = 100


@pytest.mark.parametrize("fault", ["500", "429", "hang:2s", "reset", "lost-ack"])
def test_with_every_third_send_failing_all_arrives_and_only_a_lost_acknowledgement_repeats(
    daemon_of: MakeDaemon, fault: str
) -> None:
    daemon = daemon_of(contracts=2, events=1000, faults=(f"sink=*:{fault}:30%",))
    is_hanging = fault.startswith("hang")
    read_timeout = '"200ms"' if is_hanging else '"10s"'
    daemon.configure(each={"batch_events": str(BATCH_EVENTS), "read_timeout": read_timeout})
    daemon.start()
    daemon.await_delivery()
    wait_until(lambda: daemon.metric("outbox_events", sink=LOGGING) == 0)
    wait_until(lambda: daemon.metric("outbox_events", sink=LOKI) == 0)
    outcomes = daemon.simulator.sink_traffic[LOGGING].counts[LOGGING]
    failures = outcomes[fault.partition(":")[0]]
    assert failures > 2
    # Includes refusals because of the request rate: a postponed contract is sent in small batches.
    refused = sum(count for outcome, count in outcomes.items() if not outcome.startswith("2"))
    late = daemon.metric("batches_failed_total", sink=LOGGING, reason="unavailable") - refused
    assert late >= 0 if is_hanging else late == 0  # with a short timeout, a busy machine may be too late, too
    daemon.stop()
    repeated = daemon.simulator.books(LOGGING).repeated
    if fault == "lost-ack":
        # Whole batches, one for each lost answer.
        assert 0 < repeated <= failures * BATCH_EVENTS
        assert daemon.simulator.loki.accepted > daemon.simulator.loki.stored
    else:
        assert repeated <= late * BATCH_EVENTS
    daemon.assert_once(LOKI)
    daemon.assert_clean()


def test_all_failures_of_sinks_and_api_at_once_lose_nothing(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=1500, faults=("mixed:500ms:10%", "sink=*:mixed:500ms:30%"))
    daemon.configure(each={"batch_events": str(BATCH_EVENTS)}, api={"page_size": "500", "read_timeout": '"400ms"'})
    daemon.start()
    for _ in range(6):
        time.sleep(0.3)
        for contract in CONTRACTS:
            daemon.simulator.add_entries(contract, count=20)
    daemon.await_delivery()
    lost_acks = daemon.simulator.sink_traffic[LOGGING].counts[LOGGING].get("lost-ack", 0)
    daemon.stop()
    books = daemon.simulator.books(LOGGING)
    assert books.invented == 0
    assert books.repeated <= lost_acks * BATCH_EVENTS
    assert daemon.simulator.books(LOKI).repeated == 0
    daemon.assert_clean()


# A contract that the sink does not take


def test_what_loki_does_not_take_of_one_contract_holds_no_other_contract_and_is_shown(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=200)
    daemon.simulator.change_settings(loki_limited_contract=str(FIRST))
    daemon.start()
    other = next(contract for contract in CONTRACTS if contract != FIRST)
    count = lambda: daemon.simulator.intakes[LOKI].distinct  # noqa: E731
    wait_until(lambda: count() == 200, what="Loki has all of the other contract")
    daemon.simulator.add_entries(other, count=10)
    daemon.simulator.add_entries(FIRST, count=10)
    wait_until(lambda: count() == 210, what="what comes later of it arrives, too")
    daemon.await_delivery(LOGGING)
    assert wait_until(lambda: daemon.metric("contracts_postponed", sink=LOKI) == 1)
    assert daemon.metric("outbox_events", sink=LOKI) == 210
    code, body = daemon.get("/readyz")
    assert code == 200, "the others go on"
    assert f"sink {LOKI}: contract {FIRST} waits on its own" in body
    shown = daemon.command("status")
    assert f"contract {FIRST} waits on its own" in " ".join(shown.split())
    (told,) = daemon.sink(LOKI)["postponed"]
    assert told["contract"] == str(FIRST)
    assert "Per stream rate limit exceeded" in told["failure"]
    daemon.simulator.change_settings(loki_limited_contract="")
    daemon.command("sinks", "retry", LOKI)
    daemon.await_delivery()
    wait_until(lambda: daemon.metric("contracts_postponed", sink=LOKI) == 0, what="it is one of all again")
    assert daemon.metric("dead_letters", sink=LOKI) == 0
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


# A refused key


def test_a_refused_key_parks_one_sink_and_a_reload_with_the_new_key_sends_all_that_waited(
    daemon_of: MakeDaemon,
) -> None:
    daemon = daemon_of(contracts=2, events=2500)
    daemon.key_file.write_text("an-old-key")
    daemon.start()
    # The other sink is never paused.
    daemon.await_delivery(LOKI)
    reason = wait_until(lambda: daemon.trouble("sink logging", "parked", "401"), what="/readyz says so")
    assert "an-old-key" not in reason
    daemon.simulator.add_entries(FIRST, count=50)
    assert daemon.await_delivery(LOKI) < 30  # less than the minute after which a parked sink is retried
    assert daemon.metric("outbox_events", sink=LOGGING) == 5050
    assert daemon.metric("sink_parked", sink=LOGGING) == 1
    assert daemon.metric("sink_parked", sink=LOKI) == 0
    assert daemon.metric("batches_failed_total", sink=LOGGING, reason="credentials_refused") >= 1
    parked = daemon.sink(LOGGING)
    assert parked["parked_at"]
    assert parked["delivered"] == 0
    assert daemon.logged("sink.parked", sink=LOGGING)[0]["level"] == "ERROR"
    requests = sum(daemon.simulator.sink_traffic[LOGGING].counts[LOGGING].values())
    assert requests <= 2, "a refused key is not hammered"

    daemon.key_file.write_text(daemon.simulator.settings.api_key)
    daemon.reload()
    daemon.await_delivery(timeout=30)
    wait_until(lambda: not daemon.troubles(), what="ready again")
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()
    assert "an-old-key" not in daemon.stderr


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "state", "run")


def fill(state: State, count: int, now: float) -> list[bytes]:
    """Put events into the outbox with one commit of one contract."""
    time_us = int(now) * 1_000_000
    lines = [b'{"n":%d}' % number for number in range(count)]
    events = [Event(time_us + i, i.to_bytes(16, "big"), line) for i, line in enumerate(lines)]
    with state.outbox._database.transaction() as connection:
        outbox.put(connection, str(FIRST), events, int(now))
    return lines


def test_a_parked_sink_is_tried_every_minute_with_the_key_as_it_is_then(tmp_path: Path, state: State) -> None:
    now = time.time()
    key_file = tmp_path / "key"
    key_file.write_text("old")
    with Simulator(SimulatorSettings(events=0, keep_lines=True)) as simulator:
        table = LoggingServiceSink(
            name=LOGGING,
            url=f"{simulator.url}/sink/logging",
            tag="t",
            api_key=SecretSource("file", str(key_file), path="test"),
            batch_age_seconds=0,
        )
        sink = build_sink(table, Config(), threading.Event())
        deliverer = Deliverer(state.outbox, sink, clock=lambda: now)
        lines = fill(state, 2500, now)
        for _ in range(3):
            assert deliverer.step().wait_seconds == 60
            now += 59
            assert deliverer.step().wait_seconds == pytest.approx(1)
            now += 1
        assert simulator.sink_traffic[LOGGING].counts == {LOGGING: {"401": 3}}
        key_file.write_text(simulator.settings.api_key)
        settled = [deliverer.step().settled for _ in range(4)]
        assert settled == [1000, 1000, 500, 0]
        assert simulator.intakes[LOGGING].lines == lines
    state.close()


# An output that is gone

STDOUT = '[[sinks]]\nname = "out"\ntype = "stdout"\nbatch_age = "0s"\nretry_initial = "50ms"\nretry_max = "200ms"\n'


@pytest.mark.parametrize(("stdout", "why"), [(">&-", "stdout is closed"), (">/dev/full", "No space left")])
def test_an_output_that_is_gone_waits_beside_other_sinks_and_ends_the_daemon_alone(
    daemon_of: MakeDaemon, stdout: str, why: str
) -> None:
    daemon = daemon_of(contracts=1, events=20)
    daemon.configure(sinks={LOGGING: {}}, more=STDOUT)
    daemon.start(stdout=stdout)
    daemon.await_delivery(LOGGING)
    wait_until(lambda: daemon.sink("out")["attempts"] > 1, what="it is tried again")
    assert why in daemon.sink("out")["failure"]
    daemon.stop()
    daemon.configure(sinks={}, more=STDOUT)
    daemon.start(stdout=stdout, is_awaited=False)
    assert daemon.process is not None
    assert daemon.process.wait(15) == 1
    assert why in daemon.stderr


# Events that a sink never accepts


def test_one_poisonous_entry_among_a_thousand_is_set_apart_and_replayed_when_the_sink_is_mended(
    daemon_of: MakeDaemon,
) -> None:
    daemon = daemon_of(contracts=1, events=999, poison="poisonous")
    daemon.simulator.add_entries(FIRST, [{"meta": {"time": _now()}, "event": {"message": "poisonous"}}])
    daemon.configure(sinks={LOGGING: {}})
    time.sleep(1)  # the current second is not read yet, and one batch must have all entries
    daemon.start()
    wait_until(lambda: daemon.metric("dead_letters", sink=LOGGING) == 1, what="it is set apart")
    wait_until(lambda: daemon.metric("events_delivered_total", sink=LOGGING) == 999)
    books = daemon.simulator.books(LOGGING)
    assert (books.lost, books.invented) == (1, 0)
    # With its 400, the sink stores all events before the bad one: half of each halved batch.
    assert books.repeated < 2 * 1000
    (told,) = daemon.logged("event.dead_lettered")
    assert "HTTP 400: " in told["why"]
    assert "Bad Request" in told["why"]
    (letter,) = [json.loads(line) for line in daemon.command("dead-letters", "list", "--json").splitlines()]
    assert (letter["sink"], letter["contract"], letter["status"]) == (LOGGING, str(FIRST), 400)
    assert letter["entry"]["event"] == {"message": "poisonous"}
    assert "Bad Request" in letter["reason"]

    daemon.simulator.change_settings(poison="")
    told = daemon.command("dead-letters", "replay", "--sink", LOGGING)
    assert told == "1 of 1 put back; `run` sends them within seconds\n"
    daemon.await_delivery(LOGGING)
    wait_until(lambda: daemon.metric("dead_letters", sink=LOGGING) == 0)
    assert daemon.command("dead-letters", "list") == ""
    assert daemon.told == "no dead letters\n"
    assert "there is no sink typo" in daemon.command("dead-letters", "list", "--sink", "typo", code=2)
    daemon.stop()
    books = daemon.simulator.books(LOGGING)
    assert (books.lost, books.invented) == (0, 0)
    daemon.assert_clean()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


# A sink that is down for long


def test_a_full_outbox_pauses_collecting_within_bounds_and_everything_arrives_in_the_end(daemon_of: MakeDaemon) -> None:
    max_bytes, window_bytes = 2 << 20, 1 << 20
    daemon = daemon_of(contracts=2, events=7_000, faults=("sink=logging:503",))
    daemon.configure(
        outbox={"max_bytes": f'"{max_bytes}"'}, api={"window_bytes": f'"{2 * window_bytes}"', "concurrency": "2"}
    )
    daemon.start()
    wait_until(lambda: daemon.trouble("outbox is full"), what="/readyz says so")
    time.sleep(1)
    held = daemon.metric("outbox_bytes")
    collected = [daemon.metric("events_collected_total", account="default", contract=str(n)) for n in CONTRACTS]
    assert max_bytes <= held < max_bytes + 2 * 2 * window_bytes
    memory, disk = daemon.memory_bytes("VmHWM"), daemon.disk_bytes()
    print(f"outbox full at {max_bytes} bytes: holds {held:.0f}, disk {disk}, memory at most {memory}")
    assert memory < 100 << 20
    # Includes the write-ahead log.
    assert disk < 4 * held + (20 << 20)
    assert daemon.logged("outbox.full")
    assert len(daemon.logged("outbox.full")) < 10, "said once a pause, not in a loop"
    time.sleep(1)
    assert daemon.metric("outbox_bytes") == held
    assert sum(collected) < 14_000
    assert daemon.get("/healthz")[0] == 200
    daemon.simulator.set_faults([])
    daemon.await_delivery(timeout=40)
    wait_until(lambda: not daemon.troubles(), what="ready again")
    assert daemon.logged("outbox.has_room")
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_full_outbox_does_not_hold_up_the_end(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=6, events=1000, faults=("sink=*:503",))
    daemon.configure(outbox={"max_bytes": '"1MiB"'}, api={"window_bytes": '"2MiB"', "concurrency": "2"})
    daemon.start()
    wait_until(lambda: daemon.trouble("outbox is full"), what="/readyz says so")
    daemon.stop()
    assert not daemon.logged("drain.timed_out"), (
        "it ended by itself, and was not given up after the 8 s that it may take"
    )
    daemon.simulator.set_faults([])
    daemon.start()
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


# Stopping


def test_sigterm_during_a_batch_finishes_it_and_repeats_nothing(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=2500, faults=("sink=*:latency:2s",))
    daemon.configure(each={"read_timeout": '"30s"', "batch_events": "1000"})
    daemon.start()
    for name in (LOGGING, LOKI):
        wait_until(lambda name=name: daemon.simulator.sink_traffic[name].max_per_second, what="a batch in flight")
    stored = {name: daemon.simulator.intakes[name].stored for name in (LOGGING, LOKI)}
    seconds = daemon.stop()
    print(f"ended {seconds:.2f} s after SIGTERM, with batches of 2 s on the way")
    assert not daemon.logged("drain.timed_out")
    # The batch in flight of each sink is delivered and settled.
    for name, before in stored.items():
        after = daemon.simulator.intakes[name].stored
        assert 0 < after - before <= 1000
        # A batch for Loki is several requests. Those in flight finish, but may not be settled; Loki merges their repeats.
        delivered = daemon.sink(name)["delivered"]
        assert delivered <= after if name == LOKI else delivered == after
    daemon.simulator.set_faults([])
    daemon.start()
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


@pytest.fixture
def deaf_reader() -> Iterator[tuple[int, int]]:
    """A full pipe that only the test reads: (reader, writer)."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * 4096)
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def deaf_systemd(tmp_path: Path) -> Iterator[str]:
    """The address of a notify socket whose queue is full."""
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as voice,
    ):
        ear.bind(address)
        voice.connect(address)
        voice.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                voice.send(b"X=1")
        yield address


def test_while_nobody_reads_stderr_and_the_notify_socket_it_works_and_ends(
    daemon_of: MakeDaemon, deaf_reader: tuple[int, int], deaf_systemd: str
) -> None:
    reader, writer = deaf_reader
    daemon = daemon_of(contracts=2, events=500, faults=("sink=logging:503:x1",))
    daemon.start("--log-level", "debug", stderr=writer, env={"NOTIFY_SOCKET": deaf_systemd})
    daemon.await_delivery()
    daemon.simulator.add_entries(FIRST, count=5)
    daemon.await_delivery()
    daemon.configure(each={"read_timeout": '"2s"'})
    daemon.signal(signal.SIGHUP)
    daemon.simulator.add_entries(SECOND, count=5)
    daemon.await_delivery()
    assert daemon.get("/healthz")[0] == 200
    assert daemon.metric("log_lines_dropped_total") == 0, "its queue holds them"
    told = b""
    while b"config.reloaded" not in told:
        told += os.read(reader, 65_536)
    messages = [json.loads(line)["message"] for line in told.splitlines() if line.endswith(b"}")]
    assert messages.index("daemon.started") < messages.index("batch.sent") < messages.index("config.reloaded")
    assert daemon.stop() < STOPS_WITHIN_SECONDS
    daemon.assert_once()


def test_an_end_with_an_error_ends_though_nobody_reads_it(daemon_of: MakeDaemon, deaf_reader: tuple[int, int]) -> None:
    daemon = daemon_of(contracts=1, events=10)
    daemon.start(stderr=deaf_reader[1])
    daemon.await_delivery()
    shutil.rmtree(daemon.state_dir)
    assert daemon.process.wait(timeout=20) == 4


def test_sigterm_while_sink_and_api_hang_ends_within_ten_seconds(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=500, faults=("sink=logging:hang:60s", "path=entries:hang:60s:after=1"))
    daemon.configure(each={"read_timeout": '"30s"'})
    daemon.start()
    wait_until(lambda: daemon.simulator.sink_traffic[LOGGING].max_per_second, what="a batch in flight")
    seconds = daemon.stop()
    print(f"ended {seconds:.2f} s after SIGTERM, with all that it waits for hanging")
    assert seconds < STOPS_WITHIN_SECONDS
    assert daemon.logged("drain.timed_out")
    daemon.simulator.set_faults([])
    daemon.start()
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


@pytest.mark.parametrize("delay_seconds", [0.0, 0.3])
def test_sigterm_in_the_midst_of_a_backlog_leaves_no_trace(daemon_of: MakeDaemon, delay_seconds: float) -> None:
    daemon = daemon_of(contracts=8, events=2000, latency_seconds=0.05)
    daemon.configure(api={"page_size": "100", "window_bytes": '"1MiB"', "result_window": "500"}, sinks={LOGGING: {}})
    daemon.start()
    time.sleep(delay_seconds)
    assert daemon.stop() < 5
    daemon.assert_clean()


class SlowSink(Sink):
    """Accepts events only after `release`."""

    def __init__(self) -> None:
        super().__init__(StdoutSink(name="slow", batch_events=10, batch_age_seconds=0.0))
        self.sent: list[bytes] = []
        self.begun, self.release = threading.Event(), threading.Event()

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        self.sent += [event.line for event in events]
        self.begun.set()
        assert self.release.wait(10)
        return Accepted()

    def probe(self) -> Outcome:
        return Accepted()


def test_a_batch_of_before_a_reload_that_ends_after_it_moves_nothing_on(state: State) -> None:
    """Otherwise the old and the new deliverer both settle the same batch: the second time for events that were never sent."""
    slow, fresh = SlowSink(), SlowSink()
    fresh.release.set()
    before = Deliverer(state.outbox, slow)
    lines = fill(state, 30, time.time())
    stopped: list[LeaseLostError] = []

    def step() -> None:
        try:
            before.step()
        except LeaseLostError as error:
            stopped.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    assert slow.begun.wait(5)
    before.abandon()
    after = Deliverer(state.outbox, fresh)
    assert after.step().settled == 10
    slow.release.set()
    thread.join(5)
    assert stopped
    while after.step().settled:
        pass
    assert fresh.sent == lines
    assert not state.overview().imbalances()
    state.close()


def test_backoff_is_not_lost_by_a_restart(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=100, faults=("sink=logging:503:retry-after=600",))
    daemon.configure(sinks={LOGGING: {}})
    daemon.start()
    wait_until(lambda: daemon.metric("batches_failed_total", sink=LOGGING, reason="unavailable") == 1)
    before = daemon.sink(LOGGING)
    daemon.kill()
    daemon.simulator.set_faults([])
    daemon.start()
    time.sleep(1.2)
    after = daemon.sink(LOGGING)
    assert (after["retry_at"], after["attempts"], after["delivered"]) == (before["retry_at"], 1, 0)
    assert daemon.simulator.intakes[LOGGING].stored == 0
    daemon.signal(signal.SIGTERM)
    assert daemon.process is not None
    assert daemon.process.wait(5) == 0, "a long wait is no reason to stop late"
    daemon.assert_clean()


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["restarted", "reloaded"])
def test_since_holds_until_the_contracts_could_be_found(daemon_of: MakeDaemon, is_reloaded: bool) -> None:
    daemon = daemon_of(contracts=2, events=300, span_seconds=10_000, faults=("path=contracts:503",))
    daemon.configure(poll={"initial_lookback": '"1m"'}, api={"max_retries": "0"})
    daemon.start("--since", "3h")
    wait_until(lambda: daemon.logged("discovery.failed"), what="the contracts cannot be found")
    if is_reloaded:
        daemon.reload()
    else:
        daemon.stop()
    daemon.simulator.set_faults([])
    if not is_reloaded:
        daemon.start()
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


@pytest.mark.parametrize("deed", ["moved", "replaced", "deleted"])
def test_a_state_that_is_taken_away_while_it_runs_ends_it(daemon_of: MakeDaemon, deed: str) -> None:
    daemon = daemon_of(contracts=2, events=30)
    daemon.configure()
    daemon.start()
    daemon.await_delivery()
    if deed == "deleted":
        shutil.rmtree(daemon.state_dir)
    else:
        daemon.state_dir.rename(daemon.directory / "elsewhere")
        if deed == "replaced":
            daemon.state_dir.mkdir(mode=0o700)
            (daemon.state_dir / "run.db").write_bytes(b"another")
    assert daemon.process.wait(timeout=15) == 4
    assert "moved or deleted while it was in use" in daemon.stderr
    assert "Traceback" not in daemon.stderr
