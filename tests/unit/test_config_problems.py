"""Problems: every kind of mistake in the file is named, with its path and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poller.config import load
from poller.core.errors import ConfigError
from tests.support import is_plain

LOKI = '[[sinks]]\nname = "a"\ntype = "loki"\nurl = "https://loki:3100"\n'
LOGGING = '[[sinks]]\nname = "a"\ntype = "logging-service"\nurl = "https://x"\ntag = "t"\napi_key_env = "KEY"\n'
ARCHIVE = '[[sinks]]\nname = "a"\ntype = "archive"\n'
FILE = '[[sinks]]\nname = "a"\ntype = "file"\n'
MOESIF = '[[sinks]]\nname = "a"\ntype = "moesif"\napplication_id_env = "KEY"\n'
BASIC = 'username = "a"\npassword = "b"\n'


def sink(kind: str, path: str = "") -> str:
    return f'[[sinks]]\nname = "a"\ntype = "{kind}"\nurl = "https://x{path}"\n'


# (table, header that it sets itself, what sets it)
OWN_HEADERS = [
    *((table, "Content-Type", "the program") for table in (LOKI, LOGGING, MOESIF, sink("otlp"), sink("elasticsearch"))),
    (LOKI, "content-TYPE", "the program"),
    (LOGGING, "ApiKey", "api_key"),
    (MOESIF, "x-moesif-application-id", "application_id"),
    (LOKI + 'tenant_id = "t"\n', "X-Scope-OrgID", "tenant_id"),
    *((sink(kind) + 'bearer_token = "b"\n', "Authorization", "bearer_token") for kind in ("loki", "otlp", "http")),
    *((sink(kind) + BASIC, "AUTHORIZATION", "username") for kind in ("loki", "otlp", "http", "opensearch")),
    (sink("opensearch") + 'api_key = "b"\n', "authorization", "api_key"),
]

# Messages without a hint, because they say everything.
SAYS_ALL = (
    r"is the same as|^is given without \w+$|whole seconds$|^must |must be text|retry_max$|by the program|control character"
    "|beyond ASCII|is not (a number|a whole number|one of|a duration such as|a size such as)"
    "|name of (a header|an environment variable)"
)

# (test id, text of the file, path of the problem, part of its message or hint)
PROBLEMS = [
    ("unknown key", '[poll]\nintervall = "60s"', "poll.intervall", "did you mean interval?"),
    ("unknown table", "[pol]\n", "pol", "did you mean poll?"),
    ("unknown key of a sink", LOKI + "lables = {}", "sinks[0].lables", "did you mean labels?"),
    ("internal field", 'network = "x"', "network", "unknown key"),
    ("quoted key", '"a.b\\u001b" = 1', "'a.b\\x1b'", "unknown key"),
    ("archive, no url", ARCHIVE, "sinks[0].url", "missing"),
    ("archive, web address", ARCHIVE + 'url = "https://x/y"', "sinks[0].url", "must begin with file:/// or s3://"),
    ("archive, relative", ARCHIVE + 'url = "file://srv/audit"', "sinks[0].url", "not the URL of a directory"),
    ("archive, way up", ARCHIVE + 'url = "file:///srv/../etc"', "sinks[0].url", "`..` in its path"),
    ("archive, bucket", ARCHIVE + 'url = "s3://Not_a_bucket/x"', "sinks[0].url", "names no bucket"),
    ("archive, half a login", ARCHIVE + 'url = "s3://abc"\naccess_key_env = "KEY"', "sinks[0].access_key", "go together"),
    ("archive, lock", ARCHIVE + 'url = "file:///a"\nobject_lock = "compliance"', "sinks[0].object_lock", "needs a bucket"),
    ("archive, cold", ARCHIVE + 'url = "s3://audit"\nstorage_class = "GLACIER"', "sinks[0].storage_class", "is not read at once"),
    ("archive, colder", ARCHIVE + 'url = "s3://audit"\nstorage_class = "deep_archive"', "sinks[0].storage_class", "GLACIER_IR"),
    (
        "archive, clear text",
        ARCHIVE + 'url = "s3://abc"\nendpoint_url = "http://storage.example"',
        "sinks[0].endpoint_url",
        "would send entries and signatures in clear text",
    ),
    (
        "archive, the same twice",
        ARCHIVE + 'url = "file:///a"\n' + ARCHIVE.replace('"a"', '"b"') + 'url = "file:///a"',
        "sinks[1].url",
        "is the same as that of sinks[0]",
    ),
    (
        "archive, the same in another spelling",
        ARCHIVE + 'url = "file:///a%20b"\n' + ARCHIVE.replace('"a"', '"b"') + 'url = "file:///a b"',
        "sinks[1].url",
        "is the same as that of sinks[0]",
    ),
    (
        "archive, a part of a bucket inside another",
        ARCHIVE + 'url = "s3://audit"\n' + ARCHIVE.replace('"a"', '"b"') + 'url = "s3://audit/b"',
        "sinks[1].url",
        "lies inside the archive of sinks[0]",
    ),
    (
        "archive, a directory inside a later one",
        ARCHIVE + 'url = "file:///a%20b/c"\n' + ARCHIVE.replace('"a"', '"b"') + 'url = "file:///a b"',
        "sinks[0].url",
        "lies inside the archive of sinks[1]",
    ),
    (
        "archive, a file inside",
        ARCHIVE + 'url = "file:///a"\n' + FILE.replace('"a"', '"b"') + 'path = "/a/days/{date}.ndjson"',
        "sinks[1].path",
        "lies inside the archive of sinks[0]",
    ),
    ("archive, no text", ARCHIVE + 'url = "file:///a%00b"', "sinks[0].url", "holds a control character"),
    ("archive, no UTF-8", ARCHIVE + 'url = "file:///a%ff"', "sinks[0].url", "holds a control character"),
    (
        "archive in a directory, state in a database",
        '[state]\nurl = "postgresql://u@localhost/x"\n' + ARCHIVE + 'url = "file:///a"',
        "sinks[0].host",
        "each machine has a disk of its own",
    ),
    ("state, another database", '[state]\nurl = "mysql://db/x"', "state.url", "must begin with postgresql://"),
    ("state, no database", '[state]\nurl = "postgresql://db"', "state.url", "names no database"),
    ("state, port", '[state]\nurl = "postgresql://u@db:99999/x"', "state.url", "no usable host and port"),
    ("state, parameter", '[state]\nurl = "postgresql://u@db/x?sslmod=x"', "state.url", "unknown parameter 'sslmod'"),
    ("state, start-up parameters", '[state]\nurl = "postgresql://u@db/x?options=-cx"', "state.url", "a pooler refuses"),
    ("state, sslmode", '[state]\nurl = "postgresql://u@db/x?sslmode=full"', "state.url", "is not one of disable"),
    (
        "state, clear text", '[state]\nurl = "postgresql://u@db/x?sslmode=disable"',
        "state.url",
        "set allow_unverified = true",
    ),
    (
        "state, two passwords", '[state]\nurl = "postgresql://u:canary@db/x"\npassword_env = "P"',
        "state.password",
        "given more than once",
    ),
    ("state, password alone", '[state]\npassword = "x"', "state.password", "is given without url"),
    ("state, reserved word", '[state]\nurl = "postgresql:///x"\nschema = "user"', "state.schema", "a word of PostgreSQL's own"),
    ("state, schema", '[state]\nurl = "postgresql:///x"\nschema = "A b"', "state.schema", "not a name of a schema"),
    ("state, lease", '[state]\nlease = "1s"', "state.lease", "at least 3s"),
    ("wrong type, text", '[api]\npage_size = "many"', "api.page_size", "not a whole number"),
    ("wrong type, flag", "[api]\npage_size = true", "api.page_size", "not a whole number"),
    ("wrong type, fraction", "[api]\npage_size = 1.5", "api.page_size", "not a whole number"),
    ("wrong type, not finite", "[api]\nrequests_per_second = nan", "api.requests_per_second", "not a number"),
    (
        "wrong type, huge", f"[api]\nrequests_per_second = 1{'0' * 400}",
        "api.requests_per_second",
        "too large",
    ),
    ("wrong type, table", "poll = 1", "poll", "must be a table, not a number"),
    ("wrong type, list", '[poll]\ncontracts = "1"', "poll.contracts", "must be a list, not text"),
    ("wrong type, date", "[api]\nurl = 2026-05-01", "api.url", "must be text, not a date"),
    ("wrong type, sink", "sinks = [1]", "sinks[0]", "must be a table"),
    ("wrong type, sinks", "sinks = {}", "sinks", "must be a list"),
    ("labels as text", LOKI + 'labels = "a"', "sinks[0].labels", "must be a table"),
    ("empty text", LOKI + 'tenant_id = ""', "sinks[0].tenant_id", "must not be empty"),
    (
        "contract wanted and excluded", "[poll]\ncontracts = [1, 2]\nexclude_contracts = [2]",
        "poll.exclude_contracts",
        "2 is also in contracts",
    ),
    ("contract as flag", "[poll]\ncontracts = [true]", "poll.contracts[0]", "not a contract number"),
    ("negative", "[api]\nmax_retries = -1", "api.max_retries", "at least 0"),
    ("negative duration", '[poll]\noverlap = "-5m"', "poll.overlap", "is not a duration"),
    ("duration without unit", '[poll]\ninterval = "60"', "poll.interval", "is not a duration"),
    ("duration as number", "[poll]\ninterval = 60", "poll.interval", "quote it with its unit"),
    ("duration without unit, suggested", '[poll]\ninterval = "60"', "poll.interval", '"60s"'),
    ("duration as number, suggested", "[poll]\ninterval = 60", "poll.interval", '"60s"'),
    ("duration too small", '[poll]\ninterval = "0s"', "poll.interval", "at least 1s"),
    ("duration too large", '[poll]\ninterval = "2d"', "poll.interval", "at most 1d"),
    ("part of a second", '[poll]\ninterval = "1500ms"', "poll.interval", "whole seconds"),
    ("size", '[outbox]\nmax_bytes = "1 Gig"', "outbox.max_bytes", "is not a size"),
    ("size of the wrong type", "[outbox]\nmax_bytes = 1.5", "outbox.max_bytes", "is not a size"),
    ("size, negative", "[outbox]\nmax_bytes = -1", "outbox.max_bytes", "is not a size"),
    ("url, scheme", '[api]\nurl = "ftp://x"', "api.url", "https://"),
    ("url, no scheme", '[api]\nurl = "api.ionos.com"', "api.url", "https://"),
    ("url, no host", '[api]\nurl = "https:///x"', "api.url", "no host"),
    ("url, port", '[api]\nurl = "https://x:99999"', "api.url", "is not a URL"),
    ("url, port 0", '[api]\nurl = "https://x:0"', "api.url", "port"),
    ("url, credentials", '[api]\nurl = "https://u:canary@x"', "api.url", "must not hold credentials"),
    ("url, control character", '[api]\nurl = "https://x/\\r\\nA: b"', "api.url", "control character"),
    ("url, query", '[api]\nurl = "https://x/?a=b"', "api.url", "query"),
    ("url, brackets", '[api]\nurl = "https://[x"', "api.url", "is not a URL"),
    ("url, our own path", '[api]\nurl = "https://x/activitylog/v1/"', "api.url", "which the program appends"),
    (
        "url, our own path of Loki",
        LOKI.replace("3100", "3100/loki/api/v1/push"),
        "sinks[0].url",
        "ends in /loki/api/v1/push",
    ),
    ("url, our own path of the tag", LOGGING.replace("//x", "//x/t"), "sinks[0].url", "ends in /t, which the program"),
    *(
        (f"url, our own path of {table.splitlines()[2]}", table, "sinks[0].url", f"ends in {path}, which the program")
        for table, path in (
            (sink("opensearch", "/_bulk"), "/_bulk"),
            (sink("elasticsearch", "/a/_bulk/"), "/_bulk"),
            (sink("otlp", "/otlp/v1/logs"), "/v1/logs"),
            (MOESIF + 'url = "https://x/v1/actions"', "/v1/actions"),
            (MOESIF + 'url = "https://x/v1/actions/batch/"', "/v1/actions/batch"),
        )
    ),
    ("no successes", sink("http") + "successes = []", "sinks[0].successes", "must name at least 1 such as [200,202]"),
    ("listen", '[http]\nlisten = "9464"', "http.listen", "address and port"),
    ("listen, port", '[http]\nlisten = "127.0.0.1:99999"', "http.listen", "address and port"),
    ("listen, no IPv6", '[http]\nlisten = "[127.0.0.1]:9464"', "http.listen", "address and port"),
    ("listen, bad IPv6", '[http]\nlisten = "[::1::]:9464"', "http.listen", "address and port"),
    ("listen, relative socket", '[http]\nlisten = "unix:http.sock"', "http.listen", "path of a socket"),
    ("listen, long socket", f'[http]\nlisten = "unix:/{"x" * 107}"', "http.listen", "path of a socket"),
    ("host with a port", '[http]\nhosts = ["ok.example", "poller:9464"]', "http.hosts[1]", "not a host name"),
    ("host of the wrong type", "[http]\nhosts = [1]", "http.hosts[0]", "not a host name"),
    ("contract", '[poll]\ncontracts = [1, "x"]', "poll.contracts[1]", "not a contract number"),
    ("ledger too short", '[poll]\nledger_retention = "1h"', "poll.ledger_retention", "audit_span"),
    ("both ways for a secret", '[api]\ntoken = "a"\ntoken_file = "b"', "api.token", "more than once"),
    ("token and user", '[api]\ntoken = "a"\nusername = "b"', "api.token", "keep one"),
    ("password alone", '[api]\npassword = "a"', "api.password", "without username"),
    ("colon in a user name", '[api]\nusername = "a:b"', "api.username", "colon"),
    ("empty file name", '[api]\ntoken_file = ""', "api.token_file", "not empty"),
    ("secret of the wrong type", "[api]\ntoken = 1", "api.token", "must be text"),
    ("secret as file name", '[api]\ntoken_file = "eyJcanary"', "api.token_file", "not the name of a file"),
    (
        "secret as variable",
        '[api]\ntoken_env = "eyJcanary"',
        "api.token_env",
        "not the name of an environment",
    ),
    ("missing variable", '[api]\ntoken_env = "NO_SUCH"', "api.token_env", "NO_SUCH is not set"),
    ("key file", '[api]\ntoken_file = "nowhere/token"', "api.token_file", "unreadable key file"),
    ("certificate file", '[api]\nca_file = "nowhere.pem"', "api.ca_file", "unreadable file"),
    ("path with a control character", 'state_dir = "a\\u0000b"', "state_dir", "control character"),
    ("account without a name", '[[accounts]]\ntoken = "a"', "accounts[0].name", "missing"),
    (
        "account twice",
        '[[accounts]]\nname = "a"\n[[accounts]]\nname = "a"',
        "accounts[1].name",
        "accounts[0]",
    ),
    (
        "credentials of whom",
        '[api]\ntoken = "t"\n[[accounts]]\nname = "a"\n[[accounts]]\nname = "b"',
        "api",
        "several",
    ),
    ("sink without a type", '[[sinks]]\nname = "a"', "sinks[0].type", "missing"),
    ("sink of an unknown type", '[[sinks]]\ntype = "lokki"', "sinks[0].type", "did you mean loki?"),
    ("sink without a url", '[[sinks]]\nname = "a"\ntype = "loki"', "sinks[0].url", "missing"),
    ("sink name", LOKI.replace('"a"', '"../a"'), "sinks[0].name", "is not a name"),
    ("sink name, only dots", LOKI.replace('"a"', '".."'), "sinks[0].name", "is not a name"),
    ("sink name twice", LOKI + LOKI, "sinks[1].name", "same as that of sinks[0]"),
    (
        "sink path twice",
        FILE + 'path = "x"\n' + FILE.replace('"a"', '"b"') + 'path = "x"',
        "sinks[1].path",
        "sinks[0]",
    ),
    ("tag", LOGGING.replace('"t"', '"a/b"'), "sinks[0].tag", "letters, digits"),
    ("key missing", LOGGING.replace("api_key_env", "#"), "sinks[0].api_key", "systemd credential a.key"),
    ("label name", LOKI + 'labels = { "a-b" = "x" }', "sinks[0].labels", "name of a label"),
    ("label, reserved", LOKI + 'labels = { contract = "x" }', "sinks[0].labels", "added by the program"),
    ("label, reserved by Loki", LOKI + 'labels = { __a = "x" }', "sinks[0].labels", "name of a label"),
    ("label, control character", LOKI + 'labels = { a = "x\\n" }', "sinks[0].labels", "control character"),
    ("label, reserved for late events", LOKI + 'labels = { late = "x" }', "sinks[0].labels", "added by the program"),
    (
        "labels, too many",
        LOKI + "labels = { " + ", ".join(f'l{number} = "x"' for number in range(14)) + " }",
        "sinks[0].labels",
        "at most 13",
    ),
    ("label, value", LOKI + "labels = { a = '" + "\u00e4" * 1025 + "' }", "sinks[0].labels", "too long"),
    ("label, long name", LOKI + "labels = { " + "a" * 1025 + " = 'x' }", "sinks[0].labels", "too long"),
    ("label, type", LOKI + "labels = { a = 1 }", "sinks[0].labels", "must be text"),
    ("header name", LOKI + 'headers = { "a b" = "x" }', "sinks[0].headers", "name of a header"),
    ("header value", LOKI + 'headers = { a = "x\\r\\nb: c" }', "sinks[0].headers", "control character"),
    ("header type", LOKI + "headers = { a = 1 }", "sinks[0].headers", "must be text"),
    (
        "header, framing", LOKI + 'headers = { Content-Length = "1" }',
        "sinks[0].headers",
        "set by the program",
    ),
    *(
        (f"own {name}, {setter}", f'{table}headers = {{ {name} = "canary" }}', "sinks[0].headers", f"{name}, which {setter} sets")
        for table, name, setter in OWN_HEADERS
    ),
    ("tenant", LOKI + 'tenant_id = "a b"', "sinks[0].tenant_id", "space"),
    ("loki, half a login", LOKI + 'username = "a"', "sinks[0].username", "go together"),
    (
        "loki, two logins", LOKI + 'username = "a"\npassword = "b"\nbearer_token = "c"',
        "sinks[0].bearer_token",
        "one",
    ),
    ("choice", LOKI + 'compression = "gzp"', "sinks[0].compression", "did you mean gzip?"),
    ("choice of the wrong type", LOKI + "compression = []", "sinks[0].compression", "is not one of"),
    ("retries", LOKI + 'retry_initial = "5m"', "sinks[0].retry_initial", "longer than retry_max"),
    ("private key alone", LOKI + 'key_file = "ionos-poller.toml"', "sinks[0].key_file", "without cert_file"),
    (
        "beyond the vendor's limit",
        '[[sinks]]\nname = "m"\ntype = "moesif"\nbatch_bytes = "13MB"',
        "sinks[0].batch_bytes",
        "12MB",
    ),
    ("file placeholder", FILE + 'path = "/x/{day}"', "sinks[0].path", "unknown placeholder"),
    ("file placeholder, open", FILE + 'path = "/x/{date"', "sinks[0].path", "unknown placeholder"),
    ("file going up", FILE + 'path = "/x/../y"', "sinks[0].path", "`..`"),
    ("file, a directory", FILE + 'path = "/x/"', "sinks[0].path", "directory"),
    ("http, clear text", LOGGING.replace("https", "http"), "sinks[0].url", "would send the sink's secret in clear text"),
    (
        "file, state in a database", '[state]\nurl = "postgresql://u@localhost/x"\n' + FILE + 'path = "/a"',
        "sinks[0].host",
        "shared = true: each writes a part",
    ),
    ("redact, twice in a list", '[redact]\ndrop = ["a", "a"]', "redact.drop", "a is also in drop"),
    ("file, type", FILE + "path = 7", "sinks[0].path", "must be text, not a number"),
    ("file, missing", FILE, "sinks[0].path", "missing"),
    ("rule without a key", "[filter]\nexclude = [{}]", "filter.exclude[0]", "matches every entry"),
    ("rule, unknown key", '[filter]\nexclude = [{ user = "x" }]', "filter.exclude[0].user", "username"),
    ("rule, glob", '[filter]\ninclude = [{ type = "a[b" }]', "filter.include[0].type", "without its `]`"),
    ("rule, type", "[filter]\ninclude = [{ type = true }]", "filter.include[0].type", "must be text"),
    ("field path", '[redact]\nmask = ["a..b"]', "redact.mask[0]", "not a path"),
    ("field path, type", "[redact]\nmask = [1]", "redact.mask[0]", "not a path"),
    ("hash without a key", '[redact]\nhash = ["a"]', "redact.hash", "hash_key_file"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "part"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS])
def test_a_problem_is_named_with_its_path(tmp_path: Path, text: str, path: str, part: str) -> None:
    file = tmp_path / "ionos-poller.toml"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load(file, {"KEY": "k"})
    found = caught.value.problems
    assert any(problem.path == path and part in f"{problem.message} {problem.hint}" for problem in found), found
    assert len({problem.path for problem in found}) == (2 if "13MB" in text else 1), found
    assert "canary" not in str(found)
    for problem in found:
        assert is_plain(problem.message), problem
        if problem.message != "missing":  # for that message, the hint is the key's description
            assert is_plain(problem.hint or "none"), problem
            assert problem.hint or re.search(SAYS_ALL, problem.message), problem


def test_problems_between_tables_are_told_beside_those_within_them(tmp_path: Path) -> None:
    """Each problem has its path in the file, even if tables before it are wrong."""
    tables = [
        '[[sinks]]\nname = "x"\ntype = "nope"\n',
        LOKI + "batch_events = 0\n",
        LOKI,
        FILE.replace('"a"', '"b"') + 'path = "y"\n',
        FILE.replace('"a"', '"c"') + 'path = "y"\n',
        LOKI.replace('"a"', '"d"') + 'redact = { hash = ["principal"] }\n',
        '[[accounts]]\nname = "prod"\nunknown = 1\n',
        '[[accounts]]\nname = "prod"\ntoken_env = "KEY"\n',
    ]
    (tmp_path / "ionos-poller.toml").write_text("".join(tables))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "ionos-poller.toml", {"KEY": "k"})
    assert sorted((problem.path, problem.message) for problem in caught.value.problems) == [
        ("accounts[0].unknown", "unknown key"),
        ("accounts[1].name", "is the same as that of accounts[0]"),
        ("sinks[0].type", "'nope' is not a type of sink"),
        ("sinks[1].batch_events", "0 is too small"),
        ("sinks[2].name", "is the same as that of sinks[1]"),
        ("sinks[4].path", "is the same as that of sinks[3]"),
        ("sinks[5].redact.hash", "needs a key"),
    ]


def test_archives_that_only_look_as_if_they_had_one_place_are_taken(tmp_path: Path) -> None:
    places = [
        'url = "s3://audit/a"\n',
        'url = "s3://audit/ab"\n',
        'url = "s3://audit/a"\nendpoint_url = "https://one.example"\n',
        'url = "s3://audit/a"\nendpoint_url = "https://other.example"\n',
        'url = "file:///audit/a"\n',
        'url = "file:///audit/ab"\n',
    ]
    tables = [ARCHIVE.replace('"a"', f'"{number}"') + place for number, place in enumerate(places)]
    tables.append(FILE.replace('"a"', '"file"') + 'path = "/audit/ac/{date}.ndjson"\n')
    file = tmp_path / "ionos-poller.toml"
    file.write_text("".join(tables))
    assert len(load(file, {}).sinks) == len(tables)


def test_a_header_that_a_sink_does_not_set_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "ionos-poller.toml"
    for table, name in (
        (sink("http"), "Content-Type"),
        (sink("http"), "Authorization"),
        (LOKI, "Authorization"),
        (LOKI, "X-Scope-OrgID"),
        (LOKI + 'tenant_id = "t"\n', "Authorization"),
        (sink("opensearch"), "APIKEY"),
    ):
        file.write_text(f'{table}headers = {{ {name} = "a" }}')
        file.chmod(0o600)
        (found,) = load(file, {"KEY": "k"}).sinks
        assert found.headers == {name: "a"}  # type: ignore[union-attr]
