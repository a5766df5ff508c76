"""A stand-in for OpenSearch and Elasticsearch: `_bulk` with `create`, an answer for each item, and their errors.

It keeps documents by index and `_id`. It accepts or refuses each item, or refuses a whole request, as they do.
Source: docs/facts.md, "OpenSearch and Elasticsearch".
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from poller.simulator.answers import JSON, Answer, Request, inflated, json_answer
from poller.simulator.intakes import Intake, Item, Verdict, digest_of
from poller.simulator.settings import SimulatorSettings

NDJSON = "application/x-ndjson"
WORDS = "failed to parse field [@timestamp] of type [date]"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class _Target(msgspec.Struct):
    index: str = msgspec.field(name="_index")
    id: str = msgspec.field(name="_id")


class _Action(msgspec.Struct, forbid_unknown_fields=True):
    create: _Target


class OpenSearchIntake(Intake):
    """Stores documents, each identified by index and `_id`."""

    name = "opensearch"

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0  # items so far

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        place = request.path.rstrip("/").rpartition("/")[2]
        wanted = settings.opensearch_authorization
        if wanted and request.headers.get("authorization") != wanted:
            return _refusal(401, "security_exception", "missing authentication credentials")
        if request.method == "GET" and place == self.name:
            return Verdict(json_answer(200, {"version": _version(settings), "tagline": "..."}), [])
        if request.method == "HEAD":
            return Verdict(Answer(200 if self.counts else 404, b""), [])
        if request.method != "POST" or place != "_bulk":
            return _refusal(405, "illegal_argument_exception", "incorrect HTTP method")
        if request.headers.get("content-type", "").partition(";")[0] not in (NDJSON, JSON):
            return _refusal(406, "media_type_header_exception", "Content-Type is not supported")
        body = inflated(request)
        if body is None or not body.endswith(b"\n"):
            return _refusal(400, "illegal_argument_exception", "the bulk request must be terminated by a newline")
        if settings.max_body_bytes and len(body) > settings.max_body_bytes:
            return Verdict(Answer(413, b"", "text/plain"), [])
        lines = body.split(b"\n")[:-1]
        try:
            actions = [msgspec.json.decode(line, type=_Action).create for line in lines[::2]]
        except msgspec.DecodeError as error:
            return _refusal(400, "illegal_argument_exception", f"Malformed action/metadata line: {error}")
        if len(actions) * 2 != len(lines):
            return _refusal(400, "illegal_argument_exception", "an action without a document")
        return self._take(list(zip(actions, lines[1::2], strict=True)), settings)

    def _take(self, pairs: list[tuple[_Target, bytes]], settings: SimulatorSettings) -> Verdict:
        results: list[dict[str, Any]] = []
        items: list[Item] = []
        new: set[bytes] = set()
        for target, document in pairs:
            self._asked += 1
            key = f"{target.index}/{target.id}".encode()
            error = _error_of(target, document, self._asked, settings)
            if error is None and (digest_of(key) in self.counts or key in new):
                error = 409, "version_conflict_engine_exception", f"[{target.id}]: document already exists"
            if error is None:
                new.add(key)
                items.append(Item(document, key=key))
                results.append({"status": 201})
            else:
                status, kind, reason = error
                results.append({"status": status, "error": {"type": kind, "reason": reason}})
        answer = {
            "errors": len(items) < len(pairs),
            "items": [
                {"create": {"_id": target.id, **result}} for (target, _), result in zip(pairs, results, strict=True)
            ],
        }
        refused = sum(result["status"] == 400 for result in results)
        return Verdict(json_answer(200, answer), items, refused)


def _error_of(
    target: _Target, document: bytes, number: int, settings: SimulatorSettings
) -> tuple[int, str, str] | None:
    """Why item `number` is refused, regardless of stored documents: status, type and reason; None if it is not."""
    if settings.opensearch_readonly:
        return 403, "cluster_block_exception", f"index [{target.index}] blocked by: [TOO_MANY_REQUESTS/12/disk usage]"
    if settings.opensearch_busy_every and number % settings.opensearch_busy_every == 0:
        return 429, "es_rejected_execution_exception", "rejected execution of coordinating operation"
    try:
        fields = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        time = msgspec.json.decode(fields["@timestamp"], type=str)
    except (msgspec.DecodeError, KeyError):
        return 400, "mapper_parsing_exception", "failed to parse"
    if not _TIME.fullmatch(time) or (settings.poison and settings.poison.encode() in document):
        return 400, "mapper_parsing_exception", WORDS
    return None


def _version(settings: SimulatorSettings) -> dict[str, str]:
    found = {"number": settings.opensearch_number, "distribution": settings.opensearch_distribution}
    return {key: value for key, value in found.items() if value}


def _refusal(status: int, kind: str, reason: str) -> Verdict:
    return Verdict(json_answer(status, {"error": {"type": kind, "reason": reason}, "status": status}), [])
