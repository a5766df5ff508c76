"""Moesif, from the simulated API to a stand-in that stores an action once, even if it is sent twice."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import responses

from poller.config import Config, FileSink, MoesifSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.events import Event, OutboxEvent
from poller.pipeline.deliver import Deliverer
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks import moesif
from poller.sinks.base import Context, Sink
from poller.sinks.build import build_sink
from poller.store.sqlite import State, outbox
from tests.actions import Action
from tests.daemon import FIRST, MOESIF, MakeDaemon
from tests.integration.fetching import Starter
from tests.support import wait_until

KEY = "canary-application-id"
URL = "https://moesif.example"
DAY = 86_400
ACTION_LIMIT, BATCH_LIMIT = 1_000_000, 12_000_000


def time_of(action: Action) -> datetime:
    return datetime.fromisoformat(action.request.time)


def checked(line: bytes) -> Action:
    """The action, which must be a valid one."""
    action = msgspec.json.decode(line, type=Action)
    assert action.action_name
    assert len(action.transaction_id) == 36
    assert time_of(action).tzinfo is not None
    assert action.request.uri.startswith(("https://", "http://"))
    assert action.request.ip_address
    assert action.company_id
    assert len(line) <= ACTION_LIMIT
    return action


def secret(value: str = KEY) -> SecretSource:
    return SecretSource("inline", "", path="test", inline=Secret(value))


def make(url: str = URL, **settings: Any) -> Sink:
    table = MoesifSink(**{"name": "m", "url": url, "application_id": secret(), "batch_age_seconds": 0.0, **settings})
    return build_sink(table, Config(), threading.Event())


def event_of(number: int = 0, *, age_seconds: float = 0, line: bytes = b"") -> OutboxEvent:
    now = time.time()
    line = line or b'{"@uuid":"6a1b7c7e-0000-4000-8000-%012d","n":1.10}' % number
    return OutboxEvent("1", round((now - age_seconds) * 1_000_000), int(now), number.to_bytes(16), 0, line)


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    settings = SimulatorSettings(events=0, keep_lines=True, application_id=KEY)
    with Simulator(settings) as started:
        yield started


# End to end


def test_10000_entries_are_10000_actions_whatever_is_lost_and_killed(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=10_000, keep_lines=True, faults=("sink=moesif:lost-ack:30%",))
    daemon.configure(sinks={MOESIF: {"batch_events": "200", "requests_per_second": "10000"}})
    intake = daemon.simulator.intakes[MOESIF]
    dice = random.Random(5)
    kills = 0
    while intake.distinct < 10_000:
        goal = intake.distinct + dice.randint(200, 2500)
        daemon.start(is_awaited=False)
        wait_until(partial(lambda goal: intake.distinct >= min(goal, 10_000), goal), what="it delivers")
        time.sleep(dice.uniform(0.0, 0.05))  # kill it at a random point of a batch
        daemon.kill()
        kills += 1
    assert kills >= 3
    daemon.simulator.set_faults([])
    daemon.start()
    wait_until(
        lambda: not daemon.troubles() and daemon.metric("outbox_events", sink=MOESIF) == 0, 20, what="all is settled"
    )
    daemon.stop()
    daemon.assert_clean()
    assert (intake.stored, intake.distinct, intake.repeats, intake.refused) == (10_000, 10_000, 0, 0)
    assert intake.accepted > 10_000, "some were sent again, and collapsed"
    actions = [checked(line) for line in intake.lines]
    assert sorted(bytes(action.metadata) for action in actions) == sorted(daemon.simulator.oracle(FIRST))


def test_entries_that_lack_everything_are_valid_actions_or_dead_letters_with_a_reason(daemon_of: MakeDaemon) -> None:
    now = datetime.now(UTC) - timedelta(minutes=10)
    old = {"meta": {"time": (now - timedelta(days=31)).isoformat()}, "n": 4}
    entries = [
        {},
        {"n": 1},
        {"n": 2, "event": {"type": "T", "param": {}}, "principal": {"identity": {}}},
        {
            "n": 3,
            "meta": {"time": "no time"},
            "event": {"type": 7, "param": {"uri": "relative path"}},
            "principal": {"sourceIP": 1},
        },
        {"n": 5, "meta": None, "event": None, "principal": None, "@uuid": None},
    ]
    daemon = daemon_of(contracts=1, keep_lines=True)
    daemon.simulator.add_entries(FIRST, entries, at=now)
    daemon.simulator.add_entries(FIRST, [old])
    daemon.configure(sinks={MOESIF: {}}, poll={"initial_lookback": '"32d"'})
    daemon.start()
    wait_until(lambda: daemon.metric("events_delivered_total", sink=MOESIF) == len(entries))
    wait_until(lambda: daemon.metric("dead_letters", sink=MOESIF) == 1)
    actions = [checked(line) for line in daemon.simulator.intakes[MOESIF].lines]
    assert sorted(json.dumps(msgspec.json.decode(action.metadata)) for action in actions) == sorted(
        map(json.dumps, entries)
    )
    assert {action.request.ip_address for action in actions} == {"0.0.0.0"}
    (letter,) = [json.loads(line) for line in daemon.command("dead-letters", "list", "--json").splitlines()]
    assert letter["entry"] == old
    assert "older than the 30 days" in letter["reason"]
    daemon.stop()
    daemon.assert_clean()


def test_fetch_prints_the_same_actions(bench: Starter) -> None:
    place = bench()
    run = place.fetch("--since", "1h", "--format", "moesif-action")
    actions = [checked(line) for line in run.lines]
    assert sorted(bytes(action.metadata) for action in actions) == sorted(place.oracle())
    assert {action.company_id for action in actions} == {str(number) for number in place.simulator.contracts}


def test_fetch_maps_as_the_first_sink_that_makes_actions_does(bench: Starter) -> None:
    place = bench()
    (place.directory / "ionos-poller.toml").write_text(
        '[[sinks]]\nname = "raw"\ntype = "stdout"\naction_name = "event.status"\n'
        '[[sinks]]\nname = "out"\ntype = "stdout"\nformat = "moesif-action"\nuri_base = "https://base.example"\n'
        'action_name = "{event.param.action} {event.type}"\ncompany_id = "c-{contract}"\nuser_id = "principal.sourceService"\n'
    )
    run = place.fetch("--since", "1h", "--format", "moesif-action", "--time-key", "time", "--max-line-bytes", "1100")
    for line in run.lines:
        assert len(line) < 1100
        action = json.loads(line)
        assert action["time"] == action["request"]["time"]
        assert action["request"]["uri"].startswith("https://base.example/")
        assert action["company_id"].startswith("c-3196")
    assert any(" " in json.loads(line)["action_name"] for line in run.lines)
    assert any("_truncated" in json.loads(line)["metadata"] for line in run.lines)
    users = {json.loads(line).get("principal", {}).get("sourceService") for line in place.oracle()}
    assert {json.loads(line).get("user_id") for line in run.lines} == users


def test_a_file_of_actions(tmp_path: Path) -> None:
    table = FileSink(name="f", path=str(tmp_path / "a.ndjson"), format="moesif-action", action_name="n")
    sink = build_sink(table, Config(), threading.Event())
    assert sink.send([event_of(1), event_of(2)]) == Accepted()
    actions = [checked(line) for line in (tmp_path / "a.ndjson").read_bytes().splitlines()]
    assert [action.action_name for action in actions] == ["1.10", "1.10"]


# The sink


def test_several_go_to_the_batch_and_one_goes_alone(simulator: Simulator) -> None:
    sink = make(f"{simulator.url}/sink/moesif")
    assert sink.send([event_of(n) for n in range(1000)]) == Accepted(status=201)
    assert sink.send([event_of(1000)]) == Accepted(status=201)
    assert sink.send([event_of(1000)]) == Accepted(status=201)
    assert simulator.intakes[MOESIF].stored == 1001
    assert [checked(line).transaction_id[-4:] for line in simulator.intakes[MOESIF].lines][-1] == "1000"
    assert sink.probe() == Accepted(status=201)
    assert simulator.intakes[MOESIF].stored == 1001


@responses.activate
def test_what_is_sent_is_what_is_documented() -> None:
    for path in ("/v1/actions", "/v1/actions/batch"):
        responses.post(URL + path, status=201)
    sink = make(headers={"X-Environment": "prod"})
    assert sink.send([event_of()]) == sink.send([event_of(), event_of(1)]) == Accepted(status=201)
    one, two = (call.request for call in responses.calls)
    assert (one.path_url, two.path_url) == ("/v1/actions", "/v1/actions/batch")
    assert (type(json.loads(one.body)), type(json.loads(two.body))) == (dict, list)
    for request in (one, two):
        assert request.headers["X-Moesif-Application-Id"] == KEY
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["X-Environment"] == "prod"
        assert "Content-Encoding" not in request.headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, CredentialsRefused) for status in (401, 402, 403)),
        *((status, RetryAfter) for status in (429, 500, 502, 503, 404, 302)),
        *((status, Refused) for status in (400, 422)),
        (413, TooLarge),
        *((status, Accepted) for status in (200, 201, 202, 204)),
    ],
)
@responses.activate
def test_each_answer_has_its_outcome(status: int, kind: type[Outcome]) -> None:
    responses.post(f"{URL}/v1/actions", status=status, body="" if status == 204 else f"the id {KEY} is bad")
    outcome = make().send([event_of()])
    assert type(outcome) is kind
    assert KEY not in str(outcome)


def test_what_is_too_old_is_refused_here_and_costs_no_request(simulator: Simulator) -> None:
    sink = make(f"{simulator.url}/sink/moesif")
    old, young = event_of(1, age_seconds=30 * DAY), event_of(2, age_seconds=30 * DAY - 120)
    assert sink.max_age_seconds == 30 * DAY - 60
    outcome = sink.send([old, young, old])
    assert isinstance(outcome, Accepted)
    assert list(outcome.refused) == [0, 2]
    assert "older than the 30 days" in outcome.refused[0]
    assert isinstance(sink.send([old, old]), Accepted)
    assert simulator.state()["intakes"][MOESIF]["requests"] == 1
    assert simulator.intakes[MOESIF].stored == 1


def test_what_is_too_old_can_be_stamped_with_the_time_it_was_collected(simulator: Simulator) -> None:
    table = MoesifSink(name="m", url=f"{simulator.url}/sink/moesif", application_id=secret())
    sink = moesif.MoesifSink(table, Context(Config(), threading.Event(), "stamp-now"))
    old = event_of(1, age_seconds=90 * DAY)
    assert sink.send([old]) == Accepted(status=201)
    action = checked(simulator.intakes[MOESIF].lines[0])
    assert int(time_of(action).timestamp()) == old.collected_at


def delivered(sink: Sink, lines: list[bytes], directory: Path) -> dict[int, str]:
    """Deliver the lines as `run` does.  Returns: number of the line -> reason, for each dead letter."""
    state = State.open(directory / "state", "run")
    try:
        deliverer = Deliverer(state.outbox, sink)
        now = int(time.time())
        events = [Event(now * 1_000_000 + n, n.to_bytes(16), line) for n, line in enumerate(lines)]
        with state.outbox._database.transaction() as connection:
            outbox.put(connection, "1", events, now)
        while deliverer.step().wait_seconds is not None:
            pass
        assert not state.overview().imbalances()
        return {int.from_bytes(letter.identity): letter.reason for letter in state.dead_letters.find()}
    finally:
        state.close()


def sized(number: int, size: int) -> bytes:
    line = b'{"n":%d,"x":""}' % number
    return line[:-2] + b"x" * (size - len(line)) + line[-2:]


@pytest.mark.parametrize("oversize", ["dead-letter", "truncate"])
def test_no_action_is_above_a_megabyte_and_no_batch_above_twelve(
    simulator: Simulator, tmp_path: Path, oversize: str
) -> None:
    simulator.change_settings(moesif_max_action_bytes=ACTION_LIMIT, moesif_max_body_bytes=BATCH_LIMIT)
    sink = make(f"{simulator.url}/sink/moesif", oversize=oversize, requests_per_second=1000)
    lines = [sized(n, 900_000) for n in range(14)] + [sized(n, 300) for n in range(14, 600)]
    # An entry that is small enough, but its action is not; and an entry that is too large itself.
    lines += [sized(600, ACTION_LIMIT - 10), sized(601, ACTION_LIMIT + 10)]
    letters = delivered(sink, lines, tmp_path)
    stored = [checked(line) for line in simulator.intakes[MOESIF].lines]
    assert not set(simulator.sink_traffic[MOESIF].counts[MOESIF]) - {"201"}, "nothing was found out by being refused"
    if oversize == "truncate":
        assert letters == {}
        assert [msgspec.json.decode(action.metadata).get("n") for action in stored[:600]] == list(range(600))
        assert [b"_truncated" in bytes(action.metadata) for action in stored[-3:]] == [False, True, True]
    else:
        assert [msgspec.json.decode(action.metadata)["n"] for action in stored] == list(range(600))
        assert set(letters) == {600, 601}
        assert all("max_event_bytes" in reason for reason in letters.values())


def test_one_bad_action_is_set_apart_from_the_others(simulator: Simulator, tmp_path: Path) -> None:
    simulator.change_settings(moesif_max_action_bytes=5000)  # stands for any reason of Moesif to refuse an action
    sink = make(f"{simulator.url}/sink/moesif", requests_per_second=1000)
    letters = delivered(sink, [sized(n, 6000 if n == 77 else 100) for n in range(200)], tmp_path)
    assert list(letters) == [77]
    assert simulator.intakes[MOESIF].stored == 199


def test_an_idle_connection_is_not_used_again(simulator: Simulator) -> None:
    sockets = []
    server = simulator._server
    assert server is not None
    accept = server.process_request
    server.process_request = lambda request, address: (sockets.append(address), accept(request, address))  # type: ignore[method-assign, assignment]
    kept, fresh = make(f"{simulator.url}/sink/moesif"), make(f"{simulator.url}/sink/moesif", keepalive_seconds=0)
    for n in range(3):
        kept.send([event_of(n)])
    assert len(sockets) == 1
    for n in range(3):
        fresh.send([event_of(n)])
    assert len(sockets) == 4
