"""The simulator over real HTTP: the rules of the API, the faults, and the intakes with their books."""

from __future__ import annotations

import gzip
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
import requests

from poller.core.errors import ConfigError
from poller.simulator import Simulator, SimulatorSettings
from tests.support import wait_until

END = datetime(2026, 5, 1, 12, tzinfo=UTC)
FIRST, SECOND = 31960001, 31960002


class Client:
    """A session with one simulator, with its token."""

    def __init__(self, simulator, session):
        self.simulator, self.session = simulator, session
        session.headers["Authorization"] = f"Bearer {simulator.token}"

    def entries(self, contract=FIRST, timeout=5, **query):
        url = f"{self.simulator.url}/activitylog/v1/contracts/{contract}"
        return self.session.get(url, params=query, timeout=timeout)

    def hits(self, contract=FIRST, **query):
        answer = self.entries(contract, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()["hits"]

    def get(self, path, **options):
        return self.session.get(self.simulator.url + path, timeout=5, **options)

    def post(self, path, **options):
        return self.session.post(self.simulator.url + path, timeout=5, **options)

    def control(self, path, value=None):
        answer = self.get(f"/_simulator/{path}") if value is None else self.post(f"/_simulator/{path}", json=value)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def simulate():
    """Starts simulators, each with a client, and stops them all."""
    started = []

    def start(**settings):
        settings = {"contracts": 2, "events": 100, "span_seconds": 3600, "end": END, **settings}
        client = Client(Simulator(SimulatorSettings(**settings)).start(), requests.Session())
        started.append(client)
        return client

    yield start
    for client in started:
        client.session.close()
        client.simulator.stop()


# The API's rules


def test_root_and_contracts_answer_as_the_api_does(simulate):
    client = simulate()
    assert client.get("/activitylog/v1/").json() == {"name": "CLOUD API", "version": "1.0"}
    contracts = client.get("/activitylog/v1/contracts").json()
    assert [contract["id"] for contract in contracts] == [FIRST, SECOND]
    assert client.get(contracts[0]["href"].removeprefix(client.simulator.url)).status_code == 200


def test_paging_gives_every_entry_once_newest_first(simulate):
    client = simulate(events=2500)
    pages = [client.hits(limit=1000, offset=offset) for offset in (0, 1000, 2000)]
    assert {page["total"] for page in pages} == {2500}
    served = [hit["_source"] for page in pages for hit in page["hits"]]
    oracle = [json.loads(line) for line in client.simulator.oracle(FIRST)]
    assert served == list(reversed(oracle))


def test_the_oracle_over_http_is_what_was_served(simulate):
    client = simulate()
    lines = client.get(f"/_simulator/entries?contract={SECOND}").content.splitlines()
    assert lines == list(client.simulator.oracle(SECOND))
    assert len(set(lines)) == 100


def test_the_range_is_half_open_and_dates_come_in_two_forms(simulate):
    client = simulate(events=0)
    client.simulator.add_entries(FIRST, [{"meta": {"time": f"2026-05-01T0{hour}:00:00.000Z"}} for hour in range(4)])
    hits = client.hits(dateStart="2026-05-01T01:00:00Z", dateEnd="2026-05-01T03:00:00Z")
    assert [hit["_source"]["meta"]["time"][11:13] for hit in hits["hits"]] == ["02", "01"]
    assert client.hits(dateStart="2026-05-01", dateEnd="2026-05-02")["total"] == 4
    assert client.hits(dateStart="2026-05-02")["total"] == 0


@pytest.mark.parametrize(
    "query",
    [
        {"dateStart": "2026-05-01T00:00:00"},
        {"dateStart": "2026-05-01T00:00:00.000Z"},
        {"dateEnd": "2026-05-01T00:00:00+00:00"},
        {"dateEnd": "2026-13-01"},
        {"dateEnd": ""},
        {"offset": "-1"},
        {"limit": "many"},
    ],
)
def test_a_bad_query_is_refused_with_the_error_body(simulate, query):
    answer = simulate().entries(**query)
    assert answer.status_code == 400
    assert answer.json()["httpStatus"] == 400
    assert answer.json()["messages"][0]["message"]


def test_the_limit_is_20_by_default_and_cut_at_its_maximum(simulate):
    client = simulate(max_limit=50)
    assert len(client.hits()["hits"]) == 20
    assert len(client.hits(limit=1000)["hits"]) == 50


def test_the_result_window_is_enforced(simulate):
    client = simulate(result_window=100)
    assert len(client.hits(offset=50, limit=50)["hits"]) == 50
    assert client.entries(offset=51, limit=50).status_code == 400
    client.simulator.change_settings(result_window_status=500)
    assert client.entries(offset=51, limit=50).status_code == 500


def test_credentials_are_required(simulate):
    client = simulate(forbidden=(SECOND,))
    assert client.entries(SECOND).status_code == 403
    assert client.entries(99).status_code == 404
    assert client.get("/activitylog/v1/contracts", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/activitylog/v1/contracts", headers={"Authorization": ""}).json()["httpStatus"] == 401
    del client.session.headers["Authorization"]
    assert client.get("/activitylog/v1/contracts", auth=("demo", "demo")).status_code == 200
    client.control("settings", {"token": "new"})
    assert client.get("/activitylog/v1/contracts", headers={"Authorization": "Bearer new"}).status_code == 200


def test_answers_come_in_other_shapes_on_request(simulate):
    client = simulate()
    client.control("settings", {"indented": True, "oldest_first": True})
    answer = client.entries(limit=2)
    assert b'\n  "hits"' in answer.content
    oldest = next(iter(client.simulator.oracle(FIRST)))
    assert answer.json()["hits"]["hits"][0]["_source"] == json.loads(oldest)
    client.control("settings", {"shape": "items", "total_cap": 5})
    assert len(client.entries(limit=2).json()["items"]) == 2
    client.control("settings", {"shape": "hits"})
    assert client.hits()["total"] == 5
    client.control("settings", {"raw_body": "[}"})
    assert client.entries().text == "[}"


def test_ids_can_be_at_the_hit_or_nowhere(simulate):
    hits = simulate(ids="hit").hits(limit=100)["hits"]
    assert len({hit["_id"] for hit in hits}) == 100
    assert not any("@uuid" in hit["_source"] for hit in hits)
    assert set(simulate(ids="none").hits(limit=1)["hits"][0]) == {"_source"}


def test_a_range_longer_than_allowed_is_refused(simulate):
    client = simulate(max_range_days=90)
    assert client.entries(dateStart="2026-01-01", dateEnd="2026-06-01").status_code == 400
    assert client.entries(dateStart="2026-04-01", dateEnd="2026-06-01").status_code == 200


def test_the_date_header_follows_the_skew(simulate):
    client = simulate(date_skew_seconds=600)
    skew = parsedate_to_datetime(client.entries().headers["Date"]) - datetime.now(UTC)
    assert timedelta(seconds=590) < skew < timedelta(seconds=610)


def test_given_entries_are_served_digit_for_digit(simulate):
    client = simulate(events=0)
    numbers = b'"a":1.10,"b":123456789012345678901234567890'
    body = b'{"meta":{"time":"2026-05-01T07:42:20.530Z"},%s,"c":"\\u00fc\xc3\xbc"}' % numbers
    answer = client.post("/_simulator/entries", data=b'{"contract":%d,"entries":[%s,%s]}' % (FIRST, body, body))
    assert answer.json() == {"added": 2}
    assert client.entries().content.count(body) == 2
    assert list(client.simulator.oracle(FIRST)) == [body, body]


def test_entries_can_become_visible_late(simulate):
    client = simulate(events=0)
    client.control("entries", {"contract": FIRST, "count": 3, "visible_in_seconds": 0.3})
    assert client.hits()["total"] == 0
    assert client.control("state")["contracts"][str(FIRST)] == {"total": 3, "visible": 0}
    wait_until(lambda: client.hits()["total"] == 3, timeout=5)


def test_new_entries_come_by_themselves_on_request(simulate):
    client = simulate(events=0, live_per_second=50)
    wait_until(lambda: client.hits()["total"] >= 3, timeout=5)


def test_a_thousand_contracts_start_at_once(simulate):
    client = simulate(contracts=1000, events=10)
    assert len(client.get("/activitylog/v1/contracts").json()) == 1000
    assert client.hits(FIRST + 999)["total"] == 10


# Faults


@pytest.mark.parametrize("kind", ["reset", "cut", "hang:10ms"])
def test_a_connection_can_be_lost(simulate, kind):
    client = simulate(faults=(f"path=entries:{kind}:x1",))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        client.entries()
    assert client.entries().status_code == 200
    assert client.control("state")["api"]["requests"]["entries"] == {kind.split(":")[0]: 1, "200": 1}


def test_a_hang_lasts_longer_than_the_client_waits_and_ends_when_the_simulator_stops(simulate):
    client = simulate(faults=("hang:10m",))
    with pytest.raises(requests.ReadTimeout):
        client.entries(timeout=0.1)
    started = time.monotonic()
    client.simulator.stop()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("kind", "is_bad"),
    [
        (
            "truncate",
            lambda answer: answer.content.startswith(b'{"hits"') and not answer.content.endswith(b"}]}}"),
        ),
        ("html", lambda answer: answer.text.startswith("<!DOCTYPE html>")),
        ("missing-hits", lambda answer: "hits" not in answer.json()),
        ("wrong-types", lambda answer: isinstance(answer.json()["hits"]["hits"], dict)),
    ],
)
def test_an_answer_can_be_bad_although_its_status_is_200(simulate, kind, is_bad):
    client = simulate(faults=(kind,))
    answer = client.entries()
    assert answer.status_code == 200
    assert is_bad(answer)


def test_a_status_comes_with_retry_after_in_seconds_or_as_a_date(simulate):
    client = simulate(faults=("429:retry-after=2",))
    answer = client.entries()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
    client.control("faults", ["503:retry-after=date+60"])
    answer = client.entries()
    wish = parsedate_to_datetime(answer.headers["Retry-After"]) - datetime.now(UTC)
    assert (answer.status_code, timedelta(seconds=50) < wish < timedelta(seconds=61)) == (503, True)
    client.control("faults", {"faults": []})
    assert "Retry-After" not in client.entries().headers


def test_one_contract_can_fail_while_the_other_answers(simulate):
    client = simulate(faults=(f"contract={FIRST}:500",))
    assert client.entries(FIRST).status_code == 500
    assert client.entries(SECOND).status_code == 200


def test_a_dripping_answer_is_slow_but_whole(simulate):
    client = simulate(faults=("drip:100ms", "latency:50ms"))
    started = time.monotonic()
    assert len(client.hits(limit=100)["hits"]) == 100
    assert time.monotonic() - started > 0.14


def test_a_capped_total_hides_how_many_there_are(simulate):
    client = simulate(events=10_050, faults=("capped-total",))
    assert client.hits()["total"] == 10_000


def test_some_entries_are_of_no_use_always_the_same_ones(simulate):
    client = simulate(faults=("null:count=10",))
    before, after = (client.hits(limit=100)["hits"] for _ in range(2))
    assert before == after
    assert sum(hit["_source"] is None for hit in before) == 10
    client.control("faults", ["nan:count=10"])
    text = client.entries(limit=100).text
    assert text.count('"_source":{"value":NaN,"') == 10
    client.control("faults", [])
    assert None not in [hit["_source"] for hit in client.hits(limit=100)["hits"]]


def test_entries_of_no_use_come_in_the_shape_of_all_others(simulate):
    client = simulate(ids="hit", faults=("null:count=10", "nan:count=7"))
    usual = [hit["_id"] for hit in simulate(ids="hit").hits(limit=100)["hits"]]
    client.control("settings", {"indented": True})
    answer = client.entries(limit=100)
    assert [hit["_id"] for hit in json.loads(answer.text)["hits"]["hits"]] == usual
    client.control("settings", {"shape": "list"})
    assert len(json.loads(client.entries(limit=100).text)) == 100


def test_a_total_is_one_too_high(simulate):
    client = simulate(faults=("miscount",))
    found = client.hits(limit=1000)
    assert (found["total"], len(found["hits"])) == (101, 100)


def test_an_order_changes_with_every_request(simulate):
    client = simulate(faults=("shuffle",))
    orders = [[hit["_source"]["@uuid"] for hit in client.hits(limit=100)["hits"]] for _ in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_range_is_refused_for_its_age(simulate):
    client = simulate(faults=("old:30d", f"contract={SECOND}:old:1h:status=403"))
    now = datetime.now(UTC)
    day, month = ((now - timedelta(days=days)).strftime("%Y-%m-%d") for days in (1, 40))
    assert client.entries(dateStart=month).status_code == client.entries().status_code == 400
    assert "dateStart must not be older" in client.entries(dateStart=month).text
    assert client.entries(dateStart=day).status_code == 200
    assert client.entries(SECOND, dateStart=day).status_code == 403


def test_no_more_than_so_many_entries_of_a_query_are_served(simulate):
    client = simulate(faults=("dense:count=30",))
    assert len(client.hits(limit=100)["hits"]) == 30
    assert len(client.hits(limit=100, offset=20)["hits"]) == 10
    assert client.entries(limit=1, offset=30).status_code == 400


def test_requests_are_counted_and_their_rate_noted(simulate):
    client = simulate()
    for _ in range(5):
        client.entries()
    client.get("/activitylog/v1/contracts")
    state = client.control("state")["api"]
    assert state["requests"] == {"entries": {"200": 5}, "contracts": {"200": 1}}
    assert 1 <= state["max_requests_per_second"] <= 6


def test_it_can_stop_and_start_again_on_the_same_port(simulate):
    client = simulate()
    url = client.simulator.url
    client.entries()
    client.simulator.stop()
    with pytest.raises(requests.ConnectionError):
        client.entries()
    client.simulator.start()
    assert client.simulator.url == url
    assert client.entries().status_code == 200


def test_bad_control_requests_are_refused(simulate):
    client = simulate()
    for path, value in (
        ("faults", ["boom"]),
        ("settings", {"tokn": "x"}),
        ("settings", {"seed": 2}),
        ("settings", {"max_limit": "many"}),
        ("entries", {"contract": 1, "count": 1}),
        ("entries", {"contract": FIRST, "number": 1}),
    ):
        answer = client.post(f"/_simulator/{path}", json=value)
        assert (answer.status_code, "error" in answer.json()) == (400, True)
    assert client.get("/_simulator/books?intake=nowhere").status_code == 400
    assert client.get("/_simulator/nothing").status_code == 404
    with pytest.raises(ConfigError):
        Simulator(SimulatorSettings(faults=("boom",)))


# Intakes


def lines_of(client, contract=FIRST):
    return list(client.simulator.oracle(contract))


def send_logging(client, lines, key="demo-key", **headers):
    body = gzip.compress(b"[" + b",".join(lines) + b"]")
    headers = {"APIKEY": key, "Content-Encoding": "gzip", "Content-Type": "application/json", **headers}
    return client.post("/sink/logging/activityLog", data=body, headers=headers).status_code


def books(client, intake="logging", contract=FIRST):
    counted = client.simulator.books(intake, [contract])
    return counted.expected, counted.received, counted.lost, counted.repeated, counted.invented


def test_the_logging_service_stand_in_keeps_the_books(simulate):
    client = simulate(keep_lines=True)
    lines = lines_of(client)
    assert send_logging(client, lines[:60]) == 201
    assert books(client) == (100, 60, 40, 0, 0)
    assert send_logging(client, [*lines[50:], b'{"made":"up"}']) == 201
    assert books(client) == (100, 111, 0, 10, 1)
    state = client.control("state")["intakes"]["logging"]
    assert (state["requests"], state["accepted"], state["distinct"], state["repeats"]) == (2, 111, 101, 10)
    accepted = client.get("/_simulator/accepted?intake=logging").content.splitlines()
    assert accepted == [*lines[:60], *lines[50:], b'{"made":"up"}']
    over_http = client.control(f"books?intake=logging&contract={FIRST}")
    assert over_http == {"expected": 100, "received": 111, "lost": 0, "repeated": 10, "invented": 1}


def test_the_logging_service_stand_in_refuses_what_it_should(simulate):
    client = simulate(max_body_bytes=100_000)
    lines = lines_of(client)
    assert send_logging(client, lines, key="wrong") == 401
    assert send_logging(client, lines * 2) == 413
    assert client.post("/sink/logging/t", data=b"[{]", headers={"APIKEY": "demo-key"}).status_code == 400
    assert client.post("/sink/logging", data=b"[]", headers={"APIKEY": "demo-key"}).status_code == 404
    assert client.control("state")["intakes"]["logging"]["accepted"] == 0
    client.control("settings", {"api_key": "wrong"})
    assert send_logging(client, lines, key="wrong") == 201


def test_a_poison_event_fails_its_whole_request_and_what_came_before_it_is_stored(simulate):
    client = simulate()
    lines = lines_of(client)
    poison = json.loads(lines[30])["@uuid"]
    client.control("settings", {"poison": poison, "poison_stores_before": False})
    assert send_logging(client, lines) == 400
    assert books(client) == (100, 0, 100, 0, 0)
    client.control("settings", {"poison_stores_before": True})
    assert send_logging(client, lines) == 400
    assert books(client) == (100, 30, 70, 0, 0)
    client.control("settings", {"poison": ""})
    assert send_logging(client, [*lines[:10], b"7", *lines[10:]]) == 400
    assert books(client) == (100, 40, 70, 10, 0), "an array is stored record by record"


def test_a_pipeline_takes_fifty_requests_a_second_and_json_alone(simulate):
    client = simulate()
    headers = {"APIKEY": "demo-key", "Content-Type": "text/plain"}
    assert client.post("/sink/logging/t", data=b"[]", headers=headers).status_code == 400
    assert (
        client.post(
            "/sink/moesif/v1/actions/batch", data=b"[]", headers={"X-Moesif-Application-Id": "demo-app"}
        ).status_code
        == 415
    )
    client.control("settings", {"logging_requests_per_second": 1})
    started = time.monotonic()
    statuses = [send_logging(client, [b"{}"]) for _ in range(3)]
    assert statuses.count(201) <= 1 + (time.monotonic() - started)
    assert 429 in statuses


@pytest.mark.parametrize("kind", ["cut", "encoding", "drip:400ms"])
def test_a_success_with_a_bad_body_has_stored(simulate, kind):
    client = simulate(faults=(f"sink=logging:{kind}",))
    body = b"[" + b",".join(lines_of(client)) + b"]"
    headers = {"APIKEY": "demo-key", "Content-Type": "application/json"}
    with client.post("/sink/logging/t", data=body, headers=headers, stream=True) as answer:
        assert answer.status_code == 201
    assert client.control("state")["intakes"]["logging"]["accepted"] == 100


def test_an_echo_has_stored_and_a_page_has_not(simulate):
    client = simulate(faults=("sink=logging:echo:x1", "sink=logging:html:x1"))
    lines = lines_of(client)
    body = b"[" + b",".join(lines[:50]) + b"]"
    headers = {"APIKEY": "demo-key", "Content-Type": "application/json"}
    echo = client.post("/sink/logging/t", data=body, headers=headers)
    assert (echo.status_code, echo.content[: len(body)] == body, len(echo.content) > 1_000_000) == (201, True, True)
    page = client.post("/sink/logging/t", data=body, headers=headers)
    assert (page.status_code, "html" in page.headers["Content-Type"]) == (200, True)
    assert client.control("state")["intakes"]["logging"]["accepted"] == 50


def test_a_lost_acknowledgement_has_stored_and_a_partial_one_half(simulate):
    client = simulate(faults=("sink=logging:lost-ack:x1", "sink=logging:partial:x1"))
    lines = lines_of(client)
    with pytest.raises(requests.ConnectionError):
        send_logging(client, lines[:50])
    assert send_logging(client, lines[50:]) == 500
    assert books(client) == (100, 75, 25, 0, 0)
    assert client.control("state")["intakes"]["logging"]["outcomes"] == {"lost-ack": 1, "partial": 1}


@pytest.mark.parametrize("fault", ["500", "429", "401"])
def test_a_failing_intake_stores_nothing(simulate, fault):
    client = simulate(faults=(f"sink=*:{fault}",))
    assert send_logging(client, lines_of(client)) == int(fault)
    assert books(client)[1] == 0


def test_the_http_intake_takes_ndjson_and_json(simulate):
    client = simulate()
    lines = lines_of(client)
    assert client.post("/sink/http", data=b"\n".join(lines[:40]) + b"\n").status_code == 200
    assert client.post("/sink/http/any/path", data=b"[" + b",".join(lines[40:99]) + b"]").status_code == 200
    assert client.post("/sink/http", data=iter([lines[99][:50], lines[99][50:]])).status_code == 200
    assert client.post("/sink/http", data=b"not json").status_code == 400
    assert books(client, "http") == (100, 100, 0, 0, 0)


def push(client, *streams, **headers):
    values = [
        {
            "stream": labels,
            "values": [[str(at_ns) if isinstance(at_ns, int) else at_ns, line] for at_ns, line in some],
        }
        for labels, some in streams
    ]
    body = gzip.compress(json.dumps({"streams": values}).encode())
    return client.post("/sink/loki/loki/api/v1/push", data=body, headers={"Content-Encoding": "gzip", **headers})


def ago(**span):
    return time.time_ns() - int(timedelta(**span).total_seconds() * 1e9)


LABELS = {"tag_name": "activityLog", "contract": str(FIRST)}


def test_loki_collapses_an_exact_repeat_but_not_another_time_or_stream(simulate):
    client = simulate(keep_lines=True)
    at_ns = ago(minutes=5)
    for _ in range(2):
        assert push(client, (LABELS, [(at_ns, "a"), (at_ns, "b")])).status_code == 204
    loki = client.simulator.loki
    assert (loki.accepted, loki.stored, loki.distinct, loki.repeats) == (4, 2, 2, 0)
    push(client, (LABELS, [(at_ns + 1, "a")]), ({**LABELS, "late": "1"}, [(at_ns, "a")]))
    push(client, (LABELS, [(at_ns + 1, "a")]))
    assert (loki.stored, loki.distinct, loki.repeats) == (4, 2, 2)
    stream = f'{{contract="{FIRST}", tag_name="activityLog"}}'
    assert client.control("state")["intakes"]["loki"]["streams"][stream] == 3
    assert [item.stream for item in loki.kept].count(stream) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((ago(days=8), "x"), "has timestamp too old"),
        ((ago(minutes=-60), "x"), "timestamp too new"),
        ((ago(hours=2), "x"), "entry too far behind"),
        ((ago(minutes=1), "x" * 300_000), "max entry size '262144' bytes exceeded"),
    ],
)
def test_loki_refuses_one_entry_and_stores_the_other(simulate, bad, message):
    client = simulate()
    good = (ago(minutes=10), "good")
    answer = push(client, (LABELS, [good, bad]))
    assert answer.status_code == 400
    assert message in answer.text
    assert ("total ignored: 1 out of 2" in answer.text) == ("far behind" in message)
    state = client.control("state")["intakes"]["loki"]
    assert (state["stored"], state["refused"]) == (1, 1)


def test_loki_answers_for_the_last_stream_of_a_push_only(simulate):
    """Source: docs/facts.md, "Loki push API"."""
    client = simulate(loki_max_streams=2)
    first, second, third = ({**LABELS, "contract": name} for name in "ABC")
    assert push(client, (first, [(ago(), "new")]), (second, [(ago(), "new")])).status_code == 204
    behind, fine = [(ago(hours=2), "behind")], [(ago(), "fine")]
    assert push(client, (first, behind), (second, fine)).status_code == 204
    answer = push(client, (second, fine), (first, behind))
    assert (answer.status_code, "too far behind" in answer.text) == (400, True)
    assert push(client, (third, fine), (first, fine)).status_code == 204
    answer = push(client, (first, fine), (third, fine))
    assert (answer.status_code, "Maximum active stream limit exceeded" in answer.text) == (429, True)
    loki = client.simulator.loki
    assert sorted(loki.streams.values()) == [2, 2]
    assert client.control("state")["intakes"]["loki"]["active_streams"] == 2


def test_loki_forgets_a_stream_that_was_idle(simulate):
    client = simulate(loki_max_streams=1)
    push(client, (LABELS, [(ago(), "new")]))
    assert push(client, ({**LABELS, "late": "1"}, [(ago(), "new")])).status_code == 429
    client.simulator.change_settings(loki_idle_seconds=0)
    assert push(client, ({**LABELS, "late": "1"}, [(ago(), "new")])).status_code == 204
    assert push(client, (LABELS, [(ago(hours=2), "behind what was forgotten")])).status_code == 204


def test_loki_refuses_a_whole_stream_that_is_too_fast(simulate):
    client = simulate(loki_stream_bytes_per_second=10, loki_stream_burst_bytes=1000)
    assert push(client, (LABELS, [(ago(), "x" * 900)])).status_code == 204
    answer = push(client, (LABELS, [(ago(), "y" * 50), (ago(), "z" * 90)]))
    assert (answer.status_code, "Per stream rate limit exceeded" in answer.text) == (429, True)
    assert push(client, ({**LABELS, "late": "1"}, [(ago(), "x" * 900)])).status_code == 204
    assert client.simulator.loki.stored == 2


def test_loki_splits_a_fast_stream_into_shards_and_shows_a_repeat_in_another_one(simulate):
    client = simulate(loki_shard_bytes_per_second=1000)
    entries = [(ago(), "x" * 900), (ago() + 1, "y" * 900)]
    assert push(client, (LABELS, entries)).status_code == 204  # the first push of a stream is never split
    for _ in range(2):
        assert push(client, (LABELS, entries)).status_code == 204
    loki = client.simulator.loki
    assert sum("__stream_shard__" in name for name in loki.streams) >= 2
    assert (loki.distinct, loki.repeats > 0) == (2, True)


def test_loki_refuses_a_tenant_that_is_too_fast(simulate):
    client = simulate(loki_bytes_per_second=1, loki_max_body_bytes=2000)
    assert push(client, (LABELS, [(ago(), "x" * 1000)])).status_code == 204
    answer = push(client, (LABELS, [(ago(), "x" * 1000)]))
    assert (answer.status_code, "ingestion rate limit exceeded" in answer.text) == (429, True)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({f"label_{number}": "x" for number in range(16)}, "has 16 label names; limit 15"),
        ({"a": "x" * 2049}, "label value too long"),
        ({"a" * 1025: "x"}, "label name too long"),
        ({}, "at least one label"),
    ],
)
def test_loki_refuses_a_stream_for_its_labels_and_stores_the_other(simulate, labels, message):
    client = simulate()
    answer = push(client, (labels, [(ago(), "bad")]), (LABELS, [(ago(), "good")]))
    assert (answer.status_code, message in answer.text) == (400, True)
    longest = {**{f"label_{number}": "x" for number in range(14)}, "a": "x" * 2048}
    assert push(client, (longest, [(ago(), "good")])).status_code == 204
    assert client.simulator.loki.stored == 2


def test_loki_takes_fifty_minutes_newest_first_and_old_entries_in_a_stream_of_their_own(simulate):
    client = simulate()
    assert push(client, (LABELS, [(ago(minutes=m), f"{m}") for m in range(50)])).status_code == 204
    assert push(client, ({**LABELS, "day": "1"}, [(ago(days=2), "old")])).status_code == 204


def test_loki_fails_the_whole_request_for_its_form(simulate):
    client = simulate(loki_max_body_bytes=1000, loki_tenant="t", loki_authorization="Bearer x")
    headers = {"X-Scope-OrgID": "t", "Authorization": "Bearer x"}
    now = ago()
    assert push(client, (LABELS, [(now, "a")]), **{**headers, "X-Scope-OrgID": ""}).status_code == 401
    assert push(client, (LABELS, [(now, "a")]), **{**headers, "Authorization": ""}).status_code == 401
    assert push(client, (LABELS, [(now, "a" * 1000)]), **headers).status_code == 429
    assert push(client, (LABELS, [(now, "a"), (1.5, "b")]), **headers).status_code == 400
    assert push(client, (LABELS, [(now, "a"), ("soon", "b")]), **headers).status_code == 400
    assert push(client, (LABELS, [(now, 7)]), **headers).status_code == 400
    assert push(client, **headers).status_code == 422
    assert client.simulator.loki.stored == 0
    assert push(client, (LABELS, [(now, "a")]), **headers).status_code == 204
    assert client.get("/sink/loki/ready").text == "ready\n"


def action(number, **changes):
    return {
        "action_name": "Provision",
        "transaction_id": f"00000000-0000-4000-8000-{number:012d}",
        "request": {
            "time": datetime.now(UTC).isoformat(),
            "uri": "https://api.ionos.com/cloudapi/v6/servers",
            "ip_address": "192.0.2.1",
        },
        **changes,
    }


def test_moesif_dedupes_by_transaction_id(simulate):
    client = simulate()
    headers = {"X-Moesif-Application-Id": "demo-app"}
    batch = [action(number) for number in range(10)]
    for _ in range(2):
        assert client.post("/sink/moesif/v1/actions/batch", json=batch, headers=headers).status_code == 201
    assert client.post("/sink/moesif/v1/actions", json=action(10), headers=headers).status_code == 201
    moesif = client.simulator.intakes["moesif"]
    assert (moesif.accepted, moesif.stored, moesif.distinct, moesif.repeats) == (21, 11, 11, 0)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"action_name": ""}, 400),
        ({"request": {"time": "2026-05-01T00:00:00Z", "uri": "/relative"}}, 400),
        ({"request": {"time": "2001-05-01T00:00:00Z", "uri": "https://x/y"}}, 400),
        ({"request": {"uri": "https://x/y"}}, 400),
        ({"transaction_id": "short"}, 400),
        ({"metadata": {"x": "y" * 1_100_000}}, 413),
    ],
)
def test_moesif_refuses_a_bad_action(simulate, changes, status):
    client = simulate()
    headers = {"X-Moesif-Application-Id": "demo-app"}
    answer = client.post("/sink/moesif/v1/actions", json=action(1, **changes), headers=headers)
    assert answer.status_code == status
    assert client.post("/sink/moesif/v1/actions", json=action(1)).status_code == 401
    assert client.simulator.intakes["moesif"].stored == 0


def test_a_client_that_goes_away_disturbs_nobody(simulate, capfd):
    client = simulate(events=1000)
    port = int(client.simulator.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b'POST /sink/http HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"whole":"line"}\n')
    assert client.entries().status_code == 200
    assert client.simulator.intakes["http"].accepted == 0
    client.simulator.stop()
    assert capfd.readouterr().err == ""
