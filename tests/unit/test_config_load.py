"""Loading: defaults, precedence, every kind of problem, and all problems at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config, FileSink, LoggingServiceSink, LokiSink, MoesifSink, find_config, load
from poller.errors import ConfigError, Problem

LOKI = '[[sinks]]\nname = "a"\ntype = "loki"\nurl = "http://loki:3100"\n'
LOGGING = (
    '[[sinks]]\nname = "a"\ntype = "logging-service"\nurl = "https://x"\ntag = "t"\napi_key_env = "KEY"\n'
)
FILE = '[[sinks]]\nname = "a"\ntype = "file"\n'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_config(text: str | bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "ionos-poller.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    return write_config


def problems_of(path: Path | None, environ: Mapping[str, str] = {}) -> tuple[Problem, ...]:  # noqa: B006 - not changed
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return caught.value.problems


def test_the_environment_alone_is_enough() -> None:
    config = load(None, {"IONOS_API_TOKEN": "abc"})
    (account,) = config.accounts
    assert (account.name, account.url) == ("default", "https://api.ionos.com")
    assert account.credentials().token.reveal() == "abc"  # type: ignore[union-attr]
    assert (config.state_dir, config.source) == (Path("state"), None)
    assert (config.poll.interval_seconds, config.poll.audit_span_seconds) == (60, 86_400)
    assert config.http.address == ("127.0.0.1", 9464)


def test_every_table_is_read(write: Any, tmp_path: Path) -> None:
    config = load(
        write(
            """
            state_dir = "state-here"
            [api]
            url = "http://localhost:8080/"
            page_size = 500
            requests_per_second = 2.5
            max_page_bytes = "1MiB"
            window_bytes = 2000000
            [poll]
            interval = "1m30s"
            overlap = "0s"
            contracts = [31960001, "31960002"]
            [filter]
            exclude = [{ type = "RequestStatusUpdate", status = 200 }]
            [redact]
            mask = ["principal.sourceIP", "event.resources[].id"]
            [outbox]
            max_bytes = "5MB"
            [http]
            listen = "[::1]:0"
            [[sinks]]
            name = "loki"
            type = "loki"
            url = "http://loki:3100"
            labels = { tag_name = "x", team = "y" }
            headers = { X-Env = "prod" }
            retry_max = "10m"
            [[sinks]]
            name = "archive"
            type = "file"
            path = "out/{date}.ndjson"
            compression = "gzip"
            """
        ),
        {},
    )
    assert config.state_dir == tmp_path / "state-here"
    assert (config.api.url, config.api.page_size, config.api.requests_per_second) == (
        "http://localhost:8080",
        500,
        2.5,
    )
    assert (config.api.max_page_bytes, config.api.window_bytes) == (1 << 20, 2_000_000)
    assert (config.poll.interval_seconds, config.poll.overlap_seconds) == (90, 0)
    assert config.poll.contracts == ("31960001", "31960002")
    assert (config.filter.exclude[0].type, config.filter.exclude[0].status) == ("RequestStatusUpdate", "200")
    assert config.redact.mask == ("principal.sourceIP", "event.resources[].id")
    assert (config.outbox.max_bytes, config.http.address) == (5_000_000, ("::1", 0))
    loki, archive = config.sinks
    assert isinstance(loki, LokiSink)
    assert isinstance(archive, FileSink)
    assert (loki.type, loki.labels, loki.headers) == (
        "loki",
        {"tag_name": "x", "team": "y"},
        {"X-Env": "prod"},
    )
    assert (loki.retry_initial_seconds, loki.retry_max_seconds, loki.compression) == (1.0, 600.0, "gzip")
    assert (archive.path, archive.compression) == (str(tmp_path / "out/{date}.ndjson"), "gzip")


def test_each_type_of_sink_has_the_defaults_of_its_receiver(write: Any) -> None:
    text = LOGGING + '[[sinks]]\nname = "m"\ntype = "moesif"\napplication_id_env = "KEY"\n'
    text += '[[sinks]]\nname = "f"\ntype = "firehose"\nstream = "s"\n'
    logging, moesif, firehose = load(write(text), {"KEY": "k"}).sinks
    assert isinstance(logging, LoggingServiceSink)
    assert isinstance(moesif, MoesifSink)
    assert (logging.batch_events, logging.batch_bytes, logging.requests_per_second) == (1000, 1 << 20, 40)
    assert (moesif.compression, moesif.batch_bytes, moesif.url) == (
        "none",
        12_000_000,
        "https://api.moesif.net",
    )
    assert (firehose.batch_events, firehose.batch_bytes, firehose.max_event_bytes) == (
        500,
        4 << 20,
        1_024_000,
    )


# Text of the file, path of the problem, part of its message or hint.
PROBLEMS = [
    ("unknown key", '[poll]\nintervall = "60s"', "poll.intervall", "did you mean interval?"),
    ("unknown table", "[pol]\n", "pol", "did you mean poll?"),
    ("unknown key of a sink", LOKI + "lables = {}", "sinks[0].lables", "did you mean labels?"),
    ("internal field", 'network = "x"', "network", "unknown key"),
    ("quoted key", '"a.b\\u001b" = 1', "'a.b\\x1b'", "unknown key"),
    ("wrong type, text", '[api]\npage_size = "many"', "api.page_size", "not a whole number"),
    ("wrong type, flag", "[api]\npage_size = true", "api.page_size", "not a whole number"),
    ("wrong type, fraction", "[api]\npage_size = 1.5", "api.page_size", "not a whole number"),
    ("wrong type, not finite", "[api]\nrequests_per_second = nan", "api.requests_per_second", "not a number"),
    ("wrong type, huge", f"[api]\nrequests_per_second = 1{'0' * 400}", "api.requests_per_second", "too large"),
    ("wrong type, table", "poll = 1", "poll", "must be a table, not a number"),
    ("wrong type, list", '[poll]\ncontracts = "1"', "poll.contracts", "must be a list, not text"),
    ("wrong type, date", "[api]\nurl = 2026-05-01", "api.url", "must be text, not a date"),
    ("wrong type, sink", "sinks = [1]", "sinks[0]", "must be a table"),
    ("wrong type, sinks", "sinks = {}", "sinks", "must be a list"),
    ("negative", "[api]\nmax_retries = -1", "api.max_retries", "at least 0"),
    ("negative duration", '[poll]\noverlap = "-5m"', "poll.overlap", "is not a duration"),
    ("duration without unit", '[poll]\ninterval = "60"', "poll.interval", "is not a duration"),
    ("duration as number", "[poll]\ninterval = 60", "poll.interval", "quote it with its unit"),
    ("duration too small", '[poll]\ninterval = "0s"', "poll.interval", "at least 1s"),
    ("duration too large", '[poll]\ninterval = "2d"', "poll.interval", "at most 1d"),
    ("part of a second", '[poll]\ninterval = "1500ms"', "poll.interval", "whole seconds"),
    ("size", '[outbox]\nmax_bytes = "1 Gig"', "outbox.max_bytes", "is not a size"),
    ("size of the wrong type", "[outbox]\nmax_bytes = 1.5", "outbox.max_bytes", "is not a size"),
    ("size, negative", "[outbox]\nmax_bytes = -1", "outbox.max_bytes", "is not a size"),
    ("url, scheme", '[api]\nurl = "ftp://x"', "api.url", "https://"),
    ("url, no scheme", '[api]\nurl = "api.ionos.com"', "api.url", "https://"),
    ("url, no host", '[api]\nurl = "https:///x"', "api.url", "no host"),
    ("url, port", '[api]\nurl = "https://x:99999"', "api.url", "is not a URL"),
    ("url, port 0", '[api]\nurl = "https://x:0"', "api.url", "port"),
    ("url, credentials", '[api]\nurl = "https://u:canary@x"', "api.url", "must not hold credentials"),
    ("url, control character", '[api]\nurl = "https://x/\\r\\nA: b"', "api.url", "control character"),
    ("url, query", '[api]\nurl = "https://x/?a=b"', "api.url", "query"),
    ("url, brackets", '[api]\nurl = "https://[x"', "api.url", "is not a URL"),
    ("listen", '[http]\nlisten = "9464"', "http.listen", "address and port"),
    ("listen, port", '[http]\nlisten = "127.0.0.1:99999"', "http.listen", "address and port"),
    ("contract", '[poll]\ncontracts = [1, "x"]', "poll.contracts[1]", "not a contract number"),
    ("page beyond the window", "[api]\npage_size = 1000\nresult_window = 500", "api.page_size", "result_window"),
    ("ledger too short", '[poll]\nledger_retention = "1h"', "poll.ledger_retention", "audit_span"),
    ("both ways for a secret", '[api]\ntoken = "a"\ntoken_file = "b"', "api.token", "more than once"),
    ("token and user", '[api]\ntoken = "a"\nusername = "b"', "api.token", "keep one"),
    ("password alone", '[api]\npassword = "a"', "api.password", "no username"),
    ("colon in a user name", '[api]\nusername = "a:b"', "api.username", "colon"),
    ("empty file name", '[api]\ntoken_file = ""', "api.token_file", "not empty"),
    ("secret of the wrong type", "[api]\ntoken = 1", "api.token", "must be text"),
    ("secret as file name", '[api]\ntoken_file = "eyJcanary"', "api.token_file", "not the name of a file"),
    ("secret as variable", '[api]\ntoken_env = "eyJcanary"', "api.token_env", "not the name of an environment"),
    ("missing variable", '[api]\ntoken_env = "NO_SUCH"', "api.token_env", "NO_SUCH is not set"),
    ("key file", '[api]\ntoken_file = "nowhere/token"', "api.token_file", "unreadable key file"),
    ("certificate file", '[api]\nca_file = "nowhere.pem"', "api.ca_file", "unreadable file"),
    ("path with a control character", 'state_dir = "a\\u0000b"', "state_dir", "control character"),
    ("account without a name", '[[accounts]]\ntoken = "a"', "accounts[0].name", "missing"),
    ("account twice", '[[accounts]]\nname = "a"\n[[accounts]]\nname = "a"', "accounts[1].name", "accounts[0]"),
    ("credentials of whom", '[api]\ntoken = "t"\n[[accounts]]\nname = "a"\n[[accounts]]\nname = "b"', "api", "several"),
    ("sink without a type", '[[sinks]]\nname = "a"', "sinks[0].type", "missing"),
    ("sink of an unknown type", '[[sinks]]\ntype = "lokki"', "sinks[0].type", "did you mean loki?"),
    ("sink without a url", '[[sinks]]\nname = "a"\ntype = "loki"', "sinks[0].url", "missing"),
    ("sink name", LOKI.replace('"a"', '"../a"'), "sinks[0].name", "is not a name"),
    ("sink name, only dots", LOKI.replace('"a"', '".."'), "sinks[0].name", "is not a name"),
    ("sink name twice", LOKI + LOKI, "sinks[1].name", "same as that of sinks[0]"),
    ("sink path twice", FILE + 'path = "x"\n' + FILE.replace('"a"', '"b"') + 'path = "x"', "sinks[1].path", "sinks[0]"),
    ("tag", LOGGING.replace('"t"', '"a/b"'), "sinks[0].tag", "letters, digits"),
    ("key missing", LOGGING.replace("api_key_env", "#"), "sinks[0].api_key", "systemd credential a.key"),
    ("label name", LOKI + 'labels = { "a-b" = "x" }', "sinks[0].labels", "name of a label"),
    ("label, reserved", LOKI + 'labels = { contract = "x" }', "sinks[0].labels", "added by the program"),
    ("label, reserved by Loki", LOKI + 'labels = { __a = "x" }', "sinks[0].labels", "name of a label"),
    ("label, control character", LOKI + 'labels = { a = "x\\n" }', "sinks[0].labels", "control character"),
    ("label, type", LOKI + "labels = { a = 1 }", "sinks[0].labels", "must be text"),
    ("header name", LOKI + 'headers = { "a b" = "x" }', "sinks[0].headers", "name of a header"),
    ("header value", LOKI + 'headers = { a = "x\\r\\nb: c" }', "sinks[0].headers", "control character"),
    ("header type", LOKI + "headers = { a = 1 }", "sinks[0].headers", "must be text"),
    ("header, framing", LOKI + 'headers = { Content-Length = "1" }', "sinks[0].headers", "set by the program"),
    ("tenant", LOKI + 'tenant_id = "a b"', "sinks[0].tenant_id", "space"),
    ("loki, half a login", LOKI + 'username = "a"', "sinks[0].username", "go together"),
    ("loki, two logins", LOKI + 'username = "a"\npassword = "b"\nbearer_token = "c"', "sinks[0].bearer_token", "one"),
    ("choice", LOKI + 'compression = "gzp"', "sinks[0].compression", "did you mean gzip?"),
    ("choice of the wrong type", LOKI + "compression = []", "sinks[0].compression", "is not one of"),
    ("retries", LOKI + 'retry_initial = "5m"', "sinks[0].retry_initial", "longer than retry_max"),
    ("private key alone", LOKI + 'key_file = "ionos-poller.toml"', "sinks[0].key_file", "no cert_file"),
    ("beyond the vendor's limit", '[[sinks]]\nname = "m"\ntype = "moesif"\nbatch_bytes = "13MB"', "sinks[0].batch_bytes", "12MB"),
    ("file placeholder", FILE + 'path = "/x/{day}"', "sinks[0].path", "unknown placeholder"),
    ("file placeholder, open", FILE + 'path = "/x/{date"', "sinks[0].path", "unknown placeholder"),
    ("file going up", FILE + 'path = "/x/../y"', "sinks[0].path", "`..`"),
    ("file, a directory", FILE + 'path = "/x/"', "sinks[0].path", "directory"),
    ("file, missing", FILE, "sinks[0].path", "missing"),
    ("rule without a key", "[filter]\nexclude = [{}]", "filter.exclude[0]", "matches every entry"),
    ("rule, unknown key", '[filter]\nexclude = [{ user = "x" }]', "filter.exclude[0].user", "username"),
    ("rule, glob", '[filter]\ninclude = [{ type = "a[b" }]', "filter.include[0].type", "without its `]`"),
    ("rule, type", "[filter]\ninclude = [{ type = true }]", "filter.include[0].type", "must be text"),
    ("field path", '[redact]\nmask = ["a..b"]', "redact.mask[0]", "not a path"),
    ("field path, type", "[redact]\nmask = [1]", "redact.mask[0]", "not a path"),
    ("hash without a key", '[redact]\nhash = ["a"]', "redact.hash", "hash_key_file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path", "part"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS]
)
def test_a_problem_is_named_with_its_path(write: Any, text: str, path: str, part: str) -> None:
    found = problems_of(write(text), {"KEY": "k"})
    assert any(problem.path == path and part in f"{problem.message} {problem.hint}" for problem in found), (
        found
    )
    assert len({problem.path for problem in found}) == (2 if "m13" in text or "13MB" in text else 1), found
    assert "canary" not in str(found)
    assert all(str(problem).isprintable() for problem in found)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a = [\n1,\n=", "at line 3, column 1"),
        (b"a = 1\na = 2", "at line 2"),
        (b"[poll]\n# \xff\n", "not UTF-8 (line 2)"),
        (b"a = " + b"9" * 5000, "too long or too deep"),
        (b"a = " + b"[" * 100_000, "too long or too deep"),
    ],
)
def test_a_file_that_is_no_toml_says_where(write: Any, content: bytes, part: str) -> None:
    path = write(content)
    (problem,) = problems_of(path)
    assert problem.path == str(path)
    assert part in problem.message


def test_a_byte_order_mark_is_no_problem(write: Any) -> None:
    assert load(write(b'\xef\xbb\xbf[poll]\ninterval = "5s"\n'), {}).poll.interval_seconds == 5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        (problem,) = problems_of(path)
        assert problem.path == str(path)
        assert "cannot be read" in problem.message


def test_all_problems_come_at_once_from_file_and_environment(write: Any) -> None:
    path = write(
        '[poll]\ninterval = "1"\noverlap = "2"\n[api]\nurl = "x"\n[[sinks]]\ntype = "y"\n[[sinks]]\nname = "b"\n'
    )
    environ = {
        "IONOS_POLLER_API__PAGE_SIZE": "0",
        "IONOS_POLLER_POLL__X": "1",
        "REQUESTS_CA_BUNDLE": "/no/ca",
    }
    assert {problem.path for problem in problems_of(path, environ)} == {
        "poll.interval", "poll.overlap", "api.url", "sinks[0].type", "sinks[1].type",
        "IONOS_POLLER_API__PAGE_SIZE", "IONOS_POLLER_POLL__X", "REQUESTS_CA_BUNDLE",
    }  # fmt: skip


def test_invalid_toml_does_not_hide_what_is_wrong_in_the_environment(write: Any) -> None:
    found = problems_of(write("="), {"IONOS_POLLER_POLL__INTERVAL": "x"})
    assert [problem.path for problem in found][1:] == ["IONOS_POLLER_POLL__INTERVAL"]


def test_environment_wins_over_file_and_file_over_default(write: Any) -> None:
    path = write('[api]\nurl = "https://file"\npage_size = 10\nconcurrency = 3')
    config = load(path, {"IONOS_API_URL": "https://env", "IONOS_POLLER_API__PAGE_SIZE": "20"})
    assert (config.api.url, config.api.page_size, config.api.concurrency) == ("https://env", 20, 3)
    assert config.api.max_retries == 4
    config = load(path, {"IONOS_API_URL": "https://env", "IONOS_POLLER_API__URL": "https://key"})
    assert config.accounts[0].url == "https://key"


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("IONOS_POLLER_POLL__INTERVAL", "30s", lambda c: c.poll.interval_seconds == 30),
        ("IONOS_POLLER_API__REQUESTS_PER_SECOND", "2.5", lambda c: c.api.requests_per_second == 2.5),
        ("IONOS_POLLER_OUTBOX__MAX_BYTES", "2000000", lambda c: c.outbox.max_bytes == 2_000_000),
        ("IONOS_POLLER_POLL__CONTRACTS", "1, 2", lambda c: c.poll.contracts == ("1", "2")),
        ("IONOS_POLLER_POLL__CONTRACTS", '[1, "2"]', lambda c: c.poll.contracts == ("1", "2")),
        ("IONOS_POLLER_POLL__CONTRACTS", "", lambda c: c.poll.contracts == ()),
        ("IONOS_POLLER_POLL", '{"interval": "30s"}', lambda c: c.poll.interval_seconds == 30),
        ("IONOS_POLLER_FILTER__EXCLUDE", '[{"type": "x"}]', lambda c: c.filter.exclude[0].type == "x"),
        ("IONOS_POLLER_HTTP__LISTEN", "0.0.0.0:1", lambda c: c.http.address == ("0.0.0.0", 1)),
        ("IONOS_POLLER_API__TOKEN", "abc", lambda c: c.accounts[0].credentials().token.reveal() == "abc"),
        (
            "IONOS_POLLER_SINKS",
            '[{"name": "l", "type": "loki", "url": "http://x", "bearer_token": "abc", "batch_events": 5}]',
            lambda c: c.sinks[0].bearer_token.read().reveal() == "abc" and c.sinks[0].batch_events == 5,
        ),
        ("IONOS_POLLER_ACCOUNTS", '[{"name": "p", "token": "t"}]', lambda c: c.accounts[0].name == "p"),
    ],
)
def test_any_key_is_read_from_its_variable(variable: str, value: str, read: Any) -> None:
    assert read(load(None, {variable: value}))


def test_keys_of_a_sink_in_the_file_are_set_by_their_index(write: Any) -> None:
    environ = {
        "IONOS_POLLER_SINKS__0__URL": "http://other:1",
        "IONOS_POLLER_SINKS__0__LABELS": '{"a": "b"}',
        "IONOS_POLLER_SINKS__1__NAME": "new",
        "IONOS_POLLER_SINKS__1__TYPE": "stdout",
    }
    loki, stdout = load(write(LOKI), environ).sinks
    assert isinstance(loki, LokiSink)
    assert (loki.url, loki.labels, stdout.name) == ("http://other:1", {"a": "b"}, "new")


@pytest.mark.parametrize(
    ("variable", "value", "path", "part"),
    [
        ("IONOS_POLLER_POLL__INTERVALL", "1s", "IONOS_POLLER_POLL__INTERVALL", "did you mean interval?"),
        ("IONOS_POLLER_POLL_INTERVAL", "1s", "IONOS_POLLER_POLL_INTERVAL", "unknown key"),
        ("IONOS_POLLER_POLL__INTERVAL", "x", "IONOS_POLLER_POLL__INTERVAL", "is not a duration"),
        ("IONOS_POLLER_POLL__INTERVAL__X", "1", "IONOS_POLLER_POLL__INTERVAL", "is not a duration"),
        ("IONOS_POLLER_STATE_DIR__X", "1", "IONOS_POLLER_STATE_DIR__X", "must be text, not a table"),
        ("IONOS_POLLER_API__PAGE_SIZE", "x", "IONOS_POLLER_API__PAGE_SIZE", "not a number"),
        ("IONOS_POLLER_API__PAGE_SIZE", "\u0665", "IONOS_POLLER_API__PAGE_SIZE", "whole number"),
        ("IONOS_POLLER_SINKS", "{", "IONOS_POLLER_SINKS", "not valid JSON"),
        ("IONOS_POLLER_SINKS", "\udcff", "IONOS_POLLER_SINKS", "not valid JSON"),
        ("IONOS_POLLER_SINKS", "[" * 100_000, "IONOS_POLLER_SINKS", "not valid JSON"),
        ("IONOS_POLLER_SINKS", '{"a": 1}', "IONOS_POLLER_SINKS", "must be a list"),
        ("IONOS_POLLER_SINKS", '[{"type": "loki"}]', "IONOS_POLLER_SINKS[0].url", "missing"),
        ("IONOS_POLLER_SINKS__5__URL", "http://x", "IONOS_POLLER_SINKS__5__URL", "does not name an element"),
        ("IONOS_POLLER_SINKS__LOKI__URL", "http://x", "IONOS_POLLER_SINKS__LOKI__URL", "as JSON"),
        ("IONOS_API_URL", "x", "IONOS_API_URL", "must begin with"),
    ],
)
def test_a_problem_in_the_environment_names_the_variable(
    variable: str, value: str, path: str, part: str
) -> None:
    found = problems_of(None, {variable: value})
    assert any(problem.path == path and part in f"{problem.message} {problem.hint}" for problem in found), (
        found
    )


def test_variables_of_others_are_left_alone() -> None:
    load(
        None,
        {
            "IONOS_POLLER_CONFIG": "x",
            "IONOS_POLLER_LOG_LEVEL": "debug",
            "IONOS_POLLER_SERVICE_HOST": "10.0.0.1",
            "IONOS_POLLER_SERVICE_PORT_METRICS": "9464",
            "IONOS_POLLER_PORT_9464_TCP_ADDR": "10.0.0.1",
            "IONOS_OTHER__THING": "x",
        },
    )


def test_the_state_directory_is_the_most_explicit_one(write: Any) -> None:
    path = write('state_dir = "/file"')
    systemd = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
    everything = systemd | {"IONOS_POLLER_STATE_DIR": "/env"}
    assert load(None, {}).state_dir == Path("state")
    assert load(None, systemd).state_dir == Path("/var/lib/a")
    assert load(path, systemd).state_dir == Path("/file")
    assert load(path, everything).state_dir == Path("/env")
    assert load(path, everything, state_dir=Path("/option")).state_dir == Path("/option")


def test_relative_paths_start_at_the_file_and_those_of_the_environment_here(
    write: Any, tmp_path: Path
) -> None:
    path = write(FILE + 'path = "out"\n')
    assert load(path, {}).sinks[0].path == str(tmp_path / "out")  # type: ignore[union-attr]
    assert load(path, {"IONOS_POLLER_SINKS__0__PATH": "out"}).sinks[0].path == "out"  # type: ignore[union-attr]
    path = write('state_dir = "~/state"')
    assert load(path, {"HOME": "/home/me"}).state_dir == Path("/home/me/state")


def test_the_file_is_found_in_the_order_of_the_manual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poller.config.load.SYSTEM_CONFIG", tmp_path / "system.toml")
    assert find_config(None, {}) is None
    (tmp_path / "system.toml").touch()
    assert find_config(None, {}) == tmp_path / "system.toml"
    (tmp_path / "ionos-poller.toml").touch()
    assert find_config(None, {"IONOS_POLLER_CONFIG": ""}) == Path("ionos-poller.toml")
    assert find_config(None, {"IONOS_POLLER_CONFIG": "named.toml"}) == Path("named.toml")
    assert find_config("option.toml", {"IONOS_POLLER_CONFIG": "named.toml"}) == Path("option.toml")


def test_a_config_cannot_be_changed() -> None:
    config = load(None, {})
    with pytest.raises(AttributeError):
        config.state_dir = Path("x")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.poll.interval_seconds = 1  # type: ignore[misc]


def test_the_endpoint_can_be_turned_off() -> None:
    assert load(None, {"IONOS_POLLER_HTTP": '{"listen": ""}'}).http.address is None


def test_loading_imports_nothing_that_is_not_needed() -> None:
    code = (
        "import sys, poller.config; poller.config.load(None, {'IONOS_API_TOKEN': 'x'});"
        "print([m for m in ('difflib', 'tomllib', 'urllib.request', 'requests', 'logging', 'inspect') if m in sys.modules])"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout.strip() == "[]"


def test_the_default_configuration_is_valid() -> None:
    assert load(None, {}).poll == Config().poll
