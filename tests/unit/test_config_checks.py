"""The allowed forms of one value, at their bounds: each check returns the value as it is used, or says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from poller.config import checks
from poller.config.checks import BadValueError
from poller.config.state_url import StateUrl, check_state_url, is_unverified, parse_state_url, take_password
from tests.support import is_plain

LONG = "a" * 100


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (checks.check_text, ["a", " a ", "ü"]),
        (checks.check_user, ["anna", "a b"]),
        (checks.check_header_text, ["a", "~!"]),
        (checks.check_name, ["a", "A-b_c.9", "...", LONG]),
        (checks.check_identifier, ["a", "_", "a9_", "a" * 63, "pgx", "a_pg_"]),
        (checks.check_url, ["http://h", "https://h:1/a/b", "https://h:65535", "http://[::1]:8080/x"]),
        (
            checks.check_archive,
            [
                "file:///a",
                "file:///a/b",
                "file:///a%20b",
                "file:///100%",
                "s3://abc/%2e%2e",
                "s3://abc",
                "s3://abc/d/e",
                "s3://" + "a" * 63,
                "s3://a.b-c9",
            ],
        ),
        (checks.check_listen, ["", "h:0", "127.0.0.1:65535", "[::1]:1", "unix:/a", "unix:/" + "a" * 106, "unix:/ü"]),
        (checks.check_host, ["*", "a", "a.b-c_9"]),
        (checks.check_broker, ["h:1", "a_b.c-d:65535", "[::1]:9092", "[fe80::A]:9092"]),
        (checks.check_template, ["a", "/a/{date}.ndjson", "{date}/{date}", "/a..b/c", "a/..."]),
        (checks.check_index, ["a", "a{date}", "ü-_+", "9a", "a" * 255, "{date}"]),
        (checks.check_field_path, ["a", "a.b", "a[].b[]", "a-b.ü", "@uuid", "_a.b_1", "7b", "a._source", "_sources"]),
        (checks.check_mapping, ["a.b", "{a.b}", "{a} and {b[].c}", "x{a}"]),
        (checks.check_glob, ["*", "a?[bc]", "[]]", "[!]]", "[[]", "a]b", "[a][b]", "[!a]"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_value_within_its_bounds_is_used_as_it_is(check: Callable[[Any], Any], values: list[str]) -> None:
    assert [check(value) for value in values] == values


@pytest.mark.parametrize(
    ("check", "value", "used"),
    [
        (checks.check_url, "https://h/a/", "https://h/a"),
        (checks.check_archive, "s3://abc/d//", "s3://abc/d"),
        (checks.check_archive, "file:///a/", "file:///a"),
        (checks.check_host, "Poller.Example", "poller.example"),
        (checks.check_status, 200, 200),
        (checks.check_status, 299, 299),
        (checks.check_status, "204", 204),
        (checks.check_contract, 31960001, "31960001"),
        (checks.check_contract, "007", "7"),
        (checks.check_contract, "9" * 20, "9" * 20),
    ],
)
def test_a_value_that_can_be_written_in_several_ways_is_used_in_one(
    check: Callable[[Any], Any], value: object, used: object
) -> None:
    assert check(value) == used


EMPTY, CONTROL, SPACE = "must not be empty", "holds a control character", "holds a space, a backslash"
ARCHIVE, PART, BUCKET = "must begin with file:/// or s3://", "has an empty part, `.` or `..`", "names no bucket"
LISTEN, SOCKET, BROKER = "is not an address and port", "is not the path of a socket", "is not host:port"
INDEX, STATUS, FIELD, OUTSIDE, CONTRACT = (
    "not the name of an index",
    "is not a status",
    "is not a path of a field",
    "begins outside the entry",
    "is not a contract",
)


@pytest.mark.parametrize(
    ("check", "said", "values"),
    [
        (checks.check_text, EMPTY, ["", " \t"]),
        (checks.check_text, CONTROL, ["a\n", "a\x1bb", "\u2028a"]),
        (checks.check_user, "must not contain a colon", ["a:b", ":"]),
        (checks.check_user, EMPTY, [""]),
        (checks.check_header_text, "a space or a character beyond ASCII", ["a b", "ü"]),
        (checks.check_header_text, EMPTY, [""]),
        (checks.check_name, "is not a name", ["", ".", "..", LONG + "a", "a b", "a/b", "ü", "a\n"]),
        (checks.check_identifier, "not a name of a schema", ["", "9a", "A", "a-b", "a" * 64, "pg_", "pg_a", "a\n"]),
        (checks.check_url, SPACE, ["http://h/ a", "http://h\\a", "http://h\n"]),
        (checks.check_url, "is not a URL", ["http://[::1", "http://h:65536", "http://h:x"]),
        (checks.check_url, "must begin with https://", ["", "h", "ftp://h", "//h"]),
        (checks.check_url, "must not hold credentials", ["http://u:p@h", "http://@h"]),
        (checks.check_url, "names no host", ["http://", "http:///a", "http://:80"]),
        (checks.check_url, "names no usable port", ["http://h:0"]),
        (checks.check_url, "must not have a query or a fragment", ["http://h?a", "http://h#a", "http://h/?", "http://h/#"]),
        (checks.check_archive, ARCHIVE, ["a", "ftp://a", "file:/a", "S3://abc"]),
        (checks.check_archive, PART, ["s3://abc/../a", "s3://abc/./a", "file:///a//b", "file:///%2e%2E/a", "file:///a%2F%2Fb", "s3://abc//d"]),
        (checks.check_archive, "is not the URL of a directory", ["file://", "file:///", "file://host/a"]),
        (checks.check_archive, BUCKET, ["s3://", "s3://ab", "s3://Abc", "s3://-bc", "s3://ab-", "s3://" + "a" * 64]),
        (checks.check_archive, EMPTY, [""]),
        (checks.check_listen, LISTEN, ["h", "9464", ":9464", "h:65536", "h:", "h:x", "h:123456", "h h:1", "[::1:1", "[1.2]:1"]),
        (checks.check_listen, SOCKET, ["unix:a", "unix:/" + "a" * 107, "unix:/" + "ü" * 54]),
        (checks.check_listen, EMPTY, ["unix:"]),
        (checks.check_host, "is not a host name", ["", "a:1", "a/b", "**", 7, None]),
        (checks.check_broker, BROKER, ["", "h", "h:", ":9092", "h:0", "h:65536", "h:123456", "http://h:1", "h h:1", "[::1]", 7]),
        (checks.check_template, "has the unknown placeholder", ["{day}", "{date}{", "}", "{}"]),
        (checks.check_template, "must not contain `..`", ["../a", "a/../b", ".."]),
        (checks.check_template, "names a directory", ["a/", "/"]),
        (checks.check_template, EMPTY, [""]),
        (checks.check_index, INDEX, ["-a", "_a", "+a", "A", "aB", "a b", "a/b", "a*", "a:b", "a#b", ".", "..", "a" * 256]),
        (checks.check_index, INDEX, ["a" * 246 + "{date}", "ü" * 128]),
        (checks.check_index, "has the unknown placeholder", ["a{day}", "a{", "a}"]),
        (checks.check_index, EMPTY, [""]),
        (checks.check_status, STATUS, [199, 300, "20", "2000", "x", True, 200.0, None]),
        (checks.check_field_path, FIELD, ["", ".", "a.", ".a", "a..b", "a[0]", "[]", "a b", "a\n", 7, None]),
        (checks.check_field_path, FIELD, ["$.a", "$", "$a", "/a/b", "a/b", "a.*", "*", "a.*.b", "a.**", "a[*].b", "a.0.b", "0"]),
        (checks.check_field_path, FIELD, ["@.a", "@", "a.@b@", "a:b", "a->b", "a?.b", "a()", "$['a']", "'a'.b", '"a"', "a\\.b"]),
        (checks.check_field_path, FIELD, ["a,b", "a;b", "a|b", "{a}", "^a", "a+", "a=b", "a#b", "~a", "!a", "a[].[]", "a[][]"]),
        (checks.check_field_path, OUTSIDE, ["_source", "_source.a", "_source[].a", "hits.hits[]._source.a"]),
        (checks.check_mapping, FIELD, ["a b", "{}", "{a b}", "{a}{b..c}", "$.a", "{$.a}", "{a} {/b}"]),
        (checks.check_mapping, OUTSIDE, ["_source.a", "{a} {_source.b}"]),
        (checks.check_mapping, "has a brace without its other half", ["{a", "a}", "{{a}}", "}{"]),
        (checks.check_mapping, EMPTY, [""]),
        (checks.check_glob, "has a `[` without its `]`", ["[", "a[b", "[]", "[!]", "[a][b", "[!"]),
        (checks.check_glob, EMPTY, [""]),
        (checks.check_contract, CONTRACT, ["", "-1", "1.0", "x", "9" * 21, True, 1.0, None, " 1"]),
    ],
)  # fmt: skip
def test_a_value_beyond_its_bounds_is_told(check: Callable[[Any], Any], said: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(BadValueError) as error:
            check(value)
        assert said in error.value.message, value
        needs_hint = said not in (EMPTY, CONTROL, SPACE) and "must not contain" not in said and "ASCII" not in said
        assert bool(error.value.hint) is needs_hint, value
        assert is_plain(error.value.message)
        assert is_plain(error.value.hint or "none")


# Names and values


def takes_or_says(check: Callable[[str, object], object], name: str, value: object, said: str) -> None:
    """The check returns the value; or, if `said` is given, raises an error that matches it."""
    if said:
        with pytest.raises(BadValueError, match=said):
            check(name, value)
    else:
        assert check(name, value) == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("X-Team", "audit team", ""),
        ("x!#$%&'*+.^_`|~9", "", ""),
        ("", "a", "is not the name of a header"),
        ("X Team", "a", "is not the name of a header"),
        ("Content-Length", "a", "Content-Length is set by the program"),
        ("content-encoding", "a", "content-encoding is set by the program"),
        ("TRANSFER-ENCODING", "a", "TRANSFER-ENCODING is set by the program"),
        ("X", 7, "the value of X must be text"),
        ("X", "ü", "the value of X holds"),
        ("X", "a\n", "the value of X holds"),
        ("X", " a", "the value of X holds"),
        ("X", "a ", "the value of X holds"),
    ],
)
def test_a_header_is_one_that_can_be_sent(name: str, value: object, said: str) -> None:
    takes_or_says(checks.check_header, name, value, said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("query", "INSERT INTO ü", ""),
        ("a b&c", "", ""),
        ("", "a", "is not the name of a parameter"),
        ("a\n", "a", "is not the name of a parameter"),
        ("a", 1, "must be text"),
        ("a", "a\nb", "holds a control character"),
    ],
)
def test_a_parameter_of_a_query_is_text(name: str, value: object, said: str) -> None:
    takes_or_says(checks.check_parameter, name, value, said)


@pytest.mark.parametrize(
    "name", ["Signature", "Authorization", "X-COOKIE", "x-api-key", "Tokens", "a-secret", "Password2"]
)
def test_a_header_that_is_likely_a_secret_is_known_by_its_name(name: str) -> None:
    assert checks.is_secret_name(name)
    assert not checks.is_secret_name("X-Team")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("job", "ionos audit", ""),
        ("_a9", "ü", ""),
        ("a" * 1024, "b" * 2048, ""),
        ("", "a", "is not the name of a label"),
        ("9a", "a", "is not the name of a label"),
        ("a-b", "a", "is not the name of a label"),
        ("__a", "a", "is not the name of a label"),
        ("contract", "a", "`contract` is added by the program"),
        ("late", "a", "`late` is added by the program"),
        ("a", "", "the value of a must be text, not empty"),
        ("a", 7, "the value of a must be text, not empty"),
        ("a", "b\n", "the value of a holds a control character"),
        ("a", "b" * 2049, "a is too long"),
        ("a", "ü" * 1025, "a is too long"),
        ("a" * 1025, "b", f"^{LONG} is too long"),
    ],
)
def test_a_label_is_one_that_loki_takes(name: str, value: object, said: str) -> None:
    takes_or_says(checks.check_label, name, value, said)


@pytest.mark.parametrize(
    ("url", "is_clear"),
    [
        ("http://example.com", True),
        ("https://example.com", False),
        ("http://localhost:80/a", False),
        ("http://localhost./a", False),
        ("http://a.localhost", False),
        ("http://notlocalhost", True),
        ("http://127.9.9.9", False),
        ("http://[::1]", False),
        ("http://10.0.0.1", True),
        ("http://[fe80::1]", True),
    ],
)
def test_plain_http_crosses_a_network_unless_it_stays_on_this_machine(url: str, is_clear: bool) -> None:
    assert checks.is_clear_text(url) is is_clear


# The URL of a database


def without_its_name(value: object) -> str:
    """A test id that `-k "not postgres"` does not exclude, because the test starts no server."""
    return str(value).replace("postgres", "pg")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgresql://u@h/d", StateUrl("u", "", ("h",), ("5432",), "d", {})),
        ("postgres://u:p%40@h:1/d", StateUrl("u", "p@", ("h",), ("1",), "d", {})),
        ("postgresql://h:/d", StateUrl("", "", ("h",), ("5432",), "d", {})),
        ("postgresql://u@", StateUrl("u", "", ("localhost",), ("5432",), "u", {})),
        ("postgresql:///d", StateUrl("", "", ("localhost",), ("5432",), "d", {})),
        ("postgresql://a:1,[::1]:65535,b/d", StateUrl("", "", ("a", "::1", "b"), ("1", "65535", "5432"), "d", {})),
        (
            "postgresql://%2Frun%2Fpg/d?port=7",
            StateUrl("", "", ("/run/pg",), ("7",), "d", {"port": "7"}),
        ),
        (
            "postgres://u@%2Frun%2Fpg:5433/d",
            StateUrl("u", "", ("/run/pg",), ("5433",), "d", {}),
        ),
        (
            "postgresql:///d?host=/run/a,::1,b&port=1,,3",
            StateUrl("", "", ("/run/a", "::1", "b"), ("1", "5432", "3"), "d", {"host": "/run/a,::1,b", "port": "1,,3"}),
        ),
        (
            "postgresql://a:1,b/d?port=7,8",
            StateUrl("", "", ("a", "b"), ("1", "8"), "d", {"port": "7,8"}),
        ),
        (
            "postgresql://%61.b./d?sslcert=/a+b%2C&target_session_attrs=primary&gssencmode=disable",
            StateUrl(
                "",
                "",
                ("a.b.",),
                ("5432",),
                "d",
                {"sslcert": "/a+b,", "target_session_attrs": "primary", "gssencmode": "disable"},
            ),
        ),
        (
            "postgresql:///d%20e?host=a,b&port=7&sslmode=require",
            StateUrl("", "", ("a", "b"), ("7", "7"), "d e", {"host": "a,b", "port": "7", "sslmode": "require"}),
        ),
    ],
    ids=without_its_name,
)
def test_a_url_of_a_database_is_taken_apart(text: str, url: StateUrl) -> None:
    assert parse_state_url(text) == url
    assert check_state_url(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://h/d d", "holds a space, a backslash or a control character"),
        ("postgresql://h\\d", "holds a space, a backslash or a control character"),
        ("postgresql://h/d\n", "holds a space, a backslash or a control character"),
        ("mysql://h/d", "must begin with postgresql://"),
        ("h/d", "must begin with postgresql://"),
        ("postgresql://h/d#e", "is not a URL of a database"),
        ("postgresql://a@b@h/d", "is not a URL of a database"),
        ("postgresql://h", "names no database"),
        ("postgresql://", "names no database"),
        ("postgresql://:1/d", "names no usable host and port"),
        ("postgresql://h:0/d", "names no usable host and port"),
        ("postgresql://h:65536/d", "names no usable host and port"),
        ("postgresql://h!/d", "names no usable host and port"),
        ("postgresql://a,,b/d", "names no usable host and port"),
        ("postgresql://h:abc/d", "names no usable host and port"),
        ("postgresql://::1/d", "names no usable host and port"),
        ("postgresql://[::g]/d", "names no usable host and port"),
        ("postgresql://a..b/d", "names no usable host and port"),
        ("postgresql:///d?host=h:5432", "names no usable host and port"),
        ("postgresql:///d?host=a,,b", "names no usable host and port"),
        (f"postgresql://{'a' * 64}/d", "names no usable host and port"),
        ("postgresql://h/d?port=abc", "names no usable host and port"),
        ("postgresql://h/d?port=0", "names no usable host and port"),
        ("postgresql://h/d?port=1,2", "has 2 ports for 1 host"),
        ("postgresql:///d?host=a,b,c&port=1,2", "has 2 ports for 3 hosts"),
        ("postgresql://h/d?target_session_attrs=bogus", "target_session_attrs 'bogus' is not one of any, read-write"),
        ("postgresql://h/d?target_session_attrs=standby", "target_session_attrs 'standby' is not one of any"),
        ("postgresql://h/d?gssencmode=bogus", "gssencmode 'bogus' is not one of disable"),
        ("postgresql://h/d%00e", "holds a control character"),
        ("postgresql://u%0a@h/d", "holds a control character"),
        ("postgresql://h/d?sslcert=%07", "holds a control character"),
        ("postgresql://h/d?options=-c", "has the parameter options"),
        ("postgresql://h/d?password=canary", "has the parameter password"),
        ("postgresql://h/d?user=u", "has the unknown parameter 'user'"),
        ("postgresql://h/d?sslmode=on", "sslmode 'on' is not one of disable, allow"),
        ("postgresql://h/d?sslmode", "sslmode '' is not one of disable, allow"),
    ],
    ids=without_its_name,
)
def test_a_url_that_is_none_of_a_database_is_told_without_it(text: str, said: str) -> None:
    with pytest.raises(BadValueError) as error:
        check_state_url(text)
    assert said in error.value.message
    assert is_plain(error.value.message)
    assert is_plain(error.value.hint or "none")
    assert "canary" not in error.value.hint
    assert check_state_url("") == ""


@pytest.mark.parametrize(
    ("hosts", "ssl_mode"),
    [
        ("localhost", "prefer"),
        ("a.localhost,127.0.0.9,[::1],%2Frun", "prefer"),
        ("localhost,h", "verify-full"),
        ("10.0.0.1", "verify-full"),
        ("alocalhost", "verify-full"),
    ],
)
def test_a_server_elsewhere_has_to_prove_who_it_is_unless_the_url_says_otherwise(hosts: str, ssl_mode: str) -> None:
    url = f"postgresql://{hosts}/d"
    assert parse_state_url(url).ssl_mode == ssl_mode
    assert not is_unverified(url)
    assert parse_state_url(f"{url}?sslmode=verify-ca").ssl_mode == "verify-ca"
    assert is_unverified(f"{url}?sslmode=verify-ca") is (ssl_mode == "verify-full")
    assert not is_unverified(f"{url}?sslmode=verify-full")


def test_a_database_is_shown_by_its_hosts_with_their_ports() -> None:
    assert parse_state_url("postgresql://u:canary@a:1,b/d").shown == "a:1,b:5432/d"


@pytest.mark.parametrize(
    ("url", "left", "password"),
    [
        ("postgresql://u:p%40@h/d", "postgresql://u@h/d", "p@"),
        ("postgres://u:@h/d", "postgres://u@h/d", None),
        ("postgresql://u:p:q@h/d", "postgresql://u@h/d", "p:q"),
        ("postgresql://:p@h/d", "postgresql://@h/d", "p"),
        ("postgresql://u@h:1/d", "postgresql://u@h:1/d", None),
        ("x postgresql://u:p@h", "x postgresql://u:p@h", None),
        (7, 7, None),
        (None, None, None),
    ],
    ids=without_its_name,
)
def test_a_password_leaves_the_url_for_a_key_of_its_own(url: object, left: object, password: str | None) -> None:
    for origins in ({}, {"state.url": "IONOS_POLLER_STATE__URL"}):
        state: dict[str, Any] = {"url": url}
        take_password(state, origins)
        assert state == {"url": left} | ({"password": password} if password else {})
        assert origins.get("state.password") == (origins.get("state.url") if password else None)


@pytest.mark.parametrize(
    ("check", "hint"), [(checks.check_url, "appends its own path"), (checks.check_whole_url, "key query")]
)
def test_a_query_is_refused_with_what_to_do_in_its_place(check: Callable[[str], str], hint: str) -> None:
    with pytest.raises(checks.BadValueError, match="must not have a query") as raised:
        check("https://intake.example/raw?channel=1")
    assert hint in raised.value.hint
