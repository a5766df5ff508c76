"""The data of the page, made by hand: a day of a daemon without problems. Tests change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poller.config import Account, Config, Poll
from poller.config.sinks import FileSink
from poller.core.windows import Window
from poller.pipeline.status import Seen, Use
from poller.service.web.view import View
from poller.store.gaps import Gap
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract, Replica, Sink, Size

HOUR = 3600
NOW = 1_777_644_120  # 2026-05-01T14:02:00Z
TOP = NOW // HOUR * HOUR  # the start of the hour
FIRST = "31960001"


def contract(name: str = FIRST, **changes: Any) -> Contract:
    row = Contract(
        contract=name, account="default", origin=NOW - 30 * 24 * HOUR, watermark=NOW - 3, fetched=2343, new=2010,
        seen=333, filtered=0, late=2, repaired=0, succeeded_at=NOW - 3, failed_at=None, failure="", audited_at=NOW - HOUR,
        compared_start=NOW - 7 * 24 * HOUR, compared_end=TOP - HOUR,
    )  # fmt: skip
    return row._replace(**changes)


def sink(
    name: str = "archive", *, waiting: int = 0, dead_letters: int = 0, since: int | None = None, **changes: Any
) -> SinkOverview:
    row = Sink(
        name=name, type="file", assigned=2010, delivered=2010 - waiting - dead_letters,
        dead=dead_letters, attempts=0, retry_at=None, postponed_at=None, parked_at=None, failure="", succeeded_at=NOW - 4,
        output_offset=None,
    )  # fmt: skip
    return SinkOverview(row._replace(**changes), waiting, since, dead_letters)


def gap(id_: int = 1, start: int = TOP - 5 * HOUR, seconds: int = 1, **changes: Any) -> Gap:
    row = Gap(
        id_, FIRST, start, start + seconds, "dense", "more entries than the API serves", start, 3, NOW + 40, False, True
    )
    return row._replace(**changes)


def replica(host: str = "poller-0", **changes: Any) -> Replica:
    return Replica(host, 12, "0.1.0", NOW - HOUR, NOW - 2, 3, "1")._replace(**changes)


def state(
    contracts: Sequence[Contract] | None = None, sinks: Sequence[SinkOverview] | None = None, **changes: Any
) -> Overview:
    rows = [contract()] if contracts is None else list(contracts)
    overview = Overview(
        contracts=rows, sinks=[sink()] if sinks is None else list(sinks), outbox=Size(0, 0), filtered={}, pending=(), letters={},
        taken_back=None, gaps=(), created_at=None, last_action=None, finished=None, replicas=(), archives={},
    )  # fmt: skip
    return overview._replace(**changes)


def view(overview: Overview | None = None, *, config: Config | None = None, **changes: Any) -> View:
    overview = state() if overview is None else overview
    if config is None:
        config = config_of([row.sink.name for row in overview.sinks])
    seen = Seen([Use("run", "state/run.db", overview, 4711)], [])
    return View(NOW, config, seen)._replace(**changes)


def config_of(sinks: Sequence[str], **changes: Any) -> Config:
    tables = tuple(FileSink(name=name, path="activity.ndjson") for name in sinks)
    return Config(poll=Poll(interval_seconds=60), accounts=(Account(name="default"),), sinks=tables, **changes)


__all__ = ["FIRST", "HOUR", "NOW", "TOP", "Window", "config_of", "contract", "gap", "replica", "sink", "state", "view"]
