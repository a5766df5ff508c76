"""Any configuration, environment, file or token is accepted, or refused with its problems. Nothing else happens."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.checks.account import check_token
from poller.config import Config, Credentials, Secret, load
from poller.config.environment import NetworkEnvironment
from poller.core.errors import ConfigError, StateError
from poller.ionos.api import token_expiry
from poller.pipeline.adopt import adopt
from poller.store.journal import Action, Person
from poller.store.sqlite import State
from poller.store.sqlite.overview import overview_of
from tests.hostile import at_most
from tests.states import START, commit, events, next_batch, open_state

any_text = st.text(st.characters(exclude_categories=()), max_size=30)


def toml_of(value: Any) -> str:
    """Any value as TOML, inline."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value)
        case list():
            return f"[{', '.join(map(toml_of, value))}]"
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {toml_of(item)}" for key, item in value.items()) + "}"
        case float() if math.isnan(value) or math.isinf(value):
            return "nan" if math.isnan(value) else "inf"
        case _:
            return str(value)


words = any_text | st.sampled_from(
    [
        *(
            "",
            "60s",
            "-1s",
            "1GiB",
            "9" * 400,
            "x" * 300,
            "http://h",
            "http://u:p@h",
            "127.0.0.1:9464",
            "/dev/null",
            "../x",
        ),
        *("loki", "file", "logging-service", "firehose", "event.type", "a..b", "{a", "{date}", "*", "[a", "eyJx"),
        *("\x1b[31m", "a\r\nb", "\0"),
    ]
)
keys = words | st.sampled_from(
    [
        *(
            "state_dir",
            "url",
            "token_file",
            "token",
            "token_env",
            "username",
            "password",
            "page_size",
            "interval",
            "overlap",
        ),
        *("contracts", "exclude", "include", "drop", "mask", "hash", "hash_key", "max_bytes", "listen", "name", "type"),
        *("labels", "headers", "path", "api_key", "tag", "redact", "bearer_token", "tenant_id", "stream", "region"),
        *("endpoint_url", "ca_file", "cert_file", "batch_events", "compression", "oversize", "action_name", "format"),
        *("requests_per_second", "retry_max"),
    ]
)
values = st.recursive(
    st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
tables = st.dictionaries(keys, values, max_size=8)
sections = st.sampled_from(
    ["api", "poll", "filter", "redact", "outbox", "http", "accounts", "sinks", "state_dir", "nope"]
)
trees = st.dictionaries(sections, tables | st.lists(tables, max_size=3) | values, max_size=5)


def expect_config_or_problems(path: Path | None, environ: Mapping[str, str]) -> None:
    try:
        config = load(path, environ)
    except ConfigError as error:
        problems = error.problems
    else:
        assert isinstance(config, Config)
        return
    assert problems
    assert all(problem.path and problem.message for problem in problems)


@at_most(150)
@given(tree=trees)
def test_a_configuration_of_any_shape_is_taken_or_refused_by_its_problems(tree: dict[str, Any]) -> None:
    text = "\n".join(f"{key} = {toml_of(value)}" for key, value in tree.items())
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        expect_config_or_problems(file, {})


EXAMPLE = b"""
[api]
page_size = 500
[poll]
interval = "60s"
contracts = [1, "2"]
[[sinks]]
name = "loki"
type = "loki"
url = "http://localhost:3100"
labels = { tag_name = "activityLog" }
[filter]
exclude = [{ type = "RequestStatusUpdate" }]
"""


@at_most(150)
@given(
    at=st.integers(0, len(EXAMPLE)),
    cut=st.integers(0, 20),
    put=st.binary(max_size=6)
    | st.sampled_from([b"[", b"]]", b'"""', b".", b"=", b"\\u", b"\xff", b"\0", b"\r", b"# "]),
)
def test_a_configuration_damaged_anywhere_is_taken_or_refused_by_its_problems(at: int, cut: int, put: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.toml"
        file.write_bytes(EXAMPLE[:at] + put + EXAMPLE[at + cut :])
        expect_config_or_problems(file, {})


def as_environment(text: str) -> str:
    """The text as an environment variable can hold it: without NUL. Bytes that are not UTF-8 appear as Python decodes them."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogatepass"))


variables = st.lists(sections | keys | st.integers(-1, 12).map(str), min_size=1, max_size=5).map(
    lambda parts: as_environment("IONOS_POLLER_" + "__".join(parts).upper().replace("=", ""))
)
contents = words | values.map(json.dumps) | st.sampled_from(["[" * 2000, "1,2", "{"])


@at_most(150)
@given(
    environ=st.dictionaries(
        variables
        | st.sampled_from(["IONOS_API_URL", "IONOS_API_TOKEN", "IONOS_USERNAME", "IONOS_PASSWORD", "STATE_DIRECTORY"])
        | st.sampled_from(["REQUESTS_CA_BUNDLE", "CREDENTIALS_DIRECTORY", "HTTPS_PROXY", "NO_PROXY", "HOME"]),
        contents.map(as_environment),
        max_size=6,
    )
)
def test_an_environment_of_any_content_is_taken_or_refused_by_its_problems(environ: dict[str, str]) -> None:
    expect_config_or_problems(None, environ)


@given(st.dictionaries(st.sampled_from(["https_proxy", "ALL_PROXY", "no_proxy"]), any_text))
def test_proxies_of_any_text_are_found_or_not(environ: dict[str, str]) -> None:
    for url in ("https://a.example:8443", "https://[::1]", "http://10.0.0.1"):
        assert set(NetworkEnvironment(environ).proxies_for(url)) <= {"http", "https"}


# Files and tokens

claims = values.map(lambda value: json.dumps({"exp": value})) | st.sampled_from(
    ["{", "[]", '{"exp":1e999}', '{"exp":NaN}']
)


@at_most(60)
@given(
    st.binary(max_size=40)
    | values.map(lambda value: json.dumps({"last_run": value}).encode())
    | (any_text | st.datetimes().map(lambda at: at.isoformat())).map(
        lambda text: json.dumps({"last_run": text}).encode()
    )
)
def test_a_state_to_adopt_is_a_time_in_the_past_or_one_problem(content: bytes) -> None:
    asked: list[int] = []
    state: Any = SimpleNamespace(
        contracts=SimpleNamespace(all=list), request_reread=lambda _, since, **by: asked.append(since)
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "state.json"
        file.write_bytes(content)
        with suppress(ConfigError):
            now = datetime.now(UTC).timestamp()
            adopt(file, state, ["default"], now=now, by=Action(Person(0, "root"), "fetch --adopt-state"))
            (since,) = asked
            assert 0 <= since <= now


@given(any_text | claims.map(lambda text: "a." + msgspec.json.encode(text.encode()).decode().strip('"') + ".c"))
def test_a_token_of_any_text_says_when_it_expires_or_does_not(token: str) -> None:
    expires_at = token_expiry(token)
    assert expires_at is None or isinstance(expires_at, float)
    finding = check_token(Credentials("test", token=Secret(token)), 1.8e9, "token", is_asked=False)
    assert finding.message


@at_most(25)
@given(data=st.data())
def test_a_state_file_cut_or_overwritten_anywhere_is_used_or_set_aside(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("state")
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    commit(state, events(*range(20)))
    state.close()
    file = directory / "fetch.db"
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    if data.draw(st.booleans()):
        file.write_bytes(content[:at])
    else:
        junk = data.draw(st.binary(min_size=1, max_size=200))
        file.write_bytes(content[:at] + junk + content[at + len(junk) :])
    before = file.read_bytes()
    with suppress(StateError):
        overview_of(file)
    try:
        used = open_state(directory)
    except StateError as error:
        refusal = error
    else:
        read_to_its_end(used)
        return
    # It is quarantined unchanged, or left in place if a newer version may have written it.
    (kept,) = [file] if "newer" in refusal.message else directory.glob("*.unusable-*")
    assert kept.read_bytes() == before
    assert refusal.hint


def read_to_its_end(state: State) -> None:
    """Read all entries. Each one that is read must be one that was written."""
    try:
        with suppress(StateError):
            state.overview()
            batch = next_batch(state, "out", 100, 10**6)
            assert batch is None or {event.line for event in batch.events} <= {b'{"n":%d}' % n for n in range(20)}
    finally:
        state.close()
