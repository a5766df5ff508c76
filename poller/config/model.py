"""The configuration as the program sees it: frozen, complete, checked.

`load.py` makes it, `describe.py` documents it. Durations are seconds and sizes are bytes here; their TOML
keys are the field names without `_seconds`. Descriptions are data: reference and JSON Schema are generated
from them.
"""

# Annotations are live on purpose (no `from __future__`): the loader and the docs read them at run time.

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import msgspec

from poller.config.environment import NetworkEnvironment
from poller.config.kinds import describe
from poller.config.secrets import Credentials, SecretSource
from poller.config.sinks import KIB, MIB, AllowPlainHttp, AnySink, CaFile, ConnectTimeout, ReadTimeout, Redact, toml_key
from poller.core.errors import ConfigError, Problem

API_URL = "https://api.ionos.com"
YEAR_SECONDS = 366 * 86_400

WHAT_TO_SET = (
    "set IONOS_API_TOKEN (or IONOS_TOKEN, or IONOS_USERNAME and IONOS_PASSWORD),"
    " or token_file in [api] of the configuration"
)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=toml_key):
    """A table of the configuration."""


ApiUrl = Annotated[
    str, describe("url", "Base URL of the IONOS API; `/activitylog/v1` is appended. Also $IONOS_API_URL.")
]
Token = Annotated[
    SecretSource | None, describe("secret", "IONOS API token (a JWT with the privilege ACCESS_ACTIVITY_LOG).")
]
Username = Annotated[
    str | None,
    describe("text", "User name, instead of a token; works only without 2FA.", is_user=True, is_alternative=True),
]
Password = Annotated[
    SecretSource | None, describe("secret", "Password of `username`.", is_text=True, is_alternative=True)
]


class Api(Table, frozen=True, kw_only=True):
    """How the Activity Log API is asked."""

    # A loaded configuration holds token, username and password in `accounts`; here they are None.

    url: ApiUrl = API_URL
    token: Token = None
    username: Username = None
    password: Password = None
    page_size: Annotated[
        int,
        describe(
            "number",
            "Entries asked for in one request; 1000 is known to work. Lowered where the API refuses it.",
            ge=1,
            le=10_000,
        ),
    ] = 1000
    result_window: Annotated[
        int,
        describe(
            "number",
            "`offset + limit` the API can serve; larger windows are split in time.",
            ge=1,
            le=1_000_000,
        ),
    ] = 10_000
    concurrency: Annotated[
        int,
        describe(
            "number",
            "Requests at the same time, over all contracts. One that hangs for 2 s is not counted; three times as many at most.",
            ge=1,
            le=64,
        ),
    ] = 4
    requests_per_second: Annotated[
        float,
        describe("number", "At most so many requests a second, over all contracts.", ge=0.01, le=10_000),
    ] = 10.0
    connect_timeout_seconds: ConnectTimeout = 5.0
    read_timeout_seconds: ReadTimeout = 30.0
    allow_plain_http: AllowPlainHttp = False
    ca_file: CaFile = None
    max_retries: Annotated[
        int, describe("number", "Further attempts at a failed request before its window fails.", ge=0, le=100)
    ] = 4
    max_page_bytes: Annotated[
        int,
        describe(
            "size",
            "A larger answer is refused, and an eighth of the entries asked for; a single entry may be twice as large.",
            ge=64 * KIB,
            le=1 << 30,
        ),
    ] = 8 * MIB
    window_bytes: Annotated[
        int, describe("size", "Memory spent on windows in flight, over all contracts.", ge=MIB, le=1 << 34)
    ] = 8 * MIB


class Poll(Table, frozen=True, kw_only=True):
    """When and what is collected."""

    interval_seconds: Annotated[int, describe("duration", "Time between two polls.", ge=1, le=86_400)] = 60
    overlap_seconds: Annotated[
        int,
        describe(
            "duration",
            "Span before the watermark that is read again, for late entries.",
            ge=0,
            le=30 * 86_400,
        ),
    ] = 600
    initial_lookback_seconds: Annotated[
        int,
        describe(
            "duration",
            "How far back the first run ever begins; a contract that appears later begins at the last look without it.",
            ge=0,
            le=20 * YEAR_SECONDS,
        ),
    ] = 300
    contracts: Annotated[
        tuple[str, ...],
        describe("contracts", "Contract numbers to collect, listed or not; empty: all that the token may see."),
    ] = ()
    exclude_contracts: Annotated[tuple[str, ...], describe("contracts", "Contract numbers to leave out.")] = ()
    discovery_interval_seconds: Annotated[
        int, describe("duration", "Time between two looks for new contracts.", ge=1, le=30 * 86_400)
    ] = 3600
    audit_interval_seconds: Annotated[
        int, describe("duration", "Time between two self-audits; `0s` turns them off.", ge=0, le=30 * 86_400)
    ] = 3600
    audit_span_seconds: Annotated[
        int,
        describe(
            "duration",
            "How far back a self-audit looks before the previous audit.",
            ge=1,
            le=YEAR_SECONDS,
        ),
    ] = 7 * 86_400
    ledger_retention_seconds: Annotated[
        int,
        describe(
            "duration",
            "How long it is remembered which entries were collected.",
            ge=3600,
            le=20 * YEAR_SECONDS,
        ),
    ] = 35 * 86_400

    def wants(self, contract: str, only: Collection[str] = ()) -> bool:
        """Whether a contract is to be collected; `only` takes the place of `contracts` where it is given."""
        wanted = only or self.contracts
        return (not wanted or contract in wanted) and contract not in self.exclude_contracts


class Account(Table, frozen=True, kw_only=True):
    """One IONOS account. Without `[[accounts]]` there is one, `default`, from `[api]` and the environment."""

    name: Annotated[str, describe("name", "Its name in logs and metrics: letters, digits, `_`, `.`, `-`.")]
    url: Annotated[str, describe("url", "Base URL of the API for this account. Default: `api.url`.")] = ""
    token: Token = None
    username: Username = None
    password: Password = None

    def credentials(self) -> Credentials:
        """What to authenticate with, read anew from its source.

        Raises: ConfigError when there is none, or its source cannot be read.
        """
        if self.token is not None:
            return Credentials(str(self.token), token=self.token.read())
        if self.username and self.password is not None:
            return Credentials(str(self.password), username=self.username, password=self.password.read())
        if self.username:
            only = self.name == "default"
            place = "password" if only else f"accounts.{self.name}.password"
            hint = "set IONOS_PASSWORD, or name a password_file" if only else "give the account a password_file"
            raise ConfigError([Problem(place, f"no password for {self.username}", hint)])
        if self.name == "default":
            raise ConfigError([Problem("token", "no IONOS API token", WHAT_TO_SET)])
        hint = f"give the account a token_file, or a systemd credential {self.name}.token"
        raise ConfigError([Problem(f"accounts.{self.name}.token", "no IONOS API token", hint)])


def _rule(description: str) -> msgspec.Meta:
    return describe("text", description, is_glob=True)


class Rule(Table, frozen=True, kw_only=True):
    """Glob patterns that must all match (case ignored nowhere); at least one."""

    contract: Annotated[str | None, _rule("Contract number.")] = None
    type: Annotated[str | None, _rule("`event.type`, such as `RequestStatusUpdate`.")] = None
    service: Annotated[str | None, _rule("`principal.sourceService`, such as `DCD`.")] = None
    username: Annotated[str | None, _rule("`principal.identity.username`.")] = None
    action: Annotated[str | None, _rule("`event.param.action`, such as `GET`.")] = None
    resource_type: Annotated[str | None, _rule("`event.resources[].type`; one of them is enough.")] = None
    source_ip: Annotated[str | None, _rule("`principal.sourceIP`.")] = None
    status: Annotated[str | None, _rule("`event.status`.")] = None


class Filter(Table, frozen=True, kw_only=True):
    """Which entries are passed on. What is filtered is counted, and the ledger still knows it."""

    exclude: Annotated[
        tuple[Rule, ...], describe("tables", "Entries that match one of these are left out.", table=Rule)
    ] = ()
    include: Annotated[
        tuple[Rule, ...],
        describe("tables", "If not empty, only entries that match one of these pass.", table=Rule),
    ] = ()


class Outbox(Table, frozen=True, kw_only=True):
    """What waits for delivery."""

    max_bytes: Annotated[
        int,
        describe(
            "size",
            "When so much waits, with dead letters, collecting pauses; nothing is dropped.",
            ge=64 * KIB,
            le=1 << 50,
        ),
    ] = 1 << 30


class Evidence(Table, frozen=True, kw_only=True):
    """How archives prove what they hold: the key that signs their digests."""

    signing_key_file: Annotated[
        Path | None,
        describe(
            "file",
            "Private key (Ed25519, PEM) of `ionos-poller archive keygen`; unset: digests are not signed.",
            is_private=True,
        ),
    ] = None
    previous_signing_key_file: Annotated[
        Path | None,
        describe(
            "file",
            "The key before it, until each archive has one more digest: it signs the change of keys.",
            is_private=True,
        ),
    ] = None


class State(Table, frozen=True, kw_only=True):
    """Where the state is kept, if not in files: a PostgreSQL database that several machines share. See docs/cluster.md."""

    url: Annotated[
        str,
        describe(
            "state_url",
            "URL of a PostgreSQL database, such as `postgresql://user@host:5432/database`; empty: files in `state_dir`.",
        ),
    ] = ""
    password: Annotated[SecretSource | None, describe("secret", "Password of the user in `url`.", is_text=True)] = None
    ca_file: Annotated[
        Path | None, describe("file", "CA certificates (PEM) for the database, instead of the system's.")
    ] = None
    schema: Annotated[str, describe("identifier", "Schema that holds the tables.")] = "ionos_poller"
    lease_seconds: Annotated[
        int,
        describe("duration", "How long after its last sign of life a replica keeps its contracts.", ge=3, le=3600),
    ] = 15
    allow_unverified: Annotated[
        bool,
        describe("flag", "Allow an `sslmode` below `verify-full` in `url`, though the host is not this machine."),
    ] = False


class Http(Table, frozen=True, kw_only=True):
    """The daemon's own endpoint: a page at /, its data at /status.json, /metrics, /healthz, /readyz."""

    listen: Annotated[
        str,
        describe(
            "listen",
            "Address and port to listen on, or `unix:` and the path of a socket; `[::]` takes IPv4, too; empty: none.",
        ),
    ] = "127.0.0.1:9464"
    hosts: Annotated[
        tuple[str, ...],
        describe(
            "hosts",
            "Host names it may be asked by, beside IP addresses, `localhost`, this machine's and that of `listen`; `*`: any.",
        ),
    ] = ()

    @property
    def address(self) -> tuple[str, int] | Path | None:
        """Host and port, or the path of a socket, or None when it is turned off."""
        if not self.listen:
            return None
        if self.listen.startswith("unix:"):
            return Path(self.listen.removeprefix("unix:"))
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Config(Table, frozen=True, kw_only=True):
    """The whole configuration. `accounts` is resolved: at least one, each with its URL."""

    state_dir: Annotated[
        Path,
        describe(
            "directory",
            "Where the state is kept. Default: $STATE_DIRECTORY, else `./state`. Also --state-dir.",
        ),
    ] = Path("state")
    api: Annotated[Api, describe("table", "The API.", table=Api)] = Api()
    poll: Annotated[Poll, describe("table", "Polling.", table=Poll)] = Poll()
    accounts: Annotated[tuple[Account, ...], describe("tables", "Only for several IONOS accounts.", table=Account)] = ()
    sinks: Annotated[tuple[AnySink, ...], describe("tables", "Where events go; each on its own.")] = ()
    filter: Annotated[Filter, describe("table", "Filter.", table=Filter)] = Filter()
    redact: Annotated[Redact, describe("table", "Redaction.", table=Redact, credential="redact")] = Redact()
    outbox: Annotated[Outbox, describe("table", "Outbox.", table=Outbox)] = Outbox()
    evidence: Annotated[Evidence, describe("table", "Evidence.", table=Evidence)] = Evidence()
    state: Annotated[State, describe("table", "The state's database.", table=State, credential="state")] = State()
    http: Annotated[Http, describe("table", "Endpoint.", table=Http)] = Http()
    source: Annotated[Path | None, describe("file", "The file it was read from.", is_internal=True)] = None
    network: Annotated[
        NetworkEnvironment, describe("text", "Proxies and CA bundle of the environment.", is_internal=True)
    ] = NetworkEnvironment({})

    def proxies_for(self, url: str) -> dict[str, str]:
        """The proxies `requests` is to use for this URL; empty for none. Not for logs."""
        return self.network.proxies_for(url)

    @property
    def ca_bundle(self) -> str | None:
        """CA certificates for every server that has no `ca_file` of its own ($REQUESTS_CA_BUNDLE)."""
        return self.network.ca_bundle
