"""The errors of AWS's library and services, as tables of names. The library itself is imported elsewhere."""

from __future__ import annotations

from typing import Any

from poller.net.failures import proxy_words, root_cause, tls_words

CREDENTIAL_CODES = {
    *("AccessDenied", "AccessDeniedException", "AuthFailure", "ExpiredToken", "ExpiredTokenException"),
    *("IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId", "InvalidClientTokenId"),
    *("InvalidSignature", "InvalidSignatureException", "SignatureDoesNotMatch", "MissingAuthenticationToken"),
    *("MissingAuthenticationTokenException", "NotAuthorized", "OptInRequired", "UnrecognizedClientException"),
}
# Errors that botocore raises without asking AWS, and that a person must correct.
CREDENTIAL_ERRORS = (
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
    *(
        "NoAuthTokenError",
        "UnknownTokenProviderError",
        "RefreshWithMFAUnsupportedError",
        "ConfigNotFound",
        "ProfileNotFound",
        "ConfigParseError",
    ),
    *("SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "PendingAuthorizationExpiredError", "LoginError"),
    *(
        "MetadataRetrievalError",
        "InfiniteLoopConfigError",
        "InvalidConfigError",
        "UnauthorizedError",
        "UnknownCredentialError",
    ),
)
_CONNECTION_REASONS = (
    ("ConnectTimeoutError", "no connection within connect_timeout (check the region and the firewall)"),
    ("ReadTimeoutError", "no answer within read_timeout"),
    ("ConnectionClosedError", "the connection was closed before the answer came"),
    ("EndpointConnectionError", "no connection (check region, endpoint_url and the DNS)"),
    ("NoRegionError", "no region (give region, or set it in AWS's own configuration)"),
)


def connection_reason(error: Exception) -> str:
    """Why a call did not reach AWS, and in parentheses what to do; empty for any other error of the library."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ProxyConnectionError" in kinds:
        why, hint = proxy_words(root_cause(error))
        return f"the proxy did not let the request through: {why} ({hint})"
    if "SSLError" in kinds:
        why, hint = tls_words(root_cause(error))
        return f"TLS failed: {why} ({hint})"
    return next((reason for kind, reason in _CONNECTION_REASONS if kind in kinds), "")


def secrets_of(credentials: Any) -> list[str]:
    """The current secrets of a session. The credentials of a role are renewed while a client is used.

    Raises: like a call, if there are no credentials.
    """
    if credentials is None:
        return []
    now = credentials.get_frozen_credentials()
    return [secret for secret in (now.secret_key, now.token, now.access_key) if secret]
