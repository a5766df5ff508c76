"""The sink for AWS Data Firehose: what a call holds, and what each answer means for each record."""

from __future__ import annotations

import re
import sys
import threading
from types import SimpleNamespace
from typing import Any

import botocore.exceptions as raised
import pytest
from urllib3.util.ssl_match_hostname import CertificateError

from poller.config import Config, FirehoseSink
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, RetryAfter, TooLarge
from poller.core.errors import ConfigError, StoppedError
from poller.core.events import OutboxEvent
from poller.net.connections import SendTimeoutError, TooLargeError, TooSlowError
from poller.sinks.build import build_sink
from poller.sinks.firehose import outcome_of_answer, outcome_of_error, outcome_of_failure
from poller.system import liveness
from poller.system.liveness import GRACE_SECONDS, Workers
from tests.amazon import Library, refused

KIB, MIB = 1 << 10, 1 << 20
TAKEN = {"RecordId": "1"}


class Stream:
    """A stream with answers that a test sets. It records the calls."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self.status: dict[str, Any] = {"DeliveryStreamDescription": {"DeliveryStreamStatus": "ACTIVE"}}
        self.results: list[Any] | None = None
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def put_record_batch(self, **asked: Any) -> dict[str, Any]:
        self._ask(asked)
        results = [TAKEN] * len(asked["Records"]) if self.results is None else self.results
        return {"FailedPutCount": 0, "RequestResponses": results}

    def describe_delivery_stream(self, **asked: Any) -> dict[str, Any]:
        self._ask(asked)
        return self.status

    def _ask(self, asked: dict[str, Any]) -> None:
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure

    @property
    def records(self) -> list[bytes]:
        return [record["Data"] for record in self.asked[-1]["Records"]]


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Library:
    return Library(monkeypatch, "poller.sinks.firehose", stream)


def make(stop: threading.Event | None = None, config: Config | None = None, **settings: Any) -> Any:
    table = FirehoseSink(**{"name": "aws", "stream": "activity", "region": "eu-central-1", **settings})
    return build_sink(table, config or Config(), stop or threading.Event())


def events(*sizes: int) -> list[OutboxEvent]:
    return [OutboxEvent("1", 0, 0, b"i" * 16, 0, b"{%s}" % (b" " * (size - 2))) for size in sizes]


# What a call holds


def test_a_record_is_a_line_that_ends(stream: Stream, library: Library) -> None:
    assert make().send(events(2, 3)) == Accepted(status=200)
    assert stream.asked == [{"DeliveryStreamName": "activity", "Records": [{"Data": b"{}\n"}, {"Data": b"{ }\n"}]}]
    make(format="ocsf").send(events(2))
    assert b'"class_uid"' in stream.records[0]
    assert stream.records[0].endswith(b"}\n")


def test_the_newlines_count_so_that_a_full_batch_is_a_call() -> None:
    sink = make()
    assert (sink.settings.batch_bytes, sink.settings.max_event_bytes) == (4 * MIB - 500, 1000 * KIB - 1)
    smaller = make(batch_bytes=4 * MIB - 501, max_event_bytes=1000 * KIB - 2)
    assert (smaller.settings.batch_bytes, smaller.settings.max_event_bytes) == (4 * MIB - 501, 1000 * KIB - 2)


def test_no_call_is_made_that_firehose_would_not_take(stream: Stream, library: Library) -> None:
    sink = make()
    assert sink.send(events(1000 * KIB - 1, 2)) == Accepted(status=200)
    too_long = TooLarge("larger than max_event_bytes: a record of 1024001 bytes")
    assert sink.send(events(2, 1000 * KIB)) == too_long
    full = events(*[1_000_000] * 4, 4 * MIB - 4_000_000 - 5)
    assert sum(len(event.line) + 1 for event in full) == 4 * MIB
    assert sink.send(full) == Accepted(status=200)
    assert sink.send([*full[:4], *events(4 * MIB - 4_000_000 - 4)]) == TooLarge("a call of 4194305 bytes in 5 records")
    assert sink.send(events(*[2] * 500)) == Accepted(status=200)
    assert sink.send(events(*[2] * 501)) == TooLarge("a call of 1503 bytes in 501 records")
    assert len(stream.asked) == 3


def test_records_that_were_not_taken_are_named(stream: Stream, library: Library) -> None:
    stream.results = [TAKEN, {"ErrorCode": "Slow"}, TAKEN]
    assert make().send(events(2, 2, 2)) == Accepted(retry=(1,), later=RetryAfter("1 of 3 records were not taken: Slow"))


# A probe


def test_a_probe_asks_what_the_stream_is(stream: Stream, library: Library) -> None:
    sink = make()
    assert sink.probe() == Accepted()
    assert stream.asked == [{"DeliveryStreamName": "activity"}]
    stream.status = {"DeliveryStreamDescription": {"DeliveryStreamStatus": "CREATING"}}
    assert sink.probe() == RetryAfter("the stream is CREATING, not ACTIVE")
    stream.status = {}
    assert sink.probe() == RetryAfter("the stream is None, not ACTIVE")
    stream.failure = refused("ResourceNotFoundException", 400, "no such stream")
    assert isinstance(sink.probe(), RetryAfter)


def test_a_probe_that_is_not_allowed_says_that_sending_may_be(stream: Stream, library: Library) -> None:
    sink = make()
    stream.failure = refused("AccessDeniedException", 400, "no")
    outcome = sink.probe()
    assert isinstance(outcome, CredentialsRefused)
    assert (outcome.status, outcome.reason.startswith("AccessDeniedException: no (sending needs")) == (400, True)
    stream.failure = refused("ExpiredTokenException", 400, "old")
    assert sink.probe() == CredentialsRefused("ExpiredTokenException: old", 400)


# The client


def test_a_client_is_made_as_the_table_says(library: Library, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = make(connect_timeout_seconds=1.0, read_timeout_seconds=2.0, send_timeout_seconds=3.0)
    sink.send(events(2))
    sink.send(events(2))
    (session,), (client,) = library.sessions, library.clients
    assert session["region_name"] == "eu-central-1"
    assert session["botocore_session"] is not None
    assert (client["service"], client["endpoint_url"], client["verify"]) == ("firehose", None, True)
    assert library.config == {
        "connect_timeout": 1.0,
        "read_timeout": 2.0,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 1,
        "proxies": {},
    }
    assert library.bounds == [(stream, 3.0)]


def test_certificates_are_those_of_the_table_before_those_of_the_environment(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Config(network=network(ca_bundle="/ours.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", "/theirs.pem")
    make(config=ours, ca_file="/table.pem").send(events(2))
    make(config=ours).send(events(2))
    make().send(events(2))
    monkeypatch.setenv("AWS_CA_BUNDLE", "")
    make().send(events(2))
    assert [client["verify"] for client in library.clients] == ["/table.pem", "/ours.pem", "/theirs.pem", True]


def test_the_proxy_is_that_for_the_endpoint(library: Library) -> None:
    proxied = Config(network=network(https_proxy="http://proxy:3128", no_proxy="firehose.eu-west-9.amazonaws.com"))
    for settings in ({}, {"region": None}, {"endpoint_url": "http://plain.example"}):
        make(config=proxied, **settings).send(events(2))
        assert library.clients[-1]["endpoint_url"] == settings.get("endpoint_url")
        assert library.config["proxies"] == ({} if settings else {"https": "http://proxy:3128"})


def network(**environ: str) -> Any:
    """The network settings of the environment."""
    ca_bundle = environ.pop("ca_bundle", None)
    return SimpleNamespace(ca_bundle=ca_bundle, proxies_for=_proxies(environ))


def _proxies(environ: dict[str, str]) -> Any:
    def proxies_for(url: str) -> dict[str, str]:
        scheme, _, host = url.partition("://")
        proxy = environ.get(f"{scheme}_proxy")
        return {scheme: proxy} if proxy and host != environ["no_proxy"] else {}

    return proxies_for


@pytest.mark.parametrize("token", ["canary-token", None])
def test_what_aws_says_of_our_credentials_is_masked(library: Library, stream: Stream, token: str | None) -> None:
    library.credentials = ("canary-access", "canary-secret", token)
    stream.failure = refused("Odd", 400, "canary-access canary-secret canary-token")
    masked = "******** ******** " + ("********" if token else "canary-token")
    assert make().send(events(2)) == RetryAfter(f"Odd: {masked}")
    library.credentials = None
    stream.failure = refused("Odd", 400, "None")
    assert make().send(events(2)) == RetryAfter("Odd: None")


def test_credentials_that_were_refused_are_looked_for_anew_and_after_other_failures_they_are_kept(
    library: Library, stream: Stream
) -> None:
    sink = make()
    for failure in (refused("Slow", 503), raised.ReadTimeoutError(endpoint_url="x"), KeyError("odd"), None):
        stream.failure = failure
        sink.send(events(2))
    assert (len(library.clients), stream.closed) == (1, 0)
    stream.failure = refused("ExpiredTokenException", 400)
    assert isinstance(sink.send(events(2)), CredentialsRefused)
    assert stream.closed == 1, "its connection is not left open"
    stream.failure = None
    assert sink.send(events(2)) == Accepted(status=200)
    assert len(library.clients) == 2


def test_credentials_are_not_to_blame_where_no_file_can_be_opened(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = make()
    library.failure = raised.NoCredentialsError()
    assert isinstance(sink.send(events(2)), CredentialsRefused)
    monkeypatch.setattr("poller.sinks.firehose.can_open_files", lambda: False)
    outcome = sink.send(events(2))
    assert isinstance(outcome, RetryAfter)
    assert outcome.reason.startswith("too many open files (raise the limit of open files")
    library.failure = None
    assert sink.send(events(2)) == Accepted(status=200)


def test_whatever_else_the_library_trips_over_is_tried_again(library: Library, stream: Stream) -> None:
    stream.failure = AttributeError("'str' object has no attribute 'get'")
    assert make().send(events(2)) == RetryAfter("the call failed: AttributeError (check region and endpoint_url)")


def test_calls_keep_the_pace_and_a_stop_ends_the_wait(library: Library, stream: Stream) -> None:
    stop = threading.Event()
    sink = make(stop, requests_per_second=0.01)
    assert sink.send(events(2)) == Accepted(status=200)
    stop.set()
    with pytest.raises(StoppedError):
        sink.send(events(2))
    assert len(stream.asked) == 1
    assert make(stop).send(events(2)) == Accepted(status=200)


def test_a_call_may_take_as_long_as_its_time_outs_allow(
    library: Library, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    workers = Workers()
    seen: list[bool] = []

    def put(**_: Any) -> dict[str, Any]:
        for seconds in (
            1000 + 200 + 4 * 30 + GRACE_SECONDS,
            1,
        ):  # an answer may arrive slowly, for up to four times read_timeout
            clock.now += seconds
            seen.append(bool(workers.stuck()))
        return {"RequestResponses": [TAKEN]}

    monkeypatch.setattr(stream, "put_record_batch", put)
    with workers.busy("sink aws"):
        make(connect_timeout_seconds=1000.0, send_timeout_seconds=200.0, read_timeout_seconds=30.0).send(events(2))
    assert seen == [False, True]


def test_without_its_library_it_says_for_which_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError) as caught:
        make()
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("sinks.aws.type", "firehose needs boto3")
    assert "[firehose]" in problem.hint


# What an answer means


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"RequestResponses": [TAKEN, TAKEN]}, Accepted(status=200)),
        (
            {"FailedPutCount": 1, "RequestResponses": [TAKEN, TAKEN]},
            RetryAfter("the answer counts records that were not taken, and names none (check endpoint_url)"),
        ),
        (
            {"RequestResponses": [TAKEN, {}]},
            Accepted(retry=(1,), later=RetryAfter("1 of 2 records were not taken: no RecordId")),
        ),
        (
            {"RequestResponses": [{"ErrorCode": "Slow", "RecordId": "1"}, TAKEN]},
            Accepted(retry=(0,), later=RetryAfter("1 of 2 records were not taken: Slow")),
        ),
        (
            {"RequestResponses": [{"ErrorCode": "Slow"}, {"ErrorCode": "Busy"}]},
            RetryAfter("no record was taken: Busy, Slow"),
        ),
        ({"RequestResponses": [{"ErrorCode": "Slow"}] * 2}, RetryAfter("no record was taken: Slow")),
        *(
            ({"RequestResponses": results}, RetryAfter("this is no answer of Firehose (check endpoint_url)"))
            for results in (None, "ab", [TAKEN], [TAKEN] * 3, [TAKEN, None], [TAKEN, "x"])
        ),
        ({}, RetryAfter("this is no answer of Firehose (check endpoint_url)")),
    ],
)
def test_an_answer_says_which_records_were_taken(answer: dict[str, Any], expected: Outcome) -> None:
    assert outcome_of_answer(answer, 2) == expected


@pytest.mark.parametrize(
    "result", [None, 5, "RecordId", [], {}, {"ErrorCode": ""}, {"RecordId": ""}, {"RecordId": None}]
)
def test_a_record_without_an_id_is_not_taken(result: Any) -> None:
    assert outcome_of_answer({"RequestResponses": [TAKEN, result]}, 2) != Accepted(status=200)
    assert isinstance(outcome_of_answer({"RequestResponses": [result]}, 1), RetryAfter)


@pytest.mark.parametrize("code", [5, 1.5, True, {"a": 1}, [1], "\ud800", "\x1b[31m\n", "x" * 100_000])
def test_an_error_code_may_be_anything_and_stays_one_short_printable_line(code: Any) -> None:
    outcome = outcome_of_answer({"RequestResponses": [{"ErrorCode": code}, {"ErrorCode": "Slow"}]}, 2)
    assert isinstance(outcome, RetryAfter)
    assert outcome.reason.isprintable()
    assert len(outcome.reason) < 300
    outcome = outcome_of_error({"Error": {"Code": code, "Message": code}})
    assert isinstance(outcome, RetryAfter)
    assert outcome.reason.isprintable()
    assert len(outcome.reason) < 500


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        ({"Code": "Slow", "Message": "wait"}, 503, RetryAfter("Slow: wait", is_size_suspect=True)),
        ({"Code": "Slow"}, 503, RetryAfter("Slow", is_size_suspect=True)),
        ({"Message": "wait"}, 429, RetryAfter("wait", is_size_suspect=True)),
        ({"Code": None}, 408, RetryAfter("HTTP 408", is_size_suspect=True)),
        ({"Code": "500", "Message": "ill"}, 500, RetryAfter("HTTP 500: ill", is_size_suspect=True)),
        ({"Code": "302"}, 302, RetryAfter("HTTP 302 (check region and endpoint_url)")),
        ({}, None, RetryAfter("HTTP None")),
        ({"Code": "AccessDeniedException"}, 400, CredentialsRefused("AccessDeniedException", 400)),
        ({"Code": "ExpiredToken"}, None, CredentialsRefused("ExpiredToken")),
        ({"Code": "New"}, 401, CredentialsRefused("New", 401)),
        ({"Code": "New"}, 403, CredentialsRefused("New", 403)),
        ({"Code": "New"}, 402, RetryAfter("New")),
        ({"Code": "New"}, 413, TooLarge("New", 413)),
        ({"Code": "RequestEntityTooLargeException"}, 400, TooLarge("RequestEntityTooLargeException", 400)),
    ],
)
def test_an_error_concerns_the_call_and_costs_no_record(
    error: dict[str, Any], status: int | None, expected: Outcome
) -> None:
    assert outcome_of_error({"Error": error, "ResponseMetadata": {"HTTPStatusCode": status or 0}}) == expected
    if status is None:
        assert outcome_of_error({"Error": error}) == expected


def test_what_an_answer_says_of_when_to_try_again_is_heard() -> None:
    meta = {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": "7"}}
    outcome = outcome_of_error({"Error": {"Code": "Slow"}, "ResponseMetadata": meta})
    assert outcome == RetryAfter("Slow", 7.0, is_size_suspect=True)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ResourceNotFoundException", "check stream and region"),
        ("InvalidArgumentException", "direct PUT"),
        ("InvalidKMSResourceException", "in KMS"),
    ],
)
def test_an_error_that_a_person_can_mend_says_how(code: str, remedy: str) -> None:
    outcome = outcome_of_error({"Error": {"Code": code, "Message": "no"}})
    assert isinstance(outcome, RetryAfter)
    assert outcome.reason.startswith(f"{code}: no (")
    assert remedy in outcome.reason


@pytest.mark.parametrize(
    "response",
    [{}, {"Error": {}}, {"Error": {"Code": None}}, {"ResponseMetadata": {}}, {"Error": {"Message": "x" * 9000}}],
)
def test_an_error_without_its_parts_has_an_outcome(response: dict[str, Any]) -> None:
    outcome = outcome_of_error(response)
    assert isinstance(outcome, RetryAfter)
    assert 0 < len(outcome.reason) < 300


# All that botocore can raise


def every(kind: type[Exception]) -> list[type[Exception]]:
    found = vars(raised).values()
    return [one for one in found if isinstance(one, type) and issubclass(one, kind) and one is not kind]


def test_every_exception_of_botocore_has_an_outcome_that_keeps_the_data() -> None:
    kinds = every(raised.BotoCoreError)
    assert len(kinds) > 80
    for kind in kinds:
        outcome = outcome_of_failure(kind.__new__(kind))
        assert isinstance(outcome, RetryAfter | CredentialsRefused), kind
        if re.search(r"Credential|Token|SSO|Login|Profile", kind.__name__):
            assert isinstance(outcome, CredentialsRefused), f"a person is needed: {kind}"


def caused(cause: Exception, kind: type[Exception] = raised.HTTPClientError, **told: str) -> Exception:
    """The library's exception for a failed connection."""
    failure = kind(error=cause, **told)
    failure.__context__ = cause
    return failure


@pytest.mark.parametrize(
    ("failure", "words", "is_size_suspect"),
    [
        (raised.ReadTimeoutError(endpoint_url="https://secret"), "no answer within read_timeout", True),
        (raised.ConnectionClosedError(endpoint_url="https://secret"), "closed before the answer came", True),
        (raised.ConnectTimeoutError(endpoint_url="https://secret"), "no connection within connect_timeout", False),
        (raised.EndpointConnectionError(endpoint_url="https://secret"), "no connection (check region", False),
        (raised.ParamValidationError(report="secret"), "(check stream)", False),
        (raised.UnknownServiceError(service_name="x", known_service_names="y"), "the call failed: UnknownServiceError", False),
        (
            caused(CertificateError("hostname 'a' doesn't match 'b'"), raised.SSLError, endpoint_url="https://secret"),
            "TLS failed: hostname 'a' doesn't match 'b' (the certificate is for another name: check the url)",
            False,
        ),
        (
            caused(OSError("Tunnel connection failed: 407 secret"), raised.ProxyConnectionError, proxy_url="secret"),
            "the proxy did not let the request through: it wants credentials (407) (put user and password into the URL",
            False,
        ),
        (caused(TooLargeError("x")), "the answer is larger than any of Firehose's (check endpoint_url)", False),
        (caused(TooSlowError("x")), "the answer came too slowly", True),
        (caused(SendTimeoutError("x")), "no more of the call was taken within send_timeout", True),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_call_that_did_not_arrive_says_why_and_whether_its_size_may_be_the_reason(
    failure: Exception, words: str, is_size_suspect: bool
) -> None:
    outcome = outcome_of_failure(failure)
    assert isinstance(outcome, RetryAfter)
    assert words in outcome.reason
    assert "secret" not in outcome.reason
    assert outcome.is_size_suspect == is_size_suspect


def test_credentials_that_are_not_there_are_told_by_the_name_of_what_is_missing() -> None:
    outcome = outcome_of_failure(raised.NoCredentialsError())
    assert isinstance(outcome, CredentialsRefused)
    assert outcome.reason.startswith("no usable AWS credentials: NoCredentialsError (")
