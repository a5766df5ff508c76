"""A stand-in for the management API of IONOS Event Streams: clusters, their users, and the users' certificates.

Source: docs/facts.md, "Kafka".
"""

from __future__ import annotations

from typing import Any

from poller.simulator.answers import Answer, Request, api_error, json_answer
from poller.simulator.settings import SimulatorSettings

PREFIX = "/clusters"
CLUSTER_ID, USERS = "c0ffee00-0000-4000-8000-000000000001", {"u1": "poller", "u2": "reader"}


def answer_clusters(request: Request, settings: SimulatorSettings) -> Answer:
    """The answer of the API. There is one cluster, with the brokers of the settings."""
    if request.headers.get("authorization") != f"Bearer {settings.token}":
        return api_error(401, "paas-auth-1", "Unauthorized, wrong or no api key provided to process this request")
    match request.path.strip("/").split("/"):
        case ["clusters"]:
            metadata = {"state": "AVAILABLE", "brokerAddresses": list(settings.kafka_brokers)}
            items = [{"id": CLUSTER_ID, "metadata": metadata, "properties": {"name": "events", "version": "3.8.0"}}]
            return _page(items, request)
        case ["clusters", found, "users"] if found == CLUSTER_ID:
            return _page([{"id": id_, "properties": {"name": name}} for id_, name in USERS.items()], request)
        case ["clusters", found, "users", user, "access"] if found == CLUSTER_ID and user in USERS:
            parts = {"certificateAuthority": "CERTIFICATE", "certificate": "CERTIFICATE", "privateKey": "PRIVATE KEY"}
            pem = {
                name: f"-----BEGIN {kind}-----\n{user}{name}\n-----END {kind}-----\n" for name, kind in parts.items()
            }
            return json_answer(200, {"id": user, "metadata": {"state": "AVAILABLE", **pem}})
    return api_error(404, "paas-feature-1", "The requested resource does not exist")


def _page(items: list[dict[str, Any]], request: Request) -> Answer:
    offset, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 100))
    return json_answer(200, {"type": "collection", "items": items[offset : offset + limit]})
