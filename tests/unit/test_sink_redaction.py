"""The fields in a sink's table are redacted in its lines only, with its own key or else the shared one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from poller.config import Config, FileSink, Redact, Secret, SecretSource
from poller.core.errors import ConfigError
from poller.core.mapping.redact import Redactor
from poller.sinks.redaction import build_redact, redactions_of

LINE = b'{"a":"x","b":"y","c":"z","d":1}'


def key(text: str) -> SecretSource:
    return SecretSource("inline", "", path="redact.hash_key", inline=Secret(text))


def done(redact: Redact, shared_key: SecretSource | None = None) -> dict[str, Any]:
    made = build_redact(redact, shared_key)
    assert made is not None
    return dict(json.loads(made(LINE)))


def hashed(text: str) -> Any:
    return json.loads(Redactor(drop=(), mask=(), hashed=("c",), key=text.encode())(LINE))["c"]


def test_each_field_is_dropped_masked_or_hashed_as_the_table_says() -> None:
    made = done(Redact(drop=("a",), mask=("b",), hash=("c",)), key("shared"))
    assert made == {"b": "***", "c": hashed("shared"), "d": 1}


def test_each_of_the_three_alone_is_enough() -> None:
    assert done(Redact(drop=("a",))) == {"b": "y", "c": "z", "d": 1}
    assert done(Redact(mask=("b",)))["b"] == "***"
    assert done(Redact(hash=("c",)), key("shared"))["c"] == hashed("shared")


def test_a_key_is_read_only_where_something_is_hashed() -> None:
    gone = SecretSource("file", "/gone", path="redact.hash_key_file")
    assert done(Redact(drop=("a",)), gone) == {"b": "y", "c": "z", "d": 1}
    with pytest.raises(ConfigError):
        done(Redact(hash=("c",)), gone)


def test_a_table_without_fields_and_no_table_change_nothing() -> None:
    assert build_redact(None, key("shared")) is None
    assert build_redact(Redact(hash_key=key("own")), key("shared")) is None


def test_the_key_of_the_table_counts_before_the_shared_one() -> None:
    table = Redact(hash=("c",), hash_key=key("own"))
    assert done(table, key("shared"))["c"] == done(table)["c"] == hashed("own") != hashed("shared")


def test_a_sink_has_what_its_own_table_says_and_the_others_get_lines_whole() -> None:
    config = Config(redact=Redact(hash_key=key("shared")))
    plain = FileSink(name="plain", path="/x")
    sinks = [plain, msgspec.structs.replace(plain, name="hashing", redact=Redact(hash=("c",)))]
    made = redactions_of(sinks, config)
    assert list(made) == ["hashing"]
    assert json.loads(made["hashing"](LINE))["c"] == hashed("shared")
