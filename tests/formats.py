"""Checks for events of a standard: they are valid by the rules of the standard, and contain the whole entry."""

from __future__ import annotations

import csv
import ipaddress
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from poller.core.damage import without_lone_surrogates
from tests.support import TOP

ECS_FIELDS = TOP / "tests" / "data" / "ecs-9.4.0.csv"
ECS_OWN = "ionos.activitylog."


# OCSF


@cache
def ocsf_validator(class_uid: int) -> jsonschema.Draft202012Validator:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.8.0"))
    name = schema.lookup_class_name_from_uid(class_uid)
    return jsonschema.Draft202012Validator(schema.get_class_schema(name, ["cloud", "datetime"]))


def ocsf_problems(made: dict[str, Any]) -> list[str]:
    """The problems of an event, by the rules of its class and its profiles."""
    assert sorted(made["metadata"]["profiles"]) == ["cloud", "datetime"]
    assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
    assert made["category_uid"] == made["class_uid"] // 1000
    return [f"{error.json_path}: {error.message}" for error in ocsf_validator(made["class_uid"]).iter_errors(made)]


# ECS


@cache
def ecs_fields() -> dict[str, tuple[str, bool, frozenset[str]]]:
    """Name -> type, whether a list is expected, and the values that are allowed, if not all are."""
    lines = [line for line in ECS_FIELDS.read_text().splitlines() if not line.startswith("#")]
    return {
        row["field"]: (row["type"], row["normalization"] == "array", frozenset(row["allowed"].split()))
        for row in csv.DictReader(lines)
    }


def ecs_problems(made: dict[str, Any]) -> list[str]:
    """The problems of the event's fields, by the rules of the standard."""
    found = []
    for name, value in _leaves(made):
        if name.startswith(ECS_OWN):
            continue
        if name not in ecs_fields():
            found.append(f"{name} is no field of ECS")
            continue
        kind, is_list, allowed = ecs_fields()[name]
        if is_list != isinstance(value, list):
            found.append(f"{name}: {value!r} should be {'a list' if is_list else 'one value'}")
        items = value if isinstance(value, list) else [value]
        found += [
            f"{name}: {item!r} is no {kind} that is allowed"
            for item in items
            if not _is(kind, item) or (allowed and item not in allowed)
        ]
    return found


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "date":
            return isinstance(value, str) and bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value))
        case "long":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        case "ip":
            return bool(ipaddress.ip_address(value))
        case "keyword" | "wildcard" | "text" | "match_only_text":
            return isinstance(value, str)
        case _:
            raise AssertionError(f"no rule for {kind}")


def _leaves(made: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in made.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


# Both


def lost(line: bytes, made: bytes) -> list[str]:
    """The values of an entry that the event does not contain outside its copy of the entry."""
    event = json.loads(made, parse_int=str, parse_float=str)
    event.pop("raw_data", None)
    event.get("event", {}).pop("original", None)
    there = set(_texts(event))
    url = event.get("url") or event.get("http_request", {}).get("url", {})
    there.add(f"{url.get('path')}?{url.get('query') or url.get('query_string')}")
    joined = event.get("status_detail") or event.get("error", {}).get("message") or ""
    entry = json.loads(without_lone_surrogates(line), parse_int=str, parse_float=str)
    return [text for text in _texts(entry) if text and text not in there and text not in joined]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif value is not None:
        yield json.dumps(value) if isinstance(value, bool) else value
