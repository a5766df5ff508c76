"""The benchmarks. Each function runs ionos-poller and its baseline, checks that both did the work, and yields rows."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks.measure import (
    Cost,
    bare,
    cost_of_idling,
    environment,
    ours,
    run,
    simulator,
    state_of,
    sync_count,
)
from tests.benchmarks.mock_kafka import cluster
from tests.benchmarks.row import REPEATS, Row, middle, row_of
from tests.scale import FETCH_POLL_SECONDS, seconds_for_one_round
from tests.support import TOP


def collect(room: Path, scale: int) -> Iterator[Row]:
    """From the simulator into the state and to stdout, against a loop that only requests, parses and prints."""
    for contracts, events, latency, goal in (
        (1, 200_000 // scale, 0, ">= 0.75"),
        (10, 20_000 // scale, 0, ""),
        (10, 5_000 // scale, 50, ""),
        (10, 5_000 // scale, 150, ""),
    ):
        total = contracts * events
        pairs = []
        with simulator(contracts=contracts, events=events, span="3h", latency_ms=latency) as url:
            for number in range(REPEATS if goal else 1):
                theirs = run(bare("collect", url, "10800", str(events)), env=environment(url, room), cwd=TOP)
                env = environment(
                    url, room / f"collect-{contracts}-{latency}-{number}", **(_CONCURRENT if latency else {})
                )
                mine = run(ours("fetch", "--since", "4h"), env=env, cwd=TOP)
                assert mine.lines == theirs.lines == total, (mine.lines, theirs.lines)
                pairs.append((mine, theirs))
        yield row_of(f"collect {contracts} x {events:,}, {latency} ms", goal, *middle(pairs), total)


def filter_redact(room: Path, scale: int) -> Iterator[Row]:
    """Collecting with filters and redaction, against collecting without."""
    events = 100_000 // scale
    config = room / "redact.toml"
    key = room / "hash.key"
    key.write_text("a-key-for-this-benchmark-alone\n")
    config.write_text(
        '[filter]\nexclude = [{ type = "NoSuchType" }, { action = "NOSUCH" }]\n'
        '[redact]\nmask = ["principal.sourceIP"]\nhash = ["principal.identity.username"]\n'
        f'hash_key_file = "{key}"\n'
    )
    with simulator(contracts=1, events=events, span="3h") as url:
        plain = run(ours("fetch", "--since", "4h"), env=environment(url, room / "plain"), cwd=TOP)
        command = ours("--config", str(config), "fetch", "--since", "4h")
        mine = run(command, env=environment(url, room / "redacted"), cwd=TOP)
    assert mine.lines == plain.lines == events
    yield row_of(f"filter and redact {events:,}, against neither", ">= 0.75", mine, plain, events)


def formats(room: Path, scale: int) -> Iterator[Row]:
    """Collecting with each entry converted to a standard format, against collecting raw entries."""
    events = 200_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:

        def collected(name: str, place: str) -> Cost:
            env = environment(url, room / place)
            return run(ours("fetch", "--since", "4h", "--format", name), env=env, cwd=TOP)

        for name in ("ocsf", "ecs"):
            places = [f"{name}-{number}" for number in range(REPEATS)]
            pairs = [(collected(name, place), collected("raw", f"{place}-raw")) for place in places]
            assert all(mine.lines == raw.lines == events for mine, raw in pairs)
            yield row_of(f"format {name} {events:,}, against raw", ">= 0.6", *middle(pairs), events)


def nothing_new(room: Path, scale: int) -> Iterator[Row]:
    """A `fetch` with nothing new (mostly start-up), against a bare script that imports requests and makes the same requests."""
    with simulator(contracts=2, events=1000, span="1h") as url:
        env = environment(url, room / "idle")
        run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
        runs = 15
        mine = [run(ours("fetch"), env=env, cwd=TOP) for _ in range(runs)]
        theirs = [run(bare("idle", url, "600"), env=env, cwd=TOP) for _ in range(runs)]
    seconds = [statistics.median(cost.seconds for cost in costs) for costs in (mine, theirs)]
    note = f"{seconds[0] / seconds[1]:.2f} times a bare script"
    yield Row("fetch, nothing new", seconds[1] / seconds[0], ">= 0.67", *seconds, mine[0].peak_mb, note=note)


def deliver(room: Path, scale: int) -> Iterator[Row]:
    """From a filled outbox to one HTTP sink, against a loop that reads lines, gzips and posts."""
    events = 100_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:
        env = environment(url, room / "deliver")
        lines = room / "deliver.ndjson"
        run(ours("backfill", "--from", "4h", "--to", "0s", "--output", str(lines)), env=env, cwd=TOP)
        theirs = run(bare("deliver", str(lines), f"{url}/sink/logging/activityLog"), env=env, cwd=TOP)
        command = [sys.executable, "-m", "tests.benchmarks.deliver", str(lines), str(sink_config(room, url))]
        mine = run([*command, str(room / "deliver-state")], env=env, cwd=TOP)
        accepted = state_of(url)["intakes"]["logging"]["accepted"]
    assert accepted == 2 * events, accepted
    seconds = float(mine.last_line)  # only the delivery, without starting and filling
    yield Row(f"deliver {events:,}", theirs.seconds / seconds, ">= 0.7", seconds, theirs.seconds)


def kafka(room: Path, scale: int) -> Iterator[Row]:
    """From a filled outbox to librdkafka's mock cluster, one transaction a batch, against a producer without transactions."""
    events = 100_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:
        env = environment(url, room / "kafka")
        lines = room / "kafka.ndjson"
        run(ours("backfill", "--from", "4h", "--to", "0s", "--output", str(lines)), env=env, cwd=TOP)
    pairs = []
    with cluster() as (address, count):
        for number in range(REPEATS):
            config = room / "kafka.toml"
            config.write_text(
                f'[[sinks]]\nname = "k"\ntype = "kafka"\nbrokers = ["{address}"]\ntopic = "ours-{number}"\nsecurity = "plain"\n'
                "batch_events = 1000\n"
            )
            assert count(f"ours-{number}") == 0  # creates the topic
            command = [sys.executable, "-m", "tests.benchmarks.deliver", str(lines), str(config)]
            mine = run([*command, str(room / f"kafka-state-{number}")], env=env, cwd=TOP)
            theirs = run(bare("kafka", str(lines), address, f"bare-{number}"), env=env, cwd=TOP)
            found = [count(f"{name}-{number}") for name in ("ours", "bare")]
            assert found == [events + events // 1000, events], found  # ours has a marker at the end of each transaction
            pairs.append(
                (float(theirs.last_line) / float(mine.last_line), float(mine.last_line), float(theirs.last_line))
            )
    ratio, mine_seconds, theirs_seconds = sorted(pairs)[REPEATS // 2]
    note = f"{events / mine_seconds:,.0f} entries/s"
    yield Row(f"kafka {events:,}, against a bare producer", ratio, ">= 0.5", mine_seconds, theirs_seconds, note=note)


def archive(room: Path, scale: int) -> Iterator[Row]:
    """From a filled outbox to a signed archive in a directory, against the file sink; then the cost of verifying an archive."""
    events = 100_000 // scale
    with simulator(contracts=1, events=events, span="24h") as url:
        env = environment(url, room / "archive")
        lines = room / "archive.ndjson"
        run(ours("backfill", "--from", "25h", "--to", "0s", "--output", str(lines)), env=env, cwd=TOP)
    key = room / "evidence.key"
    run(ours("archive", "keygen", str(key)), env=env, cwd=TOP)
    tables = {
        "file": f'type = "file"\npath = "{room}/files/{{date}}.ndjson"\n',
        "archive": f'type = "archive"\nurl = "file://{room}/audit-{{number}}"\n\n[evidence]\nsigning_key_file = "{key}"\n',
    }
    pairs = []
    for number in range(REPEATS):
        seconds = {}
        for name, table in tables.items():
            config = room / f"archive-{name}.toml"
            # A new directory each time: ext4 is slow to create files where many were just deleted.
            config.write_text(f'[[sinks]]\nname = "{name}"\n{table.replace("{number}", str(number))}')
            command = [sys.executable, "-m", "tests.benchmarks.deliver", str(lines), str(config)]
            cost = run([*command, str(room / f"archive-state-{name}-{number}"), "5"], env=env, cwd=TOP)
            seconds[name] = float(cost.last_line)
        pairs.append((seconds["archive"] / seconds["file"], seconds["archive"], seconds["file"]))
    times, mine_seconds, theirs_seconds = sorted(pairs)[REPEATS // 2]
    note = f"{times:.2f} times the file sink, an entry; goal: 1.3"
    name = f"archive {events:,}, against the file sink"
    yield Row(name, 1 / times, ">= 0.77", mine_seconds, theirs_seconds, note=note)
    days, place = 10, room / "audit-of-days"
    run([sys.executable, "-m", "tests.benchmarks.days", str(lines), str(place), str(days)], env=env, cwd=TOP)
    mine = run(ours("archive", "verify", str(place)), env=env, cwd=TOP)
    yield row_of(f"verify an archive of {days * events:,}", "< 60 s, < 120 MB", mine, None, days * events)


def loki(room: Path, scale: int) -> Iterator[Row]:
    """From an outbox with a few entries of each of 1,000 contracts to a Loki with 50 ms of latency, one stream a request."""
    contracts, events = 1000 // scale, 20
    total = contracts * events
    for span, what in (("20m", "in time"), ("3h", "over 3 h")):
        with simulator(contracts=1, events=total, span=span, fault="sink=loki:latency:50ms") as url:
            env = environment(url, room / f"loki-{span}")
            lines = room / "loki.ndjson"
            run(ours("backfill", "--from", "4h", "--to", "0s", "--output", str(lines)), env=env, cwd=TOP)
            config = room / "loki.toml"
            config.write_text(f'[[sinks]]\nname = "loki"\ntype = "loki"\nurl = "{url}/sink/loki"\n')
            command = [sys.executable, "-m", "tests.benchmarks.deliver", str(lines), str(config)]
            mine = run([*command, str(room / f"loki-state-{span}"), str(contracts)], env=env, cwd=TOP)
            lines.unlink()
            found = state_of(url)["intakes"]["loki"]
        assert (found["distinct"], found["repeats"]) == (total, 0), found
        seconds = float(mine.last_line)
        note = f"{total / seconds:,.0f} entries/s, {found['requests']:,} requests, {found['most_active_streams']:,} streams"
        yield Row(
            f"Loki, {contracts:,} contracts x {events}, {what}, 50 ms",
            goal=">= 2,000 entries/s",
            ours_seconds=seconds,
            peak_mb=mine.peak_mb,
            note=note,
        )


def end_to_end(room: Path, scale: int) -> Iterator[Row]:
    """Collect, commit durably, deliver over HTTP, against a loop that keeps no state; with latency and many contracts."""
    for contracts, events, latency, goal in (
        (1, 200_000 // scale, 0, ">= 0.8"),
        (10, 20_000 // scale, 0, ""),
        (1000, 100 // scale, 0, ""),
        (8, 10_000 // scale, 50, ""),
        (8, 10_000 // scale, 150, ">= 5"),
    ):
        total = contracts * events
        pairs = []
        with simulator(contracts=contracts, events=events, span="3h", latency_ms=latency) as url:
            sink_url = f"{url}/sink/logging/activityLog"
            for number in range(REPEATS if goal else 1):
                before = state_of(url)["intakes"]["logging"]["accepted"]
                env = environment(url, room / f"end-{contracts}-{latency}-{number}")
                theirs = run(bare("end-to-end", url, "10800", str(events), sink_url), env=env, cwd=TOP)
                mine = run(export(room, url, jobs=16 if latency else 4), env=env, cwd=TOP)
                accepted = state_of(url)["intakes"]["logging"]["accepted"] - before
                assert accepted == 2 * total, (accepted, total)
                pairs.append((mine, theirs))
        yield row_of(f"end to end {contracts:,} x {events:,}, {latency} ms", goal, *middle(pairs), total)


def growth(room: Path, scale: int) -> Iterator[Row]:
    """End to end, one contract, more and more entries: memory stays the same, time grows linearly."""
    points = []
    for events in (50_000 // scale, 200_000 // scale, 500_000 // scale, 1_000_000 // scale, 2_000_000 // scale):
        with simulator(contracts=1, events=events, span="12h") as url:
            mine = run(export(room, url, jobs=4), env=environment(url, room / f"growth-{events}"), cwd=TOP)
            assert state_of(url)["intakes"]["logging"]["accepted"] == events
        points.append((events, mine.seconds))
        yield row_of(f"end to end {events:,}: memory", "< 90 MB", mine, None, events)
    yield Row("time by entries", note=_line_through(points, "an entry"))


def syncs(room: Path, scale: int) -> Iterator[Row]:
    """Waits for the disk: syncs per 1,000 entries, end to end."""
    events = 50_000 // scale
    with simulator(contracts=1, events=events, span="3h") as url:
        count = sync_count(export(room, url, jobs=4), env=environment(url, room / "syncs"), cwd=TOP)
    if count is None:
        yield Row("syncs", note="not measured: there is no strace here")
    else:
        yield Row(f"syncs, end to end {events:,}", syncs_per_1000=count / events * 1000)


def many_contracts(room: Path, scale: int) -> Iterator[Row]:
    """Up to 1,000 contracts with little activity, polled once: time grows linearly."""
    points = []
    for contracts in (100 // scale, 300 // scale, 1000 // scale):
        with simulator(contracts=contracts, events=10, span="1h", latency_ms=50) as url:
            env = environment(url, room / f"many-{contracts}", **_CONCURRENT)
            first = run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
            second = run(ours("fetch"), env=env, cwd=TOP)
        assert first.lines == contracts * 10
        points.append((contracts, second.seconds))
        yield row_of(f"{contracts:,} contracts, nothing new, 50 ms", "< 10 s", second, None, 0)
    yield row_of(f"{contracts:,} contracts, first poll, 50 ms", "", first, None, 0)
    yield Row("time by contracts", note=_line_through(points, "a contract"))
    contracts = 2000 // scale
    with simulator(contracts=contracts, events=1, span="1h", latency_ms=50) as url:
        env = environment(url, room / "predicted", **_CONCURRENT)
        run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
        mine = run(ours("fetch"), env=env, cwd=TOP)
    predicted = seconds_for_one_round(contracts, 16, 0.05, FETCH_POLL_SECONDS)
    name = f"{contracts:,} contracts, nothing new, 50 ms, against the simulation of docs/scale.md"
    yield Row(name, predicted / mine.seconds, "0.75 to 1.33", mine.seconds, predicted)


def quiet(room: Path, scale: int) -> Iterator[Row]:
    """Processor time of a `fetch` of contracts without anything new, against a loop of `requests.get` and parsing."""
    contracts = 1000 // scale
    with simulator(contracts=contracts, events=1, span="1h") as url:
        env = environment(url, room / "quiet")
        run(ours("fetch", "--since", "2h"), env=env, cwd=TOP)
        pairs = [
            (run(ours("fetch"), env=env, cwd=TOP), run(bare("idle", url, "600"), env=env, cwd=TOP))
            for _ in range(REPEATS)
        ]
    mine, theirs = sorted(pairs, key=lambda pair: pair[1].cpu_seconds / pair[0].cpu_seconds)[len(pairs) // 2]
    yield Row(
        f"{contracts:,} quiet contracts, processor time",
        theirs.cpu_seconds / mine.cpu_seconds,
        ">= 0.67",
        mine.seconds,
        theirs.seconds,
        mine.peak_mb,
        note=f"{mine.cpu_seconds:.2f} s of processor time, bare {theirs.cpu_seconds:.2f} s",
    )


def idle(room: Path, scale: int) -> Iterator[Row]:
    """A minute of `run` without new entries, with the default configuration."""
    seconds = 60 // scale
    for contracts in (10, 1000 // scale):
        with simulator(contracts=contracts, events=10, span="1h") as url:
            env = environment(url, room / f"idle-{contracts}", IONOS_POLLER_HTTP__LISTEN="")
            command = ours("--config", str(sink_config(room, url)), "run")
            mine = cost_of_idling(command, seconds, env=env, cwd=TOP)
        note = f"{mine.cpu_seconds / mine.seconds:.2%} of a core, {mine.written_bytes / 1024:,.0f} KB written"
        name = f"idle, {contracts:,} contracts, {seconds} s"
        yield Row(name, ours_seconds=mine.seconds, peak_mb=mine.peak_mb, note=note)


def tutorial(room: Path, scale: int) -> Iterator[Row]:
    """Against a stand-in for the tutorial's script: sequential, in memory, with a sleep."""
    for latency in (0, 50):
        events = 20_000 // scale
        with simulator(contracts=2, events=events, span="3h", latency_ms=latency) as url:
            theirs = run(bare("tutorial", url, "10800", str(events)), env=environment(url, room), cwd=TOP)
            mine = run(ours("fetch", "--since", "4h"), env=environment(url, room / f"tutorial-{latency}"), cwd=TOP)
        assert mine.lines == theirs.lines == 2 * events
        yield row_of(f"collect 2 x {events:,}, {latency} ms, against the tutorial's way", "", mine, theirs, 2 * events)


def sink_config(room: Path, url: str) -> Path:
    """A configuration with the simulator's stand-in of the Logging Service as the only sink."""
    path = room / "sink.toml"
    path.write_text(
        f'[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "{url}/sink/logging"\ntag = "activityLog"\n'
        'api_key = "demo-key"\nrequests_per_second = 10000\n'
    )
    path.chmod(0o600)
    return path


def export(room: Path, url: str, *, jobs: int) -> list[str]:
    """The command that exports all entries of the simulator to its Logging Service."""
    config = str(sink_config(room, url))
    what = ("--from", "13h", "--to", "0s", "--sink", "logging", "--jobs", str(jobs))
    return ours("--config", config, "backfill", *what)


def _line_through(points: Sequence[tuple[int, float]], of_what: str) -> str:
    """A linear fit of the seconds as text: its start, its slope, and R^2."""
    counts, seconds = [count for count, _ in points], [value for _, value in points]
    slope, start = statistics.linear_regression(counts, seconds)
    explained = statistics.correlation(counts, seconds) ** 2
    return f"{start:.2f} s + {slope * 1e6:,.1f} us {of_what}; R^2 = {explained:.4f}"


_CONCURRENT = {"IONOS_POLLER_API__CONCURRENCY": "16"}

BENCHMARKS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "collect": collect,
    "filter-redact": filter_redact,
    "formats": formats,
    "deliver": deliver,
    "kafka": kafka,
    "archive": archive,
    "loki": loki,
    "end-to-end": end_to_end,
    "growth": growth,
    "syncs": syncs,
    "many-contracts": many_contracts,
    "quiet": quiet,
    "idle": idle,
    "nothing-new": nothing_new,
    "tutorial": tutorial,
}
