"""What the sinks decide without a network: the meaning of an answer, the message about it, and the requests to Loki."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import responses

from poller.cli.compose import trusted_clock
from poller.config import (
    Config,
    FileSink,
    FirehoseSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    Secret,
    SecretSource,
    StdoutSink,
)
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.core.errors import StoppedError
from poller.core.events import OutboxEvent
from poller.core.mapping.moesif import ActionMaker
from poller.net.transport import Response
from poller.net.words import words_of
from poller.sinks import logging_service, loki, moesif
from poller.sinks.age import AgeLimit
from poller.sinks.base import Context
from poller.sinks.build import build_sink
from poller.sinks.http import outcome_of
from poller.sinks.render import build_render, chosen_render
from tests.support import TOP, clean_environment

NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp())
KEY = "canary-key-1234567890"
URL = "https://intake.example"


def event(age_seconds=0.0, *, contract="31960001", ordinal=0, line=b'{"a":"\\u00e9\\"\xc3\xa9"}', collected_at=NOON):
    """An event that happened `age_seconds` before it was collected."""
    time_us = round((collected_at - age_seconds) * 1_000_000)
    return OutboxEvent(contract, time_us, collected_at, b"i" * 16, ordinal, line)


def secret(value=KEY, *, is_text=False):
    return SecretSource("inline", "", path="test", is_text=is_text, inline=Secret(value))


def logging_sink(stop=None, **settings):
    settings = {"name": "logging", "url": URL, "tag": "activityLog", "api_key": secret(), **settings}
    return build_sink(LoggingServiceSink(**settings), Config(), stop or threading.Event())


def loki_sink(clock=lambda: NOON, **settings):
    settings = LokiSink(**{"name": "loki", "url": URL, **settings})
    return loki.LokiSink(settings, Context(Config(), threading.Event()), clock=clock)


# What an answer means


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Accepted) for status in logging_service.SUCCESSES),
        *((status, CredentialsRefused) for status in (401, 402, 403)),
        (413, TooLarge),
        *((status, Refused) for status in (400, 422)),
        *((status, RetryAfter) for status in (408, 429, 500, 502, 503, 504, 507, 599)),
        *((status, RetryAfter) for status in (203, 206, 260, 299, 301, 302, 304, 307, 308)),
        *((status, RetryAfter) for status in (404, 405, 406, 407, 409, 410, 411, 415, 418, 451)),
    ],
)
def test_every_status_has_its_outcome(status, kind):
    assert type(outcome_of(status, logging_service.SUCCESSES, "", place="url")) is kind


def test_no_status_beyond_the_list_counts_as_delivered_or_costs_an_event():
    outcomes = {status: outcome_of(status, loki.SUCCESSES, "", place="url") for status in range(100, 1000)}
    assert {status for status, found in outcomes.items() if isinstance(found, Accepted)} == {200, 204}
    assert {status for status, found in outcomes.items() if isinstance(found, Refused)} == {400, 422}


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (404, "check url and tag"),
        (405, "check url and tag"),
        (302, "redirects are not followed"),
        (407, "HTTPS_PROXY"),
        (260, "not an answer that means success"),
    ],
)
def test_held_data_come_with_a_remedy(status, remedy):
    outcome = outcome_of(status, (200,), "words", place="url and tag")
    assert remedy in outcome.reason
    assert outcome.reason.startswith(f"HTTP {status}: words")


def test_a_wish_to_wait_is_passed_on():
    assert outcome_of(429, (200,), "", place="url", wait_seconds=7.0).seconds == 7.0
    assert outcome_of(503, (200,), "", place="url", wait_seconds=7.0).seconds == 7.0


# Messages about it


def words(body, *, secrets=(), sent=b"", content_type="text/plain"):
    return words_of(Response(400, {"Content-Type": content_type}, body), secrets, sent)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ""),
        (b" Bad\r\n\t Request \x1b[31m\x00", "Bad Request [31m"),
        ("caf\u00e9 \u202e\u2028x".encode(), "caf\u00e9 x"),
        (b"caf\xe9 \xff", "caf\u00e9 \u00ff"),
        (b"\xff", "\u00ff"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9"),
        ("caf\u00e9".encode("utf-16-be"), "caf\u00e9"),
        ("caf\u00e9".encode("utf-32"), "caf\u00e9"),
        ("caf\u00e9".encode("utf-8-sig"), "caf\u00e9"),
        (b"a\0b\0c", "ab\ufffd"),
        (b"x" * 1000, "x" * 200),
    ],
)
def test_a_servers_words_are_one_short_printable_line(body, expected):
    assert words(body) == expected


def test_of_a_page_of_html_only_the_text_is_shown():
    page = b"<html><head><title>413</title></head>\n<body><h1>Too Large</h1></body></html>"
    assert words(page, content_type="text/html; charset=utf-8") == "413 Too Large"


def test_a_secret_is_masked_wherever_it_is_echoed_even_where_the_words_are_cut():
    assert words(f"bad key {KEY}!".encode(), secrets=[KEY]) == "bad key ********!"
    assert KEY[:6] not in words(b"x" * 190 + KEY.encode(), secrets=[KEY])
    assert words(rb"bad pass a\"b\\c", secrets=['a"b\\c']) == "bad pass ********"


def test_our_own_body_is_not_repeated():
    line = b'{"meta":{"requestId":"0123456789abcdef"},"principal":{"username":"jane.doe@example.com","ip":"192.0.2.1"}}'
    for echo in (line, json.dumps(line.decode()).encode(), json.dumps(json.dumps(line.decode())).encode()):
        said = words(b"cannot parse: " + echo, sent=b"[" + line + b"]")
        assert "jane" not in said
        assert said.endswith("...")
    assert words(b"cannot parse the element at position 17 of this body", sent=line).endswith("this body")


def test_hostile_words_cost_no_time():
    assert words(b"<" * 1_000_000, content_type="text/html") == "<" * 200


# What is sent


@responses.activate
def test_the_logging_service_gets_the_lines_as_they_are():
    responses.post(f"{URL}/activityLog", status=201)
    lines = [b'{"n":1.10,"big":123456789012345678901234567890}', b'{"s":"\xc3\xa9\\ud800"}']
    sink = logging_sink(compression="none", headers={"X-Team": "audit", "apikey": "other"})
    assert sink.send([event(line=line) for line in lines]) == Accepted(status=201)
    request = responses.calls[0].request
    assert request.body == b"[" + b",".join(lines) + b"]"
    assert request.headers["APIKEY"] == KEY
    assert "APIKEY" in list(request.headers), "spelt as it is documented"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Team"] == "audit"
    assert "Content-Encoding" not in request.headers


@responses.activate
def test_a_tag_that_leads_nowhere_is_named():
    responses.post(f"{URL}/activityLog", status=404)
    assert "check url and tag" in logging_sink().send([event()]).reason


@responses.activate
def test_equal_batches_are_equal_bytes_on_the_wire():
    responses.post(f"{URL}/activityLog", status=201)
    sink = logging_sink()
    for _ in range(2):
        sink.send([event()] * 100)
    first, second = (call.request for call in responses.calls)
    assert first.body == second.body
    assert first.headers["Content-Encoding"] == "gzip"
    assert len(first.body) < 200


@responses.activate
def test_a_tag_cannot_leave_its_path():
    responses.post(f"{URL}/a%3Fb%23c%20d", status=201)
    assert logging_sink(tag="a?b#c d").send([event()]) == Accepted(status=201)


@responses.activate
@pytest.mark.parametrize("status", [400, 401, 404, 413, 429])
def test_no_outcome_holds_a_secret_or_an_event(status):
    canary = b'{"principal":{"identity":{"username":"canary-person@example.com","contractNumber":"31960001"}}}'

    def echo(request):
        return status, {}, f"{request.headers} {canary.decode()} {request.headers['X-Extra']}"

    responses.add_callback(responses.POST, f"{URL}/activityLog", echo)
    outcome = logging_sink(headers={"X-Extra": "canary-header"}).send([event(line=canary)])
    assert "canary" not in repr(outcome)
    assert "HTTP" in outcome.reason


@responses.activate
@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("canary-key", "canary-key"),
        ("Token canary-key", "canary-key"),
        ('Token "canary-key"', "canary-key"),
        ("ApiKey Y2FuYXJ5==", "Y2FuYXJ5=="),
        ("session=canary-key; path=x", "canary-key"),
        ("path=x; session='canary-key'", "canary-key"),
        ("Digest user=me,response=canary-key", "canary-key"),
    ],
)
def test_what_a_receiver_quotes_of_a_header_that_a_person_gave_is_masked(value, quoted):
    responses.post(f"{URL}/activityLog", status=401, body=f"unknown: {quoted}!")
    outcome = logging_sink(headers={"X-Auth": value}).send([event()])
    assert outcome == CredentialsRefused("HTTP 401: unknown: ********!", 401)


def test_the_reason_of_a_missing_key_names_its_file_and_sends_nothing(tmp_path):
    source = SecretSource("file", str(tmp_path / "gone.key"), path="sinks[0].api_key_file")
    outcome = logging_sink(api_key=source).send([event()])
    assert isinstance(outcome, CredentialsRefused)
    assert "gone.key" in outcome.reason


@responses.activate
def test_being_stopped_while_waiting_for_a_turn_is_no_outcome():
    responses.post(f"{URL}/activityLog", status=201)
    stop = threading.Event()
    sink = logging_sink(stop, requests_per_second=0.01)
    sink.send([event()])
    stop.set()
    with pytest.raises(StoppedError):
        sink.send([event()])


@responses.activate
@pytest.mark.parametrize(
    ("settings", "header", "value"),
    [
        ({"bearer_token": secret("tok")}, "Authorization", "Bearer tok"),
        ({"username": "jane", "password": secret("p w", is_text=True)}, "Authorization", "Basic amFuZTpwIHc="),
        ({"tenant_id": "team-a"}, "X-Scope-OrgID", "team-a"),
        ({"headers": {"Authorization": "Custom x"}}, "Authorization", "Custom x"),
        ({}, "Authorization", None),
    ],
)
def test_loki_is_told_who_we_are(settings, header, value):
    responses.post(f"{URL}/loki/api/v1/push", status=204)
    assert loki_sink(**settings).send([event()]) == Accepted(status=204)
    assert responses.calls[0].request.headers.get(header) == value


# Moesif


def moesif_sink(too_old="dead-letter", **settings):
    table = MoesifSink(**{"name": "moesif", "url": URL, "application_id": secret(), **settings})
    return moesif.MoesifSink(table, Context(Config(), threading.Event(), too_old), clock=lambda: NOON)


ACTIONS = [event(1, line=b'{"@uuid":"a","event":{"type":"T"}}'), event(2, line=b'{"@uuid":"b","x":{"y":"z"}}')]


@responses.activate
def test_moesif_gets_one_action_alone_and_several_as_an_array():
    responses.post(f"{URL}/v1/actions", status=201)
    responses.post(f"{URL}/v1/actions/batch", status=202)
    sink = moesif_sink(action_name="x.y", uri_base="https://other.example")
    made = [ActionMaker(action_name="x.y", uri_base="https://other.example").make(one) for one in ACTIONS]
    assert sink.send(ACTIONS[:1]) == Accepted(status=201)
    assert sink.send(ACTIONS) == Accepted(status=202)
    single, batch = (call.request for call in responses.calls)
    assert single.body == made[0]
    assert batch.body == b"[" + made[0] + b"," + made[1] + b"]"
    assert single.headers["X-Moesif-Application-Id"] == KEY
    assert "X-Moesif-Application-Id" in list(single.headers), "spelt as it is documented"


@responses.activate
def test_moesif_is_not_asked_to_take_more_than_it_does(monkeypatch):
    responses.post(f"{URL}/v1/actions", status=201)
    responses.post(f"{URL}/v1/actions/batch", status=201)
    sizes = [len(ActionMaker().make(one)) for one in ACTIONS]
    largest = max(sizes)
    assert moesif_sink(max_event_bytes=largest).send(ACTIONS) == Accepted(status=201)
    too_long = TooLarge(f"larger than max_event_bytes: an action of {largest} bytes")
    assert moesif_sink(max_event_bytes=largest - 1).send(ACTIONS) == too_long
    body = sum(sizes) + len("[,]")
    monkeypatch.setattr(moesif, "MAX_BODY_BYTES", body)
    assert moesif_sink().send(ACTIONS) == Accepted(status=201)
    monkeypatch.setattr(moesif, "MAX_BODY_BYTES", body - 1)
    assert moesif_sink().send(ACTIONS) == TooLarge(f"a batch of {body} bytes")
    assert len(responses.calls) == 2


@responses.activate
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, b"", Accepted(status=201)),
        (400, b"batch is empty", Accepted(status=400)),
        (400, b"no such field", Refused("HTTP 400: no such field", 400)),
    ],
)
def test_a_probe_of_moesif_sends_no_action(status, body, expected):
    responses.post(f"{URL}/v1/actions/batch", status=status, body=body)
    assert moesif_sink().probe() == expected
    assert responses.calls[0].request.body == b"[]"


@responses.activate
def test_an_address_that_is_not_moesifs_is_named():
    responses.post(f"{URL}/v1/actions", status=404)
    assert "check url)" in moesif_sink().send(ACTIONS[:1]).reason


@responses.activate
@pytest.mark.parametrize("make", [moesif_sink, loki_sink])
def test_what_is_older_than_the_other_side_takes_is_refused_here(make):
    responses.post(f"{URL}/v1/actions", status=201)
    responses.post(f"{URL}/loki/api/v1/push", status=204)
    limit = make().max_age_seconds
    assert limit == (30 if make is moesif_sink else 7) * 86_400 - 60
    assert make().send([event(limit)]) == Accepted(status=201 if make is moesif_sink else 204)
    what = "30 days that Moesif takes" if make is moesif_sink else "7 days that Loki takes"
    assert what in make().send([event(limit + 0.000001)]).refused[0]
    assert len(responses.calls) == 1


# Probing


@responses.activate
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (204, b"", Accepted),
        (422, b"error at least one valid stream is required for ingestion", Accepted),
        (400, b"at least one valid stream is required", Accepted),
        (400, b"couldn't parse push request", Refused),
        (401, b"no org id", CredentialsRefused),
        (404, b"", RetryAfter),
        (500, b"", RetryAfter),
    ],
)
def test_a_probe_of_loki_knows_a_yes_from_a_no(status, body, kind):
    responses.post(f"{URL}/loki/api/v1/push", status=status, body=body)
    assert type(loki_sink().probe()) is kind


# Building


def test_a_sink_takes_over_its_table():
    settings = {"batch_events": 7, "batch_bytes": 4096, "max_event_bytes": 2048, "oversize": "truncate"}
    for sink, type_ in ((logging_sink(**settings), "logging-service"), (loki_sink(**settings), "loki")):
        assert {key: getattr(sink.settings, key) for key in settings} == settings
        assert sink.settings.type == type_


def test_standard_output_is_a_sink_like_any_other(capfdbinary):
    sink = build_sink(StdoutSink(name="out", batch_events=7), Config(), threading.Event())
    assert (sink.name, sink.settings.type, sink.settings.batch_events) == ("out", "stdout", 7)
    assert (sink.probe(), sink.send([event(line=b"{}"), event(line=b"{}")])) == (Accepted(), Accepted())
    assert capfdbinary.readouterr().out == b"{}\n{}\n"


def test_every_type_of_sink_can_be_built_and_takes_over_its_table():
    settings = {
        "batch_events": 7,
        "batch_bytes": 4096,
        "batch_age_seconds": 9.0,
        "max_event_bytes": 2048,
        "oversize": "truncate",
        "retry_initial_seconds": 3.0,
        "retry_max_seconds": 4.0,
    }
    tables = [
        MoesifSink(name="m", application_id=secret(), **settings),
        FirehoseSink(name="f", stream="s", **settings),
        FileSink(name="a", path="/tmp/a", format="moesif-action", **settings),
        StdoutSink(name="o", format="moesif-action", **settings),
    ]
    for table in tables:
        sink = build_sink(table, Config(), threading.Event())
        assert (sink.name, sink.settings.type) == (table.name, table.type)
        assert {key: getattr(sink.settings, key) for key in settings} == settings


@responses.activate
def test_what_becomes_of_old_events_is_what_was_asked_for_and_else_a_dead_letter():
    responses.post(f"{URL}/loki/api/v1/push", status=204)
    old = event(1000 * 86_400, collected_at=int(time.time()))
    table = LokiSink(name="loki", url=URL)
    assert list(build_sink(table, Config(), threading.Event()).send([old]).refused) == [0]
    stamped = build_sink(table, Config(), threading.Event(), too_old="stamp-now")
    assert stamped.send([old]) == Accepted(status=204)
    doubtful = build_sink(table, Config(), threading.Event(), trusted_now=lambda: None)
    assert doubtful.send([old]).retry == (0,)


# How an event becomes a line


def rendered(render, line=b'{"@uuid":"a","x":{"y":"z"}}'):
    return json.loads(render(event(line=line)))


def test_each_format_is_what_it_is_called():
    for name, key in (("ocsf", "class_uid"), ("ecs", "ecs"), ("moesif-action", "transaction_id")):
        table = FileSink(name="f", path="/x", format=name)
        assert key in rendered(build_render(table))
        assert key in rendered(chosen_render(name, []))
    assert build_render(FileSink(name="f", path="/x")) is None
    assert chosen_render("raw", []) is None


def test_actions_are_made_as_the_table_says():
    keys = {"action_name": "x.y", "company_id": "@uuid", "user_id": "x.y", "uri_base": "https://other.example"}
    for table in (
        FileSink(name="f", path="/x", format="moesif-action", **keys),
        MoesifSink(name="m", application_id=secret(), **keys),
    ):
        for render in (build_render(table), chosen_render("moesif-action", [table])):
            made = rendered(render)
            assert (made["action_name"], made["company_id"], made["user_id"]) == ("z", "a", "z")
            assert made["request"]["uri"].startswith("https://other.example")


def test_actions_that_are_asked_for_by_hand_are_made_as_the_first_sink_makes_them():
    def named(path, **keys):
        return FileSink(name="f", path="/x", action_name=path, **keys)

    others = [LokiSink(name="l", url=URL), named("@uuid")]
    theirs = [named("x.y", format="moesif-action"), named("@uuid", format="moesif-action")]
    assert rendered(chosen_render("moesif-action", [*others, *theirs]))["action_name"] == "z"
    usual = rendered(chosen_render("moesif-action", others))
    assert usual == rendered(ActionMaker().make)


def test_a_file_sink_brings_no_http_library(tmp_path: Path):
    program = (
        "import sys, threading\n"
        "from poller.config import Config, FileSink\n"
        "from poller.sinks.build import build_sink\n"
        f"build_sink(FileSink(name='a', path={str(tmp_path / 'a')!r}), Config(), threading.Event())\n"
        "sys.exit('requests' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, env=clean_environment(), check=False)
    assert done.returncode == 0


# Age


def test_what_a_sink_refuses_or_wants_again_is_said_of_the_right_event_beside_those_that_are_too_old():
    later = RetryAfter("throttled")
    limit = AgeLimit(100, "100 seconds", Context(Config(), threading.Event()), lambda: NOON)
    events = [event(500), event(1), event(500), event(2), event(3)]
    outcome = limit.send(events, lambda young: Accepted({0: "bad"}, (2,), 400, later))
    assert outcome.refused == {0: outcome.refused[0], 1: "bad", 2: outcome.refused[2]}
    assert "older than 100 seconds" in outcome.refused[0]
    assert outcome[1:] == ((4,), None, later)


def limit_of_100(too_old="dead-letter", trusted_now=None):
    context = Context(Config(), threading.Event(), too_old, trusted_now)
    return AgeLimit(100, "100 seconds", context, lambda: NOON)


def test_an_event_may_be_as_old_as_the_limit_to_the_microsecond():
    sent = []
    edge = [event(100), event(100.000001)]
    outcome = limit_of_100().send(edge, lambda young: sent.append(young) or Accepted(status=204))
    assert sent == [edge[:1]]
    assert outcome == Accepted({1: "older than 100 seconds: 2026-05-01T11:58:19.999Z"})
    assert limit_of_100().send(edge[:1], lambda young: Accepted(status=204)) == Accepted(status=204)


def test_what_is_too_old_gets_the_time_at_which_it_was_collected_where_it_is_to():
    limit, sent = limit_of_100("stamp-now"), []
    old = event(100.000001)
    edge = [old, event(100), event(1)]
    expected = [msgspec.structs.replace(old, time_us=NOON * 1_000_000), *edge[1:]]
    assert limit.as_sent(edge) == expected
    assert limit.send(edge, lambda events: sent.append(events) or Accepted(status=204)) == Accepted(status=204)
    assert sent == [expected]
    assert limit_of_100("skip").as_sent(edge) is edge
    # It was collected too long ago as well, so it has no true time that is recent enough.
    late = event(1, collected_at=NOON - 101)
    assert list(limit.send([late], lambda events: Accepted()).refused) == [0]


@pytest.mark.parametrize("outcome", [RetryAfter("busy"), CredentialsRefused("no"), TooLarge("much"), Refused("bad")])
def test_what_becomes_of_the_young_ones_as_a_whole_becomes_of_all(outcome):
    assert limit_of_100().send([event(500), event(1)], lambda young: outcome) == outcome


def test_of_two_clocks_the_earlier_counts():
    for trusted in (NOON + 50, NOON):
        assert limit_of_100(trusted_now=lambda trusted=trusted: trusted).send(
            [event(100)], lambda young: Accepted(status=204)
        ) == Accepted(status=204)
    assert list(
        limit_of_100(trusted_now=lambda: NOON - 50).send([event(150), event(151)], lambda _: Accepted()).refused
    ) == [1]


def test_what_waits_for_a_clock_waits_with_what_the_other_side_wants_again():
    events = [event(500), event(1), event(2), event(3), event(500)]
    outcome = limit_of_100(trusted_now=lambda: None).send(events, lambda young: Accepted({0: "bad"}, (2,), 400))
    assert outcome[:3] == ({1: "bad"}, (0, 3, 4), None)
    assert outcome.later.reason.startswith(
        "events look older than 100 seconds, but the API's clock does not confirm this machine's ("
    )
    busy = RetryAfter("busy", 7.0)
    outcome = limit_of_100(trusted_now=lambda: None).send(events, lambda young: Accepted({}, (2,), 400, busy))
    assert outcome.later == busy


def age_limit(trusted_now):
    """An age limit of 100 seconds, on a machine whose clock is three days ahead."""
    return AgeLimit(
        100,
        "100 seconds",
        Context(Config(), threading.Event(), trusted_now=trusted_now),
        lambda: NOON + 3 * 86_400,
    )


def test_a_clock_that_is_ahead_makes_no_event_too_old():
    sent = []
    outcome = age_limit(lambda: NOON).send([event(1), event(500)], lambda young: sent.append(young) or Accepted())
    assert list(outcome.refused) == [1]
    assert [len(young) for young in sent] == [1]


def test_what_looks_too_old_by_a_clock_that_nobody_confirms_waits_and_the_rest_is_sent():
    old, young = event(4 * 86_400), event(-3 * 86_400)
    outcome = age_limit(lambda: None).send([old, young, old], lambda events: Accepted())
    assert (outcome.refused, outcome.retry) == ({}, (0, 2))
    assert "NTP" in outcome.later.reason
    assert age_limit(lambda: None).send([young], lambda events: Accepted(status=204)) == Accepted(status=204)


@pytest.mark.parametrize(
    ("skews", "seconds", "expected"),
    [
        ([None], 1, None),
        ([None], 60, NOON),
        ([0.0], 1, NOON),
        ([3 * 86_400.0], 1, NOON - 3 * 86_400),
        ([-3 * 86_400.0], 1, NOON),
        ([None, 60.0], 1, NOON - 60),
        ([400 * 86_400.0], 60, None),
    ],
)
def test_the_trusted_time_is_the_earliest_that_is_known(skews, seconds, expected):
    accounts = {str(number): SimpleNamespace(clock_skew_seconds=skew) for number, skew in enumerate(skews)}
    steady = iter([0, seconds])
    assert trusted_clock(accounts, lambda: NOON, lambda: next(steady))() == expected


@responses.activate
def test_an_echo_of_what_was_sent_is_left_out_also_where_it_was_sent_compressed():
    # The receiver repeats the line in its decoded form, which differs from the bytes that were sent.
    canary = b'{"principal":{"identity":{"username":"canary-person@example.com"}}}'
    bodies = []

    def echo(request):
        bodies.append(gzip.decompress(request.body))
        return 422, {}, b"cannot parse: " + bodies[-1]

    responses.add_callback(responses.POST, f"{URL}/activityLog", echo)
    outcome = logging_sink(compression="gzip").send([event(line=canary)])
    assert canary in bodies[0]
    assert "canary" not in repr(outcome)
    assert outcome.reason.startswith("HTTP 422")
