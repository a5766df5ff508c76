"""The management API of IONOS Event Streams for Apache Kafka: find a cluster, its users, and what a user logs in with.

It reads, and changes nothing. A private key is a `Secret` from the moment it is read, and in no message.
Source: docs/facts.md, "Kafka".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from poller.config import Secret
from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    ConfigError,
    PollerError,
    RejectedError,
    TransientError,
)
from poller.net.transport import Response, Transport
from poller.net.words import api_words_of

_PAGE = 100
_MAX_ITEMS = 10_000
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_PEM = r"-----BEGIN [A-Z ]+-----.+-----END [A-Z ]+-----\s*"
_WHERE = "check --region or --api-url"


class Cluster(NamedTuple):
    """A cluster as far as we need it."""

    id: str
    name: str
    state: str
    brokers: tuple[str, ...]


class User(NamedTuple):
    id: str
    name: str


class Access(NamedTuple):
    """What a user logs in with, each as PEM."""

    ca: str
    certificate: str
    key: Secret


def region_url(region: str) -> str:
    """The API of a region."""
    return f"https://kafka.{region}.ionos.com"


class EventStreams:
    """The clusters of one account in one region.

    Every method raises AuthError, RejectedError (the API refuses this request) or TransientError.
    """

    def __init__(self, url: str, authorization: str, transport: Transport) -> None:
        self._url = url
        self._authorization = authorization
        self._transport = transport

    def find(self, wanted: str) -> Cluster:
        """The cluster of this name or id.  Raises: ConfigError if no cluster, or more than one, matches."""
        found = [cluster for cluster in map(_cluster, self._items("clusters")) if wanted in (cluster.id, cluster.name)]
        if len(found) == 1:
            return found[0]
        if not found:
            hint = "give the name or the id that it has in the DCD, and the region that it is in"
            raise ConfigError.of("--kafka", f"there is no cluster {wanted!r}", hint)
        ids = ", ".join(cluster.id for cluster in found)
        raise ConfigError.of("--kafka", f"{len(found)} are called {wanted!r}", f"give the id of one: {ids}")

    def user(self, cluster: Cluster, wanted: str | None) -> User:
        """The user of this name or id; without one, the only one.  Raises: ConfigError if this is not exactly one."""
        users = [_user(item) for item in self._items(f"clusters/{_quoted(cluster.id)}/users")]
        found = [user for user in users if wanted in (None, user.id, user.name)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(user.name or user.id for user in users) or "none"
        raise ConfigError.of("--kafka-user", "does not name one user of the cluster", f"there is {names}")

    def access(self, cluster: Cluster, user: User) -> Access:
        """What the user logs in with."""
        answer = self._get(f"clusters/{_quoted(cluster.id)}/users/{_quoted(user.id)}/access")
        metadata = _inner(answer, "metadata")
        parts = [metadata.get(name) for name in ("certificateAuthority", "certificate", "privateKey")]
        if not all(isinstance(part, str) and re.fullmatch(_PEM, part, re.DOTALL) for part in parts):
            raise TransientError("the API gave no certificates for this user", hint="look at the user in the DCD")
        ca, certificate, key = (f"{str(part).strip()}\n" for part in parts)
        return Access(ca, certificate, Secret(key))

    def _items(self, path: str) -> Iterator[dict[str, Any]]:
        for offset in range(0, _MAX_ITEMS, _PAGE):
            items = self._get(path, offset=offset, limit=_PAGE).get("items")
            items = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
            yield from items
            if len(items) < _PAGE:
                return

    def _get(self, path: str, **params: int) -> dict[str, Any]:
        headers = {"Authorization": self._authorization, "Accept": "application/json"}
        try:
            answer = self._transport.request(
                "GET", f"{self._url}/{path}", headers=headers, params=params, max_bytes=_MAX_ANSWER_BYTES
            )
        except (TransientError, BodyTooLargeError) as error:
            raise TransientError(
                f"Event Streams cannot be asked: {error.message}", hint=error.hint or _WHERE
            ) from error
        if answer.status != 200:
            raise self._failure(answer)
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise TransientError("the answer of Event Streams cannot be used", hint=_WHERE)
        return value

    def _failure(self, answer: Response) -> PollerError:
        words = api_words_of(answer, [self._authorization.partition(" ")[2]])
        said = f"{answer.status}: {words}" if words else str(answer.status)
        if answer.status == 401:
            return AuthError(f"Event Streams refused the token ({said})", hint="`ionos-poller check` says more")
        if answer.status == 403:
            hint = "the user needs the privilege to manage Event Streams: grant it in the DCD under Groups"
            return AuthError(f"Event Streams denied access ({said})", is_denied=True, hint=hint)
        if answer.status in (408, 429) or answer.status >= 500:
            hint = "run setup again later"
            return TransientError(f"Event Streams answered {said}", status=answer.status, hint=hint)
        return RejectedError(f"Event Streams refused the request ({said})", status=answer.status, hint=_WHERE)


def _quoted(identity: str) -> str:
    """A name or id, percent-encoded as one segment of a path."""
    return quote(identity, safe="")


def _inner(value: dict[str, Any], name: str) -> dict[str, Any]:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _cluster(item: dict[str, Any]) -> Cluster:
    metadata, properties = _inner(item, "metadata"), _inner(item, "properties")
    addresses = metadata.get("brokerAddresses")
    brokers = tuple(filter(None, map(_text, addresses))) if isinstance(addresses, list) else ()
    return Cluster(_text(item.get("id")), _text(properties.get("name")), _text(metadata.get("state")).upper(), brokers)


def _user(item: dict[str, Any]) -> User:
    return User(_text(item.get("id")), _text(_inner(item, "properties").get("name")))
