"""The settings of a simulator. Most of them can be changed while it runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from poller.core.errors import ConfigError, Problem

MIB = 1 << 20
FIRST_CONTRACT = 31960001


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One simulator. The first group is fixed at the start; the rest can be changed while it runs."""

    contracts: int | tuple[int, ...] = 2  # how many, or which
    events: int = 1000  # entries per contract
    span_seconds: float = 3600  # over which they are spread
    end: datetime | None = None  # where the span ends; default: now, floored to the second
    seed: int = 1
    port: int = 0  # 0: any free one
    faults: tuple[str, ...] = ()  # grammar: poller.simulator.faults
    ids: Literal["uuid", "hit", "none"] = "uuid"  # where an entry's id is: `@uuid`, the hit's `_id`, nowhere
    entry_bytes: int = 0  # pad every generated entry to this many bytes
    live_per_second: float = 0  # new entries per contract while it runs

    # The API
    token: str = "demo-token"  # noqa: S105 - of a simulated API, not a secret
    username: str = "demo"
    password: str = "demo"  # noqa: S105 - as above
    forbidden: tuple[int, ...] = ()  # contracts that answer 403
    unlisted: tuple[int, ...] = ()  # contracts that answer, but are not in the list of contracts
    max_limit: int = 1000  # a larger `limit` is cut to this, without an error
    result_window: int = 10_000  # offset + limit beyond it is refused ...
    result_window_status: int = 400  # ... with this status
    total_cap: int = 0  # `total` is never above it; 0: exact
    max_range_days: int = 0  # a longer range is refused with 400; 0: any
    oldest_first: bool = False
    shape: Literal["hits", "items", "list"] = "hits"  # of the answers, contracts and entries
    indented: bool = False  # whitespace in the answers
    raw_body: str = ""  # answer every page with exactly this
    latency_seconds: float = 0
    date_skew_seconds: float = 0  # how far the API's clock (`Date`, new entries) is ahead of ours

    # The intakes
    keep_lines: bool = False  # keep the accepted lines, not only their digests
    api_key: str = "demo-key"  # Logging Service
    logging_tag: str = ""  # the only tag of its pipeline; another one: 404; empty: any
    pipeline_ready_seconds: float = 0.5  # how long a new pipeline is being provisioned
    poison: str = ""  # logging, http: a request with this text is refused (400); opensearch, otlp: only its item
    poison_stores_before: bool = True  # logging, http: the lines before the one with `poison` are stored
    logging_requests_per_second: int = 50  # maximum of a pipeline, in any second; more: 429; 0: no limit
    max_body_bytes: int = 0  # logging, http: a larger body, inflated, is refused with 413; 0: any
    loki_tenant: str = ""  # required X-Scope-OrgID
    loki_authorization: str = ""  # required Authorization, the whole header
    loki_max_body_bytes: int = 6 * MIB  # the tenant's burst: a larger body is always refused with 429
    loki_bytes_per_second: int = 4 * MIB  # the tenant's rate: more is refused with 429
    loki_max_streams: int = 5000  # maximum active streams of the tenant: one more is refused with 429
    loki_idle_seconds: float = 1800  # after this time without entries, a stream is not active
    loki_stream_bytes_per_second: int = 3 * MIB  # the rate of a stream: more is refused with 429 ...
    loki_stream_burst_bytes: int = 15 * MIB  # ... beyond this burst
    loki_limited_contract: str = ""  # every push to a stream of this contract exceeds that rate
    loki_shard_bytes_per_second: int = 1_536_000  # a faster stream is split into shards; 0: never
    opensearch_authorization: str = ""  # required Authorization, the whole header
    opensearch_number: str = "2.19.0"  # its version; empty: not shown
    opensearch_distribution: str = "opensearch"  # empty: Elasticsearch
    opensearch_busy_every: int = 0  # every n-th item is refused with 429; 0: none
    opensearch_readonly: bool = False  # every item is refused with 403, as for an index on a full disk
    application_id: str = "demo-app"  # Moesif
    kafka_brokers: tuple[str, ...] = ("10.7.222.11:9093",)  # of the cluster of Event Streams
    moesif_max_body_bytes: int = 15 * MIB
    moesif_max_action_bytes: int = MIB


_FIXED = frozenset(SimulatorSettings.__struct_fields__[: SimulatorSettings.__struct_fields__.index("token")])


def change(settings: SimulatorSettings, changes: dict[str, Any]) -> SimulatorSettings:
    """`settings` with `changes`.

    Raises: ConfigError for a key that is unknown or fixed at the start, and for a value of the wrong type.
    """
    problems = [
        Problem(f"settings.{key}", "unknown, or fixed at the start")
        for key in changes
        if key in _FIXED or key not in SimulatorSettings.__struct_fields__
    ]
    if problems:
        raise ConfigError(problems)
    try:
        return msgspec.convert({**msgspec.structs.asdict(settings), **changes}, SimulatorSettings)
    except msgspec.ValidationError as error:
        raise ConfigError.of("settings", str(error)) from error
