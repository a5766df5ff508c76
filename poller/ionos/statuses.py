"""Translating a status of the Activity Log API into one of our errors, with the API's own words and a remedy.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.net.failures import PROXY_CREDENTIALS_HINT
from poller.net.transport import Response, retry_after_seconds, unrequested_encoding
from poller.net.words import api_words_of

WAY_HINT = "check api.url and any proxy or firewall on the way"
_PRIVILEGE_HINT = "the user needs the privilege ACCESS_ACTIVITY_LOG: grant it in the DCD under User Manager"
_MIN_MASKED_CHARS = 4


def failure_of(response: Response, contract: str, secrets: Sequence[str], key_remedy: str) -> PollerError | None:
    """The error for a status, with the API's own words; None for 200 and 204."""
    status = response.status
    if status in (200, 204):
        return None
    words = "" if unrequested_encoding(response.headers) else api_words_of(response, secrets)
    said = f": {words}" if words else ""
    if status == 401:
        hint = f"{key_remedy}; `ionos-poller check` says more"
        return AuthError(f"the API refused the credentials (401){said}", hint=hint, contract=contract)
    if status == 403:
        message = f"the API denied access to the activity log (403){said}"
        return AuthError(message, is_denied=True, hint=_PRIVILEGE_HINT, contract=contract)
    if status == 407:
        message = f"the proxy wants credentials (407){said}"
        return TransientError(message, status=status, hint=PROXY_CREDENTIALS_HINT, contract=contract)
    if status in (429, 408) or status >= 500:
        return TransientError(
            f"the API answered {status}{said}",
            status=status,
            retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)),
            hint="it is asked again at the next poll",
            contract=contract,
        )
    if 300 <= status < 400:
        return RejectedError(
            f"the API answered with a redirect ({status}), which is not followed",
            status=status,
            hint="check api.url",
            contract=contract,
        )
    hint = "check api.url, and that the contract exists" if status == 404 else WAY_HINT
    return RejectedError(f"the API refused the request ({status}){said}", status=status, hint=hint, contract=contract)


def secrets_in(authorization: str) -> list[str]:
    """All forms of the credentials that an answer could quote."""
    value = authorization.partition(" ")[2]
    secrets = [authorization, value]
    if authorization.startswith("Basic "):
        secrets += base64.b64decode(value).decode("utf-8", "replace").split(":", 1)[1:]
    return [secret for secret in secrets if len(secret) >= _MIN_MASKED_CHARS]
