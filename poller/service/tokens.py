"""When the tokens of the accounts expire. Read repeatedly, because their files are replaced while the daemon runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from prometheus_client import Gauge

from poller.ionos.api import WARN_EXPIRY_SECONDS
from poller.service.metrics import drop

log = logging.getLogger(__name__)

_WARN_EVERY_SECONDS = 6 * 3600.0
_HINT = (
    "make a new token and put it where this one comes from; its own file is read again by itself, all else (the environment,"
    " LoadCredential= of systemd) needs a restart"
)


class TokenWatch:
    """Shows in a gauge when each token expires. Warns of one that expires soon: when it is new, and every six hours."""

    def __init__(
        self, read: Callable[[], Mapping[str, float | None]], gauge: Gauge, clock: Callable[[], float]
    ) -> None:
        """`read` returns unix seconds by account, None if the token does not say. An account that it leaves out has no news: its
        previous token is still in use.
        """
        self._read = read
        self._gauge = gauge
        self._clock = clock
        self._warned_at = 0.0
        self.expiries: Mapping[str, float] = {}
        """As of the last look."""

    def look(self) -> None:
        before, read = self.expiries, self._read()
        self.expiries = {name: at for name, at in {**before, **read}.items() if at is not None}
        drop(self._gauge, lambda account: account in read and account not in self.expiries)
        now = self._clock()
        is_due = self.expiries != before or now - self._warned_at >= _WARN_EVERY_SECONDS
        if is_due:
            self._warned_at = now
        for account, expires_at in self.expiries.items():
            self._gauge.labels(account).set(expires_at)
            if is_due and expires_at - now < WARN_EXPIRY_SECONDS:
                log.warning(
                    "token.expires_soon" if expires_at > now else "token.expired",
                    extra={
                        "account": account,
                        "expires_at": datetime.fromtimestamp(expires_at, UTC),
                        "hint": _HINT,
                    },
                )
