"""Why no answer came, in our words: translates errors of the libraries and of the operating system.

A message names kind and host, never the URL, because a query may hold data that must not be logged.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl

import requests
import urllib3
from urllib3.util.ssl_match_hostname import CertificateError

from poller.core.errors import PollerError, TransientError
from poller.net.connections import EarlyAnswerError, SendTimeoutError, TooSlowError

PROXY_CREDENTIALS_HINT = "put user and password into the URL of the proxy in HTTPS_PROXY or HTTP_PROXY"
_PROXY_HINT = "check HTTPS_PROXY or HTTP_PROXY"
WAY_HINT = "check the url and any proxy or firewall on the way"

# OpenSSL's words for errors of TLS, and what to do. An alert is sent by the server about us.
_TLS_HINTS = (
    ("ALERT_PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", "the server needs TLS 1.2 or later"),
    (
        "ALERT_(.*CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|ACCESS_DENIED|DECRYPT_ERROR)",
        "if the server asks for a client certificate, check that cert_file and key_file are what it accepts",
    ),
    ("key is encrypted", "key_file must have no passphrase"),
    ("issuer|self.signed", "if an unknown CA signed the certificate, name its file in ca_file"),
    ("mismatch, certificate|not valid for|doesn't match", "the certificate is for another name: check the url"),
    ("expired|not yet valid", "check the clock of this machine; if it is right, the server needs a new certificate"),
    (
        "WRONG_VERSION|RECORD_LAYER|HTTP_REQUEST|UNEXPECTED_EOF",
        "check that it speaks TLS at that port; if it does not, the url begins with http://",
    ),
    (
        "KEY_VALUES_MISMATCH|NO_CERTIFICATE|PEM",
        "check that ca_file, cert_file and key_file are PEM, and belong together",
    ),
)

_OF_TLS = (ssl.SSLError, urllib3.exceptions.SSLError, CertificateError)

# All exceptions of the libraries for errors of a server or of the network.
FOREIGN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


def translate(error: Exception, host: str) -> TransientError:
    """Our error for a foreign one. The text names kind and host, never the URL."""
    root = root_cause(error)
    reason = type(root).__name__
    match error:
        case _ if (ours := _connection_error(error, root, host)) is not None:
            return ours
        case requests.exceptions.ProxyError():
            why, hint = proxy_words(root)
            return TransientError(f"the proxy did not let the request through: {why}", hint=hint)
        case requests.exceptions.SSLError():
            why, hint = tls_words(root)
            return TransientError(f"TLS failed with {host}: {why}", hint=hint)
        case requests.exceptions.ConnectTimeout():
            return TransientError(
                f"no connection to {host} within connect_timeout",
                hint="check the address and any proxy or firewall on the way",
            )
        case requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError() | TimeoutError():
            what = "the answer came too slowly" if isinstance(root, TooSlowError) else "no answer within read_timeout"
            return TransientError(what, hint="raise read_timeout if the network is that slow", is_size_suspect=True)
        case requests.exceptions.InvalidSchema() if "SOCKS" in str(error):
            hint = "name an HTTP proxy in HTTPS_PROXY or HTTP_PROXY, and unset ALL_PROXY"
            return TransientError("a SOCKS proxy cannot be used", hint=hint)
        case requests.exceptions.InvalidURL() | requests.exceptions.InvalidHeader() | ValueError():
            return TransientError(f"the request could not be made: {reason}", hint="check the url, and that of a proxy")
        case requests.exceptions.ContentDecodingError() | urllib3.exceptions.DecodeError():
            return TransientError("the answer's compression is broken", hint=WAY_HINT)
        case _:
            hint = f"it is tried again; if that does not help, {WAY_HINT}"
            return TransientError(f"the connection to {host} broke: {reason}", hint=hint, is_size_suspect=True)


def _connection_error(error: Exception, root: BaseException, host: str) -> TransientError | None:
    """The message for a connection that broke or failed, by the error of the operating system or ours."""
    match root:
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            hint = "raise the limit of open files (LimitNOFILE=, ulimit -n)"
            return TransientError(f"no connection to {host}: too many open files", hint=hint)
        case OSError() if missing := re.search(r"Could not find .*, invalid path: (.*)", str(root)):
            hint = "put the file back, or correct ca_file, cert_file or key_file"
            return TransientError(f"no connection to {host}: {missing[1]} is missing", hint=hint)
        case _ if type(error) is not requests.exceptions.ConnectionError:  # a proxy's, or of TLS
            return None
        case SendTimeoutError():
            hint = "raise send_timeout, or lower batch_bytes, if the network is that slow"
            return TransientError(
                f"{host} took no more of the request within send_timeout", hint=hint, is_size_suspect=True
            )
        case EarlyAnswerError():
            return TransientError(f"{host} answered before the request was sent whole", hint=WAY_HINT)
        case socket.gaierror():
            return TransientError(f"the host name of {host} is not known", hint="check the url and the DNS")
        case ConnectionRefusedError():
            hint = "check the address, and that a server listens there"
            return TransientError(f"connection refused by {host}", hint=hint)
        case _:
            return None


def proxy_words(root: BaseException) -> tuple[str, str]:
    """Why a proxy did not let a request through, by the root of the error, and what to do."""
    # Only its number is shown: the phrase behind it may quote our login.
    refusal = re.search(r"Tunnel connection failed: ([0-9]{3})", str(root))
    if refusal and refusal[1] == "407":
        return "it wants credentials (407)", PROXY_CREDENTIALS_HINT
    match root:
        case _ if refusal:
            return f"it answered {refusal[1]}", _PROXY_HINT
        case ConnectionRefusedError():
            return "it refused the connection", _PROXY_HINT
        case socket.gaierror():
            return "its host name is not known", f"{_PROXY_HINT}, and the DNS"
        case _:
            return type(root).__name__, _PROXY_HINT


def tls_words(root: BaseException) -> tuple[str, str]:
    """The error of TLS, by the root of the exception, and what to do."""
    why = getattr(root, "verify_message", "") or getattr(root, "reason", "")
    if not why and isinstance(root, _OF_TLS):  # a sentence in place of a word
        why = re.sub(r"\[\w+\] |\(_ssl\.c:\d+\)", "", str(root)).strip()
    why = why or type(root).__name__
    return why, next(
        (hint for words, hint in _TLS_HINTS if re.search(words, why)), "check the url, and its certificate"
    )


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception, of the operating system or OpenSSL. Not an error of ours that was being handled."""
    for _ in range(10):
        inner = (
            error.__cause__
            or error.__context__
            or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
            or getattr(error, "reason", None)
        )
        if not isinstance(inner, BaseException) or isinstance(inner, PollerError) or inner is error:
            break
        error = inner
    return error
