"""AWS Data Firehose: against moto's server in a process of its own, and a stand-in that accepts calls in part."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from poller.config import MASK, Config, FirehoseSink
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, RetryAfter, TooLarge
from poller.core.errors import ConfigError, StoppedError
from poller.core.events import OutboxEvent
from poller.core.mapping.moesif import NO_NAME
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from tests.hostile import RawServer, endless, headed
from tests.integration.fetching import Bench, Starter, is_oldest_first, same
from tests.moto import REGION, client, serving
from tests.support import free_port

STREAM, BUCKET = "activity", "activity-bucket"
MIB = 1 << 20
SECRET, TOKEN = "canary-secret-access-key", "canary-session-token"
AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


# Against moto


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a bucket and a stream that writes to it.  Yields: its URL."""
    with serving(tmp_path_factory.mktemp("moto")) as url:
        location = {"LocationConstraint": REGION}
        client("s3", url).create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
        client("firehose", url).create_delivery_stream(
            DeliveryStreamName=STREAM,
            ExtendedS3DestinationConfiguration={
                "RoleARN": "arn:aws:iam::123456789012:role/activity",
                "BucketARN": f"arn:aws:s3:::{BUCKET}",
            },
        )
        yield url


def objects(url: str) -> list[bytes]:
    """The objects that the stream wrote, in order."""
    s3 = client("s3", url)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    found = [item for page in pages for item in page.get("Contents", [])]
    found.sort(key=lambda item: item["LastModified"])
    return [s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in found]


def configure(place: Bench, url: str, **keys: str) -> None:
    keys = {"requests_per_second": "1000", "retry_initial": '"10ms"', "retry_max": '"50ms"', **keys}
    table = "\n".join(f"{key} = {value}" for key, value in keys.items())
    (place.directory / "ionos-poller.toml").write_text(
        f'[[sinks]]\nname = "aws"\ntype = "firehose"\nstream = "{STREAM}"\nregion = "{REGION}"\n'
        f'endpoint_url = "{url}"\n{table}\n'
    )


def backfill(place: Bench) -> str:
    done = place.run("backfill", "--from", "2h", "--to", "0s", "--sink", "aws", env=AWS)
    assert done.code == 0, done.stderr
    assert "DOES NOT BALANCE" not in done.stderr
    for secret in (SECRET, TOKEN):
        assert secret not in done.stderr
    return done.stderr


def test_3000_entries_reach_motos_firehose_once_each_ending_with_a_newline(bench: Starter, moto: str) -> None:
    place = bench(contracts=2, events=1500)
    configure(place, moto)
    backfill(place)
    written = objects(moto)
    assert all(content.endswith(b"\n") for content in written)
    assert max(content.count(b"\n") for content in written) <= 500
    same(b"".join(written).splitlines(), place.oracle())


def test_the_probe_tells_what_the_stream_is(moto: str, aws: None) -> None:
    assert make(moto).probe() == Accepted()
    outcome = make(moto, stream="nowhere").probe()
    assert isinstance(outcome, RetryAfter)
    assert "check stream and region" in outcome.reason
    outcome = make(moto, stream="nowhere").send([event_of()])
    assert isinstance(outcome, RetryAfter), "a wrong name must not cost an entry"
    assert "ResourceNotFoundException" in outcome.reason


# A stand-in that can fail in every way


class Firehose(ThreadingHTTPServer):
    """A stand-in for PutRecordBatch. `judge` returns the error code of a record, or "" if the record is accepted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.accepted: list[bytes] = []
        self.calls: list[list[bytes]] = []
        self.judge: Callable[[bytes], str] = lambda record: ""
        self.answer: tuple[int, bytes] | None = None
        self.headers: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Firehose

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.headers.append(dict(self.headers))
        status, answer = server.answer or (200, b"")
        if server.answer is None:
            asked = json.loads(body)
            assert self.headers["X-Amz-Target"] == "Firehose_20150804.PutRecordBatch"
            assert asked["DeliveryStreamName"] == STREAM
            records = [base64.b64decode(record["Data"]) for record in asked["Records"]]
            server.calls.append(records)
            if within_limits([records]):
                answer = self._put(records)
            else:  # refuses the whole call, as the real one does
                status, answer = 400, json.dumps({"__type": "InvalidArgumentException", "message": "limit"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _put(self, records: list[bytes]) -> bytes:
        codes = [self.server.judge(record) for record in records]
        self.server.accepted += [record for record, code in zip(records, codes, strict=True) if not code]
        results = [{"ErrorCode": code, "ErrorMessage": "Slow down."} if code else {"RecordId": "1"} for code in codes]
        return json.dumps({"FailedPutCount": sum(map(bool, codes)), "RequestResponses": results}).encode()


@pytest.fixture
def firehose() -> Iterator[Firehose]:
    server = Firehose()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def make(url: str, stop: threading.Event | None = None, **settings: Any) -> Sink:
    table = FirehoseSink(**{"name": "aws", "stream": STREAM, "region": REGION, "endpoint_url": url, **settings})
    return build_sink(table, Config(), stop or threading.Event())


def event_of(number: int = 0, size: int = 0) -> OutboxEvent:
    line = b'{"n":%d,"x":""}' % number
    line = line[:-2] + b"x" * max(0, size - len(line)) + line[-2:]
    return OutboxEvent("1", time.time_ns() // 1000, int(time.time()), number.to_bytes(16), 0, line)


def within_limits(calls: list[list[bytes]]) -> bool:
    return all(
        len(call) <= 500 and sum(map(len, call)) <= 4 * MIB and max(map(len, call)) <= 1000 * 1024 for call in calls
    )


def test_with_a_fifth_of_the_records_failing_each_arrives_once_and_none_is_resent_that_was_taken(
    bench: Starter, firehose: Firehose
) -> None:
    dice = random.Random(7)
    codes = ("ServiceUnavailableException", "InternalFailure", "ThrottlingException")
    firehose.judge = lambda record: dice.choice(codes) if dice.random() < 0.2 else ""
    place = bench(contracts=2, events=1500)
    configure(place, firehose.url, batch_events="500")
    backfill(place)
    assert all(record.endswith(b"}\n") for record in firehose.accepted)
    same([record[:-1] for record in firehose.accepted], place.oracle())
    sent = Counter(record for call in firehose.calls for record in call)
    assert sent.total() > 3500, "the fifth was sent again"
    assert within_limits(firehose.calls)
    # In order: a batch is done before the next begins, and records that are sent again keep their order.
    assert is_oldest_first(dict.fromkeys(record for call in firehose.calls for record in call))


def test_actions_go_to_firehose_for_moesif_behind_it(bench: Starter, firehose: Firehose) -> None:
    place = bench(contracts=1, events=50)
    configure(place, firehose.url, format='"moesif-action"', action_name='"event.param.action"')
    backfill(place)
    actions = [json.loads(record) for record in firehose.accepted]
    assert len(actions) == 50
    assert {action["action_name"] for action in actions} <= {
        *("GET", "POST", "PUT", "PATCH", "DELETE", "http"),
        NO_NAME,
    }


def test_no_call_and_no_record_is_above_the_limits(firehose: Firehose, aws: None) -> None:
    sink = make(firehose.url)
    assert (sink.settings.batch_bytes, sink.settings.max_event_bytes) == (4 * MIB - 500, 1000 * 1024 - 1)
    assert sink.send([event_of(size=1000 * 1024 - 1)]) == Accepted(status=200)
    assert isinstance(sink.send([event_of(size=1000 * 1024)]), TooLarge)
    full = [event_of(n, 8387) for n in range(500)]
    assert sum(len(event.line) for event in full) <= sink.settings.batch_bytes
    assert sink.send(full) == Accepted(status=200)
    assert isinstance(sink.send([event_of(n, 8389) for n in range(500)]), TooLarge)
    assert isinstance(sink.send([event_of(n) for n in range(501)]), TooLarge)
    assert within_limits(firehose.calls)
    assert len(firehose.calls) == 2
    # An action is longer than its entry.
    assert isinstance(make(firehose.url, format="moesif-action").send([event_of(size=1000 * 1024 - 50)]), TooLarge)


def test_an_answer_that_counts_failures_and_names_none_takes_nothing(firehose: Firehose, aws: None) -> None:
    answer = {"FailedPutCount": 1, "RequestResponses": [{"RecordId": "1"}]}
    firehose.answer = (200, json.dumps(answer).encode())
    assert isinstance(make(firehose.url).send([event_of()]), RetryAfter)


@pytest.mark.parametrize(("status", "connections"), [(200, 1), (503, 3), (429, 3)])
def test_after_trouble_the_endpoint_is_looked_up_again(
    firehose: Firehose, aws: None, monkeypatch: pytest.MonkeyPatch, status: int, connections: int
) -> None:
    seen: list[Any] = []
    accept = firehose.get_request
    monkeypatch.setattr(firehose, "get_request", lambda: seen.append(accept()) or seen[-1])
    sink = make(firehose.url)
    if status != 200:
        firehose.answer = (status, b'{"__type":"ServiceUnavailableException"}')
    for _ in range(3):
        sink.send([event_of()])
    assert len(seen) == connections


def test_too_many_open_files_are_no_missing_credentials(firehose: Firehose, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, AWS[name])
    sink = make(firehose.url)
    assert isinstance(sink.send([event_of()]), CredentialsRefused)

    def no_more(*args: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_more)
        outcome = sink.send([event_of()])
    assert isinstance(outcome, RetryAfter)
    assert "too many open files" in outcome.reason


def test_a_call_that_is_not_taken_makes_its_size_suspect(aws: None) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sink = make(f"http://127.0.0.1:{listener.getsockname()[1]}", send_timeout_seconds=0.2)
        outcome = sink.send([event_of(n, 40_000) for n in range(100)])
    assert isinstance(outcome, RetryAfter)
    assert (outcome.is_size_suspect, "send_timeout" in outcome.reason) == (True, True)


@pytest.mark.parametrize(
    ("first", "piece", "pause_seconds", "words"),
    [
        (headed(b"{", "Connection: close"), b" " * 65_536, 0.0, "larger"),
        (headed(b"", "Content-Length: 999999999999"), b" " * 65_536, 0.0, "larger"),
        (headed(b"", "Transfer-Encoding: chunked"), b"4000\r\n" + b" " * 0x4000 + b"\r\n", 0.0, "larger"),
        (headed(b"{", "Connection: close", status="500 Oops"), b" " * 65_536, 0.0, "larger"),
        (headed(b"{", "Content-Length: 9999"), b" ", 0.05, "too slowly"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05, "too slowly"),
    ],
)
def test_an_answer_without_end_is_given_up(
    aws: None, first: bytes, piece: bytes, pause_seconds: float, words: str
) -> None:
    with RawServer(endless(first, piece, pause_seconds)) as server:
        sink = make(server.url, read_timeout_seconds=0.5)
        started = time.monotonic()
        outcome = sink.send([event_of()])
    assert isinstance(outcome, RetryAfter)
    assert words in outcome.reason
    assert time.monotonic() - started < 5


def test_a_throttled_stream_is_not_asked_again_at_once(firehose: Firehose, aws: None) -> None:
    firehose.judge = lambda record: "ThrottlingException"
    outcome = make(firehose.url).send([event_of(n) for n in range(3)])
    assert isinstance(outcome, RetryAfter)
    assert "ThrottlingException" in outcome.reason
    assert len(firehose.calls) == 1, "AWS's library does not retry behind our back"


def test_one_record_that_was_not_taken_is_sent_again_alone(firehose: Firehose, aws: None) -> None:
    firehose.judge = lambda record: "InternalFailure" if b'"n":1,' in record else ""
    outcome = make(firehose.url).send([event_of(n) for n in range(3)])
    assert isinstance(outcome, Accepted)
    assert outcome.retry == (1,)
    assert isinstance(outcome.later, RetryAfter)
    assert "InternalFailure" in outcome.later.reason


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        ("ServiceUnavailableException", 503, RetryAfter, ""),
        ("ThrottlingException", 400, RetryAfter, ""),
        ("LimitExceededException", 400, RetryAfter, ""),
        ("InternalFailure", 500, RetryAfter, ""),
        ("ResourceNotFoundException", 400, RetryAfter, "check stream and region"),
        ("InvalidArgumentException", 400, RetryAfter, "direct PUT"),
        ("InvalidKMSResourceException", 400, RetryAfter, "KMS"),
        ("SomethingNew", 400, RetryAfter, ""),
        ("AccessDeniedException", 400, CredentialsRefused, ""),
        ("UnrecognizedClientException", 400, CredentialsRefused, ""),
        ("ExpiredTokenException", 400, CredentialsRefused, ""),
        ("InvalidSignatureException", 400, CredentialsRefused, ""),
        ("SomethingNew", 403, CredentialsRefused, ""),
        ("RequestEntityTooLargeException", 413, TooLarge, ""),
    ],
)
def test_each_error_has_its_outcome_and_none_costs_an_entry(
    firehose: Firehose,
    aws: None,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: int,
    kind: type[Outcome],
    words: str,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    message = f"The Canonical String should have been x-amz-security-token:{TOKEN} with {SECRET}\n"
    firehose.answer = (status, json.dumps({"__type": code, "message": message}).encode())
    outcome = make(firehose.url).send([event_of()])
    assert type(outcome) is kind
    assert code in outcome.reason
    assert words in outcome.reason
    assert TOKEN not in outcome.reason
    assert SECRET not in outcome.reason
    assert outcome.reason.isprintable()
    assert len(firehose.headers) == 1


@pytest.mark.parametrize("status", [200, 302, 404, 502])
def test_an_answer_that_is_none_of_firehoses_takes_nothing(firehose: Firehose, aws: None, status: int) -> None:
    sink = make(firehose.url)
    for body in (b"", b"{}", b"<html>", b'{"RequestResponses":[]}', b'{"RequestResponses":7}', b"[1]", b"null"):
        firehose.answer = (status, body)
        assert isinstance(sink.send([event_of()]), RetryAfter), body
        assert isinstance(sink.probe(), RetryAfter), body


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("refused", "no connection"),
        ("https://127.0.0.1:1", "no connection"),
        ("http://no-such-host.invalid", "no connection"),
        ("hang", "read_timeout"),
    ],
)
def test_a_firehose_out_of_reach_is_tried_again(aws: None, url: str, words: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        if url == "hang":
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        elif url == "refused":
            url = f"http://127.0.0.1:{free_port()}"
        outcome = make(url, read_timeout_seconds=0.3, connect_timeout_seconds=2.0).send([event_of()])
    assert isinstance(outcome, RetryAfter)
    assert words in outcome.reason


def test_credentials_that_were_replaced_are_found_without_a_restart(
    firehose: Firehose, aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    sink = make(firehose.url)
    outcome = sink.send([event_of()])
    assert isinstance(outcome, CredentialsRefused)
    assert "no usable AWS credentials" in outcome.reason
    path.write_text("[default]\naws_access_key_id = OLDKEY\naws_secret_access_key = old\n")
    firehose.answer = (400, json.dumps({"__type": "ExpiredTokenException", "message": "expired"}).encode())
    assert isinstance(sink.send([event_of()]), CredentialsRefused)
    path.write_text("[default]\naws_access_key_id = NEWKEY\naws_secret_access_key = new\n")
    firehose.answer = None
    assert sink.send([event_of()]) == Accepted(status=200)
    assert [re.search(r"Credential=(\w+)/", headers["Authorization"])[1] for headers in firehose.headers] == [
        "OLDKEY",
        "NEWKEY",
    ]  # type: ignore[index]


def test_credentials_that_were_renewed_meanwhile_are_masked_too(
    firehose: Firehose, aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Credentials of a role: the client renews them by itself before they expire."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given, config = tmp_path / "given.json", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {given}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    sink = make(firehose.url)
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    for number in range(3):
        secrets = {name: f"canary-{name}-{number}" for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")}
        given.write_text(json.dumps({"Version": 1, "Expiration": soon, **secrets}))
        firehose.answer = (500, json.dumps({"__type": "Oops", "message": " ".join(secrets.values())}).encode())
        outcome = sink.send([event_of()])
        assert isinstance(outcome, RetryAfter)
        assert outcome.reason == f"Oops: {MASK} {MASK} {MASK}"
        assert secrets["SessionToken"] in firehose.headers[-1].values(), "it was sent with these"


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_DEFAULT_REGION"])
def test_aws_settings_that_lead_nowhere_are_told(
    firehose: Firehose, aws: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "AWS_PROFILE":
        monkeypatch.setenv(name, "nobody")
        outcome = make(firehose.url).send([event_of()])
        assert isinstance(outcome, CredentialsRefused)
        assert "ProfileNotFound" in outcome.reason
    else:
        outcome = make(firehose.url, region=None).send([event_of()])
        assert isinstance(outcome, RetryAfter)
        assert "give region" in outcome.reason


def test_stop_ends_the_wait_for_a_turn(firehose: Firehose, aws: None) -> None:
    stop = threading.Event()
    sink = make(firehose.url, stop, requests_per_second=0.01)
    assert sink.send([event_of()]) == Accepted(status=200)
    stop.set()
    with pytest.raises(StoppedError):
        sink.send([event_of()])


def test_without_boto3_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError) as caught:
        make("http://127.0.0.1:1")
    (problem,) = caught.value.problems
    assert problem.path == "sinks.aws.type"
    assert "pip install 'ionos-poller[firehose]'" in problem.hint


def test_nobody_else_pays_for_boto3() -> None:
    program = (
        "import sys, poller.cli.fetch, poller.cli.run; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 0
