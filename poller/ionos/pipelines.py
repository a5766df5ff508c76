"""The Logging Service's management API, through the vendor's SDK: find, make and change a pipeline, get its key.

The SDK makes the requests and reads the answers; our transport sends them, so that an answer has the bounds of every other.
Translates all that the SDK raises. A key is a `Secret` from the moment it is read, and in no message. No request is repeated
here: a second POST would make a second pipeline, or end the key that the first one made.

Source: ionoscloud-logging 2.0.0, and docs/facts.md, "IONOS Logging Service".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from poller.config import Secret
from poller.config.installed import needed
from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    ConfigError,
    PollerError,
    RejectedError,
    TransientError,
)
from poller.net.transport import Response, Transport

REGIONS = ("de-txl", "de-fra", "gb-lhr", "gb-bhx", "fr-par", "es-vit", "us-mci", "us-las", "us-ewr")
MAX_NAME_CHARS = 20
_PAGE = 100
_MAX_WORDS = 200
_UNREACHED_HINT = "check --region or --api-url, the DNS, and any proxy or firewall on the way; then run setup again"
_MAX_PIPELINES = 10_000
_MAX_ANSWER_BYTES = 4 * 1024 * 1024


class Pipeline(NamedTuple):
    """The fields of a pipeline that we use. `url` is empty until it is ready; `tags` are those of its HTTP sources."""

    id: str
    name: str
    state: str
    url: str
    tags: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        return self.state in ("AVAILABLE", "") and bool(self.url)

    @property
    def is_broken(self) -> bool:
        return self.state in ("FAILED", "DESTROYING")


def region_url(region: str) -> str:
    """The API of a region."""
    return f"https://logging.{region}.ionos.com"


class Pipelines:
    """The pipelines of one account in one region.

    Every method raises AuthError, RejectedError (the API refuses this request) or TransientError.
    """

    def __init__(self, url: str, authorization: str, transport: Transport) -> None:
        """Raises: ConfigError when the SDK is not installed."""
        with needed("setup", "setup", "needs ionoscloud-logging, which is not installed"):
            import ionoscloud_logging
        self._sdk: Any = ionoscloud_logging  # its types are not made to be read with `strict`
        configuration = self._sdk.Configuration(host=url, retries=0)
        configuration.max_retries = 1  # it would wait 100 s and send a POST again
        client = self._sdk.ApiClient(configuration)
        client.rest_client = _Rest(transport)
        client.set_default_header("Authorization", authorization)
        self._pipelines = self._sdk.PipelinesApi(client)
        self._keys = self._sdk.KeyApi(client)

    def find(self, wanted: str) -> Pipeline | None:
        """The pipeline of this name or id; None if it does not exist.  Raises: ConfigError if several have the name."""
        found: list[Pipeline] = []
        offset = 0
        while True:
            page = self._call(self._pipelines.pipelines_get, offset=offset, limit=_PAGE)
            items = page.items or []
            found += [pipeline for pipeline in map(_pipeline, items) if wanted in (pipeline.id, pipeline.name)]
            offset += len(items)
            if len(items) < _PAGE:
                break
            if offset >= _MAX_PIPELINES:
                raise TransientError("the list of pipelines does not end", hint="check --region or --api-url")
        if len(found) > 1:
            ids = ", ".join(pipeline.id for pipeline in found)
            raise ConfigError.of("--pipeline", f"{len(found)} are called {wanted!r}", f"give the id of one: {ids}")
        return found[0] if found else None

    def get(self, pipeline_id: str) -> Pipeline:
        """The pipeline as it is now."""
        return _pipeline(self._call(self._pipelines.pipelines_find_by_id, pipeline_id))

    def create(self, name: str, tag: str, retention_days: int) -> tuple[Pipeline, Secret | None]:
        """Make one with one HTTP source. With its key, which is shown this once, where the API gives it here."""
        properties = self._sdk.PipelineNoAddr(name=name, logs=[self._source(tag, retention_days)])
        made = self._call(self._pipelines.pipelines_post, self._sdk.PipelineCreate(properties=properties))
        key = made.properties.key if made.properties else None
        return _pipeline(made), Secret(key) if key else None

    def add_tag(self, pipeline_id: str, tag: str, retention_days: int) -> None:
        """Add an HTTP source to those it has."""
        before = self._call(self._pipelines.pipelines_find_by_id, pipeline_id).properties
        logs = [*((before.logs if before else None) or []), self._source(tag, retention_days)]
        properties = self._sdk.PipelineNoAddr(name=before.name if before else None, logs=logs)
        self._call(self._pipelines.pipelines_patch, pipeline_id, self._sdk.PipelinePatch(properties=properties))

    def new_key(self, pipeline_id: str) -> Secret:
        """Create a new key. The old one stops working. It is shown this once."""
        key = self._call(self._keys.pipelines_key_post, pipeline_id).key
        if not key:
            raise RejectedError("the API made a key and did not show it", hint="try `setup --rotate-key` again")
        return Secret(key)

    def _source(self, tag: str, retention_days: int) -> Any:
        destination = self._sdk.PipelineNoAddrLogsInnerDestinationsInner(type="loki", retentionInDays=retention_days)
        return self._sdk.PipelineNoAddrLogsInner(source="generic", tag=tag, protocol="http", destinations=[destination])

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except self._sdk.ApiException as error:
            raise _failure(error.status or 0, error.body or "") from None
        except (TransientError, BodyTooLargeError) as error:
            hint = error.hint if error.message.startswith("TLS failed") else _UNREACHED_HINT
            raise TransientError(f"the Logging Service cannot be asked: {error.message}", hint=hint) from error
        except (ValueError, TypeError, KeyError, AttributeError):
            # `from None`: what the SDK could not read may hold a key, and its message shows it.
            raise TransientError(
                "the Logging Service's answer cannot be used", hint="check --region or --api-url"
            ) from None


class _Rest:
    """What the SDK sends its requests with: our transport, in the form of the SDK's own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Any = None, **_: Any
    ) -> _RestResponse:  # named as the SDK does
        content = None if body is None else json.dumps(body).encode()
        return _RestResponse(
            self._transport.request(method, url, headers=headers, body=content, max_bytes=_MAX_ANSWER_BYTES)
        )


class _RestResponse:
    """An answer, in the form in which the SDK reads one."""

    reason = ""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.data = response.body
        self._headers = response.headers

    def read(self) -> bytes:
        return self.data

    def getheaders(self) -> Mapping[str, str]:
        return self._headers

    def getheader(self, name: str, default: str | None = None) -> str | None:
        return self._headers.get(name, default)


def _pipeline(answer: Any) -> Pipeline:
    properties, metadata = answer.properties, answer.metadata
    address = (properties.http_address if properties else None) or ""
    if address and "://" not in address:
        address = f"https://{address}"
    logs = (properties.logs if properties else None) or []
    return Pipeline(
        id=answer.id or "",
        name=(properties.name if properties else None) or "",
        state=((metadata.state if metadata else None) or "").upper(),
        url=address.rstrip("/"),
        tags=tuple(source.tag for source in logs if source.tag and (source.protocol or "").lower() == "http"),
    )


def _failure(status: int, body: str) -> PollerError:
    """An answer that is no success."""
    words = _words(body)
    said = f"{status}: {words}" if words else str(status)
    if 300 <= status < 400:
        hint = "check --region or --api-url"
        return TransientError("the Logging Service answered with a redirect, which is not followed", hint=hint)
    if status == 401:
        return AuthError(f"the Logging Service refused the token ({said})", hint="`ionos-poller check` says more")
    if status == 403:
        hint = "the user needs the privilege to manage the Logging Service: grant it in the DCD under Groups"
        return AuthError(f"the Logging Service denied access ({said})", is_denied=True, hint=hint)
    if status in (408, 429) or status >= 500:
        return TransientError(f"the Logging Service answered {said}", status=status, hint="run setup again later")
    hint = "check --region or --api-url" if status == 404 else "see what it says, and choose other values"
    return RejectedError(f"the Logging Service refused the request ({said})", status=status, hint=hint)


def _words(body: str) -> str:
    """The messages of an error body."""
    try:
        messages = json.loads(body).get("messages") or []
        return _line("; ".join(str(message.get("message", "")) for message in messages))
    except (ValueError, AttributeError, TypeError):
        return ""


def _line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_MAX_WORDS]
