"""Loading: defaults, precedence, every kind of problem, and all problems at once."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from poller.config import (
    Config,
    FileSink,
    KafkaSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    find_config,
    load,
    process_environment,
)
from poller.config.model import Poll
from poller.core.errors import ConfigError, Problem
from tests.support import UNMEASURED, clean_environment, is_plain

LOKI = '[[sinks]]\nname = "a"\ntype = "loki"\nurl = "http://loki:3100"\n'
LOGGING = '[[sinks]]\nname = "a"\ntype = "logging-service"\nurl = "https://x"\ntag = "t"\napi_key_env = "KEY"\n'
FILE = '[[sinks]]\nname = "a"\ntype = "file"\n'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_config(text: str | bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "ionos-poller.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    return write_config


def problems_of(path: Path | None, environ: Mapping[str, str] = {}) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return caught.value.problems


def test_the_environment_alone_is_enough() -> None:
    config = load(None, {"IONOS_API_TOKEN": "abc"})
    (account,) = config.accounts
    assert (account.name, account.url) == ("default", "https://api.ionos.com")
    assert account.credentials().token.reveal() == "abc"  # type: ignore[union-attr]
    assert (config.state_dir, config.source) == (Path("state"), None)
    assert (config.poll.interval_seconds, config.poll.audit_span_seconds) == (60, 7 * 86_400)
    assert config.http.address == ("127.0.0.1", 9464)


def test_zeros_before_a_contract_number_make_no_other_contract(write: Any) -> None:
    poll = load(write('[poll]\ncontracts = ["031960001", 31960002]\nexclude_contracts = ["0031960003"]'), {}).poll
    assert (poll.contracts, poll.exclude_contracts) == (("31960001", "31960002"), ("31960003",))


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


def test_the_url_of_any_receiver_is_used_as_it_is_and_others_without_the_slash_before_our_path(write: Any) -> None:
    text = """
        [[sinks]]
        name = "any"
        type = "http"
        url = "https://intake.example/v2/events/"
        [[sinks]]
        name = "loki"
        type = "loki"
        url = "https://loki.example/"
    """
    assert [sink.url for sink in load(write(text), {}).sinks] == [
        "https://intake.example/v2/events/",
        "https://loki.example",
    ]


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


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a = [\n1,\n=", "at line 3, column 1"),
        (b"a = 1\na = 2", "Cannot overwrite a value"),
        (b"[poll]\n# \xff\n", "not UTF-8 (line 2)"),
        (b"a = " + b"9" * 5000, "too long or too deep"),
        (b"a = " + b"[" * 100_000, "too long or too deep"),
    ],
)
def test_a_file_that_is_no_toml_says_where(write: Any, content: bytes, part: str) -> None:
    path = write(content)
    (problem,) = problems_of(path)
    assert problem.path.startswith(str(path))
    assert part in problem.message
    assert is_plain(problem.hint)


@pytest.mark.parametrize(("size", "is_read"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_file_is_read_up_to_a_megabyte(write: Any, size: int, is_read: bool) -> None:
    path = write(b'[poll]\ninterval = "5s"\n'.ljust(size, b"#"))
    if is_read:
        assert load(path, {}).poll.interval_seconds == 5
    else:
        (problem,) = problems_of(path)
        assert (problem.path, problem.message) == (str(path), "is larger than 1 MiB")
        assert is_plain(problem.hint)


def test_a_contract_is_wanted_if_it_is_named_or_none_is_and_not_left_out() -> None:
    poll = Poll(contracts=("1", "2"), exclude_contracts=("2", "3"))
    assert [poll.wants(contract) for contract in ("1", "2", "4")] == [True, False, False]
    assert [poll.wants(contract, ["3", "4"]) for contract in ("1", "3", "4")] == [False, False, True]
    assert [Poll(exclude_contracts=("3",)).wants(contract) for contract in ("1", "3")] == [True, False]


def test_a_byte_order_mark_is_no_problem(write: Any) -> None:
    assert load(write(b'\xef\xbb\xbf[poll]\ninterval = "5s"\n'), {}).poll.interval_seconds == 5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        (problem,) = problems_of(path)
        assert problem.path == str(path)
        assert "cannot be read" in problem.message


def test_all_problems_come_at_once_from_file_and_environment(write: Any) -> None:
    text = '[poll]\ninterval = "1"\noverlap = "2"\n[api]\nurl = "x"\n'
    path = write(text + '[[sinks]]\ntype = "y"\n[[sinks]]\nname = "b"\n')
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
        ("IONOS_POLLER_HTTP__HOSTS", '["A.example", "*"]', lambda c: c.http.hosts == ("a.example", "*")),
        ("IONOS_POLLER_HTTP__LISTEN", "unix:/run/x.sock", lambda c: c.http.address == Path("/run/x.sock")),
        ("IONOS_POLLER_HTTP__LISTEN", "0.0.0.0:1", lambda c: c.http.address == ("0.0.0.0", 1)),
        ("IONOS_POLLER_API__TOKEN", "abc", lambda c: c.accounts[0].credentials().token.reveal() == "abc"),
        (
            "IONOS_POLLER_SINKS",
            '[{"name": "l", "type": "loki", "url": "https://x", "bearer_token": "abc", "batch_events": 5}]',
            lambda c: c.sinks[0].bearer_token.read().reveal() == "abc" and c.sinks[0].batch_events == 5,
        ),
        ("IONOS_POLLER_ACCOUNTS", '[{"name": "p", "token": "t"}]', lambda c: c.accounts[0].name == "p"),
        ("IONOS_POLLER_POLL__CONTRACTS__0", "5", lambda c: c.poll.contracts == ("5",)),
        ("IONOS_POLLER_REDACT__MASK__0", "a.b", lambda c: c.redact.mask == ("a.b",)),
        ("IONOS_POLLER_FILTER__EXCLUDE__0__TYPE", "X", lambda c: c.filter.exclude[0].type == "X"),
    ],
)
def test_any_key_is_read_from_its_variable(variable: str, value: str, read: Any) -> None:
    assert read(load(None, {variable: value}))


def test_lists_within_tables_and_sinks_are_counted_from_0_also_where_the_file_has_none() -> None:
    environ = {
        "IONOS_POLLER_SINKS__0__NAME": "k",
        "IONOS_POLLER_SINKS__0__TYPE": "kafka",
        "IONOS_POLLER_SINKS__0__TOPIC": "t",
        "IONOS_POLLER_SINKS__0__BROKERS__1": "b:2",
        "IONOS_POLLER_SINKS__0__BROKERS__0": "a:1",
        "IONOS_POLLER_FILTER__INCLUDE__1__ACTION": "GET",
        "IONOS_POLLER_FILTER__INCLUDE__0__TYPE": "X",
    }
    config = load(None, environ)
    assert isinstance(config.sinks[0], KafkaSink)
    assert config.sinks[0].brokers == ("a:1", "b:2")
    assert [(rule.type, rule.action) for rule in config.filter.include] == [("X", None), (None, "GET")]


@pytest.mark.parametrize(("value", "listen", "url"), [('""', "", ""), ("", ":9", "postgresql://u@localhost/x")])
def test_two_quotes_are_the_empty_text_and_an_empty_variable_is_not_set(
    write: Any, value: str, listen: str, url: str
) -> None:
    file = write('[http]\nlisten = "localhost:9"\n[state]\nurl = "postgresql://u@localhost/x"\n')
    config = load(file, {"IONOS_POLLER_HTTP__LISTEN": value, "IONOS_POLLER_STATE__URL": value})
    assert (config.http.listen.removeprefix("localhost"), config.state.url) == (listen, url)


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
        ("IONOS_POLLER_POLL__INTERVAL__X", "1", "IONOS_POLLER_POLL__INTERVAL__X", "is not a duration"),
        ("IONOS_POLLER_POLL__INTERVAL__0", "1", "IONOS_POLLER_POLL__INTERVAL__0", "is not a duration"),
        ("IONOS_POLLER_POLL__INTERVAL", '""', "IONOS_POLLER_POLL__INTERVAL", "'' is not a duration"),
        ("IONOS_POLLER_STATE_DIR", '""', "IONOS_POLLER_STATE_DIR", "must not be empty"),
        ("IONOS_POLLER_POLL__CONTRACTS__1", "5", "IONOS_POLLER_POLL__CONTRACTS__1", "does not name an element"),
        ("IONOS_POLLER_STATE_DIR__X", "1", "IONOS_POLLER_STATE_DIR__X", "must be text, not a table"),
        ("IONOS_POLLER_API__PAGE_SIZE", "x", "IONOS_POLLER_API__PAGE_SIZE", "not a number"),
        ("IONOS_POLLER_API__PAGE_SIZE", "\u0665", "IONOS_POLLER_API__PAGE_SIZE", "whole number"),
        *(
            (name, "1", name, "names no key")
            for name in ("IONOS_POLLER_", "IONOS_POLLER_API__", "IONOS_POLLER_API____X")
        ),
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
def test_a_problem_in_the_environment_names_the_variable(variable: str, value: str, path: str, part: str) -> None:
    found = problems_of(None, {variable: value})
    assert any(problem.path == path and part in f"{problem.message} {problem.hint}" for problem in found), found
    assert all(is_plain(problem.hint or "none") for problem in found if problem.message != "missing")
    assert all(problem.hint for problem in found if re.search("names no key|not name an|JSON|deeper", problem.message))


@pytest.mark.parametrize(
    ("environ", "path", "message"),
    [
        (
            {"IONOS_POLLER_POLL__CONTRACTS__0__X": "1"},
            "IONOS_POLLER_POLL__CONTRACTS__0__X",
            "{'x': '1'} is not a contract number",
        ),
        (
            {"IONOS_POLLER_POLL__CONTRACTS": '["1"]', "IONOS_POLLER_POLL__CONTRACTS__0__X": "1"},
            "IONOS_POLLER_POLL__CONTRACTS__0__X",
            "goes deeper than the configuration does",
        ),
        (
            {"IONOS_POLLER_SINKS__00001__URL": "x"},
            "IONOS_POLLER_SINKS__00001__URL",
            "does not name an element of a list",
        ),
        ({"IONOS_POLLER_SINKS__1__URL": "x"}, "IONOS_POLLER_SINKS__1__URL", "does not name an element of a list"),
        (
            {"IONOS_POLLER_SINKS__\u0660__URL": "x"},
            "IONOS_POLLER_SINKS__\u0660__URL",
            "does not name an element of a list",
        ),
    ],
)
def test_a_variable_that_leads_nowhere_is_told(environ: dict[str, str], path: str, message: str) -> None:
    found = problems_of(None, environ)
    assert (path, message) in [(problem.path, problem.message) for problem in found]
    assert all(is_plain(problem.hint or "none") for problem in found)
    assert any(problem.hint for problem in found) or "must be" in message


@pytest.mark.parametrize("name", ["a:b", "a\n", "\udcff"])
def test_a_user_name_that_cannot_be_sent_is_told_with_its_variable(name: str) -> None:
    found = problems_of(None, {"IONOS_USERNAME": name, "IONOS_PASSWORD": "x"})
    assert "IONOS_USERNAME" in [problem.path for problem in found]
    assert all(
        is_plain(problem.message) and is_plain(problem.hint) for problem in found if problem.path == "IONOS_USERNAME"
    )


def test_a_variable_is_not_blamed_for_the_file(write: Any) -> None:
    path = write('[api]\ntoken = "t"\n[[accounts]]\nname = "a"\n[[accounts]]\nname = "b"\n')
    assert [problem.path for problem in problems_of(path, {"IONOS_API_URL": "https://x"})] == ["api"]


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


def test_relative_paths_start_at_the_file_and_those_of_the_environment_here(write: Any, tmp_path: Path) -> None:
    path = write(FILE + 'path = "out"\n')
    assert load(path, {}).sinks[0].path == str(tmp_path / "out")  # type: ignore[union-attr]
    (sink,) = load(path, {"IONOS_POLLER_SINKS__0__PATH": "out"}).sinks
    assert isinstance(sink, FileSink)
    assert sink.path == "out"
    path = write('state_dir = "~/state"')
    assert load(path, {"HOME": "/home/me"}).state_dir == Path("/home/me/state")


def test_the_file_is_found_in_the_order_of_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("poller.config.load"), "SYSTEM_CONFIG", tmp_path / "system.toml")
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
        "print([m for m in ('difflib', 'tomllib', 'requests', 'logging') if m in sys.modules])"
    )
    environ = clean_environment(UNMEASURED)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == "[]"


def test_only_this_package_hands_out_the_environment() -> None:
    assert process_environment() is os.environ


def test_the_default_configuration_is_valid() -> None:
    assert load(None, {}).poll == Config().poll
