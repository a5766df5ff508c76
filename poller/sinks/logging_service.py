"""IONOS Logging Service, or any HTTP source that takes a JSON array and wants an `APIKEY` header: a preset of `post`.

Source: docs/facts.md, "IONOS Logging Service". It stamps the time of arrival and has no key to tell a repeat by.
"""

from __future__ import annotations

from urllib.parse import quote

from poller.config import LoggingServiceSink as Settings
from poller.sinks.base import Context
from poller.sinks.http import Login
from poller.sinks.post import PostSink, Shape

SUCCESSES = (200, 201, 202, 204)


class LoggingServiceSink(PostSink):
    """POST {url}/{tag}, the lines as they are as the elements of one array."""

    def __init__(self, settings: Settings, context: Context) -> None:
        shape = Shape(
            path="/" + quote(settings.tag),
            successes=SUCCESSES,
            place="url and tag",
            login=Login("APIKEY", settings.api_key),
        )
        super().__init__(settings, context, shape)
