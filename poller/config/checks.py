"""Checks of single values: pure functions that return the value or raise `BadValueError`.

No message repeats a value that may be a misplaced secret: URLs, header values and labels are not shown.
"""

from __future__ import annotations

import re
from contextlib import suppress

from poller.config.values import show

_NAME = r"[A-Za-z0-9_.-]{1,100}"
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
LOKI_LABELS = ("contract", "late")
"""The labels that the program adds."""
MAX_LOKI_LABELS = 15
_MAX_LABEL_BYTES = 2048
_MAX_LABEL_NAME_CHARS = 1024
_LABEL_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_INDEX = r"[^-_+A-Z\\/*?\"<>|\s,#:{}][^A-Z\\/*?\"<>|\s,#:{}]*"
_MAX_INDEX_BYTES = 255
# A name has a letter: parts of other notations (`$`, `*`, `0`, `/a`, `a[0]`) are refused, because they match no field.
_FIELD_NAME = r"@?[\w-]*[^\W\d_][\w-]*(\[\])?"
_FIELD_PATH = rf"{_FIELD_NAME}(\.{_FIELD_NAME})*"
# Source: docs/facts.md, "IONOS Activity Log API": what the API wraps an entry in.
_AROUND_ENTRY = ("hits", "_source")
# Source: unix(7), sun_path: 108 bytes with the byte that ends it.
_MAX_SOCKET_PATH_BYTES = 107
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_MAPPING_HINT = 'such as "event.type" or "{event.type} {event.param.action}"'
_FRAMING_HEADERS = {"content-length", "content-encoding", "transfer-encoding"}
_SENSITIVE_NAME = r"authorization|cookie|key|token|secret|password|signature"


class BadValueError(ValueError):
    """A value that cannot be used. `message` completes "<key>: ..."; `hint` is the remedy."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def check_text(text: str) -> str:
    """Printable text on one line, not empty."""
    if not text.strip():
        raise BadValueError("must not be empty")
    if not text.isprintable():
        raise BadValueError("holds a control character")
    return text


def check_user(text: str) -> str:
    """A user name for Basic authentication."""
    if ":" in check_text(text):
        raise BadValueError("must not contain a colon")
    return text


def check_header_text(text: str) -> str:
    """Text that a header may hold."""
    if " " in check_text(text) or not text.isascii():
        raise BadValueError("holds a space or a character beyond ASCII")
    return text


# SQL words that PostgreSQL 14 to 18 do not accept as a schema name unless quoted, and the schema of SQL itself.
_RESERVED = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column
concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from
full grant group having ilike in information_schema initially inner intersect into is isnull join lateral leading left
like limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
references returning right select session_user similar some symmetric system_user table tablesample then to trailing
true union unique user using variadic verbose when where window with
"""


def is_name(text: str) -> bool:
    """Whether it is safe as a file name, a metric label and a path segment."""
    return re.fullmatch(_NAME, text) is not None and text not in (".", "..")


def check_name(text: str) -> str:
    """A name of an account or a sink."""
    if not is_name(text):
        raise BadValueError(f"{show(text)} is not a name", "use letters, digits, `_`, `.` and `-`, at most 100")
    return text


def check_identifier(text: str) -> str:
    """A name in PostgreSQL that needs no quotes."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text) or text.startswith("pg_"):
        raise BadValueError(
            f"{show(text)} is not a name of a schema", "use lower-case letters, digits and `_`, at most 63"
        )
    if text in _RESERVED.split():
        raise BadValueError(f"{show(text)} is a word of PostgreSQL's own", "choose another name, such as ionos_poller")
    return text


def check_whole_url(text: str, why_no_query: str = "give it by the key query") -> str:
    """An absolute http or https URL without credentials, query or fragment."""
    from urllib.parse import urlsplit

    if not text.isprintable() or " " in text or "\\" in text:
        raise BadValueError("holds a space, a backslash or a control character")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadValueError("is not a URL", "such as https://host:port/path") from None
    if parts.scheme not in ("http", "https"):
        raise BadValueError("must begin with https:// or http://", "such as https://host:port/path")
    if "@" in parts.netloc:
        raise BadValueError("must not hold credentials", "give them by their own keys, from a file or the environment")
    if not host or port == 0:
        raise BadValueError("names no host" if not host else "names no usable port", "such as https://host:port/path")
    if "?" in text or "#" in text:
        raise BadValueError("must not have a query or a fragment", why_no_query)
    return text


def check_url(text: str) -> str:
    """Like `check_whole_url`, for a URL to which a path is appended: its last slash is removed."""
    return check_whole_url(text, "the program appends its own path").rstrip("/")


def check_archive(text: str) -> str:
    """`file:///directory` or `s3://bucket/prefix`, without a slash at its end."""
    check_text(text)
    scheme, separator, rest = text.partition("://")
    hint = "such as file:///srv/audit or s3://bucket/prefix"
    if not separator or scheme not in ("file", "s3"):
        raise BadValueError("must begin with file:/// or s3://", hint)
    parts = rest.rstrip("/").split("/")
    read = parts if scheme == "s3" else file_path(text).rstrip("/").split("/")
    if any(part in (".", "..") for part in read) or "" in read[1:]:
        raise BadValueError("has an empty part, `.` or `..` in its path", hint)
    if scheme == "file" and (parts[0] or len(parts) < 2):
        raise BadValueError("is not the URL of a directory", hint)
    check_text(file_path(text))
    if scheme == "s3" and not re.fullmatch(_BUCKET, parts[0]):
        raise BadValueError("names no bucket", hint)
    return f"{scheme}://{'/'.join(parts)}"


def file_path(url: str) -> str:
    """The path of a `file://` URL, where `%20` is a space. Bytes that are not UTF-8 are kept."""
    from urllib.parse import unquote

    return unquote(url.removeprefix("file://"), errors="surrogateescape")


def is_clear_text(url: str) -> bool:
    """Whether data sent to this URL crosses a network unencrypted: plain http to a host that is not this machine."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme == "http" and not is_this_machine((parts.hostname or "").rstrip("."))


def is_this_machine(host: str) -> bool:
    """Whether a name or an address always means the machine itself."""
    from ipaddress import ip_address

    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_listen(text: str) -> str:
    """`host:port`, `[v6]:port`, `unix:/path`, or empty for none."""
    if text.startswith("unix:"):
        path = check_text(text.removeprefix("unix:"))
        if not path.startswith("/") or len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
            raise BadValueError(
                f"{show(text)} is not the path of a socket", 'such as "unix:/run/ionos-poller/http.sock"'
            )
        return text
    host, _, port = text.rpartition(":")
    is_port = re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= 65_535
    if text and not (is_port and _is_host(host)):
        raise BadValueError(f"{show(text)} is not an address and port", 'such as "127.0.0.1:9464"; "" turns it off')
    return text


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        import ipaddress

        with suppress(ValueError):
            return ipaddress.ip_address(host[1:-1]).version == 6
        return False
    return re.fullmatch(r"[A-Za-z0-9.-]+", host) is not None


def check_host(value: object) -> str:
    """A name that stands in a `Host` header, without its port, or `*`."""
    text = value if isinstance(value, str) else ""
    if text != "*" and not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise BadValueError(f"{show(value)} is not a host name", 'without a port, such as "poller.example.com"')
    return text.lower()


def check_broker(value: object) -> str:
    """Host and port of a Kafka broker."""
    text = value if isinstance(value, str) else ""
    host, _, port = text.rpartition(":")
    is_host = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host)
    if not is_host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise BadValueError(f"{show(value)} is not host:port", 'such as "10.7.222.11:9093", without a scheme')
    return text


def _check_placeholders(text: str) -> None:
    for placeholder in re.findall(r"\{[^{}]*\}|[{}]", text):
        if placeholder != "{date}":
            raise BadValueError(f"has the unknown placeholder {show(placeholder)}", "there is only {date}")


def check_template(text: str) -> str:
    """The path of an output file, with `{date}` as its only placeholder and without `..`."""
    _check_placeholders(check_text(text))
    if ".." in text.split("/"):
        raise BadValueError("must not contain `..`")
    if text.endswith("/"):
        raise BadValueError("names a directory", "such as /var/log/ionos-activity/{date}.ndjson")
    return text


def check_index(text: str) -> str:
    """The name of an index, an alias or a data stream, with `{date}` as its only placeholder.

    Source: OpenSearch and Elasticsearch, create index API: lower case, no `\\/*?"<>| ,#:`, not beginning with `-_+`, 255 bytes.
    """
    _check_placeholders(check_text(text))
    name = text.replace("{date}", "2026-05-01")
    if not re.fullmatch(_INDEX, name) or name in (".", "..") or len(name.encode()) > _MAX_INDEX_BYTES:
        hint = "lower case, such as ionos-activitylog or ionos-activitylog-{date}"
        raise BadValueError(f"{show(text)} is not the name of an index", hint)
    return text


def check_status(value: object) -> int:
    """An HTTP status that means success."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{3}", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 200 <= number <= 299:
        raise BadValueError(f"{show(value)} is not a status that means success", "they go from 200 to 299")
    return number


def check_field_path(value: object) -> str:
    """The path of a field of the entry: names joined by dots, `[]` behind a list."""
    text = value if isinstance(value, str) else ""
    if not text.isprintable() or not re.fullmatch(_FIELD_PATH, text):
        raise BadValueError(
            f"{show(value)} is not a path of a field",
            "names joined by dots, such as principal.sourceIP or event.resources[].id",
        )
    if text.split(".")[0].removesuffix("[]") in _AROUND_ENTRY:
        raise BadValueError(
            f"{show(value)} begins outside the entry",
            "names joined by dots, from inside `_source`, such as principal.sourceIP",
        )
    return text


def check_mapping(text: str) -> str:
    """The path of a field, or text with such paths in braces."""
    check_text(text)
    if "{" not in text and "}" not in text:
        return check_field_path(text)
    paths = re.findall(r"\{([^{}]*)\}", text)
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", text)):
        raise BadValueError(f"{show(text)} has a brace without its other half", _MAPPING_HINT)
    for path in paths:
        check_field_path(path)
    return text


def check_glob(text: str) -> str:
    """A pattern of `*`, `?` and `[abc]`."""
    check_text(text)
    position = 0
    while (start := text.find("[", position)) >= 0:
        # A `]` directly after the opening, or after its `!`, is an ordinary character.
        first = start + (2 if text[start + 1 : start + 2] == "!" else 1)
        end = text.find("]", first + 1)
        if end < 0:
            raise BadValueError(
                f"{show(text)} has a `[` without its `]`", "patterns know *, ? and [abc]; `[[]` is a `[`"
            )
        position = end + 1
    return text


def check_contract(value: object) -> str:
    """A contract number, given as a number or as text. Leading zeros are removed."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise BadValueError(f"{show(value)} is not a contract number", "such as 31960001")
    return str(int(text))


def check_header(name: str, value: object) -> str:
    """The value of one additional request header."""
    if not re.fullmatch(_HEADER_NAME, name):
        raise BadValueError(f"{show(name)} is not the name of a header")
    if name.lower() in _FRAMING_HEADERS:
        raise BadValueError(f"{name} is set by the program")
    if not isinstance(value, str):
        raise BadValueError(f"the value of {name} must be text")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise BadValueError(f"the value of {name} holds a control character, one beyond ASCII, or a space at its end")
    return value


def check_parameter(name: str, value: object) -> str:
    """The value of one query parameter, before it is escaped."""
    if not name or not name.isprintable():
        raise BadValueError(f"{show(name)} is not the name of a parameter")
    if not isinstance(value, str):
        raise BadValueError(f"the value of {name} must be text")
    if not value.isprintable():
        raise BadValueError(f"the value of {name} holds a control character")
    return value


def is_secret_name(name: str) -> bool:
    """Whether the value of this header or parameter is likely to be a secret."""
    return re.search(_SENSITIVE_NAME, name, re.IGNORECASE) is not None


def check_label(name: str, value: object) -> str:
    """The value of one Loki label."""
    if not re.fullmatch(_LABEL_NAME, name) or name.startswith("__"):
        raise BadValueError(
            f"{show(name)} is not the name of a label", "letters, digits and `_`, not beginning with a digit"
        )
    if name in LOKI_LABELS:
        raise BadValueError(f"`{name}` is added by the program")
    if not isinstance(value, str) or not value:
        raise BadValueError(f"the value of {name} must be text, not empty")
    if not value.isprintable():
        raise BadValueError(f"the value of {name} holds a control character")
    if len(value.encode()) > _MAX_LABEL_BYTES or len(name) > _MAX_LABEL_NAME_CHARS:
        raise BadValueError(
            f"{name[:100]} is too long",
            f"Loki takes {_MAX_LABEL_BYTES} bytes of a value, {_MAX_LABEL_NAME_CHARS} of a name",
        )
    return value
