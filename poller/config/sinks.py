"""The tables of the sinks: one frozen struct per `type`, with every key, its default and its bounds."""

# Annotations are live on purpose (no `from __future__`): the loader and the docs read them at run time.

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from poller.config.kinds import describe
from poller.config.secrets import SecretSource

KIB, MIB = 1 << 10, 1 << 20


def toml_key(name: str) -> str:
    """The TOML key of a field: its name without the unit, which TOML values carry themselves."""
    return name.removesuffix("_seconds")


Oversize = Literal["truncate", "dead-letter"]
Compression = Literal["gzip", "none"]
Format = Literal["raw", "ocsf", "ecs", "moesif-action"]
FORMATS: tuple[str, ...] = get_args(Format)

ObjectLock = Literal["compliance", "governance", "none"]
Encryption = Literal["none", "AES256", "aws:kms"]

Name = Annotated[
    str,
    describe("name", "Its name in logs, metrics, the state and `sinks forget`: letters, digits, `_`, `.`, `-`."),
]
BatchEvents = Annotated[int, describe("number", "At most so many events in one batch.", ge=1, le=100_000)]
BatchBytes = Annotated[int, describe("size", "At most so many bytes in one batch, before compression.", ge=KIB)]
BatchAge = Annotated[
    float,
    describe("duration", "A batch that is not full is sent when its oldest event waited this long.", ge=0, le=3600),
]
RetryInitial = Annotated[
    float,
    describe("duration", "The wait after a first failed attempt; doubles, with jitter.", ge=0.01, le=3600),
]
RetryMax = Annotated[
    float,
    describe("duration", "The longest wait between two attempts. Retrying never ends.", ge=0.01, le=86_400),
]
MaxEventBytes = Annotated[int, describe("size", "An event larger than this is handled as `oversize` says.", ge=KIB)]
OversizeChoice = Annotated[
    Oversize,
    describe(
        "choice",
        "What becomes of an event over `max_event_bytes`: kept as dead letter, or cut with a marker.",
    ),
]
CompressionChoice = Annotated[Compression, describe("choice", "Compression of what is sent or written.")]
FormatChoice = Annotated[
    Format,
    describe("choice", "The entry as the API gave it, an event of OCSF or of ECS that holds it, or a Moesif action."),
]
ActionName = Annotated[
    str,
    describe(
        "text",
        "`action_name` of an action: a path such as `event.type`, or a template of paths in braces.",
        is_mapping=True,
    ),
]
CompanyId = Annotated[
    str, describe("text", "`company_id` of an action, likewise; `contract` is the contract number.", is_mapping=True)
]
UserId = Annotated[str, describe("text", "`user_id` of an action, likewise.", is_mapping=True)]
UriBase = Annotated[str, describe("url", "What goes before `event.param.uri` in the `uri` of an action.")]
Url = Annotated[str, describe("url", "Base URL of the receiver, http or https, without credentials or query.")]
ConnectTimeout = Annotated[float, describe("duration", "Time to connect, TLS included.", ge=0.01, le=600)]
SendTimeout = Annotated[
    float,
    describe(
        "duration",
        "Time for the receiver to take the next 64 KiB of a batch. A large batch may take many times as long.",
        ge=0.01,
        le=3600,
    ),
]
ReadTimeout = Annotated[float, describe("duration", "Time to wait for an answer.", ge=0.01, le=3600)]
RequestsPerSecond = Annotated[float, describe("number", "At most so many requests a second.", ge=0.01, le=10_000)]
Headers = Annotated[
    dict[str, str],
    describe("headers", "Further request headers. Values are masked wherever the configuration is shown."),
]
AllowPlainHttp = Annotated[
    bool,
    describe(
        "flag", "Send secrets in clear text, to an `http://` address beyond this machine, too. Others may read them."
    ),
]
BasicUser = Annotated[
    str | None, describe("text", "User name for Basic authentication.", is_user=True, is_alternative=True)
]
BasicPassword = Annotated[
    SecretSource | None,
    describe("secret", "Password for Basic authentication.", is_text=True, is_alternative=True),
]
BearerToken = Annotated[
    SecretSource | None, describe("secret", "Bearer token, instead of a user name.", is_alternative=True)
]
CaFile = Annotated[
    Path | None, describe("file", "CA certificates (PEM) to trust instead of the system's for this server.")
]
CertFile = Annotated[Path | None, describe("file", "Client certificate (PEM) for mutual TLS.")]
KeyFile = Annotated[
    Path | None,
    describe("file", "Private key (PEM) of `cert_file`, where it is not in that file.", is_private=True),
]


class Redact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=toml_key):
    """What is removed from entries before they touch the disk. Paths read `event.resources[].id`."""

    drop: Annotated[tuple[str, ...], describe("field_paths", "Fields to remove.")] = ()
    mask: Annotated[tuple[str, ...], describe("field_paths", "Fields whose value is replaced by a mask.")] = ()
    hash: Annotated[
        tuple[str, ...],
        describe("field_paths", "Fields replaced by a keyed hash, the same for the same value."),
    ] = ()
    hash_key: Annotated[
        SecretSource | None,
        describe("secret", "Key of the hashes; needed where `hash` is used.", is_text=True),
    ] = None


RedactTable = Annotated[
    Redact | None,
    describe(
        "table",
        "What is removed from entries for this sink alone, besides what `[redact]` removes for all. Without a `hash_key`"
        " of its own it uses that of `[redact]`.",
        table=Redact,
    ),
]


class Sink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", rename=toml_key):
    """What every sink takes."""

    name: Name
    batch_events: BatchEvents = 1000
    batch_bytes: BatchBytes = MIB
    batch_age_seconds: BatchAge = 1.0
    retry_initial_seconds: RetryInitial = 1.0
    retry_max_seconds: RetryMax = 60.0
    max_event_bytes: MaxEventBytes = MIB
    oversize: OversizeChoice = "dead-letter"
    redact: RedactTable = None

    @property
    def type(self) -> str:
        """The `type` of its table."""
        return str(self.__struct_config__.tag)


class FormatSink(Sink, frozen=True, kw_only=True):
    """What every sink takes that can send entries in several formats. All but `format` is for Moesif actions."""

    format: FormatChoice = "raw"
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"


class HttpSink(Sink, frozen=True, kw_only=True):
    """What every sink over HTTP takes."""

    url: Url
    compression: CompressionChoice = "gzip"
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    keepalive_seconds: Annotated[
        float,
        describe(
            "duration",
            "A connection that was idle for longer is not used again; `0s`: a new one each time.",
            ge=0,
            le=3600,
        ),
    ] = 60.0
    requests_per_second: RequestsPerSecond = 10.0
    headers: Headers = {}
    allow_plain_http: AllowPlainHttp = False
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None

    @property
    def own_path(self) -> str:
        """What is appended to the URL."""
        return ""


class FormatHttpSink(HttpSink, frozen=True, kw_only=True):
    """Those of them over HTTP: a struct has one base alone."""

    format: FormatChoice = "raw"
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"


class LoggingServiceSink(HttpSink, frozen=True, kw_only=True, tag="logging-service"):
    """IONOS Logging Service, or any HTTP source that wants an `APIKEY` header: POST {url}/{tag}."""

    tag: Annotated[str, describe("tag", "Tag of the pipeline's log source; becomes the path of the URL.")]
    api_key: Annotated[
        SecretSource, describe("secret", "Key of the pipeline, sent as `APIKEY` header.", aliases=("key",))
    ]
    max_event_bytes: MaxEventBytes = 256 * KIB
    requests_per_second: RequestsPerSecond = 40.0

    @property
    def own_path(self) -> str:
        return f"/{self.tag}"


class LokiSink(HttpSink, frozen=True, kw_only=True, tag="loki"):
    """Grafana Loki: its JSON push API, the event's own time, labels kept few."""

    labels: Annotated[
        dict[str, str],
        describe("labels", "Labels of the stream. `contract` is added; all else stays in the line."),
    ] = msgspec.field(default_factory=lambda: {"tag_name": "activityLog"})
    tenant_id: Annotated[str | None, describe("text", "Tenant, sent as `X-Scope-OrgID`.", is_header=True)] = None
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None
    batch_events: BatchEvents = 10_000
    batch_bytes: BatchBytes = 8 * MIB
    max_event_bytes: MaxEventBytes = 256 * KIB
    requests_per_second: RequestsPerSecond = 1000.0
    connections: Annotated[
        int,
        describe("number", "How many streams of a batch are sent side by side, a request each.", ge=1, le=100),
    ] = 32
    stream_bytes_per_second: Annotated[
        int,
        describe(
            "size",
            "Bytes of lines a second, per stream, that the sink stays below: `desired_rate` of Loki's `shard_streams`, or its"
            " limit per stream if that is less. A faster stream would be split into shards.",
            ge=16 * KIB,
        ),
    ] = 1_536_000
    late_streams: Annotated[
        int,
        describe(
            "number",
            "Streams of each contract for events that were collected late. More of them make a first poll or a backfill faster.",
            ge=2,
            le=168,
        ),
    ] = 4

    @property
    def own_path(self) -> str:
        return "/loki/api/v1/push"


class MoesifSink(HttpSink, frozen=True, kw_only=True, tag="moesif"):
    """Moesif Actions API."""

    url: Url = "https://api.moesif.net"
    application_id: Annotated[
        SecretSource,
        describe("secret", "Collector application id, sent as `X-Moesif-Application-Id`.", aliases=("key",)),
    ]
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"
    compression: CompressionChoice = "none"
    batch_bytes: Annotated[
        int,
        describe("size", "At most so many bytes in one batch; Moesif takes 15 MB.", ge=KIB, le=12_000_000),
    ] = 12_000_000
    max_event_bytes: Annotated[
        int,
        describe("size", "An action larger than this is handled as `oversize` says.", ge=KIB, le=1_000_000),
    ] = 1_000_000

    @property
    def own_path(self) -> str:
        return "/v1/actions"


class FirehoseSink(FormatSink, frozen=True, kw_only=True, tag="firehose"):
    """AWS Data Firehose. Credentials come from AWS's own chain: environment, profile, role."""

    stream: Annotated[str, describe("name", "Name of the delivery stream.")]
    region: Annotated[str | None, describe("text", "AWS region; unset: from AWS's own configuration.")] = None
    endpoint_url: Annotated[str | None, describe("url", "Another endpoint than AWS's own.")] = None
    batch_events: Annotated[
        int, describe("number", "At most so many records a call; Firehose takes 500.", ge=1, le=500)
    ] = 500
    batch_bytes: Annotated[
        int, describe("size", "At most so many bytes a call; Firehose takes 4 MiB.", ge=KIB, le=4 * MIB)
    ] = 4 * MIB
    max_event_bytes: Annotated[
        int,
        describe("size", "A record larger than this is handled as `oversize` says.", ge=KIB, le=1000 * KIB),
    ] = 1000 * KIB
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    requests_per_second: RequestsPerSecond = 10.0
    ca_file: CaFile = None


class OtlpSink(HttpSink, frozen=True, kw_only=True, tag="otlp"):
    """OpenTelemetry logs over OTLP/HTTP: POST {url}/v1/logs. For the Collector, Loki, VictoriaLogs, Grafana Cloud."""

    encoding: Annotated[
        Literal["protobuf", "json"], describe("choice", "How records are encoded; `json` needs no extra library.")
    ] = "protobuf"
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None
    requests_per_second: RequestsPerSecond = 40.0

    @property
    def own_path(self) -> str:
        return "/v1/logs"


class KafkaSink(FormatSink, frozen=True, kw_only=True, tag="kafka"):
    """Apache Kafka, and IONOS Event Streams: idempotent and transactional, in order for each contract."""

    brokers: Annotated[tuple[str, ...], describe("brokers", "Brokers to begin with, as host:port.")]
    topic: Annotated[str, describe("name", "The topic. It is not created.")]
    security: Annotated[
        Literal["auto", "tls", "plain"],
        describe("choice", "`auto`: TLS where `ca_file`, `cert_file` or `username` is given, else none."),
    ] = "auto"
    username: Annotated[str | None, describe("text", "User name for SASL.", is_alternative=True)] = None
    password: Annotated[
        SecretSource | None, describe("secret", "Password for SASL.", is_text=True, is_alternative=True)
    ] = None
    sasl_mechanism: Annotated[
        Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"], describe("choice", "How `username` logs in.")
    ] = "SCRAM-SHA-512"
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None
    compression: Annotated[
        Literal["lz4", "gzip", "snappy", "zstd", "none"], describe("choice", "Compression of what is sent.")
    ] = "lz4"
    timeout_seconds: Annotated[float, describe("duration", "Time for each step of a transaction.", ge=0.1, le=600)] = (
        30.0
    )
    max_event_bytes: Annotated[
        int,
        describe(
            "size", "An event larger than this is handled as `oversize` says. Keep it below the topic's limit.", ge=KIB
        ),
    ] = 1000 * KIB

    @property
    def is_tls(self) -> bool:
        """Whether the brokers are spoken to over TLS."""
        is_secret = self.ca_file is not None or self.cert_file is not None or self.username is not None
        return self.security == "tls" or (self.security == "auto" and is_secret)


class OpenSearchSink(FormatHttpSink, frozen=True, kw_only=True, tag="opensearch"):
    """OpenSearch: _bulk, an event once by its `_id`. Into a data stream, an alias or an index."""

    index: Annotated[
        str,
        describe(
            "index",
            "A data stream, an alias or an index; with `{date}`, the event's UTC day, an index for each day.",
        ),
    ] = "ionos-activitylog"
    format: FormatChoice = "ecs"
    username: BasicUser = None
    password: BasicPassword = None
    api_key: Annotated[
        SecretSource | None,
        describe("secret", "API key in its encoded form, instead of a user name.", is_alternative=True),
    ] = None
    requests_per_second: RequestsPerSecond = 40.0


class ElasticsearchSink(OpenSearchSink, frozen=True, kw_only=True, tag="elasticsearch"):
    """Elasticsearch, 7 or later: likewise."""


class AnyHttpSink(FormatHttpSink, frozen=True, kw_only=True, tag="http"):
    """Any receiver over HTTP that has no type of its own: method, address, headers and body as it wants them."""

    method: Annotated[Literal["POST", "PUT", "PATCH"], describe("choice", "Method of the requests.")] = "POST"
    body: Annotated[
        Literal["array", "ndjson", "object"],
        describe("choice", "A request holds a batch as JSON array or as lines of JSON, or a single event."),
    ] = "array"
    successes: Annotated[
        tuple[int, ...], describe("statuses", "The statuses that mean that all of a request was taken; no other does.")
    ] = (200, 201, 202, 204)
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None


class LocalSink(FormatSink, frozen=True, kw_only=True):
    """What every sink takes that writes to a machine's own disk or output."""

    host: Annotated[
        str | None,
        describe(
            "text", "With a state in PostgreSQL: the machine that writes all of it, by its host name (`uname -n`)."
        ),
    ] = None
    shared: Annotated[
        bool,
        describe("flag", "With a state in PostgreSQL: every machine writes a part, that of the contracts it holds."),
    ] = False

    def is_here(self, host: str) -> bool:
        """Whether the machine of that name writes it."""
        return self.host is None or self.host == host

    @property
    def is_whole(self) -> bool:
        """Whether one replica writes all of it, also of the contracts that others hold."""
        return self.host is not None

    @property
    def is_local(self) -> bool:
        """Whether it lies on the disk or output of the machine that writes it."""
        return True


class FileSink(LocalSink, frozen=True, kw_only=True, tag="file"):
    """Files of JSON lines, one a day, synced to disk with every batch."""

    path: Annotated[
        str,
        describe(
            "template",
            "The file, compressed if it ends in `.gz`; `{date}` is the event's UTC day. Relative to the configuration file.",
        ),
    ]
    compression: CompressionChoice = "none"


class ArchiveSink(LocalSink, frozen=True, kw_only=True, tag="archive"):
    """An archive that proves what it holds: compressed objects and a chain of signed digests, on a disk or in a bucket."""

    url: Annotated[
        str,
        describe("archive", "`s3://bucket/prefix`, or `file:///srv/audit` for a directory such as a mounted disk."),
    ]
    endpoint_url: Annotated[
        str | None,
        describe(
            "url", "Endpoint of the object storage, such as `https://s3.eu-central-3.ionoscloud.com`; unset: AWS's."
        ),
    ] = None
    region: Annotated[str | None, describe("text", "Region of the bucket; unset: from AWS's own configuration.")] = None
    access_key: Annotated[
        SecretSource | None,
        describe("secret", "Access key of the object storage; unset: AWS's own chain.", aliases=("key",)),
    ] = None
    secret_key: Annotated[SecretSource | None, describe("secret", "Secret key of `access_key`.", is_text=True)] = None
    object_lock: Annotated[
        ObjectLock,
        describe(
            "choice",
            "Lock each object against deletion for `retain`. The bucket must have been created with object lock.",
        ),
    ] = "none"
    retain_seconds: Annotated[
        int, describe("duration", "How long objects are locked.", ge=1, le=100 * 366 * 86_400)
    ] = 365 * 86_400
    encryption: Annotated[
        Encryption, describe("choice", "Encryption by the object storage; `none`: as the bucket has it.")
    ] = "none"
    kms_key_id: Annotated[str | None, describe("text", "Key of `aws:kms`; unset: the storage's own.")] = None
    storage_class: Annotated[
        str | None, describe("text", "Storage class of the objects, such as `STANDARD`; unset: the bucket's.")
    ] = None
    batch_events: BatchEvents = 100_000
    batch_bytes: BatchBytes = 16 * MIB
    batch_age_seconds: Annotated[
        float,
        describe(
            "duration", "A batch that is not full is written when its oldest event waited this long.", ge=0, le=86_400
        ),
    ] = 3600.0
    max_event_bytes: MaxEventBytes = 64 * MIB
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    ca_file: CaFile = None
    allow_plain_http: AllowPlainHttp = False
    shared: Annotated[
        bool,
        describe(
            "flag",
            "With a state in PostgreSQL: the directory of `url` is the same one on every machine, such as a network mount.",
        ),
    ] = False

    @property
    def is_whole(self) -> bool:
        """Always: there is one chain, so one replica writes it."""
        return True

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file:")


class StdoutSink(LocalSink, frozen=True, kw_only=True, tag="stdout"):
    """JSON lines on standard output, for another process to read."""


ActionSink = MoesifSink | FormatSink | FormatHttpSink
"""Those that can send Moesif actions."""

AnySink = (
    LoggingServiceSink
    | LokiSink
    | MoesifSink
    | FirehoseSink
    | OtlpSink
    | OpenSearchSink
    | ElasticsearchSink
    | AnyHttpSink
    | KafkaSink
    | FileSink
    | ArchiveSink
    | StdoutSink
)

SINK_TYPES: dict[str, type[AnySink]] = {
    "logging-service": LoggingServiceSink,
    "loki": LokiSink,
    "moesif": MoesifSink,
    "firehose": FirehoseSink,
    "otlp": OtlpSink,
    "opensearch": OpenSearchSink,
    "elasticsearch": ElasticsearchSink,
    "http": AnyHttpSink,
    "kafka": KafkaSink,
    "file": FileSink,
    "archive": ArchiveSink,
    "stdout": StdoutSink,
}
