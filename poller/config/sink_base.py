"""The keys that several types of sinks share, and the base classes of their tables."""

# No `from __future__ import annotations`: the loader and the docs read the annotations at run time.

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import msgspec

from poller.config.checks import is_clear_text, is_secret_name
from poller.config.files import File, PrivateFile, SecretKind
from poller.config.kinds import (
    Choice,
    Duration,
    FieldPaths,
    FieldTemplate,
    Flag,
    Headers,
    Name,
    Number,
    Parameters,
    Size,
    Statuses,
    Text,
    Url,
    UserName,
)
from poller.config.secrets import SecretSource
from poller.config.tables import Nested, Table
from poller.core.errors import Problem

KIB, MIB = 1 << 10, 1 << 20

Format = Literal["raw", "ocsf", "ecs", "moesif-action"]
FORMATS: tuple[str, ...] = get_args(Format)

BatchEvents = Annotated[int, Number("Maximum events in one batch.", ge=1, le=100_000)]
BatchBytes = Annotated[int, Size("Maximum bytes of entries in one batch, before `format` and compression.", ge=KIB)]
MaxEventBytes = Annotated[int, Size("Larger events are handled as `oversize` says.", ge=KIB)]
CompressionChoice = Annotated[Literal["gzip", "none"], Choice("Compression of what is sent or written.")]
FormatChoice = Annotated[
    Format, Choice("The entry as the API gave it, an OCSF or ECS event that holds it, or a Moesif action.")
]
ActionName = Annotated[
    str, FieldTemplate("`action_name` of a Moesif action: a path such as `event.type`, or text with paths in braces.")
]
CompanyId = Annotated[
    str, FieldTemplate("`company_id` of a Moesif action, in the same form; `contract` is the contract number.")
]
UserId = Annotated[str, FieldTemplate("`user_id` of a Moesif action, in the same form.")]
UriBase = Annotated[str, Url("Base of the `uri` of a Moesif action, before `event.param.uri`.")]
BaseUrl = Annotated[str, Url("Base URL of the receiver, http or https, without credentials or query.")]
ConnectTimeout = Annotated[float, Duration("Time to connect, TLS included.", ge=0.01, le=600)]
SendTimeout = Annotated[
    float,
    Duration(
        "Time for the receiver to take the next 64 KiB of a batch. A large batch may take many times as long.",
        ge=0.01,
        le=3600,
    ),
]
ReadTimeout = Annotated[float, Duration("Time to wait for an answer.", ge=0.01, le=3600)]
RequestsPerSecond = Annotated[float, Number("Maximum requests per second.", ge=0.01, le=10_000)]
RequestQuery = Annotated[
    dict[str, str], Parameters("Query of the URL. `config show` masks its values.", example={"source": "ionos"})
]
Successes = Annotated[
    tuple[int, ...],
    Statuses(
        "Statuses that mean that all events of a request were accepted. No other status does.",
        at_least=1,
        example=[200, 202],
    ),
]
StreamPerContract = Annotated[
    bool,
    Flag(
        "For Loki and Grafana Cloud: a stream for each contract. Without it entries may be refused as too far behind."
    ),
]
AllowPlainHttp = Annotated[
    bool, Flag("Also send secrets unencrypted to an `http://` address on another machine. Others may read them.")
]
BasicUser = Annotated[
    str | None, UserName("User name for Basic authentication.", example="user@example.com", is_alternative=True)
]
BasicPassword = Annotated[
    SecretSource | None, SecretKind("Password for Basic authentication.", is_alternative=True, is_text=True)
]
BearerToken = Annotated[SecretSource | None, SecretKind("Bearer token, instead of a user name.", is_alternative=True)]
CaFile = Annotated[
    Path | None,
    File("CA certificates (PEM) to trust instead of the system's for this server.", example="/etc/ionos-poller/ca.pem"),
]
CertFile = Annotated[
    Path | None, File("Client certificate (PEM) for mutual TLS.", example="/etc/ionos-poller/client.pem")
]
KeyFile = Annotated[
    Path | None,
    PrivateFile("Private key (PEM) of `cert_file`, if it is not in that file.", example="/etc/ionos-poller/client.key"),
]


class Redact(Table, frozen=True, kw_only=True):
    """What is removed from entries before they touch the disk. A path looks like `event.resources[].id`."""

    drop: Annotated[tuple[str, ...], FieldPaths("Fields to remove.", example=["event.param.uri"])] = ()
    mask: Annotated[tuple[str, ...], FieldPaths("Fields to replace by a mask.", example=["principal.sourceIP"])] = ()
    hash: Annotated[
        tuple[str, ...],
        FieldPaths(
            "Fields to replace by a keyed hash, the same for the same value.", example=["principal.identity.username"]
        ),
    ] = ()
    hash_key: Annotated[
        SecretSource | None, SecretKind("Key of the hashes. Needed if `hash` is used.", is_text=True)
    ] = None

    def problems(self) -> Iterator[Problem]:
        first: dict[str, str] = {}
        for key, paths in (("drop", self.drop), ("mask", self.mask), ("hash", self.hash)):
            for path in paths:
                if path in first:
                    yield Problem(key, f"{path} is also in {first[path]}", "keep one of the two")
                first[path] = key


class Sink(Table, frozen=True, kw_only=True, tag_field="type"):
    """What every sink takes."""

    name: Annotated[
        str, Name("Its name in logs, metrics, the state and `sinks forget`: letters, digits, `_`, `.`, `-`.")
    ]
    batch_events: BatchEvents = 1000
    batch_bytes: BatchBytes = MIB
    batch_age_seconds: Annotated[
        float, Duration("A batch that is not full is sent when its oldest event has waited this long.", ge=0, le=3600)
    ] = 1.0
    retry_initial_seconds: Annotated[
        float,
        Duration("Wait after the first failed attempt. It doubles with each attempt, with jitter.", ge=0.01, le=3600),
    ] = 1.0
    retry_max_seconds: Annotated[
        float, Duration("Longest wait between two attempts. Retrying never ends.", ge=0.01, le=86_400)
    ] = 60.0
    max_event_bytes: MaxEventBytes = MIB
    oversize: Annotated[
        Literal["truncate", "dead-letter"],
        Choice("What happens to an event over `max_event_bytes`: it becomes a dead letter, or is cut with a marker."),
    ] = "dead-letter"
    redact: Annotated[
        Redact | None,
        Nested(
            "What is removed from entries for this sink only, besides what `[redact]` removes. Its default `hash_key` is that of"
            " `[redact]`.",
            example={"mask": ["principal.identity.username"]},
        ),
    ] = None

    @property
    def type(self) -> str:
        """The `type` of its table."""
        return self.type_name()

    @property
    def is_local(self) -> bool:
        """Whether it writes to the disk or output of its own machine."""
        return False

    def is_here(self, host: str) -> bool:
        """Whether the machine of this name sends to it."""
        return True

    def problems_with_machines(self) -> Iterator[Problem]:
        """Problems if several machines share a state: it must be clear which machine writes to its own disk."""
        return iter(())


class FormatSink(Sink, frozen=True, kw_only=True):
    """What sinks take that can send entries in several formats. All but `format` is for `moesif-action`."""

    format: FormatChoice = "raw"
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"


class HttpSink(Sink, frozen=True, kw_only=True):
    """What every sink over HTTP takes."""

    OWN_PATH: ClassVar[str] = ""
    """Appended to the URL. `{tag}` is replaced by the value of that key."""
    PATHS_BELOW: ClassVar[tuple[str, ...]] = ()
    """Appended after `OWN_PATH` in some requests."""
    OWN_HEADERS: ClassVar[Mapping[str, tuple[str, ...]]] = {"content-type": ()}
    """The headers that the program sets, in lower case, each with the keys that give its value; no keys: it is always set."""

    url: BaseUrl
    compression: CompressionChoice = "gzip"
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    keepalive_seconds: Annotated[
        float,
        Duration(
            "A connection that was idle for longer is not used again. `0s`: a new one for each request.", ge=0, le=3600
        ),
    ] = 60.0
    requests_per_second: RequestsPerSecond = 10.0
    headers: Annotated[
        dict[str, str],
        Headers("Further request headers. `config show` masks their values.", example={"X-Environment": "production"}),
    ] = {}  # noqa: RUF012 - msgspec copies it
    allow_plain_http: AllowPlainHttp = False
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None

    def problems(self) -> Iterator[Problem]:
        fields = msgspec.structs.asdict(self)
        secrets = {key: value for key, value in fields.items() if isinstance(value, SecretSource)}
        for below in ("", *self.PATHS_BELOW):
            yield from path_problems(self.url, self.OWN_PATH.format_map(fields) + below)
        given = {key for key, value in fields.items() if value is not None}
        yield from header_problems(self.headers, self.OWN_HEADERS, given)
        if self.key_file is not None and self.cert_file is None:
            yield Problem("key_file", "is given without cert_file")
        has_secret = secrets or any(map(is_secret_name, [*self.headers, *fields.get("query", ())]))
        if has_secret and not self.allow_plain_http and is_clear_text(self.url):
            yield clear_text("url", "the sink's secret")
        yield from login_problems(fields.get("username"), secrets.pop("password", None), secrets.keys())


class FormatHttpSink(HttpSink, frozen=True, kw_only=True):
    """The keys of `FormatSink` for sinks over HTTP: a struct can have only one base."""

    format: FormatChoice = "raw"
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"


class LocalSink(FormatSink, frozen=True, kw_only=True):
    """The keys of sinks that write to a machine's own disk or output."""

    host: Annotated[
        str | None,
        Text(
            "With a state in PostgreSQL: host name (`uname -n`) of the machine that writes all of it.",
            example="collector-1",
        ),
    ] = None
    shared: Annotated[bool, Flag("With a state in PostgreSQL: every machine writes the contracts it holds.")] = False

    def is_here(self, host: str) -> bool:
        return self.host is None or self.host == host

    @property
    def is_whole(self) -> bool:
        """Whether one replica writes all of it, also for contracts that other replicas hold."""
        return self.host is not None

    @property
    def is_local(self) -> bool:
        return True

    def problems_with_machines(self) -> Iterator[Problem]:
        if self.is_local and not self.host and not self.shared:
            what = "all machines have the same directory" if self.is_whole else "each writes a part"
            hint = f'name the machine that writes all of it: host = "collector-1"; or shared = true: {what}'
            yield Problem("host", "missing: the state is in PostgreSQL, and each machine has a disk of its own", hint)
        if self.host and self.shared:
            yield Problem("shared", "contradicts host", "keep one of the two")


def path_problems(url: str, own_path: str) -> Iterator[Problem]:
    """A problem if the URL already ends in the path that the program appends."""
    if own_path and url.endswith(own_path):
        yield Problem("url", f"ends in {own_path}, which the program appends", "leave that out")


def header_problems(
    headers: Iterable[str], own: Mapping[str, tuple[str, ...]], given: Collection[str]
) -> Iterator[Problem]:
    """Problems of headers that the program would replace. `own`: its headers, each with its keys; `given`: the given keys."""
    for name in headers:
        keys = own.get(name.lower())
        if keys == ():
            yield Problem("headers", f"has {name}, which the program sets", "leave it out")
        for key in keys or ():
            if key in given:
                yield Problem("headers", f"has {name}, which {key} sets", "keep one of the two")


def login_problems(
    username: str | None, password: SecretSource | None, others: Iterable[str] = ()
) -> Iterator[Problem]:
    """Problems of a user name and a password. `others`: the keys of other secrets."""
    if username or password is not None:
        yield from (
            Problem(key, "is given in addition to a user name and password", "keep one of the two") for key in others
        )
    if bool(username) != (password is not None):
        yield Problem("username", "and password go together", "give both, or neither")


def clear_text(path: str, what: str) -> Problem:
    """The problem of a secret that would be sent unencrypted."""
    hint = "use https://, or set allow_plain_http = true if the network is yours"
    return Problem(path, f"would send {what} in clear text", hint)
