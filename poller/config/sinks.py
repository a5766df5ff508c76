"""The tables of the sinks: one frozen struct per `type`, with every key, its default, its bounds and its rules."""

# No `from __future__ import annotations`: the loader and the docs read the annotations at run time.

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from poller.config.checks import LOKI_LABELS, MAX_LOKI_LABELS, check_whole_url, file_path, is_clear_text
from poller.config.files import OutputPath, SecretKind
from poller.config.kinds import (
    ArchiveUrl,
    Brokers,
    Choice,
    Duration,
    Flag,
    HeaderText,
    Index,
    Labels,
    Name,
    Number,
    Size,
    Text,
    Url,
)
from poller.config.secrets import SecretSource
from poller.config.sink_base import (
    KIB,
    MIB,
    ActionName,
    AllowPlainHttp,
    BaseUrl,
    BasicPassword,
    BasicUser,
    BatchBytes,
    BatchEvents,
    BearerToken,
    CaFile,
    CertFile,
    CompanyId,
    CompressionChoice,
    ConnectTimeout,
    FormatChoice,
    FormatHttpSink,
    FormatSink,
    HttpSink,
    KeyFile,
    LocalSink,
    MaxEventBytes,
    ReadTimeout,
    RequestQuery,
    RequestsPerSecond,
    SendTimeout,
    StreamPerContract,
    Successes,
    UriBase,
    UserId,
    clear_text,
    login_problems,
)
from poller.core.errors import Problem

_COLD_CLASSES = ("GLACIER", "DEEP_ARCHIVE")  # of S3: an object must be restored, for hours, before it can be read

ObjectLock = Literal["compliance", "governance", "none"]
Encryption = Literal["none", "AES256", "aws:kms"]


class LoggingServiceSink(HttpSink, frozen=True, kw_only=True, tag="logging-service"):
    """IONOS Logging Service, or any HTTP source that wants an `APIKEY` header: POST {url}/{tag}."""

    EXAMPLES: ClassVar = {"name": "logging", "url": "https://12345678.logging.de-txl.ionos.com"}
    OWN_PATH = "/{tag}"
    OWN_HEADERS: ClassVar = {**HttpSink.OWN_HEADERS, "apikey": ("api_key",)}

    tag: Annotated[
        str, Name("Tag of the pipeline's log source. It becomes the path of the URL.", example="activityLog")
    ]
    api_key: Annotated[SecretSource, SecretKind("Key of the pipeline, sent as `APIKEY` header.", aliases=("key",))]
    max_event_bytes: MaxEventBytes = 256 * KIB
    requests_per_second: RequestsPerSecond = 40.0


class LokiSink(HttpSink, frozen=True, kw_only=True, tag="loki"):
    """Grafana Loki, by its JSON push API. Each line has the event's own time; labels are few."""

    EXAMPLES: ClassVar = {"url": "http://localhost:3100"}
    OWN_PATH = "/loki/api/v1/push"
    OWN_HEADERS: ClassVar = {
        **HttpSink.OWN_HEADERS,
        "authorization": ("username", "bearer_token"),
        "x-scope-orgid": ("tenant_id",),
    }

    labels: Annotated[
        dict[str, str], Labels("Labels of the stream. `contract` is added. Everything else stays in the line.")
    ] = msgspec.field(default_factory=lambda: {"tag_name": "activityLog"})
    tenant_id: Annotated[str | None, HeaderText("Tenant, sent as `X-Scope-OrgID`.", example="audit")] = None
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None
    batch_events: BatchEvents = 10_000
    batch_bytes: BatchBytes = 8 * MIB
    max_event_bytes: MaxEventBytes = 256 * KIB
    requests_per_second: RequestsPerSecond = 1000.0
    connections: Annotated[
        int, Number("Streams of a batch that are sent at the same time, one request each.", ge=1, le=100)
    ] = 32
    stream_bytes_per_second: Annotated[
        int,
        Size(
            "Maximum bytes of lines per second and stream: `desired_rate` of Loki's `shard_streams`, or Loki's limit per stream"
            " if that is lower. Loki splits a faster stream into shards.",
            ge=16 * KIB,
        ),
    ] = 1_536_000
    late_streams: Annotated[
        int,
        Number(
            "Streams per contract for events that were collected late. More of them make a first poll or a backfill faster.",
            ge=2,
            le=168,
        ),
    ] = 4

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        own = MAX_LOKI_LABELS - len(LOKI_LABELS)
        if len(self.labels) > own:
            hint = f"at most {own}: the program adds {' and '.join(LOKI_LABELS)}, and Loki takes {MAX_LOKI_LABELS}"
            yield Problem("labels", f"are {len(self.labels)}, too many", hint)


class MoesifSink(HttpSink, frozen=True, kw_only=True, tag="moesif"):
    """Moesif Actions API."""

    OWN_PATH = "/v1/actions"
    PATHS_BELOW = ("/batch",)
    OWN_HEADERS: ClassVar = {**HttpSink.OWN_HEADERS, "x-moesif-application-id": ("application_id",)}

    url: BaseUrl = "https://api.moesif.net"
    application_id: Annotated[
        SecretSource, SecretKind("Collector application id, sent as `X-Moesif-Application-Id`.", aliases=("key",))
    ]
    action_name: ActionName = "event.type"
    company_id: CompanyId = "contract"
    user_id: UserId = "principal.identity.username"
    uri_base: UriBase = "https://api.ionos.com"
    compression: CompressionChoice = "none"
    batch_bytes: Annotated[
        int, Size("Maximum bytes of entries in one batch. Moesif takes 15 MB.", ge=KIB, le=12_000_000)
    ] = 12_000_000
    max_event_bytes: Annotated[int, Size("Larger actions are handled as `oversize` says.", ge=KIB, le=1_000_000)] = (
        1_000_000
    )


class FirehoseSink(FormatSink, frozen=True, kw_only=True, tag="firehose"):
    """AWS Data Firehose. Credentials come from AWS's own chain: environment, profile, role."""

    EXAMPLES: ClassVar = {"name": "aws"}

    stream: Annotated[str, Name("Name of the delivery stream.", example="activity")]
    region: Annotated[str | None, Text("AWS region; unset: from AWS's own configuration.", example="eu-central-1")] = (
        None
    )
    endpoint_url: Annotated[
        str | None, Url("Endpoint, if it is not AWS's own.", example="https://firehose.eu-central-1.amazonaws.com")
    ] = None
    batch_events: Annotated[int, Number("Maximum records per call. Firehose takes 500.", ge=1, le=500)] = 500
    batch_bytes: Annotated[int, Size("Maximum bytes per call. Firehose takes 4 MiB.", ge=KIB, le=4 * MIB)] = 4 * MIB
    max_event_bytes: Annotated[int, Size("Larger records are handled as `oversize` says.", ge=KIB, le=1000 * KIB)] = (
        1000 * KIB
    )
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    requests_per_second: RequestsPerSecond = 10.0
    ca_file: CaFile = None


class OtlpSink(HttpSink, frozen=True, kw_only=True, tag="otlp"):
    """OpenTelemetry logs over OTLP/HTTP: POST {url}/v1/logs. For the Collector, Loki, VictoriaLogs, Grafana Cloud."""

    EXAMPLES: ClassVar = {"url": "http://localhost:4318"}
    OWN_PATH = "/v1/logs"
    OWN_HEADERS: ClassVar = {**HttpSink.OWN_HEADERS, "authorization": ("username", "bearer_token")}

    encoding: Annotated[
        Literal["protobuf", "json"], Choice("How records are encoded; `json` needs no extra library.")
    ] = "protobuf"
    stream_per_contract: StreamPerContract = False
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None
    requests_per_second: RequestsPerSecond = 40.0


class KafkaSink(FormatSink, frozen=True, kw_only=True, tag="kafka"):
    """Apache Kafka and IONOS Event Streams: idempotent, transactional, in order per contract."""

    brokers: Annotated[
        tuple[str, ...], Brokers("First brokers to connect to, as host:port.", example=["10.7.222.11:9093"])
    ]
    topic: Annotated[str, Name("Topic. It is not created.", example="activity")]
    security: Annotated[
        Literal["auto", "tls", "plain"],
        Choice("`auto`: TLS if `ca_file`, `cert_file` or `username` is set, else none."),
    ] = "auto"
    username: Annotated[str | None, Text("User name for SASL.", example="user@example.com", is_alternative=True)] = None
    password: Annotated[SecretSource | None, SecretKind("Password for SASL.", is_alternative=True, is_text=True)] = None
    sasl_mechanism: Annotated[Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"], Choice("How `username` logs in.")] = (
        "SCRAM-SHA-512"
    )
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None
    compression: Annotated[Literal["lz4", "gzip", "snappy", "zstd", "none"], Choice("Compression of what is sent.")] = (
        "lz4"
    )
    timeout_seconds: Annotated[float, Duration("Time for each step of a transaction.", ge=0.1, le=600)] = 30.0
    max_event_bytes: Annotated[
        int, Size("Larger events are handled as `oversize` says. Keep it below the topic's limit.", ge=KIB)
    ] = 1000 * KIB

    @property
    def is_tls(self) -> bool:
        """Whether the connection to the brokers uses TLS."""
        is_secret = self.ca_file is not None or self.cert_file is not None or self.username is not None
        return self.security == "tls" or (self.security == "auto" and is_secret)

    def problems(self) -> Iterator[Problem]:
        if self.key_file is not None and self.cert_file is None:
            yield Problem("key_file", "is given without cert_file")
        yield from login_problems(self.username, self.password)


class OpenSearchSink(FormatHttpSink, frozen=True, kw_only=True, tag="opensearch"):
    """OpenSearch, by `_bulk` into a data stream, an alias or an index. Each event is stored once, by its `_id`."""

    EXAMPLES: ClassVar = {"url": "https://localhost:9200"}
    PATHS_BELOW = ("/_bulk",)
    OWN_HEADERS: ClassVar = {**HttpSink.OWN_HEADERS, "authorization": ("username", "api_key")}

    index: Annotated[
        str, Index("A data stream, an alias or an index; with `{date}`, the event's UTC day, an index for each day.")
    ] = "ionos-activitylog"
    format: FormatChoice = "ecs"
    username: BasicUser = None
    password: BasicPassword = None
    api_key: Annotated[
        SecretSource | None, SecretKind("API key in its encoded form, instead of a user name.", is_alternative=True)
    ] = None
    requests_per_second: RequestsPerSecond = 40.0


class ElasticsearchSink(OpenSearchSink, frozen=True, kw_only=True, tag="elasticsearch"):
    """Elasticsearch 7 or later, with the keys of `opensearch`."""


class AnyHttpSink(FormatHttpSink, frozen=True, kw_only=True, tag="http"):
    """Any other receiver over HTTP. You choose method, URL, headers and body."""

    EXAMPLES: ClassVar = {"url": "https://intake.example.com/v2/events"}
    OWN_HEADERS: ClassVar = {"authorization": ("username", "bearer_token")}  # the user may set the content type

    url: Annotated[str, Url("URL of the receiver, http or https, without credentials or query.", check=check_whole_url)]
    method: Annotated[Literal["POST", "PUT", "PATCH"], Choice("Method of the requests.")] = "POST"
    body: Annotated[
        Literal["array", "ndjson", "object"],
        Choice("What a request holds: a batch as JSON array or as lines of JSON, or a single event."),
    ] = "array"
    query: RequestQuery = {}  # noqa: RUF012 - msgspec copies it
    successes: Successes = (200, 201, 202, 204)
    username: BasicUser = None
    password: BasicPassword = None
    bearer_token: BearerToken = None


class FileSink(LocalSink, frozen=True, kw_only=True, tag="file"):
    """Files of JSON lines, one a day, synced to disk with every batch."""

    EXAMPLES: ClassVar = {"name": "files"}

    path: Annotated[
        str,
        OutputPath(
            "The file. `.gz` at its end: compressed. `{date}`: the event's UTC day. It is relative to the configuration file.",
            example="/var/log/ionos-activity/{date}.ndjson",
        ),
    ]
    compression: CompressionChoice = "none"


class ArchiveSink(LocalSink, frozen=True, kw_only=True, tag="archive"):
    """An archive that proves what it holds: compressed objects and a chain of signed digests, on a disk or in a bucket."""

    EXAMPLES: ClassVar = {"url": "s3://audit-trail/activity"}

    url: Annotated[
        str, ArchiveUrl("`s3://bucket/prefix`, or `file:///srv/audit` for a directory such as a mounted disk.")
    ]
    endpoint_url: Annotated[
        str | None,
        Url(
            "Endpoint of the object storage, such as `https://s3.eu-central-3.ionoscloud.com`; unset: AWS's.",
            example="https://s3.eu-central-3.ionoscloud.com",
        ),
    ] = None
    region: Annotated[
        str | None, Text("Region of the bucket; unset: from AWS's own configuration.", example="eu-central-3")
    ] = None
    access_key: Annotated[
        SecretSource | None, SecretKind("Access key of the object storage; unset: AWS's own chain.", aliases=("key",))
    ] = None
    secret_key: Annotated[SecretSource | None, SecretKind("Secret key of `access_key`.", is_text=True)] = None
    object_lock: Annotated[
        ObjectLock, Choice("Lock each object against deletion for `retain`. Create the bucket with object lock.")
    ] = "none"
    retain_seconds: Annotated[int, Duration("How long objects are locked.", ge=1, le=100 * 366 * 86_400)] = 365 * 86_400
    encryption: Annotated[Encryption, Choice("Encryption by the object storage; `none`: as the bucket has it.")] = (
        "none"
    )
    kms_key_id: Annotated[str | None, Text("Key of `aws:kms`; unset: the storage's own.", example="alias/audit")] = None
    storage_class: Annotated[
        str | None, Text("Storage class of the objects, such as `STANDARD`; unset: the bucket's.", example="STANDARD")
    ] = None
    batch_events: BatchEvents = 100_000
    batch_bytes: BatchBytes = 16 * MIB
    batch_age_seconds: Annotated[
        float,
        Duration("A batch that is not full is written when its oldest event has waited this long.", ge=0, le=86_400),
    ] = 3600.0
    max_event_bytes: MaxEventBytes = 64 * MIB
    connect_timeout_seconds: ConnectTimeout = 5.0
    send_timeout_seconds: SendTimeout = 30.0
    read_timeout_seconds: ReadTimeout = 30.0
    ca_file: CaFile = None
    allow_plain_http: AllowPlainHttp = False
    shared: Annotated[
        bool,
        Flag(
            "With a state in PostgreSQL: the directory of `url` is the same one on every machine, such as a network mount."
        ),
    ] = False

    @property
    def is_whole(self) -> bool:
        """Always True: an archive has one chain, so one replica writes it."""
        return True

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file:")

    @property
    def directory(self) -> Path | None:
        """The directory that `url` names; None for a bucket."""
        return Path(file_path(self.url)) if self.url.startswith("file:") else None

    def problems(self) -> Iterator[Problem]:
        if (self.access_key is None) != (self.secret_key is None):
            yield Problem("access_key", "and secret_key go together", "give both, or neither")
        if self.url.startswith("file:") and self.object_lock != "none":
            yield Problem(
                "object_lock", "needs a bucket: a directory locks nothing", "use an s3:// url, or take it out"
            )
        if (self.storage_class or "").upper() in _COLD_CLASSES:
            hint = "use one that is, such as GLACIER_IR, or a rule of the bucket that moves objects below data/"
            yield Problem("storage_class", "is not read at once, and each digest is read before the next one", hint)
        if self.endpoint_url and not self.allow_plain_http and is_clear_text(self.endpoint_url):
            yield clear_text("endpoint_url", "entries and signatures")


class StdoutSink(LocalSink, frozen=True, kw_only=True, tag="stdout"):
    """JSON lines on standard output, for another process to read."""


ActionSink = MoesifSink | FormatSink | FormatHttpSink
"""The sinks that can send Moesif actions."""

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
