"""A stand-in for the Logging Service's management API, with the paths of a region's host: pipelines, and keys, shown once.

The logging intake then accepts only the newest key that was shown.
Source: docs/facts.md, "IONOS Logging Service"; the vendor's SDK ionoscloud-logging 2.0.0.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from poller.simulator.answers import Answer, Request, api_error, json_answer
from poller.simulator.settings import SimulatorSettings

PREFIX = "/pipelines"
_MAX_NAME_CHARS = 20
_TAG_CHARS = range(3, 21)
_RETENTION_DAYS = (0, 7, 14, 30)  # 0: without limit


class _Source(msgspec.Struct):
    source: str
    tag: str
    protocol: str
    destinations: list[dict[str, Any]] = []


class _Properties(msgspec.Struct):
    name: str
    logs: list[_Source]


class _Body(msgspec.Struct):
    properties: _Properties


class PipelineService:
    """All pipelines, and the requests so far. `now` is the clock; `adopt_key` is called with every new key."""

    def __init__(self, now: Callable[[], float], adopt_key: Callable[[str], None]) -> None:
        self._now = now
        self._adopt_key = adopt_key
        self._lock = threading.Lock()
        self.pipelines: dict[str, tuple[_Properties, float]] = {}  # id -> properties, and the time of the last change
        self.requests: list[str] = []  # `POST /pipelines`, in order
        self.keys: list[str] = []  # all keys that were shown

    def answer(self, request: Request, settings: SimulatorSettings, base_url: str) -> Answer:
        """The answer of the API."""
        path = request.path.strip("/")
        if request.headers.get("authorization") != f"Bearer {settings.token}":
            return api_error(401, "paas-auth-1", "Unauthorized, wrong or no api key provided to process this request")
        with self._lock:
            self.requests.append(f"{request.method} /{path}")
            match request.method, path.split("/"):
                case "GET", ["pipelines"]:
                    return self._list(request, settings, base_url)
                case "POST", ["pipelines"]:
                    return self._create(request, settings, base_url)
                case "GET", ["pipelines", found] if found in self.pipelines:
                    return json_answer(200, self._show(found, settings, base_url))
                case "PATCH", ["pipelines", found] if found in self.pipelines:
                    return self._change(found, request, settings, base_url)
                case "POST", ["pipelines", found, "key"] if found in self.pipelines:
                    return json_answer(201, {"key": self._new_key()})
        return api_error(404, "paas-feature-1", "The requested resource does not exist")

    def _list(self, request: Request, settings: SimulatorSettings, base_url: str) -> Answer:
        offset, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 100))
        items = [self._show(found, settings, base_url) for found in self.pipelines]
        return json_answer(200, {"type": "collection", "items": items[offset : offset + limit]})

    def _create(self, request: Request, settings: SimulatorSettings, base_url: str) -> Answer:
        properties = _checked(request)
        if isinstance(properties, Answer):
            return properties
        made = str(uuid.uuid4())
        self.pipelines[made] = (properties, self._now())
        answer = self._show(made, settings, base_url)
        answer["properties"]["key"] = self._new_key()
        return json_answer(201, answer)

    def _change(self, found: str, request: Request, settings: SimulatorSettings, base_url: str) -> Answer:
        properties = _checked(request)
        if isinstance(properties, Answer):
            return properties
        self.pipelines[found] = (properties, self._now())
        return json_answer(200, self._show(found, settings, base_url))

    def _new_key(self) -> str:
        key = f"key-{secrets.token_hex(16)}"
        self.keys.append(key)
        self._adopt_key(key)
        return key

    def _show(self, found: str, settings: SimulatorSettings, base_url: str) -> dict[str, Any]:
        properties, since = self.pipelines[found]
        is_ready = self._now() >= since + settings.pipeline_ready_seconds
        shown: dict[str, Any] = {"name": properties.name, "logs": msgspec.to_builtins(properties.logs)}
        if is_ready:
            shown["httpAddress"] = f"{base_url}/sink/logging"
        return {
            "id": found,
            "type": "pipeline",
            "href": f"{base_url}{PREFIX}/{found}",
            "metadata": {"state": "AVAILABLE" if is_ready else "PROVISIONING"},
            "properties": shown,
        }


def _checked(request: Request) -> _Properties | Answer:
    """The properties that a request asks for, or the answer that refuses it."""
    try:
        properties = msgspec.json.decode(request.body, type=_Body).properties
    except msgspec.DecodeError as error:
        return api_error(422, "paas-validation-1", str(error))
    if not 0 < len(properties.name) <= _MAX_NAME_CHARS:
        return api_error(422, "paas-validation-1", "[properties.name] must have 1 to 20 characters")
    for source in properties.logs:
        if len(source.tag) not in _TAG_CHARS or not (source.tag.isascii() and source.tag.isalnum()):
            return api_error(422, "paas-validation-1", "[properties.logs.tag] must be 3 to 20 letters and digits")
        if any(destination.get("retentionInDays", 30) not in _RETENTION_DAYS for destination in source.destinations):
            return api_error(422, "paas-validation-1", "[properties.logs.destinations.retentionInDays] 0, 7, 14 or 30")
    return properties
