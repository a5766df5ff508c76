"""The checks of sinks, archives and the state: the finding, remedy and exit code for each outcome."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poller.archive import PlaceError
from poller.archive.signing import new_key
from poller.checks import Finding, fail, ok, warn
from poller.checks import sinks as checks
from poller.checks.sinks import check_extra, check_sink, check_tag, judge
from poller.checks.state import check_state, check_use
from poller.config import (
    AnyHttpSink,
    ArchiveSink,
    Config,
    Evidence,
    FileSink,
    FirehoseSink,
    KafkaSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    OtlpSink,
    Redact,
    SecretSource,
)
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.core.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INCOMPLETE, ConfigError, Problem, StateError
from poller.store.rows import Diagnosis
from tests import views
from tests.archives import MemoryPlace
from tests.views import HOUR, NOW

KEY = SecretSource("missing", "", path="sinks[0].api_key")
LOGGING = LoggingServiceSink(name="a", url="https://x.ionos.com", tag="activityLog", api_key=KEY)
MOESIF = MoesifSink(name="a", application_id=KEY)
LOKI = LokiSink(name="a", url="http://loki")
HTTP = AnyHttpSink(name="a", url="http://x")
KAFKA = KafkaSink(name="a", brokers=("one:9092", "two:9092"), topic="audit")
FIREHOSE = FirehoseSink(name="a", stream="audit", region="eu-central-1")
OTLP = OtlpSink(name="a", url="http://collector")
FILE = FileSink(name="a", path="a.ndjson")
ARCHIVE = ArchiveSink(name="a", url="file:///srv/audit")


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        (LOGGING, "https://x.ionos.com: "),
        (LOKI, "http://loki: "),
        (KAFKA, "topic audit at one:9092: "),
        (FIREHOSE, ""),
        (FILE, ""),
    ],
)
def test_what_takes_events_is_named_by_its_address(settings: Any, prefix: str) -> None:
    assert judge(settings, Accepted(), "sink a") == ok("sink a", f"{prefix}takes events")


@pytest.mark.parametrize("settings", [LOGGING, MOESIF, HTTP, OTLP])
def test_who_takes_no_empty_batch_was_reached_all_the_same(settings: Any) -> None:
    found = judge(settings, Refused("HTTP 400: empty"), "sink a")
    assert (found.level, found.name) == ("warn", "sink a")
    assert found.message == f"{settings.url}: refuses what it was tried with, which has no events: HTTP 400: empty"
    assert "watch the first batch" in found.hint


@pytest.mark.parametrize(("settings", "place"), [(LOKI, "url"), (KAFKA, "brokers"), (FIREHOSE, "path"), (FILE, "path")])
@pytest.mark.parametrize("outcome", [Refused("no (look)"), RetryAfter("no"), TooLarge("no")])
def test_who_does_not_take_events_is_told_with_where_to_look(settings: Any, place: str, outcome: Any) -> None:
    found = judge(settings, outcome, "sink a")
    assert (found.level, found.exit_code, found.message.endswith("no")) == ("fail", EXIT_INCOMPLETE, True)
    expected = "look" if "look" in outcome.reason else f"check {place} and what is there"
    assert found.hint.startswith(expected)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (LOGGING, "check that api_key is the key of this pipeline"),
        (LOKI, "check username and password, or bearer_token, and tenant_id"),
        (HTTP, "check username and password, or bearer_token, and headers"),
        (KAFKA, "check username and password, or cert_file and key_file"),
        (MOESIF, "check that application_id is the Collector Application Id"),
        (FIREHOSE, "check AWS's credentials"),
        (FILE, "check its credentials"),
    ],
)
def test_who_refuses_our_credentials_is_told_with_what_to_check(settings: Any, hint: str) -> None:
    found = judge(settings, CredentialsRefused("HTTP 401: no", 401), "sink a")
    assert (found.level, found.exit_code) == ("fail", EXIT_AUTH)
    assert found.message.endswith("the credentials are refused: HTTP 401: no")
    assert found.hint.startswith(hint)
    assert judge(settings, CredentialsRefused("no (mend it)", 401), "sink a").hint == "mend it"


def test_what_was_not_even_sent_is_of_the_configuration() -> None:
    found = judge(LOKI, CredentialsRefused("the key cannot be read"), "sink a")
    assert found == fail("sink a", "the key cannot be read", "correct where it comes from", EXIT_CONFIG)
    assert judge(KAFKA, CredentialsRefused("refused"), "sink a").exit_code == EXIT_AUTH


@pytest.mark.parametrize(
    ("url", "tag", "is_told"),
    [
        ("https://x.logging.de-txl.ionos.com", "ab", True),
        ("https://x.logging.de-txl.ionos.com", "abc", False),
        ("https://x.logging.de-txl.ionos.com", "a" * 20, False),
        ("https://x.logging.de-txl.ionos.com", "a" * 21, True),
        ("https://x.logging.de-txl.ionos.com", "activity-log", True),
        ("https://ionos.com.example", "activity-log", False),
    ],
)
def test_a_tag_is_judged_where_the_vendor_is(url: str, tag: str, is_told: bool) -> None:
    found = list(check_tag(LoggingServiceSink(name="a", url=url, tag=tag, api_key=KEY), "sink a"))
    assert [finding.level for finding in found] == ["warn"] * is_told
    assert all(repr(tag) in finding.message and "activityLog" in finding.hint for finding in found)


def test_what_stays_on_this_machine_is_known() -> None:
    bucket = ArchiveSink(name="a", url="s3://bucket")
    assert [each.is_local for each in (FILE, ARCHIVE, bucket, LOKI, KAFKA, FIREHOSE)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_library_that_is_missing_is_told_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_extra("stdout") is None
    monkeypatch.setitem(checks.EXTRAS, "kafka", ("no_such_library", "kafka"))
    found = check_extra("kafka")
    assert found is not None
    assert (found.level, found.name, found.exit_code) == ("fail", "extras", EXIT_CONFIG)
    assert found.message == "type kafka needs no_such_library, which is not installed"
    assert "kafka" in found.hint
    assert list(check_sink(KAFKA, Config(), threading.Event())) == [found._replace(name="sink a")]


def test_a_sink_is_built_as_configured_and_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, config, given = threading.Event(), Config(), []

    def build(*args: Any) -> Any:
        given.append(args)
        return SimpleNamespace(probe=lambda: RetryAfter("no answer"))

    monkeypatch.setattr(checks, "build_sink", build)
    (found,) = check_sink(LOKI, config, stop)
    assert (found.name, found.message) == ("sink a", "http://loki: no answer")
    assert given == [(LOKI, config, stop)]


def test_what_cannot_be_built_is_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = FileSink(name="a", path="a.ndjson", redact=Redact(hash=("user",), hash_key=KEY))
    (found,) = check_sink(hashed, Config(), threading.Event())
    assert (found.level, found.name, found.exit_code) == ("fail", "sink a", EXIT_CONFIG)
    shared = FileSink(name="a", path="a.ndjson", redact=Redact(hash=("user",)))
    (found,) = check_sink(shared, Config(redact=Redact(hash_key=KEY)), threading.Event())
    assert found.exit_code == EXIT_CONFIG


# Archives


class Probed(MemoryPlace):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def probe(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return ["objects are written", "and read"]


def archive(monkeypatch: pytest.MonkeyPatch, place: Probed, key: Path | None = None) -> list[Finding]:
    config = Config(evidence=Evidence(signing_key_file=key))
    asked: list[Any] = []
    monkeypatch.setattr(checks, "open_place", lambda *args: asked.append(args) or place)
    found = list(check_sink(ARCHIVE, config, threading.Event()))
    assert asked == [(ARCHIVE, config)]
    return found


def test_an_archive_is_tried_where_it_is_and_told_when_nobody_signs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "evidence.key"
    key.write_bytes(new_key()[0])
    key.chmod(0o600)
    well = ok("sink a", "file:///srv/audit: objects are written, and read")
    assert archive(monkeypatch, Probed(), key) == [well]
    unsigned = archive(monkeypatch, Probed())
    assert (unsigned[0], unsigned[1].level, unsigned[1].name) == (well, "warn", "sink a")
    assert "archive keygen" in unsigned[1].hint
    key.write_text("no key")
    (bad,) = archive(monkeypatch, Probed(), key)
    assert (bad.level, bad.name, bad.exit_code) == ("fail", "sink a", EXIT_CONFIG)
    assert bad.message.startswith("evidence.signing_key_file")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (PlaceError("403", hint="grant it", is_refused=True), fail("sink a", "403", "grant it", EXIT_AUTH)),
        (
            PlaceError("503"),
            fail("sink a", "503", "check url and what is there; what is collected waits until it works"),
        ),
        (ConfigError([Problem("url", "is bad", "mend")]), fail("sink a", "url: is bad", "mend", EXIT_CONFIG)),
    ],
)
def test_an_archive_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, found: Finding
) -> None:
    assert archive(monkeypatch, Probed(error)) == [found]


# The state


class Stores:
    """The states that a test sets, and a damaged one."""

    def __init__(self, **states: Any) -> None:
        self.states = states
        self.limits: list[int] = []

    def diagnose(self, max_bytes: int) -> list[Diagnosis]:
        self.limits.append(max_bytes)
        return [
            Diagnosis("warn", "space", "little", "free some"),
            *(Diagnosis("ok", f"state {use}", "fine", use=use) for use in self.states),
            Diagnosis("fail", "state x", "damaged", "set aside", 4),
        ]

    def snapshot(self, use: str) -> Any:
        if isinstance(self.states[use], Exception):
            raise self.states[use]
        return self.states[use]


def test_what_a_state_says_follows_what_its_backend_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    replicas = [views.replica("a"), views.replica("b", config="2")]
    gaps = [views.gap(1), views.gap(2, seconds=2), views.gap(3, is_accepted=True)]
    ahead = views.contract(watermark=NOW + HOUR)
    stores: Any = Stores(run=views.state([ahead], gaps=gaps, replicas=replicas), fetch=views.state())
    found = list(check_state(stores, 7))
    assert stores.limits == [7]
    assert [(one.level, one.name) for one in found] == [
        ("warn", "space"),
        ("ok", "state run"),
        ("warn", "state run"),
        ("warn", "state run"),
        ("warn", "gaps run"),
        ("ok", "state fetch"),
        ("fail", "state x"),
    ]
    assert found[0] == warn("space", "little", "free some")
    assert found[-1] == fail("state x", "damaged", "set aside", 4)
    assert ("ahead of this machine's clock" in found[2].message, "timedatectl" in found[2].hint) == (True, True)
    assert ("different configurations" in found[3].message, "config show" in found[3].hint) == (True, True)
    assert found[4].message.startswith("2 gaps")
    assert "gaps list --use run" in found[4].hint


def test_a_state_that_cannot_be_read_is_told_by_its_use() -> None:
    stores: Any = Stores(run=StateError("locked", hint="wait"))
    (found,) = check_use(stores, "run")
    assert (found.level, found.name, found.message, found.hint) == ("fail", "state run", "locked", "wait")
