"""The configuration in memory: frozen, complete, checked.

`load.py` makes it, `describe.py` documents it. Durations are in seconds, sizes in bytes; their TOML keys are
the field names without `_seconds`. Descriptions are data: the reference and the JSON Schema are generated
from them.
"""

# No `from __future__ import annotations`: the loader and the docs read the annotations at run time.

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from poller.config import apart
from poller.config.checks import is_clear_text
from poller.config.environment import NetworkEnvironment
from poller.config.files import Directory, File, PrivateFile, SecretKind
from poller.config.kinds import (
    Contracts,
    Duration,
    Flag,
    Glob,
    Hosts,
    Identifier,
    Listen,
    Name,
    Number,
    Size,
    StateUrl,
    Url,
    UserName,
)
from poller.config.secrets import Credentials, SecretSource
from poller.config.sink_base import (
    KIB,
    MIB,
    AllowPlainHttp,
    CaFile,
    ConnectTimeout,
    ReadTimeout,
    Redact,
    clear_text,
    path_problems,
)
from poller.config.sinks import AnySink, ArchiveSink, FileSink
from poller.config.state_url import is_unverified
from poller.config.tables import Nested, NestedList, Table
from poller.core.errors import ConfigError, Problem
from poller.core.windows import Limits

API_URL = "https://api.ionos.com"
API_PATH = "/activitylog/v1"
"""Appended to the URL of the API."""
YEAR_SECONDS = 366 * 86_400

WHAT_TO_SET = (
    "set IONOS_API_TOKEN (or IONOS_TOKEN, or IONOS_USERNAME and IONOS_PASSWORD),"
    " or token_file in [api] of the configuration"
)


ApiUrl = Annotated[str, Url("Base URL of the IONOS API; `/activitylog/v1` is appended. Also $IONOS_API_URL.")]
Token = Annotated[SecretSource | None, SecretKind("IONOS API token (a JWT with the privilege ACCESS_ACTIVITY_LOG).")]
Username = Annotated[
    str | None,
    UserName("User name, instead of a token; works only without 2FA.", example="user@example.com", is_alternative=True),
]
Password = Annotated[SecretSource | None, SecretKind("Password of `username`.", is_alternative=True, is_text=True)]


def _access_problems(one: "Api | Account") -> Iterator[Problem]:
    if one.token is not None and (one.username or one.password is not None):
        yield Problem("token", "is given in addition to a user name and password", "keep one of the two")
    if one.password is not None and not one.username:
        yield Problem("password", "is given without username")
    yield from path_problems(one.url, API_PATH)


class Api(Table, frozen=True, kw_only=True):
    """How the Activity Log API is asked."""

    # A loaded configuration holds token, username and password in `accounts`; here they are None.

    url: ApiUrl = API_URL
    token: Token = None
    username: Username = None
    password: Password = None
    page_size: Annotated[
        int, Number("Entries per request; 1000 is known to work. Lowered if the API refuses it.", ge=1, le=10_000)
    ] = 1000
    result_window: Annotated[
        int,
        Number("Highest `offset + limit` that the API serves. Larger windows are split in time.", ge=1, le=1_000_000),
    ] = 10_000
    concurrency: Annotated[
        int,
        Number(
            "Maximum requests at once, over all contracts. One that hangs for 2 s is not counted, up to three times as many.",
            ge=1,
            le=64,
        ),
    ] = 4
    requests_per_second: Annotated[
        float, Number("Maximum requests per second, over all contracts.", ge=0.01, le=10_000)
    ] = 10.0
    connect_timeout_seconds: ConnectTimeout = 5.0
    read_timeout_seconds: ReadTimeout = 30.0
    allow_plain_http: AllowPlainHttp = False
    ca_file: CaFile = None
    max_retries: Annotated[
        int, Number("How often a failed request is repeated before its window fails.", ge=0, le=100)
    ] = 4
    max_page_bytes: Annotated[
        int,
        Size(
            "Maximum answer. After a larger one, an eighth of the entries is asked for. A single entry may be twice as large.",
            ge=64 * KIB,
            le=1 << 30,
        ),
    ] = 8 * MIB
    window_bytes: Annotated[int, Size("Memory for windows in flight, over all contracts.", ge=MIB, le=1 << 34)] = (
        8 * MIB
    )

    def limits(self, windows: int = 1) -> Limits:
        """The limits of one request and one window, if this many windows share `window_bytes`."""
        return Limits(self.page_size, self.result_window, max(MIB, self.window_bytes // windows))

    problems = _access_problems


class Poll(Table, frozen=True, kw_only=True):
    """When and what is collected."""

    interval_seconds: Annotated[int, Duration("Time between two polls.", ge=1, le=86_400)] = 60
    overlap_seconds: Annotated[
        int,
        Duration("How far before the watermark each poll begins, for entries that appear late.", ge=0, le=30 * 86_400),
    ] = 600
    initial_lookback_seconds: Annotated[
        int,
        Duration(
            "How far back the first run begins. A contract that appears later begins at the last search without it.",
            ge=0,
            le=20 * YEAR_SECONDS,
        ),
    ] = 300
    contracts: Annotated[
        tuple[str, ...],
        Contracts(
            "Contract numbers to collect, listed by the API or not. Empty: all that the token may see.",
            example=["31960001"],
        ),
    ] = ()
    exclude_contracts: Annotated[
        tuple[str, ...], Contracts("Contract numbers to leave out.", example=["31960002"])
    ] = ()
    discovery_interval_seconds: Annotated[
        int, Duration("Time between two searches for new contracts.", ge=1, le=30 * 86_400)
    ] = 3600
    audit_interval_seconds: Annotated[
        int, Duration("Time between two self-audits; `0s` turns them off.", ge=0, le=30 * 86_400)
    ] = 3600
    audit_span_seconds: Annotated[
        int, Duration("How far back a self-audit looks before the previous audit.", ge=1, le=YEAR_SECONDS)
    ] = 7 * 86_400
    ledger_retention_seconds: Annotated[
        int, Duration("How long the ledger keeps the identities of collected entries.", ge=3600, le=20 * YEAR_SECONDS)
    ] = 35 * 86_400

    def wants(self, contract: str, only: Collection[str] = ()) -> bool:
        """Whether this contract is collected; `only` replaces `contracts` if it is given."""
        wanted = only or self.contracts
        return (not wanted or contract in wanted) and contract not in self.exclude_contracts

    def problems(self) -> Iterator[Problem]:
        for contract in self.contracts:
            if contract in self.exclude_contracts:
                yield Problem("exclude_contracts", f"{contract} is also in contracts", "keep one of the two")
        for key, span in (("overlap", self.overlap_seconds), ("audit_span", self.audit_span_seconds)):
            if self.ledger_retention_seconds < span:
                yield Problem("ledger_retention", f"is shorter than {key}", "entries read again would count as new")


class Account(Table, frozen=True, kw_only=True):
    """One IONOS account. Without `[[accounts]]` there is one, `default`, from `[api]` and the environment."""

    name: Annotated[str, Name("Its name in logs and metrics: letters, digits, `_`, `.`, `-`.", example="prod")]
    url: Annotated[str, Url("Base URL of the API for this account. Default: `api.url`.", example=API_URL)] = ""
    token: Token = None
    username: Username = None
    password: Password = None
    place: str = ""  # file and line, if it has no credentials

    def credentials(self) -> Credentials:
        """The credentials, read again from their source each time.

        Raises: ConfigError if there are none or they cannot be read; TransientError if they cannot be read now.
        """
        if self.token is not None:
            return Credentials.read(self.token)
        if self.username and self.password is not None:
            return Credentials.read(self.password, self.username)
        if self.username:
            only = self.name == "default"
            place = "password" if only else f"accounts.{self.name}.password"
            hint = "set IONOS_PASSWORD, or name a password_file" if only else "give the account a password_file"
            raise ConfigError.of(place, f"no password for {self.username}", hint, self.place)
        if self.name == "default":
            raise ConfigError.of("token", "no IONOS API token", WHAT_TO_SET)
        hint = f"give the account a token_file, or a systemd credential {self.name}.token"
        raise ConfigError.of(f"accounts.{self.name}.token", "no IONOS API token", hint, self.place)

    problems = _access_problems


class Rule(Table, frozen=True, kw_only=True):
    """Glob patterns, at least one. All must match, in upper and lower case as written."""

    contract: Annotated[str | None, Glob("Contract number.")] = None
    type: Annotated[str | None, Glob("`event.type`, such as `RequestStatusUpdate`.")] = None
    service: Annotated[str | None, Glob("`principal.sourceService`, such as `DCD`.")] = None
    username: Annotated[str | None, Glob("`principal.identity.username`.")] = None
    action: Annotated[str | None, Glob("`event.param.action`, such as `GET`.")] = None
    resource_type: Annotated[str | None, Glob("`event.resources[].type`; one of them is enough.")] = None
    source_ip: Annotated[str | None, Glob("`principal.sourceIP`.")] = None
    status: Annotated[str | None, Glob("`event.status`.")] = None

    def problems(self) -> Iterator[Problem]:
        if all(getattr(self, key) is None for key in self.__struct_fields__):
            yield Problem("", "matches every entry", "name at least one of its keys, such as type")


class Filter(Table, frozen=True, kw_only=True):
    """Which entries are delivered. The others are counted, and the ledger knows them."""

    exclude: Annotated[
        tuple[Rule, ...],
        NestedList(
            "Entries that match one of these are left out.",
            example=[{"type": "RequestStatusUpdate"}, {"action": "GET"}],
        ),
    ] = ()
    include: Annotated[
        tuple[Rule, ...],
        NestedList(
            "If not empty, only entries that match one of these are delivered.",
            example=[{"service": "DCD"}, {"resource_type": "server*"}],
        ),
    ] = ()


class Outbox(Table, frozen=True, kw_only=True):
    """Events that wait for delivery."""

    max_bytes: Annotated[
        int,
        Size(
            "Collecting pauses while this much waits, dead letters included. Nothing is dropped.",
            ge=64 * KIB,
            le=1 << 50,
        ),
    ] = 1 << 30


class Evidence(Table, frozen=True, kw_only=True):
    """How archives prove what they hold: the key that signs their digests."""

    signing_key_file: Annotated[
        Path | None,
        PrivateFile(
            "Private key (Ed25519, PEM) of `ionos-poller archive keygen`; unset: digests are not signed.",
            example="/etc/ionos-poller/evidence.key",
        ),
    ] = None
    previous_signing_key_file: Annotated[
        Path | None,
        PrivateFile(
            "The previous key. It signs the change of keys: keep it until each archive has one more digest.",
            example="/etc/ionos-poller/evidence-2025.key",
        ),
    ] = None


class State(Table, frozen=True, kw_only=True):
    """Where the state is kept, if not in files: a PostgreSQL database that several machines share. See docs/cluster.md."""

    url: Annotated[
        str,
        StateUrl(
            "URL of a PostgreSQL database, such as `postgresql://user@host:5432/database`; empty: files in `state_dir`.",
            example="postgresql://ionos_poller@db.example:5432/ionos_poller",
        ),
    ] = ""
    password: Annotated[SecretSource | None, SecretKind("Password of the user in `url`.", is_text=True)] = None
    ca_file: Annotated[
        Path | None,
        File("CA certificates (PEM) for the database, instead of the system's.", example="/etc/ionos-poller/ca.pem"),
    ] = None
    schema: Annotated[str, Identifier("Schema that holds the tables.")] = "ionos_poller"
    lease_seconds: Annotated[
        int, Duration("How long a replica keeps its contracts after its last sign of life.", ge=3, le=3600)
    ] = 15
    allow_unverified: Annotated[
        bool, Flag("Allow an `sslmode` below `verify-full` in `url` for a host that is not this machine.")
    ] = False

    def problems(self) -> Iterator[Problem]:
        if not self.url and self.password is not None and self.password.origin != "credential":
            yield Problem("password", "is given without url")
        if self.url and not self.allow_unverified and is_unverified(self.url):
            hint = "remove sslmode from the URL, or set allow_unverified = true if the network is yours"
            yield Problem("url", "names a host on the network without verifying its certificate", hint)


class Http(Table, frozen=True, kw_only=True):
    """The daemon's own endpoint: a page at /, its data at /status.json, /metrics, /healthz, /readyz."""

    listen: Annotated[
        str,
        Listen("Address and port, or `unix:` and the path of a socket. `[::]` also takes IPv4. Empty: no endpoint."),
    ] = "127.0.0.1:9464"
    hosts: Annotated[
        tuple[str, ...],
        Hosts(
            "Further host names for requests, beside IP addresses, `localhost`, this machine and that of `listen`. `*`: any.",
            example=["poller.example.com"],
        ),
    ] = ()

    @property
    def address(self) -> tuple[str, int] | Path | None:
        """Host and port, or the path of a socket, or None if the endpoint is turned off."""
        if not self.listen:
            return None
        if self.listen.startswith("unix:"):
            return Path(self.listen.removeprefix("unix:"))
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Config(Table, frozen=True, kw_only=True):
    """The whole configuration. `accounts` is resolved: at least one, each with its URL."""

    EXAMPLES: ClassVar = {"state_dir": "/var/lib/ionos-poller"}

    state_dir: Annotated[
        Path, Directory("Where the state is kept. Default: $STATE_DIRECTORY, else `./state`. Also --state-dir.")
    ] = Path("state")
    api: Annotated[Api, Nested()] = Api()
    poll: Annotated[Poll, Nested()] = Poll()
    accounts: Annotated[tuple[Account, ...], NestedList("Only for several IONOS accounts.")] = ()
    sinks: Annotated[tuple[AnySink, ...], NestedList("Where events go; each on its own.")] = ()
    filter: Annotated[Filter, Nested()] = Filter()
    redact: Annotated[Redact, Nested(credential="redact")] = Redact()
    outbox: Annotated[Outbox, Nested()] = Outbox()
    state: Annotated[State, Nested(credential="state")] = State()
    evidence: Annotated[Evidence, Nested()] = Evidence()
    http: Annotated[Http, Nested()] = Http()
    source: Path | None = None
    """The file that it was read from."""
    network: NetworkEnvironment = NetworkEnvironment({})
    """Proxies and CA bundle of the environment."""

    def problems(self) -> Iterator[Problem]:
        """Problems between the tables, and of all types of sinks. A table with bad values is None."""
        read_accounts: Sequence[Account | None] = self.accounts
        read_sinks: Sequence[AnySink | None] = self.sinks
        accounts = {f"accounts[{index}]": account for index, account in enumerate(read_accounts) if account is not None}
        sinks = {f"sinks[{index}]": sink for index, sink in enumerate(read_sinks) if sink is not None}
        places = {path: apart.of_file(sink.path) for path, sink in sinks.items() if isinstance(sink, FileSink)}
        archives = {path: sink for path, sink in sinks.items() if isinstance(sink, ArchiveSink)}
        places |= {path: apart.of_archive(sink.url, sink.endpoint_url) for path, sink in archives.items()}
        yield from apart.problems_between(places)
        for path, sink in sinks.items():
            if sink.retry_initial_seconds > sink.retry_max_seconds:
                yield Problem(f"{path}.retry_initial", "is longer than retry_max")
            if self.state.url:
                yield from (found._replace(path=f"{path}.{found.path}") for found in sink.problems_with_machines())
        redacts = {"redact": self.redact} | {f"{path}.redact": sink.redact for path, sink in sinks.items()}
        for path, redact in redacts.items():
            if redact and redact.hash and redact.hash_key is None and self.redact.hash_key is None:
                yield Problem(
                    f"{path}.hash", "needs a key", "give hash_key_file, or a systemd credential redact.hash-key"
                )
        urls = {"api.url": self.api.url} | {f"{path}.url": account.url for path, account in accounts.items()}
        for path, url in urls.items():
            if is_clear_text(url) and not self.api.allow_plain_http:
                yield clear_text(path, "the token")
        if len(self.accounts) > 1 and (self.api.token or self.api.username or self.api.password):
            yield Problem("api", "holds credentials, but there are several accounts", "move them to their account")

    def proxies_for(self, url: str) -> dict[str, str]:
        """The proxies that `requests` uses for this URL; empty for none. Do not log them."""
        return self.network.proxies_for(url)

    @property
    def ca_bundle(self) -> str | None:
        """CA certificates for every server that has no `ca_file` of its own ($REQUESTS_CA_BUNDLE)."""
        return self.network.ca_bundle
