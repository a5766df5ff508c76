"""What the answers of OpenSearch and Elasticsearch mean, item by item and as a whole."""

from __future__ import annotations

import json
import re
import threading
from base64 import b64encode
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import responses

from poller.config import Config, OpenSearchSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.events import OutboxEvent
from poller.core.mapping.ecs import ECS
from poller.net.transport import Response
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks import opensearch
from poller.sinks.build import build_sink
from poller.sinks.opensearch import outcome_of_items
from tests.formats import ECS_OWN, ecs_fields
from tests.support import TOP

AT_US = 1_777_621_340_530_000
TAKEN = {"status": 201}
THERE = {"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "document already exists"}}
BUSY = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue is full"}}
BAD = {
    "status": 400,
    "error": {"type": "mapper_parsing_exception", "reason": "failed to parse", "caused_by": {"reason": "no date"}},
}
FORBIDDEN = {"status": 403, "error": {"type": "security_exception", "reason": "no permissions"}}


def judged(*results: Any) -> Outcome:
    body = json.dumps({"errors": True, "items": [{"create": result} for result in results]}).encode()
    return outcome_of_items(body, [str(number) for number in range(len(results))])


def test_what_is_there_already_was_taken():
    assert judged(TAKEN, THERE, {"status": 200}, {"status": 409}) == Accepted(status=200)


def test_what_is_refused_for_good_leaves_the_others_alone():
    assert judged(TAKEN, BAD, THERE) == Accepted(
        {1: "400 mapper_parsing_exception: failed to parse: no date"}, status=200
    )


def test_what_is_busy_is_sent_again_and_nothing_else_is():
    outcome = judged(TAKEN, BUSY, BAD, BUSY)
    assert isinstance(outcome, Accepted)
    assert (outcome.retry, list(outcome.refused)) == ((1, 3), [2])
    assert outcome.later == RetryAfter(
        "2 of 4 events were not taken: 429 es_rejected_execution_exception: queue is full", is_size_suspect=True
    )
    assert judged(BUSY, BUSY) == RetryAfter(
        "no event was taken: 429 es_rejected_execution_exception: queue is full", is_size_suspect=True
    )


@pytest.mark.parametrize("own", [{"_id": "lEu8jZYB_ZAKuDfZNouU"}, {"_id": "1"}, {}], ids=["another id", "ours", "none"])
@pytest.mark.parametrize("status", [201, 200])
def test_what_a_failure_store_took_is_not_in_the_index_and_leaves_the_others_alone(own, status):
    kept = {"status": status, "failure_store": "used", **own}
    outcome = judged({**TAKEN, "_id": "0"}, kept, {**BUSY, "_id": "2"})
    assert isinstance(outcome, Accepted)
    assert (list(outcome.refused), outcome.retry) == ([1], (2,))
    assert "::failures" in outcome.refused[1]
    alone = outcome_of_items(json.dumps({"items": [{"create": kept}]}).encode(), ["1"])
    assert alone == Accepted({0: outcome.refused[1]}, status=200)


PREVIEW = (
    "failed to parse field [user] of type [long] in document with id '1'. Preview of field's value: '{name=jane\nx}'"
)


@pytest.mark.parametrize(
    "error",
    [
        {"type": "document_parsing_exception", "reason": PREVIEW},
        {"type": "document_parsing_exception", "reason": "failed", "caused_by": {"reason": PREVIEW}},
        {"type": "document_parsing_exception", "reason": "failed", "caused_by": PREVIEW},
        f"document_parsing_exception: {PREVIEW}",
    ],
    ids=["reason", "cause", "bare cause", "text"],
)
def test_the_value_of_an_event_that_an_answer_shows_is_not_among_its_words(error):
    outcome = judged(TAKEN, {"status": 400, "error": error})
    assert isinstance(outcome, Accepted)
    assert outcome.refused[1].endswith("failed to parse field [user] of type [long] in document with id '1'")
    whole = opensearch._readable(Response(400, {}, json.dumps({"error": error}).encode()))
    assert b"jane" not in whole.body


@pytest.mark.parametrize("told", ["not_enabled", "failed", "not_applicable_or_unknown", None, 1])
def test_a_failure_store_that_was_not_used_changes_nothing(told):
    assert judged({**TAKEN, "failure_store": told}, {**BAD, "failure_store": told}) == judged(TAKEN, BAD)
    busy = judged({**BUSY, "failure_store": told})
    assert busy == judged(BUSY)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, "index_closed_exception", "open the index"),
        (400, "invalid_index_name_exception", "check index"),
        (404, "index_not_found_exception", "check index, or let it be created"),
        (400, "resource_already_exists_exception", "at the same time"),
        (400, "routing_missing_exception", "no routing"),
        (403, "cluster_block_exception", "403 cluster_block_exception"),
        (409, "resource_already_exists_exception", "409 resource_already_exists_exception"),
        (500, "", "500"),
        (503, "unavailable_shards_exception", "503"),
        (405, "", "405"),
        (201, "odd", "201 odd"),
    ],
)
def test_what_is_not_about_the_event_costs_none(status, kind, words):
    result = {"status": status, **({"error": {"type": kind}} if kind else {})}
    outcome = judged(result)
    assert isinstance(outcome, RetryAfter)
    assert words in outcome.reason
    assert judged(TAKEN, result) == Accepted(retry=(1,), status=200, later=outcome_later(judged(TAKEN, result)))


@pytest.mark.parametrize(
    ("kind", "reason", "words"),
    [
        ("validation_exception", "this action would add [2] shards, but this cluster has [1000]/[1000]", "max_shards"),
        (
            "illegal_argument_exception",
            "Validation Failed: 1: this action would add [10] total shards, but this cluster currently has [9]/[9]",
            "max_shards",
        ),
        ("illegal_argument_exception", "no write index is defined for alias [x]", "a write index"),
        (
            "illegal_argument_exception",
            "Alias [x] has more than one indices, can't execute a single index op",
            "a write index",
        ),
        (
            "illegal_argument_exception",
            "Document ID is not supported in create/index operation request",
            "of type search",
        ),
        ("illegal_argument_exception", "pipeline with id [x] does not exist", "create the pipeline"),
        ("illegal_argument_exception", "Document contains at least one immense term", None),
        ("strict_dynamic_mapping_exception", "mapping set to strict", None),
        ("document_parsing_exception", "pipeline with id [x]", None),
    ],
)
def test_what_a_400_is_about_is_told_by_its_words_too(kind, reason, words):
    outcome = judged(TAKEN, {"status": 400, "error": {"type": kind, "reason": reason}})
    assert isinstance(outcome, Accepted)
    assert (outcome.retry, list(outcome.refused)) == (((), [1]) if words is None else ((1,), []))
    assert words is None or words in outcome_later(outcome).reason


@responses.activate
@pytest.mark.parametrize(
    ("kind", "expected"), [("cluster_block_exception", RetryAfter), ("security_exception", CredentialsRefused)]
)
def test_a_cluster_that_takes_no_writes_has_nothing_against_our_credentials(kind, expected):
    error = {"type": kind, "reason": "blocked by: [FORBIDDEN/6/cluster read-only (api)];"}
    responses.post("https://search.example/_bulk", status=403, json={"error": error, "status": 403})
    table = OpenSearchSink(name="s", url="https://search.example", compression="none")
    event = OutboxEvent("31960001", AT_US, AT_US // 1_000_000, b"x" * 16, 0, b"{}")
    outcome = build_sink(table, Config(), threading.Event()).send([event])
    assert isinstance(outcome, expected)
    assert ("lift the block" in outcome.reason) == (expected is RetryAfter)


@responses.activate
@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ({"type": "illegal_argument_exception", "reason": "no write index is defined for alias [x]"}, "a write index"),
        (
            {"type": "illegal_argument_exception", "reason": "explicit index in bulk is not allowed"},
            "allow_explicit_index",
        ),
        ("no handler found for uri [/a/b/_bulk] and method [POST]", "check url"),
        ({"type": "illegal_argument_exception", "reason": "this is about an event"}, None),
        ("an event says: no handler found for uri [/a]", None),
    ],
)
def test_a_refusal_of_the_request_costs_no_event_where_none_is_to_blame(error, remedy):
    responses.post("https://search.example/_bulk", status=400, json={"error": error, "status": 400})
    table = OpenSearchSink(name="s", url="https://search.example", compression="none")
    event = OutboxEvent("31960001", AT_US, AT_US // 1_000_000, b"x" * 16, 0, b"{}")
    outcome = build_sink(table, Config(), threading.Event()).send([event])
    assert isinstance(outcome, RetryAfter if remedy else Refused)
    assert remedy is None or remedy in outcome.reason


def test_items_are_told_by_their_ids_in_whatever_order_they_come():
    def answer(*items: tuple[str, Any]) -> Outcome:
        body = {"items": [{"create": {"_index": "x", "_id": name, **result}} for name, result in items]}
        return outcome_of_items(json.dumps(body).encode(), ["a", "b", "c"])

    assert list(answer(("a", TAKEN), ("b", BAD), ("c", TAKEN)).refused) == [1]
    swapped = answer(("c", BAD), ("a", BUSY), ("b", THERE))
    assert (swapped.retry, list(swapped.refused)) == ((0,), [2])
    for items in (
        (("a", TAKEN), ("b", TAKEN)),
        (("b", TAKEN), ("a", TAKEN), ("d", TAKEN)),
        (("d", TAKEN), ("a", TAKEN), ("b", TAKEN)),
        (("a", TAKEN), ("b", TAKEN), ("b", TAKEN)),
        (("a", TAKEN), ("b", TAKEN), ("c", TAKEN), ("d", TAKEN)),
    ):
        assert isinstance(answer(*items), RetryAfter)
    # If a pipeline gave another id, the item belongs to the request at the same position.
    assert answer(("a", TAKEN), ("x", BAD), ("c", BUSY)) == answer(("a", TAKEN), ("b", BAD), ("c", BUSY))
    assert answer(("x", TAKEN), ("y", BAD), ("z", BUSY)) == answer(("a", TAKEN), ("b", BAD), ("c", BUSY))
    assert answer(("x", TAKEN), ("x", TAKEN), ("x", TAKEN)) == Accepted(status=200)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"status": 400, "error": "mapper_parsing_exception: no date"}, "400 mapper_parsing_exception: no date"),
        ({"status": 400, "error": {"type": "x", "reason": {"field": "a"}}}, '400 x: {"field":"a"}'),
        ({"status": 400, "error": {"type": "x", "reason": None, "caused_by": "y"}}, "400 x: y"),
        ({"status": 400, "error": ["x"]}, '400 ["x"]'),
        ({"status": 413, "error": {"type": "x", "reason": "too large"}}, "413 x: too large"),
        ({"status": 422, "error": {"type": "x", "reason": "no"}}, "422 x: no"),
    ],
)
def test_an_event_that_is_refused_in_other_words_is_refused_all_the_same(result, words):
    assert judged(TAKEN, result, THERE) == Accepted({1: words}, status=200)


@pytest.mark.parametrize("item", [None, {}, [], "x", {"create": None}, {"create": {}}, {"create": {"status": "400"}}])
def test_an_item_that_cannot_be_read_leaves_the_others_alone(item):
    items = [{"create": {"_id": "a", **TAKEN}}, item, {"create": {"_id": "c", **BAD}}]
    outcome = outcome_of_items(json.dumps({"items": items}).encode(), ["a", "b", "c"])
    assert isinstance(outcome, Accepted)
    assert (outcome.retry, list(outcome.refused)) == ((1,), [2])
    assert "has no status" in outcome_later(outcome).reason


def item(name: bytes, rest: bytes = b'"status":201') -> bytes:
    return b'{"create":{"_id":"%b",%b}}' % (name, rest)


def answered(*items: bytes, before: bytes = b"") -> bytes:
    return before + b'{"errors":true,"items":[%b]}' % b",".join(items)


ODD = (
    rb"\ud800",
    rb"a\udfff\ud83d",
    b"\xff",
    b"J\xc3",
    b"\xed\xa0\x80",
    b"\t\n",
    rb"\u0000",
    b"\0\x1b[31m",
    rb"\ud83d\ude00",
)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
def test_odd_characters_in_the_words_of_an_item_change_nothing(odd: bytes, before: bytes) -> None:
    words = b'"status":400,"error":{"type":"mapper_parsing_exception","reason":"Preview: \'%b\'","caused_by":{"reason":"%b!"}}'
    bad = item(b"b", words % (odd, odd))
    for others in ((), (item(b"a"),)):
        names = [*"ab"][-1 - len(others) :]
        outcome = outcome_of_items(answered(*others, bad, before=before), names)
        assert isinstance(outcome, Accepted)
        ((index, said),) = outcome.refused.items()
        assert (index, outcome.retry) == (len(others), ())
        assert said.startswith("400 mapper_parsing_exception: Preview: '")
        assert said.endswith("!")
        assert said.isprintable(), "a terminal takes it, and a database"
    busy = item(b"a", b'"status":429,"error":{"type":"busy","reason":"%b"}' % odd)
    outcome = outcome_of_items(answered(busy, bad, item(b"c", b'"status":"201"'), before=before), ["a", "b", "c"])
    assert isinstance(outcome, Accepted)
    assert (outcome.retry, list(outcome.refused)) == ((0, 2), [1])


def test_an_item_that_is_nested_too_deeply_to_read_raises_nothing() -> None:
    for depth in (100, 900, *range(970, 1000), 5000, 100_000):
        for odd in (b"", b"\xff"):
            nested = b'"status":400,"error":{"type":"%b","reason":%b%b}' % (odd, b"[" * depth, b"]" * depth)
            outcome = outcome_of_items(answered(item(b"a"), item(b"b", nested)), ["a", "b"])
            assert isinstance(outcome, RetryAfter) or list(outcome.refused) == [1]


def test_whether_there_are_errors_is_what_the_items_say():
    for errors in (True, False, None):
        body = json.dumps({"errors": errors, "items": [{"create": TAKEN}, {"create": BAD}]}).encode()
        assert list(outcome_of_items(body, ["a", "b"]).refused) == [1]
    assert outcome_of_items(b'{"took":3,"errors":true,"items":[{"create":{"status":201}}]}', ["a"]) == Accepted(
        status=200
    )


def outcome_later(outcome: Outcome) -> RetryAfter | None:
    assert isinstance(outcome, Accepted)
    return outcome.later


def test_rights_that_are_missing_stop_delivery_where_nothing_is_taken():
    refused = judged(FORBIDDEN, FORBIDDEN)
    assert isinstance(refused, CredentialsRefused)
    assert "create_doc" in refused.reason
    assert isinstance(judged(FORBIDDEN, TAKEN), Accepted)
    assert isinstance(judged(FORBIDDEN, BUSY), RetryAfter)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"[]", b'{"items":[]}', b'{"items":[{}]}', b'{"items":[{"create":{}}]}', b"<html>"),
        b'{"items":[{"create":{"status":201},"index":{"status":201}}]}',
        b'{"items":[{"create":{"status":201},"index":{"status":201}},{}]}',
        b'{"items":[{"create":{"status":"201"}}]}',
        b'{"items":' + b"[" * 5000,
    ],
)
def test_an_answer_that_is_none_of_bulk_is_no_success(body):
    assert isinstance(outcome_of_items(body, ["0"]), RetryAfter)


# Against the stand-in


@pytest.fixture(scope="module")
def simulator():
    with Simulator(SimulatorSettings(contracts=1, events=0, keep_lines=True)) as simulator:
        yield simulator


@pytest.fixture
def usual(simulator):
    yield simulator
    simulator.change_settings(
        poison="", opensearch_busy_every=0, opensearch_authorization="", opensearch_readonly=False, max_body_bytes=0
    )
    simulator.change_settings(opensearch_number="2.19.0", opensearch_distribution="opensearch")
    simulator.set_faults([])


def sink_for(simulator: Simulator, **settings: Any) -> Any:
    usual = {"name": "s", "url": f"{simulator.url}/sink/opensearch", "requests_per_second": 10_000.0}
    return build_sink(OpenSearchSink(**{**usual, **settings}), Config(), threading.Event())


def events(*numbers: int, contract: str = "1") -> list[OutboxEvent]:
    return [
        OutboxEvent(contract, AT_US + number, 0, number.to_bytes(16), 0, b'{"n":%d}' % number) for number in numbers
    ]


def source(value: str) -> SecretSource:
    return SecretSource("inline", "", path="x", inline=Secret(value))


def test_an_event_is_there_once_however_often_it_is_sent(usual):
    sink, intake = sink_for(usual), usual.intakes["opensearch"]
    before = intake.stored
    assert sink.send(events(1, 2, 3)) == sink.send(events(1, 2, 3)) == Accepted(status=200)
    assert (intake.stored - before, intake.repeats) == (3, 0)
    # The same identity in another contract is a different entry.
    assert sink.send(events(1, contract="2")) == Accepted(status=200)
    assert intake.stored - before == 4


@pytest.mark.parametrize("name", ["raw", "ocsf", "ecs", "moesif-action"])
def test_every_format_has_the_time_that_a_data_stream_wants(usual, name):
    assert sink_for(usual, format=name, index=f"x-{name}").send(events(4)) == Accepted(status=200)
    kept = usual.intakes["opensearch"].kept[-1]
    assert json.loads(kept.line)["@timestamp"] == "2026-05-01T07:42:20.530Z"
    assert kept.key == f"x-{name}/1-{(4).to_bytes(16).hex()}".encode()


def test_an_index_for_each_day_is_that_of_the_event(usual):
    sink_for(usual, index="daily-{date}").send(events(5))
    assert usual.intakes["opensearch"].kept[-1].key.startswith(b"daily-2026-05-01/")


def test_the_stand_in_refuses_item_by_item(usual):
    usual.change_settings(poison='{\\"n\\":21}', opensearch_busy_every=4)
    outcome = sink_for(usual, index="items").send(events(21, 22, 23, 24, 25))
    assert isinstance(outcome, Accepted)
    assert (len(outcome.retry), list(outcome.refused)) in ((1, [0]), (2, [0]), (2, []))
    assert all("mapper_parsing_exception" in words for words in outcome.refused.values())


@pytest.mark.parametrize(
    ("settings", "faults", "expected", "words"),
    [
        ({"opensearch_authorization": "x"}, [], CredentialsRefused, "missing authentication credentials"),
        ({"opensearch_readonly": True}, [], RetryAfter, "cluster_block_exception"),
        ({"max_body_bytes": 100}, [], TooLarge, "413"),
        ({}, ["sink=opensearch:429"], RetryAfter, "429"),
        ({}, ["sink=opensearch:503"], RetryAfter, "503"),
        ({}, ["sink=opensearch:400"], Refused, "400"),
        ({}, ["sink=opensearch:403"], CredentialsRefused, "403"),
        ({}, ["sink=opensearch:404"], RetryAfter, "check url and index"),
        ({}, ["sink=opensearch:html"], RetryAfter, "a page for people"),
        ({}, ["sink=opensearch:lost-ack"], RetryAfter, ""),
        ({}, ["sink=opensearch:cut"], RetryAfter, ""),
    ],
)
def test_a_request_is_refused_as_a_whole(usual, settings, faults, expected, words):
    usual.change_settings(**settings)
    usual.set_faults(faults)
    outcome = sink_for(usual, index="whole").send(events(30, 31))
    assert isinstance(outcome, expected)
    assert words in outcome.reason
    usual.change_settings(opensearch_authorization="", opensearch_readonly=False, max_body_bytes=0)
    usual.set_faults([])
    assert sink_for(usual, index="whole").send(events(30, 31)) == Accepted(status=200)


def test_both_logins_are_sent(usual):
    usual.change_settings(opensearch_authorization=f"Basic {b64encode(b'poller:s3cret-word').decode()}")
    assert sink_for(usual, username="poller", password=source("s3cret-word")).send(events(40)) == Accepted(status=200)
    refused = sink_for(usual, username="poller", password=source("an-old-word")).send(events(40))
    assert isinstance(refused, CredentialsRefused)
    usual.change_settings(opensearch_authorization="ApiKey a2V5")
    assert sink_for(usual, api_key=source("a2V5")).send(events(41)) == Accepted(status=200)


@pytest.mark.parametrize(
    ("settings", "expected", "words"),
    [
        ({}, Accepted, ""),
        ({"opensearch_number": "9.1.0", "opensearch_distribution": ""}, Accepted, ""),
        ({"opensearch_number": "6.8.23", "opensearch_distribution": ""}, RetryAfter, "6.8.23 is too old"),
        ({"opensearch_number": "1.0.0"}, Accepted, ""),
        ({"opensearch_number": ""}, Accepted, ""),
        ({"opensearch_authorization": "x"}, CredentialsRefused, "401"),
        ({"opensearch_readonly": True}, RetryAfter, "cluster_block_exception"),
    ],
)
def test_a_probe_tells_what_a_batch_would_meet_and_leaves_nothing(usual, settings, expected, words):
    sink_for(usual).send(events(50))  # creates the index
    before = usual.intakes["opensearch"].stored
    usual.change_settings(**settings)
    outcome = sink_for(usual).probe()
    assert isinstance(outcome, expected)
    assert words in getattr(outcome, "reason", "")
    assert usual.intakes["opensearch"].stored == before


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(200, b"{}"), (200, b""), (200, b'{"items":[{"create":{"status":400,"error":"x"}}]}')], Accepted(status=200)),
        # A user that may only write cannot ask for the version.
        ([(403, b""), (200, b""), (200, b'{"items":[{"create":{"status":400,"error":"x"}}]}')], Accepted(status=200)),
        ([(403, b""), (403, b""), (200, b'{"items":[{"create":{"status":409}}]}')], Accepted(status=200)),
        ([(200, b"{}"), (404, b"")], Accepted(status=404)),
        ([(200, b"{}"), (401, b"")], CredentialsRefused("HTTP 401", 401)),
        ([(401, b"no")], CredentialsRefused("HTTP 401: no", 401)),
        ([(400, b"no")], Refused("HTTP 400: no", 400)),
        ([(503, b"busy")], RetryAfter("HTTP 503: busy", is_size_suspect=True)),
        (
            [(200, b'{"version":{"number":"6.8.23"}}')],
            RetryAfter("Elasticsearch 6.8.23 is too old (7 or later is needed)"),
        ),
        ([(200, b'{"version":{"number":"7.0.0"}}'), (404, b"")], Accepted(status=404)),
        (
            [(200, b"{}"), (200, b""), (200, b'{"items":[{"create":{"status":429,"error":"busy"}}]}')],
            RetryAfter("no event was taken: 429 busy", is_size_suspect=True),
        ),
        ([(200, b"{}"), (200, b""), (403, b"no")], CredentialsRefused("HTTP 403: no", 403)),
    ],
)
@responses.activate
def test_a_probe_asks_for_the_version_then_for_the_index_and_then_tries_what_is_no_document(
    answers, expected, monkeypatch
):
    monkeypatch.setattr(opensearch, "time", SimpleNamespace(time_ns=lambda: AT_US * 1000))
    left = list(answers)

    def answer(request: Any) -> tuple[int, dict[str, str], bytes]:
        status, body = left.pop(0)
        return status, {}, body

    for method in ("GET", "HEAD", "POST"):
        responses.add_callback(method, re.compile("https://search.example/.*"), answer)
    table = OpenSearchSink(name="s", url="https://search.example", index="x-{date}", compression="none")
    assert build_sink(table, Config(), threading.Event()).probe() == expected
    requests = [call.request for call in responses.calls]
    asked = [(one.method, urlsplit(one.url).path) for one in requests]
    assert asked == [("GET", "/"), ("HEAD", "/x-2026-05-01"), ("POST", "/_bulk")][: len(answers)]
    if len(answers) == 3:
        action, document, rest = requests[2].body.split(b"\n")
        assert json.loads(action) == {"create": {"_index": "x-2026-05-01", "_id": "ionos-poller-check"}}
        assert (document, rest) == (b"{", b""), "no JSON, so that nothing is ever created"


def test_a_probe_finds_a_receiver_that_is_out_of_reach_and_one_that_has_no_such_index_yet(usual):
    assert isinstance(sink_for(usual, url="http://127.0.0.1:9").probe(), RetryAfter)
    with Simulator(SimulatorSettings(contracts=1, events=0)) as empty:
        assert sink_for(empty).probe() == Accepted(status=404)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'{"error":{"type":"security_exception","reason":"no permissions"},"status":403}',
            b"security_exception: no permissions",
        ),
        (b'{"error":"alias [x] missing"}', b"alias [x] missing"),
        (b"Unauthorized", b"Unauthorized"),
        (b'{"error":7}', b'{"error":7}'),
        (b'{"error":["no"]}', b'{"error":["no"]}'),
        (b'{"error":{}}', b'{"error":{}}'),
        (rb'{"error":{"type":"x","reason":"cut J\ud800"}}', "x: cut J\ufffd".encode()),
        (b'{"error":{"type":"x","reason":"cut J\xc3"}}', "x: cut J\ufffd".encode()),
    ],
)
def test_the_words_of_a_refusal_are_the_servers(body, words):
    assert opensearch._readable(Response(403, {}, body)).body == words


@pytest.mark.parametrize("name", ["data-stream", "daily"])
def test_the_index_template_has_every_field_with_the_type_of_the_standard(name):
    template = json.loads((TOP / "opensearch" / f"{name}.json").read_text())
    assert ("data_stream" in template) == (name == "data-stream")
    expected = {"match_only_text": "text", "wildcard": "keyword"}  # not every OpenSearch has these two
    for row in ECS.tables[0]:
        if not row.field.startswith(ECS_OWN):
            found = template["template"]["mappings"]
            for key in row.field.split("."):
                found = found["properties"][key]
            kind = ecs_fields()[row.field][0]
            assert found["type"] == expected.get(kind, kind), row.field
    original = template["template"]["mappings"]["properties"]["event"]["properties"]["original"]
    assert (original["index"], original["doc_values"]) == (False, False)
